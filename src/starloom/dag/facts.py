"""Facts: what was decided. They are the journal, the only way state changes, and the events clients see.

A fact is self-contained: replaying facts asks no clock, no planner and no newer code. A field is
only ever added, with a default, so that a journal of today replays for ever.
"""

from enum import StrEnum
from math import isfinite
from typing import Any

import msgspec

from starloom.dag import limits
from starloom.dag.checks import text_fault
from starloom.dag.constellation import Constellation
from starloom.dag.ids import AgentId, Epoch, FencingToken, JobId, Revision, StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.patch import Difference
from starloom.dag.values import Full, ValueRef


class JobStatus(StrEnum):
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an input stream is taken in: what becomes of chunks that its readers are too slow for, and whether they are kept.

    Without `full` it is as the constellation's input says, else the one who feeds it waits.
    `spool`: they are on disk before they are acknowledged, and until the job is forgotten; then nothing is dropped.
    """

    full: Full | None = None
    spool: bool = False


class JobOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a job is run: a greater `priority` first; at most `max_parallel` stages at once, 0 for no bound.

    Stages that stream into each other are not parted by that: where one of them may start, the others follow.
    `deadline_seconds` bounds the job from its acceptance on, in place of the constellation's; 0 leaves that.
    `streams` says of input streams how they are taken in; one that is optional is there only if it is named.
    """

    priority: int = 0
    max_parallel: int = 0
    labels: dict[str, str] = {}
    deadline_seconds: float = 0.0
    streams: dict[str, StreamOptions] = {}


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an attempt failed. `cause` is the error's class; `trace` the end of its traceback, as text."""

    message: str
    cause: str = "StageError"
    transient: bool = False
    node: str = ""
    trace: str = ""


class Timing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an attempt's time went, in seconds, by the agent's monotonic clock.

    queue: from acceptance to the start, less transfer. transfer: fetching inputs and publishing
    outputs. load: models. run: the rest of the stage's own time.
    """

    queue: float = 0.0
    transfer: float = 0.0
    load: float = 0.0
    run: float = 0.0


def figure_fault(name: str, value: Any) -> str:
    """What keeps a figure that a stage measured out of the journal; empty where nothing does."""
    if not 0 < len(name) <= limits.NAME_CHARACTERS_MAX:
        return f"has a name of {len(name)} characters, not 1 to NAME_CHARACTERS_MAX = {limits.NAME_CHARACTERS_MAX}"
    if fault := text_fault(name):
        return f"has a name that {fault}"
    # JSON has no word for infinity or for what is no number.
    return "" if isinstance(value, int | float) and isfinite(value) else f"is {value!r}, no finite number"


class Consumed(msgspec.Struct, frozen=True, array_like=True):
    """One link of a result's lineage: what an input port was fed with.

    `upstream` is empty for a job input; `token` is the upstream's attempt; `digest` is what was read.
    """

    upstream: StageId
    token: FencingToken | None
    digest: str


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="fact"):
    """The base of all facts."""


class EpochStarted(Fact, frozen=True, tag="epoch-started"):
    """An orchestrator took over the journal."""

    epoch: Epoch


class AgentJoined(Fact, frozen=True, tag="agent-joined"):
    """An agent's process is there, or says something new of itself; a new incarnation holds nothing of the old one's.

    `profile` is a `devices.node.NodeProfile` as plain values. `kinds` are the signatures that it offers.
    """

    agent: AgentId
    incarnation: str
    profile: dict[str, Any] = {}
    kinds: tuple[KindSpec, ...] = ()


class AgentLost(Fact, frozen=True, tag="agent-lost"):
    """An agent's lease lapsed, or it left: what it holds is gone."""

    agent: AgentId
    incarnation: str
    reason: str


class JobSubmitted(Fact, frozen=True, tag="job-submitted"):
    """A job was accepted. Its inputs are in the job store, or inline."""

    job: JobId
    constellation: Constellation
    inputs: dict[str, ValueRef] = {}
    key: str = ""
    principal: str = ""
    options: JobOptions = JobOptions()
    revision: Revision = Revision(1)


class StageFact(Fact, frozen=True):
    """The base of facts about one attempt of one stage."""

    job: JobId
    stage: StageId
    token: FencingToken


class StagePlaced(StageFact, frozen=True, tag="stage-placed"):
    """An attempt was given to an agent's process; its token is live from here on.

    `copy`: beside one that runs too long; the first of both to have a result wins. `awaits`: it was given out ahead
    of upstreams that have no result yet, by their stages with the attempts that it goes by. It lives no longer than
    these tokens do. `variant`: in which it runs, of a stage that has several; a stage keeps the first that it had, and where
    none of its nodes is left, another one that a node can run marks the job as degraded.
    """

    agent: AgentId
    incarnation: str = ""
    target: str = "cpu"
    copy: bool = False
    variant: str = ""
    awaits: dict[StageId, FencingToken] = {}


class StageStarted(StageFact, frozen=True, tag="stage-started"):
    """The agent took the attempt out of its queue."""


class Growth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a result changed of its job: the constellation is what `difference` makes of it, as this revision.

    `digest` is of what the stage asked for, in names relative to itself: a stage that runs again and asks for
    the same changes nothing. One that asks for something else takes back what it had changed, with all that
    came of it: then `whole` is all that stands of its changes after this. `operations` are for people.
    """

    revision: Revision
    difference: Difference
    digest: str
    whole: Difference | None = None
    operations: tuple[str, ...] = ()

    @property
    def stands(self) -> Difference:
        """All that it changed; nothing, if it only took something back."""
        return self.difference if self.whole is None else self.whole


class StageCommitted(StageFact, frozen=True, tag="stage-committed"):
    """The stage's result: the first report of a live token whose lineage holds.

    `published` outputs are in the job store. `holds` answers the comparisons that dependencies make of
    the outputs, by `dag.conditions.comparison_key`. `emulated`: the target computed elsewhere.
    `figures` are what the stage measured of itself, by names that tell the unit. `growth`: what the result
    changes of the job.
    """

    outputs: dict[str, ValueRef] = {}
    consumed: dict[str, Consumed] = {}
    published: tuple[str, ...] = ()
    timing: Timing = Timing()
    models: tuple[str, ...] = ()
    target: str = "cpu"
    emulated: bool = False
    holds: dict[str, bool] = {}
    figures: dict[str, float] = {}
    growth: Growth | None = None


class StageFailed(StageFact, frozen=True, tag="stage-failed"):
    """An attempt failed. With `retry_seconds` another follows after that long; without, it was the last."""

    error: ErrorInfo
    retry_seconds: float | None = None


class StageDefaulted(StageFact, frozen=True, tag="stage-defaulted"):
    """The stage failed for good and its policy's defaults stand in for its outputs."""

    outputs: dict[str, ValueRef]
    holds: dict[str, bool] = {}


class StageSkipped(StageFact, frozen=True, tag="stage-skipped"):
    """The stage will not run: an upstream was skipped or failed, or a comparison does not hold."""

    reason: str


class StageSuperseded(StageFact, frozen=True, tag="stage-superseded"):
    """A live token died without a result of its own: its agent was lost, its input was, or its lineage broke.

    `death` counts against the stage (poison); `input_lost` against its inputs.
    """

    reason: str
    death: bool = False
    input_lost: bool = False


class StageReopened(StageFact, frozen=True, tag="stage-reopened"):
    """A committed result is gone, or rests on one that changed, and is needed: the stage runs again.

    `lost`: no process that is there has its outputs any more. `unjudged`: its dependents were not judged by this result,
    so that they still rest on the one before.
    """

    reason: str
    lost: bool = False
    unjudged: bool = False


class OutputsHeld(StageFact, frozen=True, tag="outputs-held"):
    """Another agent's process has fetched and verified a committed result's outputs, and keeps them: a replica."""

    agent: AgentId
    incarnation: str


class OutputsGone(StageFact, frozen=True, tag="outputs-gone"):
    """An agent that should have a committed result's outputs was asked for them, and does not have them."""

    agent: AgentId


class StageCancelled(Fact, frozen=True, tag="stage-cancelled"):
    """The stage will not run, or its attempt was stopped and the agent said so."""

    job: JobId
    stage: StageId


class JobPatched(Fact, frozen=True, tag="job-patched"):
    """A patch was taken: the job's constellation is what `difference` makes of it, as this revision.

    `operations` names them in short, for people; `digest` tells them from others under the same `patch`, its id.
    """

    job: JobId
    revision: Revision
    difference: Difference
    operations: tuple[str, ...] = ()
    principal: str = ""
    why: str = ""
    patch: str = ""
    digest: str = ""
    restart: bool = False


class DeadlineSpent(Fact, frozen=True, tag="deadline-spent"):
    """So many seconds of a stage's deadline have passed, or of the job's, without a stage: what a restart goes on from.

    `ran`: for how many of them an attempt of the stage ran.
    """

    job: JobId
    seconds: float
    stage: StageId = StageId("")
    ran: float = 0.0


class JobCancelRequested(Fact, frozen=True, tag="job-cancel-requested"):
    """The job is being stopped. `ends` is what it ends as once nothing of it runs; with `failed`, `cause` is the error's class."""

    job: JobId
    principal: str = ""
    reason: str = ""
    ends: JobStatus = JobStatus.CANCELLED
    cause: str = ""


class JobEnded(Fact, frozen=True, tag="job-ended"):
    """The job reached its last status; its declared outputs are in the job store, or inline.

    `cause` is the class of the error that it failed with.
    """

    job: JobId
    status: JobStatus
    outputs: dict[str, ValueRef] = {}
    error: str = ""
    cause: str = ""


AnyFact = (
    EpochStarted
    | AgentJoined
    | AgentLost
    | JobSubmitted
    | StagePlaced
    | StageStarted
    | StageCommitted
    | StageFailed
    | StageDefaulted
    | StageSkipped
    | StageSuperseded
    | StageReopened
    | OutputsHeld
    | OutputsGone
    | StageCancelled
    | JobPatched
    | DeadlineSpent
    | JobCancelRequested
    | JobEnded
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyFact] = msgspec.json.Decoder(AnyFact)


def encode_fact(fact: Fact) -> bytes:
    """A fact as one line of JSON."""
    return _encoder.encode(fact)


def decode_fact(data: bytes | str) -> AnyFact:
    """The fact in a line of JSON; raises msgspec.ValidationError if there is none."""
    return _decoder.decode(data)
