"""What simulated stages that grow ask for: readers of regions, rounds of a loop, more for a consumer; and what liars ask for.

As with `model.make`, all of it is a function of the kind, the parameters and what was read.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from starloom.dag.constellation import Dependency, OnFailure, OutputBinding, Policy, Requirements, Retry, StageSpec
from starloom.dag.ids import Attempt, StageId
from starloom.dag.patch import Add, AnyOperation, Move, Patch, Redirect, Remove, Rewire
from starloom.orchestrator.simulate.loop import Chance
from starloom.orchestrator.simulate.model import KINDS

LOADED_STAGES_MAX = 16
"""A lie over a bound that is higher would be mostly work."""
ENOUGH_EACH = 8
"""Of so many rounds one finds that it is enough, before its time."""
_OWN, _AGAIN, _OWN_INPUT = StageId("@"), StageId("@again"), StageId("@in")
_POLICY = Policy(retry=Retry(times=2, first_seconds=0.05), on_failure=OnFailure.SKIP)

Source = tuple[StageId, str]
"""A stage, and a port of it."""


class _Stage(NamedTuple):
    """A stage that is asked for, and what feeds it."""

    spec: StageSpec
    sources: Mapping[str, Source]


def asks(kind: str, params: Mapping[str, Any], digests: Mapping[str, str]) -> Patch | None:
    """What a run asks for, by the digests of its outputs."""
    if not KINDS[kind].grows:
        return None
    ((port, content),) = digests.items()
    operations: tuple[AnyOperation, ...] = ()
    found = int(content[:4], 16)
    if params["adds"]:
        # As a detector does, which may find nothing.
        count = found % (params["adds"] + 1) if kind == "sim.find" else 1 + found % params["adds"]
        operations = _regions(kind, params, port, count) if count else ()
    elif params["rounds"] and found % ENOUGH_EACH:
        again = {"rounds": params["rounds"] - 1}
        following = _Stage(StageSpec(id=_AGAIN, kind=_OWN, params=again), {"before": (_OWN, port)})
        operations = (_added([following]), _instead(port, (_AGAIN, port)))
    elif params["feeds"] and found % 3:
        operations = (_feeding(params, [(_OWN, port)]),)
    return Patch(operations=operations, why="it found something") if operations else None


def _regions(kind: str, params: Mapping[str, Any], port: str, count: int) -> tuple[AnyOperation, ...]:
    """Some readers, of its own output or of its input, and what joins them; or they feed a consumer directly."""
    found: list[_Stage] = []
    for index in range(count):
        given: dict[str, Any] = {"seed": index, "seconds": round(params["seconds"] / 2, 4)}
        reader, source, into = "sim.read", (_OWN_INPUT, "data"), "data"
        if kind == "sim.grow":
            reader, source, into = "sim.blob", (_OWN, port), "from_it"
            given["size"] = 20_000 + params["size"] // count
            if params["rounds"] and not index:
                reader, given["rounds"] = "sim.grow", params["rounds"]
        found.append(_Stage(_spec(index, reader, given), {into: source}))
    sources = [(stage.spec.id, port) for stage in found]
    if params["feeds"]:
        return _added(found), _feeding(params, sources)
    joins = "sim.blob" if kind == "sim.grow" else "sim.work"
    whole = _Stage(
        _spec(count, joins, {"seed": count, "seconds": 0.01}),
        {f"part_{index}": source for index, source in enumerate(sources)},
    )
    return _added([*found, whole]), _instead(port, (whole.spec.id, port))


def _spec(index: int, kind: str, params: dict[str, Any]) -> StageSpec:
    return StageSpec(id=StageId(f"@{index}"), kind=kind, params=params, policy=_POLICY)


def _added(stages: Iterable[_Stage]) -> Add:
    stages = tuple(stages)
    arcs = (_arc(source, (stage.spec.id, port)) for stage in stages for port, source in stage.sources.items())
    return Add(stages=tuple(stage.spec for stage in stages), dependencies=tuple(arcs))


def _instead(port: str, source: Source) -> Redirect:
    return Redirect(stage=_OWN, output=port, sources=(OutputBinding(upstream=source[0], output=source[1]),))


def _feeding(params: Mapping[str, Any], sources: Iterable[Source]) -> Rewire:
    """More inputs for a consumer that it was told of."""
    stage = StageId(params["feeds"])
    ports = ((source, f"more_{params['seed']}_{index}") for index, source in enumerate(sources))
    return Rewire(stage=stage, dependencies=tuple(_arc(source, (stage, port)) for source, port in ports))


def _arc(source: Source, into: Source) -> Dependency:
    return Dependency(upstream=source[0], downstream=into[0], output=source[1], input=into[1])


class Lie(NamedTuple):
    """What is known where a stage lies: its attempt, the bound on what comes of it, and a stage of its job."""

    attempt: Attempt
    bound: int
    other: StageId


def lied(chance: Chance, truth: Patch | None, lie: Lie) -> Patch | None:
    """Something else: other with each attempt, nothing, what no stage may ask for, or too much."""
    operations = truth.operations if truth is not None else ()
    ways = ["other", "other", "nothing", "wrong", "much"]
    match chance.pick(ways):
        case "other":
            more = _Stage(_spec(100 + lie.attempt, "sim.work", {"seed": lie.attempt}), {})
            return Patch(operations=(*operations, _added([more])), why="it found something else")
        case "nothing":
            return None
        case "much" if lie.bound <= LOADED_STAGES_MAX:
            many = (_Stage(_spec(index, "sim.work", {"seed": index}), {}) for index in range(lie.bound + 1))
            return Patch(operations=(_added(many),), why="it found too much")
    wrong: tuple[AnyOperation, ...] = (
        Remove(stage=lie.other),
        Move(stage=lie.other, requires=Requirements()),
        _added([_Stage(StageSpec(id=StageId("mine"), kind="sim.work"), {})]),
        _added([_Stage(_spec(90, "sim.unknown", {}), {})]),
        _added([_Stage(_spec(90, "sim.work", {}), {"from_it": (_OWN_INPUT, "nothing")})]),
        _added([_Stage(_spec(90, "sim.read", {}), {})]),
        Rewire(stage=lie.other, waits=(Dependency(upstream=_OWN, downstream=lie.other),)),
        Redirect(stage=lie.other, output="value", sources=(OutputBinding(upstream=_OWN, output="value"),)),
    )
    return Patch(operations=(*operations, chance.pick(wrong)), why="it found what cannot be")
