"""What clients are told of jobs, stages, nodes and events; `orchestrator.wire` puts these on the wire."""

from typing import Any, NamedTuple

import msgspec

from starloom.agents.messages import Load
from starloom.dag.constellation import Constellation
from starloom.dag.facts import AnyFact, JobStatus, Timing
from starloom.dag.ids import AgentId, Epoch, JobId, Revision, StageId
from starloom.dag.job import JOB_ENDED
from starloom.dag.stagestate import StageStatus
from starloom.dag.values import ValueRef
from starloom.devices.node import NodeProfile


class StageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One stage as it stands.

    `node`, `tier` and `target` are where its last attempt is or was, empty before the first; `emulated`:
    the target computes elsewhere. `copies` of its `attempts` were beside one that ran too long. `models`
    are `name@version`. `reason`: the last error, why it was skipped, or what it waits for. `grown_by`: the
    stage whose result added it. `private`: why what it reads or gives may not be everywhere, and which nodes may not
    have it for that. `variant`: in which it runs or ran, of a stage that has several, and `degraded` the one before it, if
    no node could run that any more. `planned`: where a plan has it, and why it is elsewhere, if it is. `seconds` are those of the attempt that gave the result, and `figures`
    what that one measured of itself, by names that tell the unit.
    """

    name: StageId
    kind: str
    status: StageStatus
    node: str = ""
    tier: str = ""
    target: str = ""
    emulated: bool = False
    models: tuple[str, ...] = ()
    attempts: int = 0
    copies: int = 0
    reason: str = ""
    grown_by: str = ""
    private: str = ""
    variant: str = ""
    degraded: str = ""
    planned: str = ""
    seconds: Timing = Timing()
    figures: dict[str, float] = {}


class PatchInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One patch that was taken: the revision it made, by whom and why, and what it changed, a line each."""

    revision: Revision
    principal: str = ""
    why: str = ""
    id: str = ""
    restart: bool = False
    operations: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One job as it stands.

    `error` says why it failed, and `cause` is the class of that error, or both are empty. `stuck`: why no stage of it can
    go on, while that is so; not in a list. `degraded`: the stages that run in other variants than they did at first, in a
    sentence each. `plan`: when all ends by its plan, or, of one that has ended, what its plan had
    said beside what it took; not in a list. `outputs` are the declared ones that are there so far.
    Times are unix nanoseconds; `ended_unix_nanos` is 0 while it runs. A list of jobs leaves out
    `stages`, `constellation`, which is that of `constellation_revision`, and `patches`.
    """

    id: JobId
    key: str = ""
    name: str = ""
    status: JobStatus
    revision: Revision = Revision(1)
    error: str = ""
    cause: str = ""
    stuck: str = ""
    degraded: tuple[str, ...] = ()
    plan: str = ""
    outputs: dict[str, ValueRef] = {}
    stages: tuple[StageInfo, ...] = ()
    submitted_unix_nanos: int = 0
    ended_unix_nanos: int = 0
    constellation: Constellation | None = None
    labels: dict[str, str] = {}
    constellation_revision: Revision = Revision(0)
    patches: tuple[PatchInfo, ...] = ()

    @property
    def ended(self) -> bool:
        return self.status in JOB_ENDED


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One node: `state` is online, suspect or lost; `heard_seconds` is how long ago its last heartbeat was."""

    name: AgentId
    state: str
    profile: NodeProfile
    load: Load = Load()
    heard_seconds: float = 0.0
    incarnation: str = ""


class ClusterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes, and the orchestrator that told of them: its process and how many starts the journal has seen."""

    nodes: tuple[NodeInfo, ...]
    epoch: Epoch
    pid: int


class StreamItem(NamedTuple):
    """One chunk of a stream output. `at`: seconds of the event that it tells of, if its source said so."""

    offset: int
    value: Any
    generation: int = 0
    at: float | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One fact of the journal. `offset` grows, with gaps; `unix_nanos` is for people only."""

    offset: int
    unix_nanos: int
    fact: AnyFact
