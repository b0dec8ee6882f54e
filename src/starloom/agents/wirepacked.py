"""What is sent for each stage, as MessagePack and back: assignments, results, outcomes. Used through `agents.wire`.

It is what the structs of `agents.messages` say, by field names; what JSON alone can say, such as parameters, stays JSON
beside it. What arrives is checked as all else is. ADR 24 has why it is no protobuf.
"""

from collections.abc import Iterable, Mapping
from math import inf

import msgspec

from starloom.agents.messages import Assign, Await, Finished, Input, Outcome, Reader, Resolve, Source
from starloom.agents.wirevalues import Parsed, check_ref, digest_from_wire, encode, object_from_wire, parse, refusal
from starloom.dag import limits
from starloom.dag.constellation import Comparison
from starloom.dag.facts import Consumed, Timing, figure_fault
from starloom.dag.ids import FencingToken, TaskToken
from starloom.dag.patch import Patch
from starloom.v1 import session_pb2 as pb

_pack = msgspec.msgpack.Encoder().encode
_assigns = msgspec.msgpack.Decoder(Assign)
_results = msgspec.msgpack.Decoder(Finished)
_outcomes = msgspec.msgpack.Decoder(Outcome)
_resolves = msgspec.msgpack.Decoder(Resolve)
_comparisons = msgspec.json.Decoder(Comparison)
_patches = msgspec.json.Decoder(Patch)


def assign_to_wire(assign: Assign) -> pb.Assign:
    """The right to run an attempt."""
    if not assign.params and not assign.comparisons:
        return pb.Assign(packed=_pack(assign))
    return pb.Assign(
        packed=_pack(msgspec.structs.replace(assign, params={}, comparisons=())),
        params_json=encode(assign.params) if assign.params else b"",
        comparisons_json=[encode(comparison) for comparison in assign.comparisons],
    )


def assign_from_wire(message: pb.Assign, place: str) -> Assign:
    """The right to run an attempt; raises InvalidInput."""
    assign = _unpack(_assigns, message.packed, place)
    if assign.params or assign.comparisons:
        raise refusal(place, "has parameters or comparisons that are not JSON")
    if not assign.kind or not assign.target:
        raise refusal(place, "lacks a kind or a target")
    if not 0 <= assign.timeout_seconds <= limits.DURATION_SECONDS_MAX:
        raise refusal(
            f"{place}.timeout_seconds", f"is {assign.timeout_seconds}, not 0 to {limits.DURATION_SECONDS_MAX}"
        )
    if not abs(assign.after_seconds) <= limits.PLAN_ORDER_SECONDS_MAX:
        bounds = f"-{limits.PLAN_ORDER_SECONDS_MAX} to {limits.PLAN_ORDER_SECONDS_MAX}"
        raise refusal(f"{place}.after_seconds", f"is {assign.after_seconds}, not {bounds}")
    _check_task(assign.task, place)
    _check_inputs(assign.inputs, place)
    for number, awaited in enumerate(assign.awaits):
        _check_await(awaited, f"{place}.awaits.{number}")
    for number, reader in enumerate(assign.readers):
        _check_reader(reader, f"{place}.readers.{number}")
    if not message.params_json and not message.comparisons_json:
        return assign
    return msgspec.structs.replace(
        assign,
        params=object_from_wire(message.params_json, f"{place}.params_json"),
        comparisons=tuple(
            parse(_comparisons, data, f"{place}.comparisons_json.{number}")
            for number, data in enumerate(message.comparisons_json)
        ),
    )


def resolve_to_wire(command: Resolve) -> pb.Resolve:
    """What an awaited attempt gave, told by the orchestrator."""
    return pb.Resolve(packed=_pack(command))


def resolve_from_wire(message: pb.Resolve, place: str) -> Resolve:
    """What an awaited attempt gave, told by the orchestrator; raises InvalidInput."""
    command = _unpack(_resolves, message.packed, place)
    if not command.upstream or not _is_token(command.token):
        raise refusal(place, "lacks an upstream, an epoch or an attempt")
    _check_task(command.task, place)
    _check_inputs(command.inputs, place)
    return command


def finished_to_wire(report: Finished) -> pb.Finished:
    """A result."""
    if report.growth is None:
        return pb.Finished(packed=_pack(report))
    packed = _pack(msgspec.structs.replace(report, growth=None))
    return pb.Finished(packed=packed, growth_json=encode(report.growth))


def finished_from_wire(message: pb.Finished, place: str) -> Finished:
    """A result; raises InvalidInput."""
    report = _unpack(_results, message.packed, place)
    if report.growth is not None:
        raise refusal(place, "has growth that is not JSON")
    _check_task(report.task, place)
    _check_outputs(report, place)
    for port, consumed in report.consumed.items():
        _check_consumed(consumed, f"{place}.consumed.{port}")
    _check_timing(report.timing, place)
    if report.figures:
        _check_figures(report.figures, place)
    data = message.growth_json
    if not data:
        return report
    if len(data) > limits.GROWTH_BYTES_MAX:
        what = f"has {len(data)} bytes, over GROWTH_BYTES_MAX = {limits.GROWTH_BYTES_MAX}"
        raise refusal(f"{place}.growth_json", what)
    return msgspec.structs.replace(report, growth=parse(_patches, data, f"{place}.growth_json"))


def outcome_to_wire(outcome: Outcome) -> bytes:
    """What an attempt gave, as agents tell each other."""
    return _pack(outcome)


def outcome_from_wire(data: bytes, place: str = "outcome") -> Outcome:
    """What an attempt gave; raises InvalidInput."""
    outcome = _unpack(_outcomes, data, place)
    _check_task(outcome.task, place)
    _check_outputs(outcome, place)
    if unknown := [port for port in outcome.late if port not in outcome.outputs]:
        raise refusal(f"{place}.late", f"names {', '.join(unknown)}, which it does not give")
    return outcome


def _unpack(decoder: msgspec.msgpack.Decoder[Parsed], data: bytes, place: str) -> Parsed:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise refusal(place, f"is no readable MessagePack of its type: {error}") from error


def _is_token(token: FencingToken) -> bool:
    return token.epoch > 0 and token.attempt > 0


def _check_task(task: TaskToken, place: str) -> None:
    if not task.job or not task.stage or not _is_token(task.token):
        raise refusal(f"{place}.task", "lacks a job, a stage, an epoch or an attempt")


def _check_outputs(given: Finished | Outcome, place: str) -> None:
    for port, ref in given.outputs.items():
        check_ref(ref, f"{place}.outputs.{port}")


def _check_consumed(consumed: Consumed, place: str) -> None:
    digest_from_wire(consumed.digest, f"{place}.digest")
    if consumed.token is not None and not _is_token(consumed.token):
        raise refusal(f"{place}.token", "lacks an epoch or an attempt")


def _check_inputs(inputs: Iterable[Input], place: str) -> None:
    for number, item in enumerate(inputs):
        here = f"{place}.inputs.{number}"
        if not item.port:
            raise refusal(f"{here}.port", "is empty")
        if item.late:
            raise refusal(f"{here}.late", "is set; what has no digest is not assigned")
        check_ref(item.ref, f"{here}.ref")
        _check_consumed(item.consumed, f"{here}.consumed")
        _check_sources(item.others, f"{here}.others")


def _check_sources(sources: Iterable[Source], place: str) -> None:
    for number, source in enumerate(sources):
        if not source.agent or not source.address:
            raise refusal(f"{place}.{number}", "lacks an agent or its address")


def _check_await(awaited: Await, place: str) -> None:
    if awaited.upstream and not (_is_token(awaited.token) and awaited.agent and awaited.address):
        raise refusal(place, "lacks an epoch, an attempt, an agent or its address")
    if not awaited.upstream and (awaited.feeds or awaited.holds or not awaited.streams):
        raise refusal(place, "names no upstream; only the streams of a job need none")


def _check_reader(reader: Reader, place: str) -> None:
    if not reader.port or not reader.reader:
        raise refusal(place, "lacks a port or a reader")


def _check_timing(timing: Timing, place: str) -> None:
    # A journal is JSON, which has no word for infinity or for what is no number.
    if not all(0 <= seconds < inf for seconds in (timing.queue, timing.transfer, timing.load, timing.run)):
        raise refusal(f"{place}.timing", f"is {timing}; every time is a finite number of seconds from 0 on")


def _check_figures(figures: Mapping[str, float], place: str) -> None:
    faults = [f"{name} {fault}" for name, value in figures.items() if (fault := figure_fault(name, value))]
    if faults or len(figures) > limits.FIGURES_PER_STAGE_MAX:
        raise refusal(f"{place}.figures", "; ".join(faults) or f"has {len(figures)} of them, which is too many")
