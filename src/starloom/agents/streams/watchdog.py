"""Which stages of one agent wait for each other's streams for ever, and what helps. Pure.

Where two ways lead from a stage to another and one of them gathers chunks before it passes any on, the other fills up
and holds their common source up, while the first waits for more from it. More room on the full way resolves that.
A stage that computes, or waits for another agent or the world, may go on; only those that wait for each other alone
are taken for stuck. Across agents nobody sees the whole circle: there a wait that lasts too long has to do.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from starloom.agents.streams.records import Bound
from starloom.dag import limits
from starloom.dag.ids import TaskToken


class RoomWait(NamedTuple):
    """A stage waits for room in a stream of its own. `readers`: those of this agent that would make it.

    `names` are all readers that would, `since` is when the wait began, in nanoseconds.
    """

    port: str
    readers: tuple[TaskToken, ...]
    names: tuple[str, ...]
    kept: Bound
    bound: Bound
    since: int = 0


class Waits(NamedTuple):
    """All that a stage waits for, which does nothing else. `producers`: whose chunks, None for what is not on this agent."""

    rooms: tuple[RoomWait, ...] = ()
    producers: tuple[TaskToken | None, ...] = ()


class Enlarge(NamedTuple):
    """Let this stream keep more."""

    task: TaskToken
    port: str
    bound: Bound


class Hopeless(NamedTuple):
    """No room is left to give. `task` is the stage to fail, `why` names who waits for whom."""

    task: TaskToken
    why: str


def stuck(waits: Mapping[TaskToken, Waits]) -> frozenset[TaskToken]:
    """The stages that wait for each other alone; none where no room of theirs is waited for."""
    left = dict(waits)
    while True:
        free = [task for task, found in left.items() if not _hopeless(found, left)]
        if not free:
            break
        for task in free:
            del left[task]
    return frozenset(left) if any(found.rooms for found in left.values()) else frozenset()


def remedy(waits: Mapping[TaskToken, Waits], most: Bound) -> Enlarge | Hopeless | None:
    """More room for the smallest full stream among those that are stuck, up to `most`; None where none is."""
    among = stuck(waits)
    full = [
        (room, task) for task in among for room in waits[task].rooms if any(reader in among for reader in room.readers)
    ]
    full.sort(key=lambda found: (found[0].bound, found[1].stage, found[0].port))
    for room, task in full:
        bound = larger = room.bound
        if room.kept.chunks >= bound.chunks:
            larger = larger._replace(chunks=min(2 * bound.chunks, most.chunks))
        else:
            larger = larger._replace(bytes=min(2 * bound.bytes, most.bytes))
        if larger.chunks > bound.chunks or larger.bytes > bound.bytes:
            return Enlarge(task, room.port, larger)
    if not full:
        return None
    first = full[0][1]
    return Hopeless(first, f"streams wait for each other, and no room is left: {_circle(first, waits, among)}")


def overdue(waits: Mapping[TaskToken, Waits], now: int) -> Iterator[Hopeless]:
    """The stages that wait for room longer than STREAM_STALL_SECONDS, whoever would have to make it."""
    longest = limits.STREAM_STALL_SECONDS
    for task, found in waits.items():
        for room in found.rooms:
            if now - room.since > longest * 1e9:
                who = " and ".join(room.names)
                why = f"its output {room.port} waits for {who} since STREAM_STALL_SECONDS = {longest:g}"
                yield Hopeless(task, f"{why}, and keeps {room.kept.chunks} chunks of {room.kept.bytes} bytes")
                break


def _hopeless(found: Waits, among: Mapping[TaskToken, Waits]) -> bool:
    """Whether nothing that a stage waits for can come while these wait."""
    if not found.rooms and not found.producers:
        return False
    rooms = all(any(reader in among for reader in room.readers) for room in found.rooms)
    return rooms and all(producer in among for producer in found.producers)


def _circle(task: TaskToken, waits: Mapping[TaskToken, Waits], among: frozenset[TaskToken]) -> str:
    """Who waits for whom, from a stage on until one comes again."""
    seen: list[str] = []
    passed: set[TaskToken] = set()
    while task not in passed:
        passed.add(task)
        for room in waits[task].rooms:
            if (reader := next((reader for reader in room.readers if reader in among), None)) is not None:
                seen.append(f"{task.stage} waits for {reader.stage} to take from {room.port}")
                task = reader
                break
        else:
            producer = next(producer for producer in waits[task].producers if producer is not None)
            seen.append(f"{task.stage} waits for chunks of {producer.stage}")
            task = producer
    return ", ".join(seen)
