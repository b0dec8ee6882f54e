"""Messages of the session, and references to values, as protobuf and back. The only place that knows both.

What arrives is checked: a malformed message raises InvalidInput, which says where. Functions come in
pairs, `x_to_wire` and `x_from_wire`.
"""

from collections.abc import Iterable, Iterator
from math import inf
from typing import Any, TypeVar

import msgspec

from starloom.agents.channel import Frame
from starloom.agents.messages import (
    Assign,
    Cancel,
    Command,
    Failed,
    Finished,
    Held,
    Hello,
    Input,
    InputLost,
    Load,
    NotHeld,
    Release,
    Replicate,
    Report,
    Revoke,
    Revoked,
    Started,
    WasCancelled,
    Welcome,
)
from starloom.agents.wireawaits import await_from_wire, await_to_wire
from starloom.agents.wirereplicas import (
    held_from_wire,
    held_to_wire,
    missing_from_wire,
    missing_to_wire,
    not_held_from_wire,
    not_held_to_wire,
    replicate_from_wire,
    replicate_to_wire,
    sources_from_wire,
    sources_to_wire,
)
from starloom.agents.wirevalues import digest_from_wire as digest_from_wire
from starloom.agents.wirevalues import encode, object_from_wire, parse, refusal, token_from_wire
from starloom.agents.wirevalues import ref_from_wire as ref_from_wire
from starloom.agents.wirevalues import ref_to_wire as ref_to_wire
from starloom.agents.wirevalues import task_from_wire as task_from_wire
from starloom.agents.wirevalues import task_to_wire as task_to_wire
from starloom.dag import limits
from starloom.dag.checks import name_fault
from starloom.dag.constellation import Comparison
from starloom.dag.facts import Consumed, ErrorInfo, Timing, figure_fault
from starloom.dag.ids import AgentId, Epoch, JobId, StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.patch import Patch
from starloom.devices.node import NodeProfile
from starloom.v1 import session_pb2 as pb

Parsed = TypeVar("Parsed")

_profiles = msgspec.json.Decoder(NodeProfile)
_kinds = msgspec.json.Decoder(KindSpec)
_loads = msgspec.json.Decoder(Load)
_comparisons = msgspec.json.Decoder(Comparison)
_patches = msgspec.json.Decoder(Patch)


def hello_to_wire(hello: Hello) -> pb.Hello:
    """An agent's first message."""
    return pb.Hello(
        agent=hello.agent,
        incarnation=hello.incarnation,
        profile_json=encode(hello.profile),
        kinds_json=[encode(kind) for kind in hello.kinds],
        session=hello.session,
        received=hello.received,
        held=[task_to_wire(task) for task in hello.held],
        job_ids=list(hello.jobs),
        epoch_seen=hello.epoch_seen,
    )


def hello_from_wire(message: pb.Hello) -> Hello:
    """An agent's first message; raises InvalidInput."""
    if not message.agent or not message.incarnation:
        raise refusal("hello", "lacks the agent's name or its incarnation")
    if fault := name_fault(message.agent, dotted=True):
        raise refusal("hello.agent", f"{fault}; start the agent under another name")
    profile = parse(_profiles, message.profile_json, "hello.profile_json")
    if profile.name != message.agent:
        raise refusal("hello.profile_json.name", f"is {profile.name!r}, but the agent is {message.agent!r}")
    return Hello(
        agent=AgentId(message.agent),
        incarnation=message.incarnation,
        profile=profile,
        kinds=tuple(parse(_kinds, kind, f"hello.kinds_json.{n}") for n, kind in enumerate(message.kinds_json)),
        session=message.session,
        received=message.received,
        held=tuple(task_from_wire(task, f"hello.held.{n}") for n, task in enumerate(message.held)),
        jobs=tuple(JobId(job) for job in message.job_ids),
        epoch_seen=Epoch(message.epoch_seen),
    )


def welcome_to_wire(welcome: Welcome) -> pb.Welcome:
    """The answer to Hello."""
    return pb.Welcome(
        session=welcome.session,
        epoch=welcome.epoch,
        resumed=welcome.resumed,
        received=welcome.received,
        lease_seconds=welcome.lease_seconds,
        heartbeat_seconds=welcome.heartbeat_seconds,
    )


def welcome_from_wire(message: pb.Welcome) -> Welcome:
    """The answer to Hello; raises InvalidInput."""
    if not message.session or not message.epoch:
        raise refusal("welcome", "lacks a session or an epoch")
    for name in ("lease_seconds", "heartbeat_seconds"):
        seconds = getattr(message, name)
        if not 0 < seconds <= limits.DURATION_SECONDS_MAX:
            raise refusal(f"welcome.{name}", f"is {seconds}, not above 0 and at most {limits.DURATION_SECONDS_MAX}")
    return Welcome(
        session=message.session,
        epoch=Epoch(message.epoch),
        resumed=message.resumed,
        received=message.received,
        lease_seconds=message.lease_seconds,
        heartbeat_seconds=message.heartbeat_seconds,
    )


def load_to_wire(load: Load) -> bytes:
    """A heartbeat's load, as JSON."""
    return encode(load)


def load_from_wire(data: bytes) -> Load:
    """A heartbeat's load; raises InvalidInput."""
    return parse(_loads, data, "heartbeat.load_json")


def reports_to_wire(frame: Frame[Report]) -> list[pb.Reports]:
    """A frame as messages of at most SESSION_FRAME_BYTES_MAX each, unless one report alone is larger."""
    return [
        pb.Reports(sequence=sequence, acknowledged=frame.acknowledged, reports=part)
        for sequence, part in _split(frame.sequence, map(report_to_wire, frame.messages))
    ]


def reports_from_wire(message: pb.Reports, node: str = "") -> Frame[Report]:
    """A frame; raises InvalidInput. Failures are said to be of `node`, the agent that sent them."""
    reports = tuple(report_from_wire(report, f"reports.{n}", node) for n, report in enumerate(message.reports))
    return Frame(_sequence(message.sequence, reports, "reports"), message.acknowledged, reports)


def commands_to_wire(frame: Frame[Command], sender_epoch: Epoch) -> list[pb.Commands]:
    """A frame as messages of at most SESSION_FRAME_BYTES_MAX each, unless one command alone is larger."""
    return [
        pb.Commands(sequence=sequence, acknowledged=frame.acknowledged, commands=part, sender_epoch=sender_epoch)
        for sequence, part in _split(frame.sequence, map(command_to_wire, frame.messages))
    ]


def commands_from_wire(message: pb.Commands) -> tuple[Frame[Command], Epoch]:
    """A frame and its sender's epoch; raises InvalidInput."""
    commands = tuple(command_from_wire(command, f"commands.{n}") for n, command in enumerate(message.commands))
    frame = Frame(_sequence(message.sequence, commands, "commands"), message.acknowledged, commands)
    return frame, Epoch(message.sender_epoch)


def _sequence(number: int, messages: tuple[Any, ...], place: str) -> int:
    if messages and number < 1:
        raise refusal(f"{place}.sequence", "is 0; the first message has number 1")
    return number


def _split(sequence: int, packed: Iterable[Parsed]) -> Iterator[tuple[int, list[Parsed]]]:
    """The messages in parts, each with its first one's number; an empty frame is one empty part."""
    part: list[Parsed] = []
    room = limits.SESSION_FRAME_BYTES_MAX
    for message in packed:
        size = message.ByteSize()  # type: ignore[attr-defined]
        if part and size > room:
            yield sequence, part
            sequence += len(part)
            part, room = [], limits.SESSION_FRAME_BYTES_MAX
        part.append(message)
        room -= size
    yield sequence, part


def command_to_wire(command: Command) -> pb.Command:
    """One command."""
    match command:
        case Assign():
            return pb.Command(assign=_assign_to_wire(command))
        case Cancel(task=task):
            return pb.Command(cancel=pb.Cancel(task=task_to_wire(task)))
        case Revoke(task=task):
            return pb.Command(revoke=pb.Revoke(task=task_to_wire(task)))
        case Release(job=job):
            return pb.Command(release=pb.Release(job_id=job))
        case Replicate():
            return pb.Command(replicate=replicate_to_wire(command))


def command_from_wire(message: pb.Command, place: str = "command") -> Command:
    """One command; raises InvalidInput."""
    match message.WhichOneof("command"):
        case "assign":
            return _assign_from_wire(message.assign, f"{place}.assign")
        case "cancel":
            return Cancel(task=task_from_wire(message.cancel.task, f"{place}.cancel.task"))
        case "revoke":
            return Revoke(task=task_from_wire(message.revoke.task, f"{place}.revoke.task"))
        case "release":
            if not message.release.job_id:
                raise refusal(f"{place}.release.job_id", "is empty")
            return Release(job=JobId(message.release.job_id))
        case "replicate":
            return replicate_from_wire(message.replicate, f"{place}.replicate")
        case _:
            raise refusal(place, "is none that is known here: the sender is newer")


def _assign_to_wire(assign: Assign) -> pb.Assign:
    return pb.Assign(
        task=task_to_wire(assign.task),
        kind=assign.kind,
        params_json=encode(assign.params) if assign.params else b"",
        inputs=[_input_to_wire(item) for item in assign.inputs],
        target=assign.target,
        timeout_seconds=assign.timeout_seconds,
        priority=assign.priority,
        publish=assign.publish,
        comparisons_json=[encode(comparison) for comparison in assign.comparisons],
        awaits=[await_to_wire(awaited) for awaited in assign.awaits],
    )


def _assign_from_wire(message: pb.Assign, place: str) -> Assign:
    if not message.kind or not message.target:
        raise refusal(place, "lacks a kind or a target")
    if not 0 <= message.timeout_seconds <= limits.DURATION_SECONDS_MAX:
        raise refusal(
            f"{place}.timeout_seconds", f"is {message.timeout_seconds}, not 0 to {limits.DURATION_SECONDS_MAX}"
        )
    return Assign(
        task=task_from_wire(message.task, f"{place}.task"),
        kind=message.kind,
        params=object_from_wire(message.params_json, f"{place}.params_json"),
        inputs=tuple(_input_from_wire(item, f"{place}.inputs.{n}") for n, item in enumerate(message.inputs)),
        target=message.target,
        timeout_seconds=message.timeout_seconds,
        priority=message.priority,
        publish=tuple(message.publish),
        comparisons=tuple(
            parse(_comparisons, data, f"{place}.comparisons_json.{n}")
            for n, data in enumerate(message.comparisons_json)
        ),
        awaits=tuple(await_from_wire(item, f"{place}.awaits.{n}") for n, item in enumerate(message.awaits)),
    )


def _input_to_wire(item: Input) -> pb.Input:
    token = item.consumed.token
    return pb.Input(
        port=item.port,
        ref=ref_to_wire(item.ref),
        upstream=item.consumed.upstream,
        epoch=token.epoch if token else 0,
        attempt=token.attempt if token else 0,
        address=item.address,
        others=sources_to_wire(item.others),
    )


def _input_from_wire(message: pb.Input, place: str) -> Input:
    if not message.port:
        raise refusal(f"{place}.port", "is empty")
    ref = ref_from_wire(message.ref, f"{place}.ref")
    return Input(
        port=message.port,
        ref=ref,
        consumed=_consumed(message.upstream, message.epoch, message.attempt, ref.digest),
        address=message.address,
        others=sources_from_wire(message.others, f"{place}.others"),
    )


def _consumed(upstream: str, epoch: int, attempt: int, digest: str) -> Consumed:
    return Consumed(StageId(upstream), token_from_wire(epoch, attempt) if epoch else None, digest)


def report_to_wire(report: Report) -> pb.Report:
    """One report."""
    task = task_to_wire(report.task)
    match report:
        case Started():
            return pb.Report(started=pb.Started(task=task))
        case Finished():
            return pb.Report(finished=_finished_to_wire(report, task))
        case Failed(error=error):
            return pb.Report(
                failed=pb.Failed(
                    task=task,
                    message=error.message,
                    cause=error.cause,
                    transient=error.transient,
                    trace=error.trace,
                )
            )
        case InputLost():
            return pb.Report(
                input_lost=pb.InputLost(
                    task=task,
                    upstreams=report.upstreams,
                    reason=report.reason,
                    gone=report.gone,
                    missing=missing_to_wire(report.missing),
                )
            )
        case WasCancelled():
            return pb.Report(was_cancelled=pb.WasCancelled(task=task))
        case Revoked():
            return pb.Report(revoked=pb.Revoked(task=task))
        case Held():
            return pb.Report(held=held_to_wire(report))
        case NotHeld():
            return pb.Report(not_held=not_held_to_wire(report))


def report_from_wire(message: pb.Report, place: str = "report", node: str = "") -> Report:
    """One report; raises InvalidInput. A failure is said to be of `node`."""
    match message.WhichOneof("report"):
        case "started":
            return Started(task=task_from_wire(message.started.task, f"{place}.started.task"))
        case "finished":
            return _finished_from_wire(message.finished, f"{place}.finished")
        case "failed":
            failed = message.failed
            error = ErrorInfo(
                message=failed.message,
                cause=failed.cause,
                transient=failed.transient,
                node=node,
                trace=failed.trace,
            )
            return Failed(task=task_from_wire(failed.task, f"{place}.failed.task"), error=error)
        case "input_lost":
            lost = message.input_lost
            return InputLost(
                task=task_from_wire(lost.task, f"{place}.input_lost.task"),
                upstreams=tuple(StageId(name) for name in lost.upstreams),
                reason=lost.reason,
                gone=lost.gone,
                missing=missing_from_wire(lost.missing),
            )
        case "was_cancelled":
            return WasCancelled(task=task_from_wire(message.was_cancelled.task, f"{place}.was_cancelled.task"))
        case "revoked":
            return Revoked(task=task_from_wire(message.revoked.task, f"{place}.revoked.task"))
        case "held":
            return held_from_wire(message.held, f"{place}.held")
        case "not_held":
            return not_held_from_wire(message.not_held, f"{place}.not_held")
        case _:
            raise refusal(place, "is none that is known here: the sender is newer")


def _finished_to_wire(report: Finished, task: pb.Task) -> pb.Finished:
    timing = report.timing
    return pb.Finished(
        task=task,
        outputs={port: ref_to_wire(ref) for port, ref in report.outputs.items()},
        consumed={port: _consumed_to_wire(consumed) for port, consumed in report.consumed.items()},
        queue_seconds=timing.queue,
        transfer_seconds=timing.transfer,
        load_seconds=timing.load,
        run_seconds=timing.run,
        models=report.models,
        target=report.target,
        target_emulated=report.emulated,
        published=report.published,
        holds=report.holds,
        figures=report.figures,
        growth_json=encode(report.growth) if report.growth is not None else b"",
    )


def _consumed_to_wire(consumed: Consumed) -> pb.Consumed:
    token = consumed.token
    return pb.Consumed(
        upstream=consumed.upstream,
        epoch=token.epoch if token else 0,
        attempt=token.attempt if token else 0,
        digest=consumed.digest,
    )


def _finished_from_wire(message: pb.Finished, place: str) -> Finished:
    return Finished(
        task=task_from_wire(message.task, f"{place}.task"),
        outputs={port: ref_from_wire(ref, f"{place}.outputs.{port}") for port, ref in message.outputs.items()},
        consumed={
            port: _consumed(
                item.upstream,
                item.epoch,
                item.attempt,
                digest_from_wire(item.digest, f"{place}.consumed.{port}.digest"),
            )
            for port, item in message.consumed.items()
        },
        timing=_timing_from_wire(message, place),
        models=tuple(message.models),
        target=message.target,
        emulated=message.target_emulated,
        published=tuple(message.published),
        holds=tuple(message.holds),
        figures=_figures_from_wire(message, place),
        growth=_growth_from_wire(message.growth_json, f"{place}.growth_json"),
    )


def _figures_from_wire(message: pb.Finished, place: str) -> dict[str, float]:
    figures = dict(message.figures)
    faults = [f"{name} {fault}" for name, value in figures.items() if (fault := figure_fault(name, value))]
    if faults or len(figures) > limits.FIGURES_PER_STAGE_MAX:
        raise refusal(f"{place}.figures", "; ".join(faults) or f"has {len(figures)} of them, which is too many")
    return figures


def _growth_from_wire(data: bytes, place: str) -> Patch | None:
    if len(data) > limits.GROWTH_BYTES_MAX:
        raise refusal(place, f"has {len(data)} bytes, over GROWTH_BYTES_MAX = {limits.GROWTH_BYTES_MAX}")
    return parse(_patches, data, place) if data else None


def _timing_from_wire(message: pb.Finished, place: str) -> Timing:
    timing = Timing(
        queue=message.queue_seconds,
        transfer=message.transfer_seconds,
        load=message.load_seconds,
        run=message.run_seconds,
    )
    # A journal is JSON, which has no word for infinity or for what is no number.
    if not all(0 <= seconds < inf for seconds in (timing.queue, timing.transfer, timing.load, timing.run)):
        raise refusal(f"{place}.timing", f"is {timing}; every time is a finite number of seconds from 0 on")
    return timing
