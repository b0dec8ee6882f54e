"""What armed faults mean for one process: whether something gets through, how much longer it takes, what fails.

Pure: decides from what is armed and `now`, in monotonic nanoseconds of that process, and draws by counting. What is armed
is replaced and never changed, so that worker threads may ask while the event loop arms.
"""

from collections.abc import Iterable
from enum import StrEnum
from hashlib import blake2b
from typing import Final

import msgspec

from starloom.dag import limits
from starloom.dag.errors import Conflict, InvalidInput, Overloaded, Problem
from starloom.devices.faults import LIVE, ORCHESTRATOR, FaultKind

_NANOS: Final = 1e9


class Armed(msgspec.Struct, frozen=True, kw_only=True):
    """One fault in one process, until `until` or for ever; the other fields are as `devices.faults.Fault` has them.

    `peer` is ORCHESTRATOR, a node, whose data service is at `address`, or empty for everybody.
    """

    id: str
    what: FaultKind
    peer: str = ""
    address: str = ""
    kind: str = ""
    factor: float = 0.0
    add_seconds: float = 0.0
    delay_seconds: float = 0.0
    chance: float = 1.0
    seed: int = 0
    most: int = 0
    until: int | None = None


class Way(StrEnum):
    """Which way a message of a session goes, seen from the agent."""

    UP = "up"
    DOWN = "down"


_CUTS_WAY: Final = {
    Way.UP: (FaultKind.PARTITION, FaultKind.PARTITION_UP),
    Way.DOWN: (FaultKind.PARTITION, FaultKind.PARTITION_DOWN),
}
_CUTS_DATA: Final = (FaultKind.PARTITION, FaultKind.PARTITION_DATA)
#: values go to and from the orchestrator's store by the path that the session takes
_CUTS_STORE: Final = (*_CUTS_DATA, FaultKind.PARTITION_UP, FaultKind.PARTITION_DOWN)

_OF_DATA: Final = (*_CUTS_STORE, FaultKind.LINK_SLOW, FaultKind.FETCH_FAILS, FaultKind.FETCH_DAMAGED)


class FaultRules:
    """What is armed in one process; `able` are the kinds of faults that it can have."""

    def __init__(self, able: Iterable[FaultKind] = tuple(LIVE)) -> None:
        self._able = frozenset(able)
        self._armed: tuple[Armed, ...] = ()
        #: how often each has changed something, and how often it could have
        self._met: dict[str, int] = {}
        self._drawn: dict[str, int] = {}

    def arm(self, fault: Armed, now: int) -> None:
        """A fault begins. Raises Conflict for an id that is armed, InvalidInput for what this process cannot have, Overloaded."""
        if fault.what not in self._able:
            what = f"{fault.what} does not happen here; there are {', '.join(sorted(self._able))}"
            raise InvalidInput([Problem("fault.what", what)], "the fault cannot be armed")
        armed = self.armed(now)
        if any(other.id == fault.id for other in armed):
            raise Conflict(f"a fault {fault.id!r} is armed already; heal it, or give this one another id")
        if len(armed) >= limits.FAULTS_ARMED_MAX:
            raise Overloaded(
                f"{len(armed)} faults are armed, FAULTS_ARMED_MAX = {limits.FAULTS_ARMED_MAX}; heal some",
                limits.OVERLOADED_RETRY_SECONDS,
            )
        for counts in (self._met, self._drawn):
            counts[fault.id] = 0
        self._armed = (*armed, fault)

    def heal(self, ids: Iterable[str], now: int) -> tuple[Armed, ...]:
        """Faults end, all where no ids are given; returns those that were armed."""
        wanted, armed = frozenset(ids), self.armed(now)
        healed = tuple(fault for fault in armed if not wanted or fault.id in wanted)
        self._armed = tuple(fault for fault in armed if fault not in healed)
        return healed

    def armed(self, now: int) -> tuple[Armed, ...]:
        """What is armed now."""
        return tuple(fault for fault in self._armed if fault.until is None or now < fault.until)

    def met(self, fault_id: str) -> int:
        """How often a fault has changed something."""
        return self._met.get(fault_id, 0)

    def expires(self, now: int) -> float | None:
        """Seconds until the next of the armed ends by itself; None if none does."""
        ends = [fault.until for fault in self.armed(now) if fault.until is not None]
        return (min(ends) - now) / _NANOS if ends else None

    def cuts_session(self, way: Way, now: int) -> bool:
        """Whether nothing gets through that way between the agent and the orchestrator."""
        return self._any(
            fault for fault in self.armed(now) if fault.what in _CUTS_WAY[way] and fault.peer in ("", ORCHESTRATOR)
        )

    def cuts_data(self, address: str, store: bool, now: int) -> bool:
        """Whether no values are exchanged with the data service there; `store`: it is the orchestrator's."""
        cuts = _CUTS_STORE if store else _CUTS_DATA
        return self._any(fault for fault in self.armed(now) if fault.what in cuts and _is_end(fault, address, store))

    def cuts_serving(self, now: int) -> bool:
        """Whether nobody gets values here; a single peer is kept from asking where that one is."""
        return self._any(fault for fault in self.armed(now) if fault.what in _CUTS_DATA and not fault.peer)

    def disturbs_data(self, now: int) -> bool:
        """Whether something is armed that values from others may meet."""
        return any(fault.what in _OF_DATA for fault in self.armed(now))

    def session_delay(self, now: int) -> float:
        """Seconds that a message takes longer between the agent and the orchestrator."""
        return self._delay(fault for fault in self._slow(now) if fault.peer in ("", ORCHESTRATOR))

    def data_delay(self, address: str, store: bool, now: int) -> float:
        """Seconds that a request for a value, or with one, takes longer there and back."""
        return 2 * self._delay(fault for fault in self._slow(now) if _is_end(fault, address, store))

    def slowness(self, kind: str, now: int) -> tuple[float, float]:
        """By what factor, at least 1, and how many seconds more a stage of that kind takes longer."""
        factor, added = 1.0, 0.0
        for fault in self.armed(now):
            if fault.what == FaultKind.AGENT_SLOW and fault.kind in ("", kind):
                self._meet(fault)
                factor *= max(1.0, fault.factor)
                added += fault.add_seconds
        return factor, added

    def fires(self, what: FaultKind, now: int, kind: str = "") -> Armed | None:
        """The armed fault that happens at this opportunity; None if none does."""
        for fault in self.armed(now):
            if fault.what == what and fault.kind in ("", kind) and self._happens(fault):
                self._meet(fault)
                return fault
        return None

    def disk_full(self, now: int) -> bool:
        """Whether nothing can be written but into the room that is set aside."""
        return self._any(fault for fault in self.armed(now) if fault.what == FaultKind.DISK_FULL)

    def _slow(self, now: int) -> Iterable[Armed]:
        return (fault for fault in self.armed(now) if fault.what == FaultKind.LINK_SLOW)

    def _delay(self, faults: Iterable[Armed]) -> float:
        total = 0.0
        for fault in faults:
            self._meet(fault)
            total += fault.delay_seconds
        return total

    def _any(self, faults: Iterable[Armed]) -> bool:
        found = next(iter(faults), None)
        if found is not None:
            self._meet(found)
        return found is not None

    def _happens(self, fault: Armed) -> bool:
        if 0 < fault.most <= self.met(fault.id):
            return False
        self._drawn[fault.id] = number = self._drawn.get(fault.id, 0) + 1
        return drawn(fault.seed, number) < fault.chance

    def _meet(self, fault: Armed) -> None:
        self._met[fault.id] = self.met(fault.id) + 1


def drawn(seed: int, number: int) -> float:
    """The number-th draw of a fault, from 0 to below 1: the same on every machine."""
    digest = blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    # A float has 53 bits.
    return (int.from_bytes(digest) >> 11) / 2.0**53


def _is_end(fault: Armed, address: str, store: bool) -> bool:
    """Whether the fault is of the path to that data service."""
    return not fault.peer or (store if fault.peer == ORCHESTRATOR else fault.address == address)
