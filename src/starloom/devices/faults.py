"""Faults as data: what may break, of whom, when, how often and for how long. One plan serves the simulator and live clusters.

name: two crashes
seed: 7
quiet_after_seconds: 20
faults:
  - {what: agent-crash, per_minute: 6, lasts_seconds: [0.5, 4]}
  - {what: agent-hang, tier: edge, at_seconds: 1.5, lasts_seconds: 2}
  - {what: partition-up, node: edge-1, stage: transcribe, lasts_seconds: 2}
  - {what: stage-fails, chance: 0.02, armed: 0.5}
"""

from collections.abc import Iterator, Mapping, Set
from enum import StrEnum
from typing import Final

import msgspec

from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.limits import DURATION_SECONDS_MAX

BUILT_IN: Final = ("all", "none")
"""Names that stand for plans."""


class FaultKind(StrEnum):
    """What may break. Those before FRAME_TWICE happen at times, the others at opportunities."""

    AGENT_CRASH = "agent-crash"
    AGENT_FLAP = "agent-flap"
    AGENT_HANG = "agent-hang"
    AGENT_LEAVE = "agent-leave"
    AGENT_SLOW = "agent-slow"
    DISK_FULL = "disk-full"
    LINK_BREAK = "link-break"
    LINK_SLOW = "link-slow"
    ORCHESTRATOR_CRASH = "orchestrator-crash"
    ORCHESTRATOR_HANG = "orchestrator-hang"
    ORCHESTRATOR_TWICE = "orchestrator-twice"
    PARTITION = "partition"
    PARTITION_DATA = "partition-data"
    PARTITION_DOWN = "partition-down"
    PARTITION_UP = "partition-up"
    VALUES_LOST = "values-lost"

    FRAME_TWICE = "frame-twice"
    FETCH_FAILS = "fetch-fails"
    FETCH_DAMAGED = "fetch-damaged"
    STAGE_FAILS = "stage-fails"
    STAGE_HANGS = "stage-hangs"
    GROWTH_LOST = "growth-lost"
    LIE_DIGEST = "lie-digest"
    LIE_GROWTH = "lie-growth"
    LIE_LINEAGE = "lie-lineage"
    LIE_OUTPUTS = "lie-outputs"
    CRASH_BEFORE_APPEND = "crash-before-append"
    CRASH_AFTER_APPEND = "crash-after-append"
    CRASH_AFTER_ACKNOWLEDGEMENTS = "crash-after-acknowledgements"
    CRASH_AMID_SENDING = "crash-amid-sending"
    CLIENT_CANCELS = "client-cancels"
    CLIENT_DROPS = "client-drops"
    CLIENT_PATCHES = "client-patches"
    CLIENT_REPEATS = "client-repeats"
    REPLY_LOST = "reply-lost"


class Moment(StrEnum):
    """Which moment of a stage a fault comes at."""

    START = "start"
    END = "end"


ORCHESTRATOR: Final = "orchestrator"
"""The other end of a link, where it is the orchestrator's."""

AT_OPPORTUNITIES: Final[Set[FaultKind]] = frozenset(list(FaultKind)[list(FaultKind).index(FaultKind.FRAME_TWICE) :])
"""Those that happen with a chance each time that they could; the others happen at times."""

LIVE: Final[Mapping[FaultKind, str]] = {
    FaultKind.AGENT_CRASH: "SIGKILL of an agent's process; whatever hosts it starts it again",
    FaultKind.AGENT_HANG: "SIGSTOP of an agent's process, until SIGCONT",
    FaultKind.AGENT_SLOW: "stages on a node take `factor` times as long and `add_seconds` more, all or those of a `kind`",
    FaultKind.DISK_FULL: "the orchestrator's journal finds its disk full, but for the room set aside",
    FaultKind.LINK_BREAK: "a node's connection to the orchestrator breaks once",
    FaultKind.LINK_SLOW: "what travels between a node and a `peer`, or everybody, takes `delay_seconds` longer each way",
    FaultKind.ORCHESTRATOR_CRASH: "SIGKILL of the orchestrator's process",
    FaultKind.ORCHESTRATOR_HANG: "SIGSTOP of the orchestrator's process, until SIGCONT",
    FaultKind.PARTITION: "nothing gets from a node to a `peer`, or to anybody, nor back",
    FaultKind.PARTITION_DATA: "no values get from a node to other nodes, or to a `peer`, nor back",
    FaultKind.PARTITION_DOWN: "nothing gets from the orchestrator to a node",
    FaultKind.PARTITION_UP: "nothing gets from a node to the orchestrator",
    FaultKind.FETCH_FAILS: "a fetch of a value does not get through",
    FaultKind.FETCH_DAMAGED: "a fetched value arrives with a bit turned over",
    FaultKind.STAGE_FAILS: "a stage fails in passing, all or those of a `kind`",
    FaultKind.STAGE_HANGS: "a stage does not end until that is over, or until it is cancelled",
    FaultKind.REPLY_LOST: "the orchestrator does what a client asks, and its answer is lost",
}
"""What can be done to a live cluster as well as in the simulator, in a line each."""

OF_ORCHESTRATOR: Final[Set[FaultKind]] = frozenset(
    {FaultKind.DISK_FULL, FaultKind.ORCHESTRATOR_CRASH, FaultKind.ORCHESTRATOR_HANG, FaultKind.REPLY_LOST}
)
"""Of those that are live, what happens to the orchestrator, and so has no node."""

AT_ONCE: Final[Set[FaultKind]] = frozenset(
    {FaultKind.AGENT_CRASH, FaultKind.ORCHESTRATOR_CRASH, FaultKind.LINK_BREAK, FaultKind.AGENT_LEAVE}
)
"""What is over at once on a live cluster: there is nothing to heal, only to recover from."""

OF_KINDS: Final[Set[FaultKind]] = frozenset({FaultKind.AGENT_SLOW, FaultKind.STAGE_FAILS, FaultKind.STAGE_HANGS})
WITH_PEER: Final[Set[FaultKind]] = frozenset({FaultKind.LINK_SLOW, FaultKind.PARTITION, FaultKind.PARTITION_DATA})


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One fault. When: at random times, `per_minute` in the whole cluster; with a `chance` at each opportunity; once
    `at_seconds` from a run's begin on; or at the `on` of each attempt of a `stage`.

    Whom: one of the nodes that `node`, `tier` and `labels` leave, drawn anew each time; where none of them is given, any
    node, and with `stage` the one that has it. `peer` is the other end of a link: a node, ORCHESTRATOR, or empty for
    everybody. `kind` bounds what happens to stages to one kind of them.

    `lasts_seconds` bounds how long one lasts, and one that `heals` not lasts until somebody ends it. It happens from
    `from_seconds` to `to_seconds` of a run, at most `most` times unless 0, and only in the share `armed` of all runs, so
    that runs differ in what meets. `factor`, `add_seconds` and `delay_seconds` say by how much something is slower; 0 for
    whoever runs it to choose.
    """

    what: FaultKind
    per_minute: float = 0.0
    chance: float = 0.0
    at_seconds: float | None = None
    stage: str = ""
    on: Moment = Moment.START
    node: str = ""
    tier: Tier | None = None
    labels: dict[str, str] = {}
    peer: str = ""
    kind: str = ""
    lasts_seconds: tuple[float, float] = (0.5, 5.0)
    heals: bool = True
    most: int = 0
    factor: float = 0.0
    add_seconds: float = 0.0
    delay_seconds: float = 0.0
    from_seconds: float = 0.0
    to_seconds: float = DURATION_SECONDS_MAX
    armed: float = 1.0

    @property
    def anywhere(self) -> bool:
        """Whether it says nothing about the node."""
        return not (self.node or self.tier or self.labels)

    def may_meet(self, name: str, tier: Tier, labels: Mapping[str, str]) -> bool:
        """Whether it may happen to this node."""
        return (
            self.node in ("", name)
            and self.tier in (None, tier)
            and all(labels.get(key) == value for key, value in self.labels.items())
        )


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Faults, and after how many seconds of a run all of them end; 0 lets whoever runs it choose, as None for the seed."""

    name: str = ""
    seed: int | None = None
    quiet_after_seconds: float = 0.0
    faults: tuple[Fault, ...] = ()


def _often(what: FaultKind, per_minute: float, low: float = 0.5, high: float = 5.0) -> Fault:
    return Fault(what=what, per_minute=per_minute, lasts_seconds=(low, high), armed=0.4)


def _perhaps(what: FaultKind, chance: float, armed: float = 0.4) -> Fault:
    return Fault(what=what, chance=chance, armed=armed)


NO_FAULTS: Final = FaultPlan(name="none")
ALL_FAULTS: Final = FaultPlan(
    name="all",
    faults=(
        _often(FaultKind.AGENT_CRASH, 20, 0.2, 12),
        _often(FaultKind.AGENT_FLAP, 4, 4, 15),
        _often(FaultKind.AGENT_HANG, 16, 0.5, 12),
        _often(FaultKind.AGENT_LEAVE, 10, 0.2, 8),
        _often(FaultKind.AGENT_SLOW, 20, 2, 20),
        _often(FaultKind.DISK_FULL, 6, 0.5, 5),
        _often(FaultKind.LINK_BREAK, 60),
        _often(FaultKind.LINK_SLOW, 20, 1, 8),
        _often(FaultKind.ORCHESTRATOR_CRASH, 12),
        _often(FaultKind.ORCHESTRATOR_HANG, 6, 0.2, 8),
        _often(FaultKind.ORCHESTRATOR_TWICE, 6, 0.0, 8),
        _often(FaultKind.PARTITION, 16, 0.5, 15),
        _often(FaultKind.PARTITION_DATA, 20, 0.5, 15),
        _often(FaultKind.PARTITION_DOWN, 12, 0.5, 15),
        _often(FaultKind.PARTITION_UP, 12, 0.5, 15),
        _often(FaultKind.VALUES_LOST, 20),
        _perhaps(FaultKind.FRAME_TWICE, 0.05),
        _perhaps(FaultKind.FETCH_FAILS, 0.1),
        _perhaps(FaultKind.STAGE_FAILS, 0.1),
        _perhaps(FaultKind.STAGE_HANGS, 0.02),
        _perhaps(FaultKind.GROWTH_LOST, 0.4),
        _perhaps(FaultKind.LIE_DIGEST, 0.1, 0.3),
        _perhaps(FaultKind.LIE_GROWTH, 0.2, 0.4),
        _perhaps(FaultKind.LIE_LINEAGE, 0.05, 0.2),
        _perhaps(FaultKind.LIE_OUTPUTS, 0.01, 0.25),
        _perhaps(FaultKind.CRASH_BEFORE_APPEND, 0.008),
        _perhaps(FaultKind.CRASH_AFTER_APPEND, 0.008),
        _perhaps(FaultKind.CRASH_AFTER_ACKNOWLEDGEMENTS, 0.008),
        _perhaps(FaultKind.CRASH_AMID_SENDING, 0.008),
        _perhaps(FaultKind.CLIENT_CANCELS, 0.3, 0.3),
        _perhaps(FaultKind.CLIENT_DROPS, 0.05),
        _perhaps(FaultKind.CLIENT_PATCHES, 0.8, 0.6),
        _perhaps(FaultKind.CLIENT_REPEATS, 0.3),
        # Behind the others, so that what these draw from a seed stays what it was.
        _perhaps(FaultKind.FETCH_DAMAGED, 0.05),
        _perhaps(FaultKind.REPLY_LOST, 0.1),
    ),
)


PER_MINUTE_MAX: Final = 60_000
MOST_MAX: Final = 10_000


def check_plan(plan: FaultPlan) -> FaultPlan:
    """The plan itself. Raises InvalidInput with all that is wrong with its numbers, and with what they mean together."""
    problems = [
        problem for index, fault in enumerate(plan.faults) for problem in fault_problems(f"faults.{index}", fault)
    ]
    if not 0 <= plan.quiet_after_seconds <= DURATION_SECONDS_MAX:
        problems.append(
            Problem("quiet_after_seconds", f"is {plan.quiet_after_seconds}; use 0 to {DURATION_SECONDS_MAX:g}")
        )
    if problems:
        raise InvalidInput(problems, "the fault plan is not right")
    return plan


def fault_problems(place: str, fault: Fault) -> Iterator[Problem]:
    """What is wrong with one fault, which stands at `place`."""
    for name, most in (("chance", 1), ("armed", 1), ("per_minute", PER_MINUTE_MAX), ("most", MOST_MAX)):
        value = getattr(fault, name)
        if not 0 <= value <= most:
            yield Problem(f"{place}.{name}", f"is {value}; use 0 to {most}")
    for name in ("at_seconds", "factor", "add_seconds", "delay_seconds", "from_seconds"):
        value = getattr(fault, name) or 0.0
        if not 0 <= value <= DURATION_SECONDS_MAX:
            yield Problem(f"{place}.{name}", f"is {value}; use 0 to {DURATION_SECONDS_MAX:g}")
    low, high = fault.lasts_seconds
    if not 0 <= low <= high <= DURATION_SECONDS_MAX:
        yield Problem(f"{place}.lasts_seconds", f"is {[low, high]}; give the least, then the most")
    if fault.from_seconds > fault.to_seconds:
        yield Problem(f"{place}.from_seconds", f"is {fault.from_seconds:g}, after to_seconds")
    yield from _when_problems(place, fault)
    yield from _whom_problems(place, fault)


def _when_problems(place: str, fault: Fault) -> Iterator[Problem]:
    said = {"per_minute": fault.per_minute, "at_seconds": fault.at_seconds is not None, "stage": fault.stage}
    times = [name for name, given in said.items() if given]
    if len(times) > 1:
        yield Problem(place, f"says when by {' and by '.join(times)}; keep one")
    if fault.what in AT_OPPORTUNITIES:
        if not fault.chance:
            yield Problem(f"{place}.chance", f"is missing: {fault.what} happens with a chance at each opportunity")
        if fault.per_minute:
            yield Problem(f"{place}.per_minute", f"{fault.what} happens at opportunities; say its chance at each")
        return
    if fault.chance:
        yield Problem(f"{place}.chance", f"{fault.what} happens at times; say per_minute, at_seconds or stage")
    elif not times:
        yield Problem(place, f"does not say when {fault.what} happens; say per_minute, at_seconds or stage")


def _whom_problems(place: str, fault: Fault) -> Iterator[Problem]:
    what = fault.what
    if what in OF_ORCHESTRATOR and not fault.anywhere:
        yield Problem(place, f"names a node, but {what} happens to the orchestrator")
    if fault.peer and what not in WITH_PEER:
        yield Problem(f"{place}.peer", f"{what} has no other end; leave it out")
    elif fault.peer and fault.peer == fault.node:
        yield Problem(f"{place}.peer", f"is {fault.peer}, the node itself; name another")
    if fault.kind and what not in OF_KINDS:
        yield Problem(f"{place}.kind", f"{what} happens to no stages; leave it out")
    if not fault.heals and what in AT_ONCE:
        yield Problem(f"{place}.heals", f"{what} is over at once; leave it out")
    for name, only in (
        ("factor", FaultKind.AGENT_SLOW),
        ("add_seconds", FaultKind.AGENT_SLOW),
        ("delay_seconds", FaultKind.LINK_SLOW),
    ):
        if getattr(fault, name) and what != only:
            yield Problem(f"{place}.{name}", f"is for {only} alone; leave it out")


def live_problems(plan: FaultPlan) -> list[Problem]:
    """What of a plan can only be simulated."""
    known = ", ".join(LIVE)
    return [
        Problem(f"faults.{index}.what", f"{fault.what} can only be simulated; on a live cluster there are {known}")
        for index, fault in enumerate(plan.faults)
        if fault.what not in LIVE
    ]


def simulated_problems(plan: FaultPlan) -> list[Problem]:
    """What of a plan is for live clusters alone."""
    problems = []
    for index, fault in enumerate(plan.faults):
        for name in ("stage", "peer", "kind", "labels"):
            if getattr(fault, name):
                what = "the simulator draws its jobs and links, which nobody can name; leave it out"
                problems.append(Problem(f"faults.{index}.{name}", what))
        if not fault.heals:
            problems.append(Problem(f"faults.{index}.heals", "in the simulator every fault ends; leave it out"))
    return problems
