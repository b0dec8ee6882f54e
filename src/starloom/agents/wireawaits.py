"""What agents ask and tell each other of attempts, as protobuf and back. Used through `agents.wire`."""

from collections.abc import Iterable, Iterator, Sequence

from starloom.agents.messages import AwaitUnreachable, Outcome
from starloom.agents.wirepacked import outcome_to_wire
from starloom.agents.wirevalues import refusal, split, task_from_wire, task_to_wire
from starloom.dag import limits
from starloom.dag.ids import StageId, TaskToken
from starloom.v1 import data_pb2
from starloom.v1 import session_pb2 as pb


def outcomes_to_wire(outcomes: Iterable[Outcome]) -> Iterator[data_pb2.AwaitResponse]:
    """Outcomes, in messages of at most SESSION_FRAME_BYTES_MAX each, unless one alone is larger; none for none."""
    for _, part in split(0, map(outcome_to_wire, outcomes), len):
        if part:
            yield data_pb2.AwaitResponse(outcomes=part)


def asks_to_wire(asked: Sequence[TaskToken], unasked: Sequence[TaskToken]) -> Iterator[data_pb2.AwaitRequest]:
    """Asks, in messages of at most SESSION_FRAME_MESSAGES_MAX each; none for none."""
    size = limits.SESSION_FRAME_MESSAGES_MAX
    for start in range(0, max(len(asked), len(unasked)), size):
        yield data_pb2.AwaitRequest(
            asked=[task_to_wire(task) for task in asked[start : start + size]],
            unasked=[task_to_wire(task) for task in unasked[start : start + size]],
        )


def asks_from_wire(message: data_pb2.AwaitRequest) -> tuple[list[TaskToken], list[TaskToken]]:
    """What is asked for, and what no more; raises InvalidInput."""
    asked = [task_from_wire(task, f"asked.{number}") for number, task in enumerate(message.asked)]
    return asked, [task_from_wire(task, f"unasked.{number}") for number, task in enumerate(message.unasked)]


def unreachable_to_wire(report: AwaitUnreachable) -> pb.AwaitUnreachable:
    """An await that cannot be asked for."""
    return pb.AwaitUnreachable(task=task_to_wire(report.task), upstreams=report.upstreams, reason=report.reason)


def unreachable_from_wire(message: pb.AwaitUnreachable, place: str) -> AwaitUnreachable:
    """An await that cannot be asked for; raises InvalidInput."""
    if not message.upstreams:
        raise refusal(f"{place}.upstreams", "is empty")
    return AwaitUnreachable(
        task=task_from_wire(message.task, f"{place}.task"),
        upstreams=tuple(StageId(name) for name in message.upstreams),
        reason=message.reason,
    )
