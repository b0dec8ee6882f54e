"""What the coordinator is told. Each input is a value; together with the time they determine everything it does."""

import msgspec

from starloom.agents.messages import Load, Report
from starloom.dag.constellation import Constellation
from starloom.dag.facts import JobOptions
from starloom.dag.ids import AgentId, JobId, TaskToken
from starloom.dag.kinds import KindSpec
from starloom.dag.patch import Patch
from starloom.dag.values import ValueRef
from starloom.devices.node import NodeProfile
from starloom.orchestrator.advice import Planned


class Submit(msgspec.Struct, frozen=True, kw_only=True):
    """A client asks for a job. `request` names the answer; `job` is the id if it is accepted.

    The bytes of `inputs` are inline or in the job store already.
    """

    request: int
    job: JobId
    constellation: Constellation
    inputs: dict[str, ValueRef] = {}
    key: str = ""
    principal: str = ""
    options: JobOptions = JobOptions()


class CancelJob(msgspec.Struct, frozen=True, kw_only=True):
    """A client asks to stop a job, by id or key. Answered once nothing of it runs any more."""

    request: int
    job: str
    principal: str = ""
    reason: str = ""


class PatchJob(msgspec.Struct, frozen=True, kw_only=True):
    """A client asks to change a job, by id or key. Answered once the patch is taken, or refused with all reasons."""

    request: int
    job: str
    patch: Patch
    principal: str = ""


class AgentHello(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's session began, or went on after a break where `resumed`.

    Without `resumed`, commands sent before may never have arrived: `held` tells which attempts did.
    """

    agent: AgentId
    incarnation: str
    profile: NodeProfile
    kinds: tuple[KindSpec, ...] = ()
    resumed: bool = False
    held: tuple[TaskToken, ...] = ()
    jobs: tuple[JobId, ...] = ()


class AgentHeartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """An agent is there: renews its lease."""

    agent: AgentId
    incarnation: str
    load: Load = Load()


class AgentReports(msgspec.Struct, frozen=True, kw_only=True):
    """Reports of one agent, in order; they may repeat earlier ones."""

    agent: AgentId
    incarnation: str
    reports: tuple[Report, ...]


class AgentGoodbye(msgspec.Struct, frozen=True, kw_only=True):
    """An agent left in order, or is known to be dead: no lease is waited for."""

    agent: AgentId
    incarnation: str
    reason: str = ""


class Tick(msgspec.Struct, frozen=True):
    """Nothing but the passing of time: leases lapse and back-offs end."""


Input = Submit | CancelJob | PatchJob | AgentHello | AgentHeartbeat | AgentReports | AgentGoodbye | Planned | Tick
