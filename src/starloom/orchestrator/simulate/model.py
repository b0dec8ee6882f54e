"""What simulated stages give, and what a job has to give whatever happens to it.

A value's digest is a function of the kind, the parameters and the digests of the inputs; the bytes are nowhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from starloom.agents.messages import Assign
from starloom.agents.streams.records import RunningDigest
from starloom.agents.values import digest, encode
from starloom.dag.conditions import comparison_key, holds
from starloom.dag.constellation import Comparison, Constellation, Dependency, Join, On, OnFailure, StageSpec
from starloom.dag.ids import AgentId, StageId
from starloom.dag.kinds import Cost, KindCatalog, KindSpec, Param
from starloom.dag.stagestate import StageStatus
from starloom.dag.streams import has_streams, is_stream
from starloom.dag.values import Port, PortType, ValueRef

JSON, BYTES = Port(PortType.JSON), Port(PortType.BYTES)
STREAM = Port(PortType.BYTES, stream=True, chunks=4)
"""Keeps less than most streams have in all, so that their producers wait, and what is over is made again."""
_PARAMS = {
    "seed": Param(type="integer", default=0),
    "seconds": Param(type="number", default=0.05),
    "pace": Param(type="number", default=1.0),
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
        KindSpec(
            name="sim.ticks",
            variadic_input=JSON,
            outputs={"data": STREAM},
            params={**_PARAMS, "chunks": Param(type="integer", default=6)},
            cost=_COST,
        ),
        KindSpec(name="sim.map", inputs={"data": STREAM}, outputs={"data": STREAM}, params=_PARAMS, cost=_COST),
        KindSpec(name="sim.sum", variadic_input=STREAM, outputs={"value": JSON}, params=_PARAMS, cost=_COST),
    ]
)
"""`simulate.asking` says what those that grow ask for."""
STREAMING = frozenset(name for name, kind in KINDS.items() if has_streams(kind))
NO_CHUNKS: Mapping[str, Sequence[bytes]] = {}
_keys = msgspec.json.Encoder(order="sorted")


class Made(NamedTuple):
    """What a run gives: references, and the values that comparisons are made with."""

    outputs: dict[str, ValueRef]
    values: dict[str, Any]


def content_of(kind: str, params: Mapping[str, Any], inputs: Mapping[str, str], salt: str = "") -> str:
    """What a run gives, as far as it rests on values; of a stage that gives a stream this is known before it reads one."""
    # How long it takes is no part of what it gives.
    counts = {name: value for name, value in params.items() if name != "pace"}
    given = {port: read for port, read in inputs.items() if kind != "sim.map"}
    return digest(_keys.encode((kind, counts, given, salt)))


def tick(content: str, offset: int) -> bytes:
    """One chunk of a source."""
    return f"{content[:16]}{offset}".encode()


def mapped(content: str, chunk: bytes | memoryview) -> bytes:
    """What becomes of a chunk in a stage that makes one of each."""
    return digest(content.encode() + chunk)[:16].encode()


def given_chunks(
    kind: str, params: Mapping[str, Any], content: str, came: Mapping[str, Sequence[bytes]]
) -> list[bytes]:
    """All chunks of a stage that gives a stream."""
    if kind == "sim.ticks":
        return [tick(content, offset) for offset in range(params["chunks"])]
    return [mapped(content, chunk) for chunk in came.get("data", ())]


def stream_ref(chunks: int, size: int, running: str, holder: AgentId) -> ValueRef:
    """The reference to a stream that is over, by its running digest."""
    meta = {"stream": True, "chunks": chunks}
    return ValueRef(type=STREAM.type, bytes=size, digest=running, meta=meta, holder=holder)


def _whole_stream(chunks: Sequence[bytes], holder: AgentId) -> ValueRef:
    running = RunningDigest()
    for offset, data in enumerate(chunks):
        running.add(offset, 0, data)
    return stream_ref(running.chunks, running.bytes, running.hex(), holder)


def make(
    kind: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    holder: AgentId,
    salt: str = "",
    came: Mapping[str, Sequence[bytes]] = NO_CHUNKS,
    *,
    private: bool = False,
) -> Made:
    """The outputs of a run, by input digests; `salt` is what a stage that is not deterministic adds.

    `came` has the chunks of streams that a stage made others of. Nothing is inline of one that is `private`.
    """
    content = content_of(kind, params, inputs, salt)
    outputs: dict[str, ValueRef] = {}
    values: dict[str, Any] = {}
    for name, port in KINDS[kind].outputs.items():
        if port.stream:
            outputs[name] = _whole_stream(given_chunks(kind, params, content, came), holder)
        elif port.type is PortType.JSON:
            value = values[name] = {"score": params.get("score", 0), "of": content[:16]}
            data, meta = encode(PortType.JSON, value)
            outputs[name] = ValueRef(
                type=port.type,
                bytes=len(data),
                digest=digest(data),
                meta=meta,
                inline=None if private else data,
                holder=holder,
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

    `ran`: what it has is its own, and no default. `begun`: it runs, whatever comes of that; one that reads streams may
    be skipped all the same. `chunks` are those of a stream, by port.
    """

    status: StageStatus
    digests: Mapping[str, str] = {}
    holds: Mapping[str, bool] = {}
    ran: bool = False
    begun: bool = False
    chunks: Mapping[str, Sequence[bytes]] = NO_CHUNKS


def expected(constellation: Constellation, inputs: Mapping[str, ValueRef]) -> dict[StageId, Expected | None]:
    """How each stage has to end, if no fault has used its budgets up; None where that rests on which came first.

    That is so for what joins `any`, and for a stage that always fails and reads the stream of one that does not succeed: the
    two run at the same time, and without any fault as well each may be the first to fail.
    """
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
            against = [arc for arc, way in zip(arcs[name], lets, strict=True) if way is False]
            found[name] = _kept_from(spec, all(_begins_beside(arc, constellation, found) for arc in against))
        elif None in lets or any(found[arc.upstream] is None for arc in arcs[name] if arc.output):
            found[name] = None
        else:
            read = given[name]
            came: dict[str, Sequence[bytes]] = {}
            for arc in arcs[name]:
                upstream = found[arc.upstream]
                if upstream is not None and arc.output in upstream.digests:
                    read[arc.input] = upstream.digests[arc.output]
                    came[arc.input] = upstream.chunks.get(arc.output, ())
            found[name] = _run(spec, read, asked[name], came)
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


def _begins_beside(arc: Dependency, constellation: Constellation, found: Mapping[StageId, Expected | None]) -> bool:
    """Whether a stage begins beside an upstream that does not let it run in the end: it reads a stream of it by then."""
    upstream = found[arc.upstream]
    streams = is_stream(arc, KINDS[constellation.stages[arc.upstream].kind])
    return streams and upstream is not None and upstream.begun


def _kept_from(spec: StageSpec, begun: bool) -> Expected | None:
    """How a stage ends whose upstreams do not let it run: skipped, unless it fails by itself before these have ended."""
    first_decides = begun and whole_params(spec)["fails"] and spec.policy.on_failure is not OnFailure.SKIP
    return None if first_decides else Expected(StageStatus.SKIPPED, begun=begun)


def _run(
    spec: StageSpec, read: Mapping[str, str], asked: list[Comparison], came: Mapping[str, Sequence[bytes]]
) -> Expected:
    missing = KINDS[spec.kind].inputs.keys() - read.keys()
    params = whole_params(spec)
    fails = params["fails"] or missing
    chunks = {}
    if fails:
        match spec.policy.on_failure:
            case OnFailure.FAIL:
                return Expected(StageStatus.FAILED, begun=True)
            case OnFailure.SKIP:
                return Expected(StageStatus.SKIPPED, begun=True)
        values = spec.policy.defaults
        digests = {
            port: digest(encode(KINDS[spec.kind].outputs[port].type, value)[0]) for port, value in values.items()
        }
    else:
        made = make(spec.kind, params, read, AgentId(""), came=came)
        values = made.values
        digests = {port: ref.digest for port, ref in made.outputs.items()}
        if gives(spec.kind) is STREAM:
            chunks = {"data": given_chunks(spec.kind, params, content_of(spec.kind, params, read), came)}
    return Expected(
        StageStatus.SUCCEEDED,
        digests,
        {comparison_key(one): holds(one, values.get(one.output)) for one in asked},
        ran=not fails,
        begun=True,
        chunks=chunks,
    )
