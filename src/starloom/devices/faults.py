"""Faults as data: what may break, how often, for how long and when. A plan of them serves any cluster, real or not.

name: two crashes
quiet_after_seconds: 20
faults:
  - {what: agent-crash, per_minute: 6, lasts_seconds: [0.5, 4]}
  - {what: stage-fails, chance: 0.02, armed: 0.5}
"""

from enum import StrEnum
from typing import Final

import msgspec

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
    STAGE_FAILS = "stage-fails"
    STAGE_HANGS = "stage-hangs"
    LIE_DIGEST = "lie-digest"
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


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One fault: at random times, `per_minute` in the whole cluster, or with a `chance` at each opportunity.

    `lasts_seconds` bounds how long one lasts. It happens from `from_seconds` to `to_seconds` of a run, and only in
    the share `armed` of all runs, so that runs differ in what meets.
    """

    what: FaultKind
    per_minute: float = 0.0
    chance: float = 0.0
    lasts_seconds: tuple[float, float] = (0.5, 5.0)
    from_seconds: float = 0.0
    to_seconds: float = DURATION_SECONDS_MAX
    armed: float = 1.0


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Faults, and after how many seconds of a run all of them end; 0 lets whoever runs it choose."""

    name: str = ""
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
        _perhaps(FaultKind.LIE_DIGEST, 0.1, 0.3),
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
    ),
)


def check_plan(plan: FaultPlan) -> FaultPlan:
    """The plan itself. Raises InvalidInput with all that is wrong with its numbers."""
    problems = []
    for index, fault in enumerate(plan.faults):
        place = f"faults.{index}"
        low, high = fault.lasts_seconds
        if not 0 <= fault.chance <= 1:
            problems.append(Problem(f"{place}.chance", f"is {fault.chance}; a chance is from 0 to 1"))
        if not 0 <= fault.armed <= 1:
            problems.append(Problem(f"{place}.armed", f"is {fault.armed}; a share is from 0 to 1"))
        if not 0 <= fault.per_minute <= 60_000:
            problems.append(Problem(f"{place}.per_minute", f"is {fault.per_minute}; use 0 to 60000"))
        if not 0 <= low <= high <= DURATION_SECONDS_MAX:
            problems.append(Problem(f"{place}.lasts_seconds", f"is {[low, high]}; give the least, then the most"))
        if not 0 <= fault.from_seconds <= fault.to_seconds:
            problems.append(Problem(f"{place}.from_seconds", "is not between 0 and to_seconds"))
    if not 0 <= plan.quiet_after_seconds <= DURATION_SECONDS_MAX:
        problems.append(Problem("quiet_after_seconds", f"is {plan.quiet_after_seconds}"))
    if problems:
        raise InvalidInput(problems, "the fault plan is not right")
    return plan
