"""Makes a constellation from Python.

    g = Graph("spoken-question")
    audio = g.input("audio", PortType.BYTES)
    photo = g.input("photo", PortType.IMAGE, private=Private.DEVICE)
    hear = g.stage("hear", "audio.decode", data=audio, require=Requirements(tiers=(Tier.DEVICE,)))
    words = g.stage("words", "speech.recognise", audio=hear["audio"], prefer=[Preference(tiers=(Tier.EDGE,), seconds=2)])
    loud = g.stage("loud", "image.enlarge", image=photo, after=[words.on_completion()])
    say = g.stage("speak", "speech.synthesise", text=words["text"].when("!=", ""))
    g.output("answer", say["audio"])
    constellation = g.build(kinds)

What cannot be meant is refused at once, where it is written: a name given twice, a stage of another
graph, a cycle. Everything that needs the kinds is for `build`, which reports all of it together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from starloom.dag.checks import plain_fault
from starloom.dag.constellation import (
    Comparison,
    Constellation,
    Dependency,
    Goal,
    InputBinding,
    Join,
    On,
    Operator,
    OutputBinding,
    Policy,
    Preference,
    Preferences,
    Private,
    Requirements,
    Slo,
    Spread,
    StageSpec,
    Variant,
)
from starloom.dag.errors import InvalidConstellation, Problem
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.order import TopologicalOrder, cycle_text
from starloom.dag.validate import validate
from starloom.dag.values import Full, Port, PortType


@dataclass(frozen=True, eq=False)
class JobInput:
    """An input of the job, to feed to stages."""

    graph: "Graph"
    name: str


@dataclass(frozen=True, eq=False)
class OutputRef:
    """An output port of a stage, perhaps with a condition; to feed to stages or to make an output of the job."""

    stage: "StageRef"
    port: str
    on: On = On.SUCCESS
    comparison: Comparison | None = None

    def when(self, operator: Operator, value: Any, *, path: str = "", output: str = "") -> Self:
        """The same port, on condition that it (or another `output` of the stage) compares so with `value`."""
        comparison = Comparison(output=output or self.port, operator=operator, value=value, path=path)
        return replace(self, on=On.COMPARISON, comparison=comparison)

    def on_completion(self) -> Self:
        """The same port, but its consumer starts however the stage ends, without a value if it failed."""
        return replace(self, on=On.COMPLETION, comparison=None)


@dataclass(frozen=True, eq=False)
class Order:
    """A stage to wait for, without data, with the condition."""

    stage: "StageRef"
    on: On = On.SUCCESS
    comparison: Comparison | None = None


@dataclass(frozen=True, eq=False)
class StageRef:
    """A stage of a graph: `stage["port"]` is one of its outputs."""

    graph: "Graph"
    id: StageId

    def __getitem__(self, port: str) -> OutputRef:
        return OutputRef(self, port)

    def on_completion(self) -> Order:
        """To be waited for however it ends."""
        return Order(self, On.COMPLETION)

    def when(self, output: str, operator: Operator, value: Any, *, path: str = "") -> Order:
        """To be waited for, on condition that its `output` compares so with `value`."""
        comparison = Comparison(output=output, operator=operator, value=value, path=path)
        return Order(self, On.COMPARISON, comparison)


Source = JobInput | OutputRef
_ANYWHERE, _USUAL, _ALIKE = Requirements(), Policy(), Preferences()
Upstream = StageRef | Order


class Graph:
    """A constellation in the making. Every method raises InvalidConstellation for what is plainly wrong."""

    def __init__(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        deadline_seconds: float = 0.0,
        objective: Iterable[Goal] = (),
        every_seconds: float = 0.0,
        rate: float = 0.0,
        slo: Slo = Slo(),  # noqa: B008
        least_quality: float = 0.0,
    ) -> None:
        self.name = name
        self.least_quality = least_quality
        self.deadline_seconds = deadline_seconds
        self.objective = tuple(objective)
        self.every_seconds, self.rate, self.slo = every_seconds, rate, slo
        self.labels = dict(labels or {})
        self._stages: dict[StageId, StageSpec] = {}
        self._dependencies: list[Dependency] = []
        self._inputs: dict[str, Port] = {}
        self._private: dict[str, Private] = {}
        self._bindings: list[InputBinding] = []
        self._outputs: dict[str, OutputBinding] = {}
        self._order = TopologicalOrder[StageId]()

    def __repr__(self) -> str:
        return f"<Graph {self.name!r}: {len(self._stages)} stages, {len(self._dependencies)} dependencies>"

    def input(
        self,
        name: str,
        port_type: PortType,
        *,
        stream: bool = False,
        optional: bool = False,
        chunks: int = 0,
        full: Full | None = None,
        private: Private | None = None,
    ) -> JobInput:
        """Adds an input of the job; `chunks` and `full` say what is kept of a stream, as in `values.Port`.

        `private`: how far it may go, with all that is computed from it.
        """
        self._refuse_second(self._inputs, f"inputs.{name}", name)
        if private is not None:
            self._private[name] = private
        self._inputs[name] = Port(port_type, stream=stream, optional=optional, chunks=chunks, full=full)
        return JobInput(self, name)

    def stage(
        self,
        name: str,
        kind: str,
        /,
        *,
        params: Mapping[str, Any] | None = None,
        require: Requirements | None = None,
        prefer: Iterable[Preference] = (),
        avoid: Iterable[Preference] = (),
        colocate: str = "",
        spread: Spread | None = None,
        policy: Policy | None = None,
        private: Private | dict[str, Private] | None = None,
        declassify: bool | None = None,
        variants: Iterable[Variant] = (),
        variant: str = "",
        least_quality: float = 0.0,
        join: Join = Join.ALL,
        after: Upstream | Iterable[Upstream] = (),
        inputs: Mapping[str, Source] | None = None,
        **ports: Source,
    ) -> StageRef:
        """Adds a stage of a registered kind, fed by keyword; an empty `name` makes one from the kind's.

        `prefer` and `avoid` weigh the places that meet `require`, as in `constellation.Preference`.
        `colocate`: on one node with all others that are given the same name. `spread`: apart from others.
        `private` and `declassify` say how far what it gives may go, as in `constellation.StageSpec`.
        `variants`, the best first, are ways to compute it, as in `constellation.Variant`.
        `inputs` feeds ports whose names are no Python names, or are taken by a parameter here.
        """
        stage = StageId(name or self._free_name(kind))
        place = f"stages.{stage}"
        self._refuse_second(self._stages, place, stage)
        twice = sorted(set(ports) & set(inputs or {}))
        if twice:
            raise InvalidConstellation([Problem(f"{place}.in.{port}", "is fed twice; keep one") for port in twice])
        if fault := plain_fault(dict(params or {})):
            raise InvalidConstellation([Problem(f"{place}.params", fault)])
        feeds = {**ports, **(inputs or {})}
        waits = [after] if isinstance(after, StageRef | Order) else list(after)
        self._refuse_foreign(place, [*feeds.values(), *waits])
        self._stages[stage] = StageSpec(
            id=stage,
            kind=kind,
            params=_with_lists(dict(params or {})),
            requires=require or _ANYWHERE,
            policy=policy or _USUAL,
            private=private,
            declassify=declassify,
            variants=tuple(variants),
            variant=variant,
            least_quality=least_quality,
            colocate=colocate,
            spread=spread,
            prefers=Preferences(prefer=tuple(prefer), avoid=tuple(avoid)) if prefer or avoid else _ALIKE,
            join=join,
        )
        self._order.add_vertex(stage)
        ref = StageRef(self, stage)
        for port, source in feeds.items():
            self.connect(source, ref, port)
        for upstream in waits:
            self.wait(ref, upstream)
        return ref

    def connect(self, source: Source, stage: StageRef, port: str) -> None:
        """Feeds a job input or an upstream's output to a stage's input port. Refuses a cycle, and names it."""
        place = f"stages.{stage.id}.in.{port}"
        self._refuse_foreign(place, [source, stage])
        if isinstance(source, JobInput):
            self._bindings.append(InputBinding(source=source.name, downstream=stage.id, input=port))
            return
        self._add(
            place,
            Dependency(
                upstream=source.stage.id,
                downstream=stage.id,
                output=source.port,
                input=port,
                on=source.on,
                comparison=source.comparison,
            ),
        )

    def wait(self, stage: StageRef, upstream: Upstream) -> None:
        """Makes a stage wait for another, without data. Refuses a cycle, and names it."""
        place = f"stages.{stage.id}.after"
        self._refuse_foreign(place, [stage, upstream])
        order = Order(upstream) if isinstance(upstream, StageRef) else upstream
        self._add(
            place,
            Dependency(upstream=order.stage.id, downstream=stage.id, on=order.on, comparison=order.comparison),
        )

    def output(self, name: str, source: OutputRef) -> None:
        """Makes a stage's output port an output of the job."""
        place = f"outputs.{name}"
        self._refuse_second(self._outputs, place, name)
        self._refuse_foreign(place, [source])
        if source.on != On.SUCCESS:
            raise InvalidConstellation([Problem(place, "an output of the job takes no condition; leave it out")])
        self._outputs[name] = OutputBinding(upstream=source.stage.id, output=source.port)

    def build(self, kinds: Mapping[str, KindSpec] | None = None) -> Constellation:
        """The constellation; checked against `kinds`, if they are given.

        Raises InvalidConstellation with everything that is wrong. Without `kinds` nothing more is
        checked here: the orchestrator does so at submission.
        """
        constellation = Constellation(
            name=self.name,
            stages=dict(self._stages),
            dependencies=tuple(self._dependencies),
            inputs=dict(self._inputs),
            private=dict(self._private),
            bindings=tuple(self._bindings),
            outputs=dict(self._outputs),
            labels=dict(self.labels),
            deadline_seconds=self.deadline_seconds,
            objective=self.objective,
            every_seconds=self.every_seconds,
            rate=self.rate,
            slo=self.slo,
            least_quality=self.least_quality,
        )
        if kinds is not None:
            validate(constellation, kinds)
        return constellation

    def _add(self, place: str, dependency: Dependency) -> None:
        cycle = self._order.add_arc(dependency.upstream, dependency.downstream)
        if cycle:
            raise InvalidConstellation([Problem(place, f"closes a cycle: {cycle_text(cycle)}; leave it out")])
        self._dependencies.append(dependency)

    def _free_name(self, kind: str) -> str:
        base = kind.rpartition(".")[2]
        name, count = base, 1
        while name in self._stages:
            count += 1
            name = f"{base}-{count}"
        return name

    def _refuse_second(self, known: Mapping[Any, Any], place: str, name: str) -> None:
        if name in known:
            raise InvalidConstellation([Problem(place, f"there is already one called {name!r}; take another name")])

    def _refuse_foreign(self, place: str, refs: Iterable[Source | Upstream]) -> None:
        for ref in refs:
            owner = ref.stage.graph if isinstance(ref, OutputRef | Order) else ref.graph
            if owner is not self:
                what = f"belongs to graph {owner.name!r}, not to {self.name!r}; add it here"
                raise InvalidConstellation([Problem(place, what)])


def _with_lists(value: Any) -> Any:
    """The value with tuples as lists, as it will be when it has travelled."""
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, list | tuple) else value
