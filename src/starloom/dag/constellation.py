"""The constellation: a task-DAG as an immutable value.

`dag.document` reads and writes it as YAML and JSON, `dag.builder` makes it from Python, and
`dag.validate` finds everything that is wrong with it. Nothing here runs.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from starloom.dag import limits
from starloom.dag.ids import StageId
from starloom.dag.values import Port

API_VERSION = "starloom/v1"


class Tier(StrEnum):
    """Where a node stands: at the sensor, near it, or in a data centre."""

    DEVICE = "device"
    EDGE = "edge"
    CLOUD = "cloud"


class Private(StrEnum):
    """How far private data may go. DEVICE: it stays on the device tier. EDGE: on the device and the edge tiers."""

    DEVICE = "device"
    EDGE = "edge"


PRIVATE_TIERS: Final[Mapping[Private, tuple[Tier, ...]]] = MappingProxyType(
    {Private.DEVICE: (Tier.DEVICE,), Private.EDGE: (Tier.DEVICE, Tier.EDGE)}
)
"""Where private data may stand, and be computed with."""


class Requirements(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node must have to run a stage. Empty fields require nothing.

    `tiers`: one of these. `target`: such a target (`cpu`, `gpu`, `npu`, `fpga`). `labels`: all of
    these node labels, equal. `attributes`: all of these hold, by name, each as `dag.attributes` reads it.
    `memory_bytes`: at least this much memory. `node`: this very node.
    """

    tiers: tuple[Tier, ...] = ()
    target: str = ""
    labels: dict[str, str] = {}
    attributes: dict[str, str] = {}
    memory_bytes: int = 0
    node: str = ""


class Preference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Places, and the seconds that a stage may end later for standing on one of them, or, where they are avoided, elsewhere.

    A place is meant that fits all that is said: `tiers`: one of these. `target`: what it computes on there. `labels`: all of
    these node labels, equal. `attributes`: all of these hold, as in `Requirements`. `node`: this very node.
    """

    tiers: tuple[Tier, ...] = ()
    target: str = ""
    labels: dict[str, str] = {}
    attributes: dict[str, str] = {}
    node: str = ""
    seconds: float = limits.PREFERENCE_SECONDS


class Preferences(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a stage had better stand, and better not. None of it keeps it from anywhere: that is for Requirements."""

    prefer: tuple[Preference, ...] = ()
    avoid: tuple[Preference, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.prefer or self.avoid)


class Spread(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stages of a job that say the same `group` stand apart: on different nodes, or where an attribute `over` differs.

    `seconds`: how much later one of them may end rather than stand where another does; 0: it never stands there. All of a
    group say the same.
    """

    group: str
    over: str = ""
    seconds: float = 0.0


class Retry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often a failed stage is tried again, and after how long: first, times factor, at most last."""

    times: int = limits.RETRIES_DEFAULT
    first_seconds: float = limits.BACKOFF_FIRST_SECONDS
    factor: float = limits.BACKOFF_FACTOR
    last_seconds: float = limits.BACKOFF_LAST_SECONDS


class Variant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way to compute a stage: another size, precision or exit of its model, with the same ports.

    `quality`: from 0 to 1, as its author measured it, of whatever measure; it is compared between variants of one stage, and
    what is lost of it is added up over stages. `params` and `requires` take the place of the stage's, name by name. `seconds`:
    of a run on one core of the reference machine, without loading; 0 where its parameters, or its kind's hint, tell.
    """

    name: str
    quality: float
    params: dict[str, Any] = {}
    requires: Requirements = Requirements()
    seconds: float = 0.0


class Straggler(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a stage that runs too long gets a copy on another node: the first of both to have a result wins.

    Too long is `factor` times the seconds that such runs were measured to take there, or are hinted to take, and at
    least `after_seconds`. A kind with effects outside never gets a copy.
    """

    factor: float = limits.STRAGGLER_FACTOR_DEFAULT
    after_seconds: float = limits.STRAGGLER_AFTER_SECONDS


class OnFailure(StrEnum):
    """What a stage's final failure does: fail the job, skip what needs the stage, or use defaults."""

    FAIL = "fail"
    SKIP = "skip"
    DEFAULT = "default"


class Bounds(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much a stage may grow: stages that come of it in all, and generations, a loop's rounds, one after another."""

    stages: int = limits.GROWN_STAGES_MAX
    generations: int = limits.GROWN_GENERATIONS_MAX


class Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one stage meets trouble. `timeout_seconds` bounds one attempt's run; 0 is no bound.

    `deadline_seconds` bounds all of it, from when the stage's dependencies hold: queues, attempts, and the
    waits between them; 0 is no bound. `straggler` says when a copy of it is started; without, none is.
    `defaults` gives each output port's value, as plain JSON, for `on_failure: default`. `grow` bounds what a
    stage of a kind that grows may come to; what it adds counts with it. `replicate` is how many copies of its
    outputs other nodes are to keep, beside the node where they were made.
    """

    retry: Retry = Retry()
    timeout_seconds: float = 0.0
    deadline_seconds: float = 0.0
    straggler: Straggler | None = None
    on_failure: OnFailure = OnFailure.FAIL
    defaults: dict[str, Any] = {}
    grow: Bounds = Bounds()
    replicate: int = 0


class Join(StrEnum):
    """Whether a stage waits for all its upstreams, or starts once one of them is satisfied."""

    ALL = "all"
    ANY = "any"


class StageSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A vertex: a registered kind with its parameters, requirements and policy. `cancelled`: it is skipped, not run.

    `prefers` weighs the places that meet the requirements. `private` says how far the stage and all that it gives may go,
    or single outputs by their ports; what is computed from those goes no further (`dag.privacy`). `declassify`: what it
    gives is free of the labels of what it reads, and of its own as a whole; None leaves the former to its kind.
    `variants`: ways to compute it, the best first; empty for one that has no others. `variant`: the one that is taken while
    it can be. `least_quality`: of a variant that may be taken at all.
    """

    id: StageId
    kind: str
    params: dict[str, Any] = {}
    requires: Requirements = Requirements()
    policy: Policy = Policy()
    join: Join = Join.ALL
    cancelled: bool = False
    private: Private | dict[str, Private] | None = None
    declassify: bool | None = None
    prefers: Preferences = Preferences()
    colocate: str = ""
    spread: Spread | None = None
    variants: tuple[Variant, ...] = ()
    variant: str = ""
    least_quality: float = 0.0


class On(StrEnum):
    """When a dependency lets its downstream stage start.

    SUCCESS: the upstream succeeded (if it was skipped, so is the downstream). COMPLETION: it ended
    in any way. COMPARISON: it succeeded and a comparison of one of its outputs holds.
    """

    SUCCESS = "success"
    COMPLETION = "completion"
    COMPARISON = "comparison"


class Measure(StrEnum):
    """What a plan takes: seconds to its end, joules, money; of a job that comes again and again how often it can come at
    the most, in seconds from one to the next, and the seconds within which 95 rounds of 100 end; and what is lost of 1 by the
    quality of its variants.
    """

    LATENCY = "latency"
    ENERGY = "energy"
    PRICE = "price"
    PERIOD = "period"
    P95 = "p95"
    QUALITY = "quality"


class Goal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a plan is to make small: by its `weight`, in seconds a unit, beside others; or, where that is 0, before those behind it.

    `within`: the share by which it may be greater than it could be, for the sake of those behind it.
    """

    by: Measure
    weight: float = 0.0
    within: float = 0.0


class Slo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is promised of a job that comes again and again, in seconds; 0 promises nothing.

    `p50_seconds`, `p95_seconds`, `p99_seconds`: within which that share of rounds ends, each from when it was due.
    `first_token_seconds`: within which stages that write an answer have begun it, from when the round was due. `token_seconds`:
    from one token of the answer to the next. Both in SLO_TOKEN_SHARE of rounds.
    """

    p50_seconds: float = 0.0
    p95_seconds: float = 0.0
    p99_seconds: float = 0.0
    first_token_seconds: float = 0.0
    token_seconds: float = 0.0


Operator = Literal["==", "!=", "<", "<=", ">", ">=", "contains"]


class Comparison(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Compares a TEXT or JSON output with a constant; `path` walks into JSON, as `faces.0.score`."""

    output: str
    operator: Operator
    value: Any
    path: str = ""


class Dependency(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An arc from `upstream` to `downstream`: carries `output` to `input`, or only order if both are empty."""

    upstream: StageId
    downstream: StageId
    output: str = ""
    input: str = ""
    on: On = On.SUCCESS
    comparison: Comparison | None = None

    @property
    def carries_data(self) -> bool:
        return bool(self.output)


class InputBinding(msgspec.Struct, frozen=True, kw_only=True):
    """Feeds a job input, by its name, to a stage's input port."""

    source: str
    downstream: StageId
    input: str


class OutputBinding(msgspec.Struct, frozen=True, kw_only=True):
    """Makes a stage's output port an output of the job."""

    upstream: StageId
    output: str


class Constellation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task-DAG: stages by id, dependencies, typed job inputs and their bindings, job outputs by name.

    `deadline_seconds` bounds a job of it, from its acceptance on; 0 is no bound. `private` says of inputs, by name, how
    far they may go. `objective`: what plans for it make small, the most important first; without any, seconds.
    `every_seconds`: how often a job of it is handed in; 0 where that is not known. `rate`: chunks a second of the streams of one
    job; 0 likewise. `slo`: what is promised of each round, of a job or of a chunk. Plans heed these three; what runs does not.
    `least_quality`: of the variants of its stages that may be taken at all, where they do not ask for more themselves.
    """

    name: str
    stages: dict[StageId, StageSpec]
    dependencies: tuple[Dependency, ...] = ()
    inputs: dict[str, Port] = {}
    private: dict[str, Private] = {}
    bindings: tuple[InputBinding, ...] = ()
    outputs: dict[str, OutputBinding] = {}
    labels: dict[str, str] = {}
    deadline_seconds: float = 0.0
    objective: tuple[Goal, ...] = ()
    every_seconds: float = 0.0
    rate: float = 0.0
    slo: Slo = Slo()
    least_quality: float = 0.0
    api_version: str = API_VERSION

    def __repr__(self) -> str:
        return f"<Constellation {self.name!r}: {len(self.stages)} stages, {len(self.dependencies)} dependencies>"
