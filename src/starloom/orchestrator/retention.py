"""Deletes what no kept job needs any more: records, stored values, and what is kept for jobs elsewhere."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import ParamSpec

from starloom.dag import limits
from starloom.dag.errors import StarloomError
from starloom.dag.ids import JobId
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.jobstore import JobStore
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.kept import KeptJobs
from starloom.orchestrator.onethread import OneThread
from starloom.orchestrator.records import Record
from starloom.orchestrator.snapshotting import Snapshotting

_log = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")


class Retention:
    """Follows which jobs a coordinator keeps, and has snapshots taken, which hold on to records. For one event loop.

    Records are deleted in the thread `writing`, all else in `reading`.
    """

    def __init__(
        self, journal: Journal, store: JobStore, coordinator: Coordinator, writing: OneThread, reading: Executor
    ) -> None:
        self._journal = journal
        self._store = store
        self._coordinator = coordinator
        self._writing = writing
        self._reading = reading
        self._loop = asyncio.get_running_loop()
        self._kept: KeptJobs
        self._forgotten: Callable[[Sequence[JobId]], None]
        self._snapshots = Snapshotting(journal.folder, self._drop)
        #: jobs whose records are to be deleted, with the offset of the last record when they were forgotten
        self._dropped: list[tuple[int, JobId]] = []
        self._sweeping: asyncio.TimerHandle | None = None

    def adopt(self, kept: KeptJobs) -> None:
        """Begins with the jobs that are kept after a replay. In the thread that reads the journal."""
        self._kept = kept
        jobs, last = self._coordinator.jobs, self._journal.last_offset
        self._dropped = [(last, job) for job in self._journal.reader.jobs() if job not in jobs]

    async def start(self, offset: int, forgotten: Callable[[Sequence[JobId]], None]) -> None:
        """The replay began with the snapshot of `offset`. `forgotten` is called in a thread with jobs that are not kept any more."""
        self._forgotten = forgotten
        self._snapshots.begin(offset, self._journal.last_offset)
        # Not before the snapshots are known, which hold on to some records.
        self._drop()
        await self._loop.run_in_executor(self._reading, self._store.adopt, self._kept.digests)
        self._sweep()

    async def stop(self) -> None:
        """Deletes nothing more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self._snapshots.stop()

    def wrote(self, records: Sequence[Record], *, whole: bool) -> None:
        """Records were journaled. `whole`: so is all that was decided.

        Only then the coordinator's state is the journal's, and a job that is gone there is gone for good.
        """
        self._snapshots.wrote(records)
        if whole and len(self._kept) > len(self._coordinator.jobs):
            jobs, free = self._kept.forget(self._coordinator.jobs)
            self._reading.submit(_guarded, self._store.drop, free)
            self._reading.submit(_guarded, self._forgotten, jobs)
            self._dropped += [(self._journal.last_offset, job) for job in jobs]
            if len(self._dropped) >= limits.JOBS_DROPPED_TOGETHER:
                self._drop()

    def _drop(self) -> None:
        """Also the records of dropped jobs go, and old ones about agents, so that the next start does not read them."""
        end = self._snapshots.droppable(self._journal.last_offset)
        jobs = [job for offset, job in self._dropped if offset <= end]
        self._dropped = [(offset, job) for offset, job in self._dropped if offset > end]
        if jobs:
            self._writing.call(_guarded, self._journal.drop, jobs)
        if until := self._snapshots.droppable(0):
            self._writing.call(_guarded, self._journal.trim, until, frozenset(self._coordinator.agents))

    def _sweep(self) -> None:
        self._reading.submit(_guarded, self._store.expire)
        self._sweeping = self._loop.call_later(limits.UPLOAD_KEPT_SECONDS, self._sweep)


def _guarded(function: Callable[Parameters, object], *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
    """Housekeeping that failed is done again later; nothing hangs on it."""
    try:
        function(*args, **kwargs)
    except (OSError, sqlite3.Error, StarloomError):
        _log.exception("what no job needs any more could not be deleted")
