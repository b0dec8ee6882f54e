"""What simulated stages give, and what a job has to give whatever happens to it.

A value's digest is a function of the kind, the parameters and the digests of the inputs; the bytes are nowhere.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from starloom.agents.messages import Assign
from starloom.agents.values import digest, encode
from starloom.dag.conditions import comparison_key, holds
from starloom.dag.constellation import Comparison, Constellation, Dependency, Join, On, OnFailure, StageSpec
from starloom.dag.ids import AgentId, StageId
from starloom.dag.kinds import Cost, KindCatalog, KindSpec, Param
from starloom.dag.stagestate import StageStatus
from starloom.dag.values import Port, PortType, ValueRef

JSON, BYTES = Port(PortType.JSON), Port(PortType.BYTES)
_PARAMS = {
    "seed": Param(type="integer", default=0),
    "seconds": Param(type="number", default=0.05),
    "fails": Param(type="boolean", default=False),
}
_GROWING = {
    **_PARAMS,
    "adds": Param(type="integer", default=0),
    "rounds": Param(type="integer", default=0),
    "feeds": Param(type="string", default=""),
}
_COST = Cost(run_seconds=0.1)
KINDS = KindCatalog(
    [
        KindSpec(name="sim.work", variadic_input=JSON, outputs={"value": JSON}, params=_PARAMS, cost=_COST),
        KindSpec(
            name="sim.judge",
            variadic_input=JSON,
            outputs={"value": JSON},
            params={**_PARAMS, "score": Param(type="integer", default=0)},
            cost=_COST,
        ),
        KindSpec(
            name="sim.blob",
            variadic_input=BYTES,
            outputs={"data": BYTES},
            params={**_PARAMS, "size": Param(type="integer", default=100_000)},
            cost=_COST,
        ),
        KindSpec(name="sim.read", inputs={"data": BYTES}, outputs={"value": JSON}, params=_PARAMS, cost=_COST),
        KindSpec(
            name="sim.find", inputs={"data": BYTES}, outputs={"value": JSON}, params=_GROWING, cost=_COST, grows=True
        ),
        KindSpec(
            name="sim.grow",
            variadic_input=BYTES,
            outputs={"data": BYTES},
            params={**_GROWING, "size": Param(type="integer", default=100_000)},
            cost=_COST,
            grows=True,
        ),
        KindSpec(
            name="sim.loop", variadic_input=JSON, outputs={"value": JSON}, params=_GROWING, cost=_COST, grows=True
        ),
    ]
)
"""`simulate.asking` says what the last three grow."""
_keys = msgspec.json.Encoder(order="sorted")


class Made(NamedTuple):
    """What a run gives: references, and the values that comparisons are made with."""

    outputs: dict[str, ValueRef]
    values: dict[str, Any]


def make(kind: str, params: Mapping[str, Any], inputs: Mapping[str, str], holder: AgentId, salt: str = "") -> Made:
    """The outputs of a run, by input digests; `salt` is what a stage that is not deterministic adds."""
    content = digest(_keys.encode((kind, dict(params), dict(inputs), salt)))
    outputs: dict[str, ValueRef] = {}
    values: dict[str, Any] = {}
    for name, port in KINDS[kind].outputs.items():
        if port.type is PortType.JSON:
            value = values[name] = {"score": params.get("score", 0), "of": content[:16]}
            data, meta = encode(PortType.JSON, value)
            outputs[name] = ValueRef(
                type=port.type, bytes=len(data), digest=digest(data), meta=meta, inline=data, holder=holder
            )
        else:
            outputs[name] = ValueRef(type=port.type, bytes=params["size"], digest=content, holder=holder)
    return Made(outputs, values)


def whole_params(spec: StageSpec) -> dict[str, Any]:
    """The parameters of a stage, with its kind's defaults for those that are not said."""
    return {**{name: param.default for name, param in KINDS[spec.kind].params.items()}, **spec.params}


def answers(assign: Assign, made: Made) -> tuple[bool, ...]:
    """Whether each comparison of the assignment holds."""
    return tuple(holds(comparison, made.values.get(comparison.output)) for comparison in assign.comparisons)


def takes(kind: str) -> Port:
    """What a kind reads."""
    spec = KINDS[kind]
    return spec.inputs["data"] if spec.inputs else spec.variadic_input or JSON


def gives(kind: str) -> Port:
    """What a kind's one output is."""
    return next(iter(KINDS[kind].outputs.values()))


class Expected(NamedTuple):
    """How a stage has to end: its status, the digests of its outputs, and which comparisons of them hold.

    `ran`: what it has is its own, and no default.
    """

    status: StageStatus
    digests: Mapping[str, str] = {}
    holds: Mapping[str, bool] = {}
    ran: bool = False


def expected(constellation: Constellation, inputs: Mapping[str, ValueRef]) -> dict[StageId, Expected | None]:
    """How each stage has to end, if no fault has used its budgets up; None where that rests on which came first."""
    found: dict[StageId, Expected | None] = {}
    arcs: dict[StageId, list[Dependency]] = {name: [] for name in constellation.stages}
    asked: dict[StageId, list[Comparison]] = {name: [] for name in constellation.stages}
    given: dict[StageId, dict[str, str]] = {name: {} for name in constellation.stages}
    for arc in constellation.dependencies:
        arcs[arc.downstream].append(arc)
        if arc.comparison is not None:
            asked[arc.upstream].append(arc.comparison)
    for binding in constellation.bindings:
        given[binding.downstream][binding.input] = inputs[binding.source].digest
    for name in in_order(constellation):
        spec = constellation.stages[name]
        lets = [_satisfied(arc, found[arc.upstream]) for arc in arcs[name]]
        if spec.cancelled:
            found[name] = Expected(StageStatus.SKIPPED)
        elif spec.join is Join.ANY and lets:
            found[name] = Expected(StageStatus.SKIPPED) if all(one is False for one in lets) else None
        elif False in lets:
            found[name] = Expected(StageStatus.SKIPPED)
        elif None in lets or any(found[arc.upstream] is None for arc in arcs[name] if arc.output):
            found[name] = None
        else:
            read = given[name]
            for arc in arcs[name]:
                upstream = found[arc.upstream]
                if upstream is not None and arc.output in upstream.digests:
                    read[arc.input] = upstream.digests[arc.output]
            found[name] = _run(spec, read, asked[name])
    return found


def in_order(constellation: Constellation) -> list[StageId]:
    """Stages, each behind its upstreams; those of a cycle are left out."""
    waiting = dict.fromkeys(constellation.stages, 0)
    downstreams: dict[StageId, list[StageId]] = {name: [] for name in constellation.stages}
    for arc in constellation.dependencies:
        waiting[arc.downstream] += 1
        downstreams[arc.upstream].append(arc.downstream)
    order = [name for name, count in waiting.items() if not count]
    for name in order:
        for downstream in downstreams[name]:
            waiting[downstream] -= 1
            if not waiting[downstream]:
                order.append(downstream)
    return order


def _satisfied(arc: Dependency, upstream: Expected | None) -> bool | None:
    if arc.on is On.COMPLETION:
        return True
    if upstream is None:
        return None
    if upstream.status is not StageStatus.SUCCEEDED:
        return False
    return arc.comparison is None or upstream.holds.get(comparison_key(arc.comparison), False)


def _run(spec: StageSpec, read: Mapping[str, str], asked: list[Comparison]) -> Expected:
    missing = KINDS[spec.kind].inputs.keys() - read.keys()
    params = whole_params(spec)
    fails = params["fails"] or missing
    if fails:
        match spec.policy.on_failure:
            case OnFailure.FAIL:
                return Expected(StageStatus.FAILED)
            case OnFailure.SKIP:
                return Expected(StageStatus.SKIPPED)
        values = spec.policy.defaults
        digests = {
            port: digest(encode(KINDS[spec.kind].outputs[port].type, value)[0]) for port, value in values.items()
        }
    else:
        made = make(spec.kind, params, read, AgentId(""))
        values = made.values
        digests = {port: ref.digest for port, ref in made.outputs.items()}
    return Expected(
        StageStatus.SUCCEEDED,
        digests,
        {comparison_key(one): holds(one, values.get(one.output)) for one in asked},
        ran=not fails,
    )
