"""Which facts about agents and epochs no start needs any more, so that a journal does not grow with restarts and joins. Pure."""

from collections.abc import Container, Sequence

from starloom.dag.facts import AgentJoined, AgentLost, EpochStarted
from starloom.dag.ids import AgentId
from starloom.orchestrator.records import Record


def superseded(records: Sequence[Record], agents: Container[AgentId]) -> list[int]:
    """The offsets of those that may go, of records without a job in their order; `agents` are those that are still known.

    What stays: the last epoch, and of each known agent its last joining and what follows that. A replay of the others gives
    the same jobs, and the same agents, but for what only placement goes by: which kinds ran where.
    """
    found: list[int] = []
    joined: set[AgentId] = set()
    epochs = 0
    for record in reversed(records):
        match record.fact:
            case EpochStarted():
                gone = epochs > 0
                epochs += 1
            case AgentJoined(agent=agent):
                gone = agent in joined or agent not in agents
                joined.add(agent)
            case AgentLost(agent=agent):
                gone = agent in joined or agent not in agents
            case _:
                gone = False
        if gone:
            found.append(record.offset)
    return found
