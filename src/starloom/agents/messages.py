"""What the orchestrator and an agent say to each other, as values; `agents.wire` puts them on the wire."""

from typing import Any

import msgspec

from starloom.dag.constellation import Comparison
from starloom.dag.facts import Consumed, ErrorInfo, Timing
from starloom.dag.ids import AgentId, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.kinds import KindSpec
from starloom.dag.patch import Patch
from starloom.dag.values import Full, ValueRef
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.node import Measured, NodeProfile


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that holds a value, and its data service, `host:port`."""

    agent: AgentId
    address: str


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """What one input port is fed with, and whose result it is.

    `address` is the data service of the value's holder, `host:port`; empty for the orchestrator's own,
    and unused for an inline value. `others` hold it as well: they are asked where the holder does not give it.
    `late`: the digest is not known yet, and `agents.late.name_of` stands in its place. Only within an agent.
    """

    port: str
    ref: ValueRef
    consumed: Consumed
    address: str = ""
    others: tuple[Source, ...] = ()
    late: bool = False


class Await(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt of an upstream that had no result when its downstream was handed out; `agent` has it.

    The downstream starts once all that it awaits have succeeded, and each of `holds`, the keys of comparisons that
    its dependency makes, holds. `feeds` gives the upstream's output port by the input port that it feeds.
    `streams` does so for stream ports: those are read from their first chunk on, and nothing waits for their end.
    `address` is the agent's data service, `host:port`, and `incarnation` the process that streams are read from. An empty
    upstream is the job itself, whose input streams the orchestrator's data service has.
    """

    upstream: StageId
    token: FencingToken
    agent: AgentId = AgentId("")
    address: str = ""
    feeds: dict[str, str] = {}
    holds: tuple[str, ...] = ()
    streams: dict[str, str] = {}
    incarnation: str = ""


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """A downstream that reads a stream output: `port` is the output, `reader` the downstream's `stage.port`.

    `full` is its policy. What it needs is kept for it before it comes, so all that will read are named.
    """

    port: str
    reader: str
    full: Full = Full.BLOCK


class Assign(msgspec.Struct, frozen=True, kw_only=True):
    """The right to run one attempt.

    `inputs` are values that are there, `awaits` attempts that give the others. `readers` are the downstreams of
    stream outputs. `publish` names the ports whose
    bytes also go to the job store. `comparisons`, of this stage's outputs, are evaluated where the values are. `private`:
    what it gives is, and stays with the agent however small it is, but for what is to be published. `after_seconds`: among
    those of its priority it counts as one that comes so much later, or earlier where it is below 0; so far a plan has it start.
    """

    task: TaskToken
    kind: str
    params: dict[str, Any] = {}
    inputs: tuple[Input, ...] = ()
    awaits: tuple[Await, ...] = ()
    readers: tuple[Reader, ...] = ()
    target: str = "cpu"
    timeout_seconds: float = 0.0
    priority: int = 0
    after_seconds: float = 0.0
    publish: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    private: bool = False


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """Stop an attempt, wherever it is; answered by WasCancelled, unless its end was told before."""

    task: TaskToken


class Revoke(msgspec.Struct, frozen=True, kw_only=True):
    """Give an attempt back that has not started; answered by Revoked, or by what it is: Started or its end."""

    task: TaskToken


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A job has ended: forget its attempts, outputs, replicas and tombstones."""

    job: JobId


class Replicate(msgspec.Struct, frozen=True, kw_only=True):
    """Keep a replica of a result's `values`, fetched from one of `sources`; answered by Held, or by NotHeld.

    `task` is the attempt that made them, on another node.
    """

    task: TaskToken
    values: tuple[ValueRef, ...]
    sources: tuple[Source, ...]


class Publish(msgspec.Struct, frozen=True, kw_only=True):
    """Bring `values` of the agent's result `task` to the job store, for readers that cannot reach it; answered by Published."""

    task: TaskToken
    values: tuple[ValueRef, ...]


class Resolve(msgspec.Struct, frozen=True, kw_only=True):
    """What an awaited attempt gave, told by the orchestrator where the two agents do not reach each other.

    `task` awaits `upstream`'s attempt of `token`; `inputs` are those that it feeds, complete, and `holds` the keys
    of the comparisons of its outputs that hold. Nothing happens where that is not awaited any more.
    """

    task: TaskToken
    upstream: StageId
    token: FencingToken
    inputs: tuple[Input, ...] = ()
    holds: tuple[str, ...] = ()


Command = Assign | Cancel | Revoke | Release | Replicate | Publish | Resolve


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt left the queue."""

    task: TaskToken


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt gave a result.

    `published` names the ports whose bytes are in the job store, or inline here; `holds` says of each comparison of the
    assignment whether it holds, in its order. `emulated`: the target computed elsewhere. `figures` are
    what the stage measured of itself. `growth`: what the result changes of the job, in the relative names of
    `dag.growth`.
    """

    task: TaskToken
    outputs: dict[str, ValueRef]
    consumed: dict[str, Consumed]
    timing: Timing
    models: tuple[str, ...] = ()
    target: str = "cpu"
    emulated: bool = False
    published: tuple[str, ...] = ()
    holds: tuple[bool, ...] = ()
    figures: dict[str, float] = {}
    growth: Patch | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt failed by itself."""

    task: TaskToken
    error: ErrorInfo


class InputLost(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs could not be fetched; costs no retry.

    `upstreams` are the stages whose values are missing, an empty name a job input. `gone`: every holder
    answered and does not have them; otherwise one could not be reached. `missing`: the holders, by upstream,
    that do not have what they were asked for.
    """

    task: TaskToken
    upstreams: tuple[StageId, ...]
    reason: str
    gone: bool = False
    missing: dict[StageId, tuple[AgentId, ...]] = {}


class WasCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt was cancelled and nothing of it runs any more."""

    task: TaskToken


class Revoked(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt was given back: it has not started, and will not."""

    task: TaskToken


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A replica of an attempt's outputs is here, verified, until the job is released."""

    task: TaskToken


class NotHeld(msgspec.Struct, frozen=True, kw_only=True):
    """No replica could be made here. `missing` are the sources that answered and do not have the values."""

    task: TaskToken
    reason: str
    missing: tuple[AgentId, ...] = ()


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """The values of a result are in the job store; or not, for the `reason` given."""

    task: TaskToken
    reason: str = ""


class AwaitUnreachable(msgspec.Struct, frozen=True, kw_only=True):
    """The agents that have the attempts of `upstreams` cannot be asked; the attempt goes on waiting. Costs no retry.

    Answered by Resolve once the outcomes are known, or by a cancel.
    """

    task: TaskToken
    upstreams: tuple[StageId, ...]
    reason: str


Report = (
    Started | Finished | Failed | InputLost | WasCancelled | Revoked | Held | NotHeld | Published | AwaitUnreachable
)
NOT_OF_ATTEMPTS = (Held, NotHeld, Published)
"""Reports whose token names a result, made here or elsewhere, and no attempt that is still to end."""
NOT_ENDS = (Started, AwaitUnreachable, *NOT_OF_ATTEMPTS)
"""Reports that no attempt of the agent's own ends with."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt gave, as agents tell each other. `holds`: the keys of the comparisons of its outputs that hold.

    `late` names outputs that are there and still being hashed: `agents.late.name_of` stands in the place of their digests.
    Such an outcome is early: another one, with all digests, follows unless the attempt ends otherwise.
    """

    task: TaskToken
    outputs: dict[str, ValueRef] = {}
    holds: tuple[str, ...] = ()
    late: tuple[str, ...] = ()


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a heartbeat carries: measured load of the agent's process and queues.

    `resident` are the kinds whose models are loaded, None where the agent does not say. `measured` is what the agent has
    learned of its node since its hello, told once. `links`: to it from the nodes that it has fetched from, by name, which is empty for
    the job store; None where they are as told before, or nothing is said.
    """

    queued: int = 0
    running: int = 0
    held_bytes: int = 0
    cpu_fraction: float = 0.0
    memory_bytes: int = 0
    file_handles: int = 0
    stale_refused: int = 0
    resident: tuple[str, ...] | None = None
    measured: Measured | None = None
    links: dict[str, MeasuredLink] | None = None


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's first message on a stream.

    `incarnation` is new with each start of the agent's process. `session` is the one to resume, or
    empty. `received` is the last sequence number that the agent had from the orchestrator in it.
    `held` are attempts accepted whose last report is not acknowledged; `jobs` those that something is
    kept for; `epoch_seen` the highest epoch that the agent has obeyed.
    """

    agent: AgentId
    incarnation: str
    profile: NodeProfile
    kinds: tuple[KindSpec, ...] = ()
    session: str = ""
    received: int = 0
    held: tuple[TaskToken, ...] = ()
    jobs: tuple[JobId, ...] = ()
    epoch_seen: Epoch = Epoch(0)


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to Hello. Where `resumed`, both go on from the other's `received`, else from 1.

    What the agent holds in vain is cancelled or released by commands. Durations are in seconds.
    """

    session: str
    epoch: Epoch
    resumed: bool
    received: int = 0
    lease_seconds: float
    heartbeat_seconds: float
