"""Reports as protobuf and back. Used through `agents.wire`."""

from math import inf

import msgspec

from starloom.agents.messages import (
    AwaitUnreachable,
    Failed,
    Finished,
    Held,
    InputLost,
    NotHeld,
    Published,
    Report,
    Revoked,
    Started,
    WasCancelled,
)
from starloom.agents.wireawaits import unreachable_from_wire, unreachable_to_wire
from starloom.agents.wirereplicas import (
    held_from_wire,
    held_to_wire,
    missing_from_wire,
    missing_to_wire,
    not_held_from_wire,
    not_held_to_wire,
)
from starloom.agents.wirevalues import (
    consumed_from_wire,
    digest_from_wire,
    encode,
    parse,
    ref_from_wire,
    ref_to_wire,
    refusal,
    task_from_wire,
    task_to_wire,
)
from starloom.dag import limits
from starloom.dag.facts import Consumed, ErrorInfo, Timing, figure_fault
from starloom.dag.ids import StageId
from starloom.dag.patch import Patch
from starloom.v1 import session_pb2 as pb

_patches = msgspec.json.Decoder(Patch)


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
        case Published(reason=reason):
            return pb.Report(published=pb.Published(task=task, reason=reason))
        case AwaitUnreachable():
            return pb.Report(await_unreachable=unreachable_to_wire(report))


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
        case "published":
            published = message.published
            return Published(task=task_from_wire(published.task, f"{place}.published.task"), reason=published.reason)
        case "not_held":
            return not_held_from_wire(message.not_held, f"{place}.not_held")
        case "await_unreachable":
            return unreachable_from_wire(message.await_unreachable, f"{place}.await_unreachable")
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
            port: consumed_from_wire(
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
