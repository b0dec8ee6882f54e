"""What other agents on this host made and are still hashing, as it is read meanwhile; and the hashing of what is made here."""

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import msgspec

from starloom.agents import values
from starloom.agents.execution import Made
from starloom.agents.messages import Input, Outcome
from starloom.agents.neighbours import Neighbours
from starloom.agents.values import Data
from starloom.dag import limits
from starloom.dag.ids import JobId, TaskToken


class EarlyValues:
    """Views of values that others told of early, each kept from then on until its digest is told, or wanted by nobody.

    So a value that an attempt was begun with can be read, whatever becomes of who made it. `hashed` is told what was
    hashed here: that is kept until its job ends. For the event loop's thread.
    """

    def __init__(self, neighbours: Neighbours | None, hashed: Callable[[Outcome], None]) -> None:
        self._neighbours = neighbours
        self._hashed = hashed
        self._told: dict[TaskToken, tuple[Outcome, dict[str, memoryview]]] = {}
        self._kept: dict[JobId, dict[str, memoryview]] = {}
        self._hashing: set[asyncio.Task[None]] = set()

    def take(self, outcome: Outcome, address: str) -> bool:
        """Whether all that the agent at `address` told of early can be read here; if not, its digests are waited for."""
        if self._neighbours is None:
            return False
        views: dict[str, memoryview] = {}
        for port in outcome.late:
            ref = outcome.outputs[port]
            view = self._neighbours.at_hand(address, outcome.task.job, ref)
            if view is None:
                return False
            views[ref.digest] = view
        self._told[outcome.task] = outcome, views
        return True

    def views(self, items: list[Input], job: JobId) -> dict[str, Data]:
        """The bytes of those inputs that are late, or whose digest was found here, by port."""
        found: dict[str, Data] = {}
        kept = self._kept.get(job, {})
        for item in items:
            if item.late and item.consumed.token is not None:
                _, views = self._told[TaskToken(job, item.consumed.upstream, item.consumed.token)]
                found[item.port] = views[item.ref.digest]
            elif item.ref.digest in kept:
                found[item.port] = kept[item.ref.digest]
        return found

    def hash(self, task: TaskToken) -> None:
        """Who told early of an attempt may never tell the rest, which is found out here, unless it is not wanted any more."""
        if (told := self._told.get(task)) is not None:
            hashing = asyncio.create_task(self._hash(*told))
            self._hashing.add(hashing)
            hashing.add_done_callback(self._hashing.discard)

    async def _hash(self, outcome: Outcome, views: Mapping[str, memoryview]) -> None:
        digests = {port: await _digest(views[outcome.outputs[port].digest]) for port in outcome.late}
        if outcome.task in self._told:
            self._hashed(with_digests(outcome, digests))

    def stop(self) -> None:
        """Hashes no more."""
        for hashing in self._hashing:
            hashing.cancel()

    def keep(self, outcome: Outcome) -> None:
        """Its digests were found here: who reads it later finds it here as well, for who made it may not have hashed it by then."""
        early, views = self._told.pop(outcome.task)
        kept = self._kept.setdefault(outcome.task.job, {})
        kept.update((outcome.outputs[port].digest, views[early.outputs[port].digest]) for port in early.late)

    def forget(self, job: JobId) -> None:
        """The job has ended."""
        self._kept.pop(job, None)

    def drop(self, task: TaskToken) -> None:
        """The digests are known, or nobody wants them."""
        self._told.pop(task, None)


def with_digests(outcome: Outcome, digests: Mapping[str, str]) -> Outcome:
    """The outcome that follows an early one."""
    refs = {port: msgspec.structs.replace(outcome.outputs[port], digest=digest) for port, digest in digests.items()}
    return msgspec.structs.replace(outcome, outputs=outcome.outputs | refs, late=())


async def digests_of(made: Made) -> dict[str, str]:
    """The digests of those outputs that are late, by port."""
    return {port: await _digest(made.data[port]) for port in made.late}


async def _digest(data: Data) -> str:
    try:
        return await asyncio.get_running_loop().run_in_executor(_hashers, values.digest, data)
    except (RuntimeError, MemoryError):
        # Where no thread can be begun: others have read the value, and wait for this.
        return values.digest(data)


def _give_way() -> None:
    # What waits for the digest waits anyway; whoever is woken to pass the value on must not wait for a core as well.
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), limits.HASH_NICENESS)


_hashers = ThreadPoolExecutor(limits.HASHES_AT_ONCE, "hashing", _give_way)
