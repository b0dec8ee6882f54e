"""Makes faults happen on a live cluster and ends them: signals to its processes, calls to their Fault services.

Signals reach the processes of this machine alone.
"""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from zlib import crc32

import msgspec
import psutil

from starloom.agents.faultrules import Armed
from starloom.agents.faultservice import ArmedInfo, FaultClient
from starloom.dag.errors import InvalidInput, NotFound, Problem, StarloomError, Unavailable
from starloom.devices.faults import AT_ONCE, OF_ORCHESTRATOR, ORCHESTRATOR, WITH_PEER, FaultKind
from starloom.devices.node import NodeProfile
from starloom.orchestrator.trials.planning import Planned

KILLS: Final = (FaultKind.AGENT_CRASH, FaultKind.ORCHESTRATOR_CRASH)
HANGS: Final = (FaultKind.AGENT_HANG, FaultKind.ORCHESTRATOR_HANG)
AT: Final = "@"
"""In the ids of processes that hang: whose it is that must be woken."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a cluster: its node's name or ORCHESTRATOR, where its Fault service answers, and its id."""

    name: str
    address: str
    pid: int


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A fault that stands, and where, with the other end of a link: `seconds` that it still lasts, None until it is healed; `met`: what it changed."""

    id: str
    what: FaultKind
    node: str
    peer: str = ""
    seconds: float | None = None
    met: int = 0


def place_of(profile: NodeProfile) -> Place:
    """Where the agent of a node is."""
    return Place(name=profile.name, address=profile.address, pid=profile.pid)


class Injector:
    """Injects into the processes of one cluster. Every method is told where these are now."""

    def __init__(self, token: str) -> None:
        self._client = FaultClient(token)

    async def begin(self, fault: Planned, places: Sequence[Place]) -> None:
        """A fault begins at its node, or where it has several at all of them; a link's with a peer at both ends.

        Raises NotFound for a process that is gone or on another machine, Unavailable for one that does not answer, Conflict
        where faults are not allowed; then it has begun nowhere. Who would ask a node for values, and does not answer, is
        passed over.
        """
        if fault.what in KILLS:
            _signal(_place(fault.node, places), signal.SIGKILL)
        elif fault.what in HANGS:
            _signal(_place(fault.node, places), signal.SIGSTOP)
        else:
            await self._arm(fault, places)

    async def end(self, fault: Planned, places: Sequence[Place]) -> int:
        """A fault ends, if it has not by itself; returns how often it has changed something.

        Raises Unavailable for a process that does not answer.
        """
        if fault.what in HANGS:
            wake(_place(fault.node, places))
            return 1
        if fault.what in AT_ONCE:
            return 1
        ends = (*_ends(fault, places), *_asking(fault, places))
        calls = [self._client.heal(place.address, [fault.id]) for place, _ in ends]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        told = [answer for answer in answers if isinstance(answer, list)]
        for answer in answers:
            # One of several may be hanging, or gone, and its faults with it.
            if isinstance(answer, BaseException) and not (told and isinstance(answer, StarloomError)):
                raise answer
        return sum(info.met for healed in told for info in healed)

    async def _arm(self, fault: Planned, places: Sequence[Place]) -> None:
        ends, asking = _ends(fault, places), _asking(fault, places)
        if not ends:
            raise InvalidInput(
                [Problem("peer", f"is {fault.peer}, the node itself; name another")], "the fault has one end"
            )
        if hanging := [place.name for place, _ in ends if hangs(place)]:
            raise Unavailable(f"{hanging[0]} hangs and answers nothing; `starloom faults heal --all` wakes it")
        ends += [(place, peer) for place, peer in asking if not hangs(place)]
        calls = [
            self._client.arm(place.address, _armed(fault, place, peer), fault.lasts_seconds) for place, peer in ends
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for (place, peer), answer in zip(ends, answers, strict=True):
            if isinstance(answer, BaseException) and not ((place, peer) in asking and _silent(answer)):
                heals = (self._client.heal(place.address, [fault.id]) for place, _ in ends)
                await asyncio.gather(*heals, return_exceptions=True)
                raise Unavailable(f"{place.name}: {answer}") if _silent(answer) else answer

    async def heal(self, ids: Sequence[str], places: Sequence[Place]) -> list[Standing]:
        """Faults end wherever they are, all without ids; returns those that stood. Passes over who does not answer."""
        hanging = [place for place in places if hangs(place)]
        woken = [place for place in hanging if not ids or hang_id(place) in ids]
        for place in woken:
            wake(place)
        # One that hangs on would not answer, and has nothing to wait for.
        asked = [place for place in places if place not in hanging or place in woken]
        calls = [self._client.heal(place.address, list(ids)) for place in asked]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return [*map(_hanging, woken), *_told(asked, answers)]

    async def standing(self, places: Sequence[Place]) -> list[Standing]:
        """What stands now. Raises Conflict where faults are not allowed; passes over who does not answer."""
        hanging = [place for place in places if hangs(place)]
        asked = [place for place in places if place not in hanging]
        answers = await asyncio.gather(*(self._client.armed(place.address) for place in asked), return_exceptions=True)
        return [*map(_hanging, hanging), *_told(asked, answers)]


def hang_id(place: Place) -> str:
    """What a hanging process is healed by."""
    what = FaultKind.ORCHESTRATOR_HANG if place.name == ORCHESTRATOR else FaultKind.AGENT_HANG
    return f"{what}{AT}{place.name}"


def hangs(place: Place) -> bool:
    """Whether a process was stopped by SIGSTOP, or something like it."""
    process = _process(place)
    with suppress(psutil.Error):
        return process is not None and bool(process.status() == psutil.STATUS_STOPPED)
    return False


def wake(place: Place) -> None:
    """A process that hangs goes on; one that is gone needs nothing."""
    if (process := _process(place)) is not None:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGCONT)


def _hanging(place: Place) -> Standing:
    fault_id = hang_id(place)
    return Standing(id=fault_id, what=FaultKind(fault_id.partition(AT)[0]), node=place.name)


def _told(places: Sequence[Place], answers: Sequence[list[ArmedInfo] | BaseException]) -> list[Standing]:
    found = []
    for place, answer in zip(places, answers, strict=True):
        if isinstance(answer, list):
            found += [
                Standing(
                    id=info.fault.id,
                    what=info.fault.what,
                    node=place.name,
                    peer=info.fault.peer,
                    seconds=info.seconds,
                    met=info.met,
                )
                for info in answer
            ]
        elif not _silent(answer):
            raise answer
    return found


def _silent(error: BaseException) -> bool:
    """Whether nobody answered."""
    late = isinstance(error, StarloomError) and error.status == "DEADLINE_EXCEEDED"
    return late or isinstance(error, Unavailable)


def _signal(place: Place, number: signal.Signals) -> None:
    process = _process(place)
    try:
        if process is None:
            raise psutil.NoSuchProcess(place.pid)
        process.send_signal(number)
    except psutil.Error as error:
        raise NotFound(f"process {place.pid} of {place.name} is gone already, or on another machine") from error


def _process(place: Place) -> psutil.Process | None:
    """The process of a place, if it is on this machine.

    An agent says its own id, and on this machine another process may have that: only who listens at the agent's address is it.
    """
    port = place.address.rpartition(":")[2]
    try:
        process = psutil.Process(place.pid)
        listening = [each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    except (psutil.Error, ValueError):
        return None
    return process if port.isdecimal() and int(port) in listening else None


def _place(name: str, places: Sequence[Place]) -> Place:
    found = next((place for place in places if place.name == name), None)
    if found is None:
        known = ", ".join(place.name for place in places)
        raise InvalidInput([Problem("node", f"there is no node {name!r}; there are {known}")], "no such node")
    return found


def _ends(fault: Planned, places: Sequence[Place]) -> list[tuple[Place, Place | None]]:
    """Where a fault is armed, each with the peer that it has there."""
    if fault.what in OF_ORCHESTRATOR or fault.node:
        ends = [_place(fault.node, places)]
    else:
        ends = [place for place in places if place.name in fault.nodes]
    if not fault.peer:
        return [(place, None) for place in ends]
    peer = _place(fault.peer, places)
    both: list[tuple[Place, Place | None]] = [(place, peer) for place in ends if place != peer]
    # Values are asked for by who needs them, so both ends have to be kept from asking; a session by its agent alone.
    return both if peer.name == ORCHESTRATOR else [*both, *((peer, place) for place in ends if place != peer)]


def _asking(fault: Planned, places: Sequence[Place]) -> list[tuple[Place, Place | None]]:
    """Where the fault of all links of a node is armed beside the node: the others ask it for values, by the same path."""
    if fault.peer or fault.what not in WITH_PEER:
        return []
    ends = [place for place, _ in _ends(fault, places)]
    others = [place for place in places if place not in ends and place.name != ORCHESTRATOR]
    return [(other, place) for place in ends for other in others]


def _armed(fault: Planned, place: Place, peer: Place | None) -> Armed:
    return Armed(
        id=fault.id,
        what=fault.what,
        peer=peer.name if peer else "",
        address=peer.address if peer else "",
        kind=fault.kind,
        factor=fault.factor,
        add_seconds=fault.add_seconds,
        delay_seconds=fault.delay_seconds,
        chance=fault.chance,
        # Each process has draws of its own.
        seed=fault.seed ^ crc32(place.name.encode()),
        most=fault.most,
    )
