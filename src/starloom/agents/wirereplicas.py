"""Replicas, and who holds what, as protobuf and back. Used through `agents.wire`."""

from collections.abc import Iterable, Mapping

from starloom.agents.messages import Held, NotHeld, Publish, Replicate, Source
from starloom.agents.wirevalues import ref_from_wire, ref_to_wire, refusal, task_from_wire, task_to_wire
from starloom.dag.ids import AgentId, StageId
from starloom.v1 import session_pb2 as pb


def sources_to_wire(sources: Iterable[Source]) -> list[pb.Source]:
    """Who holds a value."""
    return [pb.Source(agent=source.agent, address=source.address) for source in sources]


def sources_from_wire(messages: Iterable[pb.Source], place: str) -> tuple[Source, ...]:
    """Who holds a value; raises InvalidInput."""
    found = []
    for number, message in enumerate(messages):
        if not message.agent or not message.address:
            raise refusal(f"{place}.{number}", "lacks an agent or its address")
        found.append(Source(agent=AgentId(message.agent), address=message.address))
    return tuple(found)


def replicate_to_wire(command: Replicate) -> pb.Replicate:
    """A command to keep a replica."""
    return pb.Replicate(
        task=task_to_wire(command.task),
        values=[ref_to_wire(ref) for ref in command.values],
        sources=sources_to_wire(command.sources),
    )


def replicate_from_wire(message: pb.Replicate, place: str) -> Replicate:
    """A command to keep a replica; raises InvalidInput."""
    if not message.values or not message.sources:
        raise refusal(place, "lacks values, or who holds them")
    return Replicate(
        task=task_from_wire(message.task, f"{place}.task"),
        values=tuple(ref_from_wire(ref, f"{place}.values.{n}") for n, ref in enumerate(message.values)),
        sources=sources_from_wire(message.sources, f"{place}.sources"),
    )


def publish_to_wire(command: Publish) -> pb.Publish:
    """A command to bring values to the job store."""
    return pb.Publish(task=task_to_wire(command.task), values=[ref_to_wire(ref) for ref in command.values])


def publish_from_wire(message: pb.Publish, place: str) -> Publish:
    """A command to bring values to the job store; raises InvalidInput."""
    if not message.values:
        raise refusal(place, "lacks values")
    return Publish(
        task=task_from_wire(message.task, f"{place}.task"),
        values=tuple(ref_from_wire(ref, f"{place}.values.{n}") for n, ref in enumerate(message.values)),
    )


def held_to_wire(report: Held) -> pb.Held:
    """A replica that is there."""
    return pb.Held(task=task_to_wire(report.task))


def held_from_wire(message: pb.Held, place: str) -> Held:
    """A replica that is there; raises InvalidInput."""
    return Held(task=task_from_wire(message.task, f"{place}.task"))


def not_held_to_wire(report: NotHeld) -> pb.NotHeld:
    """A replica that could not be made."""
    return pb.NotHeld(task=task_to_wire(report.task), reason=report.reason, missing=report.missing)


def not_held_from_wire(message: pb.NotHeld, place: str) -> NotHeld:
    """A replica that could not be made; raises InvalidInput."""
    return NotHeld(
        task=task_from_wire(message.task, f"{place}.task"),
        reason=message.reason,
        missing=tuple(map(AgentId, message.missing)),
    )


def missing_to_wire(missing: Mapping[StageId, Iterable[AgentId]]) -> list[pb.Missing]:
    """Holders, by upstream, that do not have what they were asked for."""
    return [pb.Missing(upstream=upstream, agents=list(agents)) for upstream, agents in missing.items()]


def missing_from_wire(messages: Iterable[pb.Missing]) -> dict[StageId, tuple[AgentId, ...]]:
    """Holders, by upstream, that do not have what they were asked for."""
    return {StageId(message.upstream): tuple(map(AgentId, message.agents)) for message in messages}
