"""What an attempt waits for, as protobuf and back. Used through `agents.wire`."""

from starloom.agents.messages import Await
from starloom.agents.wirevalues import refusal, token_from_wire
from starloom.dag.ids import AgentId, StageId
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
    )
