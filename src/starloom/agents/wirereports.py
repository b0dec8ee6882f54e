"""Reports as protobuf and back. Used through `agents.wire`."""

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
from starloom.agents.wirepacked import finished_from_wire, finished_to_wire
from starloom.agents.wirereplicas import (
    held_from_wire,
    held_to_wire,
    missing_from_wire,
    missing_to_wire,
    not_held_from_wire,
    not_held_to_wire,
)
from starloom.agents.wirevalues import refusal, task_from_wire, task_to_wire
from starloom.dag.facts import ErrorInfo
from starloom.dag.ids import StageId
from starloom.v1 import session_pb2 as pb


def report_to_wire(report: Report) -> pb.Report:
    """One report."""
    if isinstance(report, Finished):
        return pb.Report(finished=finished_to_wire(report))
    task = task_to_wire(report.task)
    match report:
        case Started():
            return pb.Report(started=pb.Started(task=task))
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
            return finished_from_wire(message.finished, f"{place}.finished")
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
