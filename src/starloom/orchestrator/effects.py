"""What the coordinator decides: facts, and the effects that follow from them."""

from dataclasses import dataclass, field

import msgspec

from starloom.agents.messages import Command
from starloom.dag.errors import StarloomError
from starloom.dag.facts import Fact, JobStatus
from starloom.dag.ids import AgentId, JobId, Revision
from starloom.orchestrator.advice import PlanWanted


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to Submit. `existing`: the key was there before, with the same content."""

    job: JobId
    revision: Revision
    existing: bool = False


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to CancelJob: what the job ended as, and the seconds from the request to the last acknowledgement."""

    job: JobId
    status: JobStatus
    seconds: float


class Patched(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to PatchJob: the revision that the patch made, and what changed, in words.

    `existing`: it was taken before, under the same id.
    """

    job: JobId
    revision: Revision
    changes: tuple[str, ...] = ()
    existing: bool = False


Result = Submitted | Stopped | Patched


@dataclass(frozen=True, slots=True)
class Answer:
    """What to tell the client of a request: a result, or an error."""

    request: int
    result: Result | StarloomError


@dataclass(slots=True)
class Decision:
    """What follows from a batch of inputs. The shell carries it out in this order, and no other:

    1. `facts` are appended to the journal, in one transaction, and fsynced;
    2. then reports that the inputs carried are acknowledged to their agents;
    3. `answers` go to clients, and the facts are published as events;
    4. `commands` are sent to agents, in order.

    If 1 fails, the process ends, and nothing below has happened. `plans` are wanted at any time, and not waited for; what
    comes of them is an input, or never comes.
    """

    facts: list[Fact] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    commands: list[tuple[AgentId, Command]] = field(default_factory=list)
    plans: list[PlanWanted] = field(default_factory=list)
