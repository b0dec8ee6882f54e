"""What an attempt waits for, and what it is told of it, as protobuf and back. Used through `agents.wire`."""

from collections.abc import Iterable, Iterator, Sequence

from starloom.agents.messages import Await, AwaitUnreachable, Outcome
from starloom.agents.wirevalues import (
    ref_from_wire,
    ref_to_wire,
    refusal,
    split,
    task_from_wire,
    task_to_wire,
    token_from_wire,
)
from starloom.dag import limits
from starloom.dag.ids import AgentId, StageId, TaskToken
from starloom.v1 import data_pb2
from starloom.v1 import session_pb2 as pb


def await_to_wire(awaited: Await) -> pb.Await:
    """An upstream that has no result yet."""
    return pb.Await(
        upstream=awaited.upstream,
        epoch=awaited.token.epoch,
        attempt=awaited.token.attempt,
        agent=awaited.agent,
        address=awaited.address,
        feeds=awaited.feeds,
        holds=awaited.holds,
        streams=awaited.streams,
        incarnation=awaited.incarnation,
    )


def await_from_wire(message: pb.Await, place: str) -> Await:
    """An upstream that has no result yet; raises InvalidInput."""
    if message.upstream and not (message.epoch and message.attempt and message.agent and message.address):
        raise refusal(place, "lacks an epoch, an attempt, an agent or its address")
    if not message.upstream and (message.feeds or message.holds or not message.streams):
        raise refusal(place, "names no upstream; only the streams of a job need none")
    return Await(
        upstream=StageId(message.upstream),
        token=token_from_wire(message.epoch, message.attempt),
        agent=AgentId(message.agent),
        address=message.address,
        feeds=dict(message.feeds),
        holds=tuple(message.holds),
        streams=dict(message.streams),
        incarnation=message.incarnation,
    )


def outcome_to_wire(outcome: Outcome) -> data_pb2.Outcome:
    """What an attempt gave."""
    return data_pb2.Outcome(
        task=task_to_wire(outcome.task),
        outputs={port: ref_to_wire(ref) for port, ref in outcome.outputs.items()},
        holds=outcome.holds,
    )


def outcome_from_wire(message: data_pb2.Outcome, place: str = "outcome") -> Outcome:
    """What an attempt gave; raises InvalidInput."""
    return Outcome(
        task=task_from_wire(message.task, f"{place}.task"),
        outputs={port: ref_from_wire(ref, f"{place}.outputs.{port}") for port, ref in message.outputs.items()},
        holds=tuple(message.holds),
    )


def outcomes_to_wire(outcomes: Iterable[Outcome]) -> Iterator[data_pb2.AwaitResponse]:
    """Outcomes, in messages of at most SESSION_FRAME_BYTES_MAX each, unless one alone is larger; none for none."""
    for _, part in split(0, map(outcome_to_wire, outcomes)):
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
