"""When snapshots are taken: once enough was journaled since the last, by one process at a time that is no burden."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from starloom.agents import crashpoints
from starloom.agents.crashpoints import CrashPoint
from starloom.dag import limits
from starloom.orchestrator.records import Record
from starloom.orchestrator.snapshots import offsets

_log = logging.getLogger(__name__)
_MODULE: Final = "starloom.orchestrator.snapshots"


class Snapshotting:
    """Has snapshots taken of a journal. For one event loop; `taken` is called after each."""

    def __init__(self, journal: Path, taken: Callable[[], None]) -> None:
        self._journal = journal
        self._taken = taken
        self._loop = asyncio.get_running_loop()
        self._facts = 0
        self._bytes = 0
        self._offsets: list[int] = []
        self._not_before = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._taking: asyncio.Task[None] | None = None
        self._stopping = False

    def begin(self, offset: int, last: int) -> None:
        """The state was restored as of `offset`, and the records up to `last` were replayed."""
        self._facts = last - offset
        self._offsets = offsets(self._journal)
        self._look()

    def wrote(self, records: Sequence[Record]) -> None:
        """So much more would be replayed."""
        self._facts += len(records)
        self._bytes += sum(len(record.line) for record in records)
        if self._due and self._alarm is None:
            self._look()

    def droppable(self, last: int) -> int:
        """Records of jobs that were forgotten up to here may be deleted: no snapshot that is kept knows them.

        `last` is the offset of the last record.
        """
        if self._taking is not None:
            return 0
        return min(self._offsets, default=last)

    async def stop(self) -> None:
        """Ends the process that takes one."""
        self._stopping = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait((self._taking,))

    @property
    def _due(self) -> bool:
        enough = self._facts >= limits.SNAPSHOT_FACTS or self._bytes >= limits.SNAPSHOT_BYTES
        free = self._taking is None and not self._stopping
        return free and (enough or (crashpoints.ON and crashpoints.snapshot_awaited()))

    def _look(self) -> None:
        self._alarm = None
        if not self._due:
            return
        if self._loop.time() < self._not_before:
            self._alarm = self._loop.call_at(self._not_before, self._look)
            return
        self._taking = self._loop.create_task(self._take())

    async def _take(self) -> None:
        began = self._loop.time()
        facts, size = self._facts, self._bytes
        failed = await self._run()
        seconds = self._loop.time() - began
        rest = limits.SNAPSHOT_RETRY_SECONDS if failed else limits.SNAPSHOT_PAUSES * seconds
        self._not_before = self._loop.time() + rest
        if failed:
            _log.error("no snapshot was taken, and another is tried in %g s: %s", rest, failed)
        else:
            self._facts -= facts
            self._bytes -= size
            crashpoints.reach(CrashPoint.SNAPSHOT_TAKEN)
        self._offsets = await asyncio.to_thread(offsets, self._journal)
        self._taking = None
        self._taken()
        self._look()

    async def _run(self) -> str:
        """The process; returns how it failed, or an empty text."""
        command = (sys.executable, "-m", _MODULE, str(self._journal), str(os.getpid()))
        most = limits.SNAPSHOT_SECONDS_MAX
        try:
            child = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        except OSError as error:
            return str(error)
        try:
            async with asyncio.timeout(most):
                status = await child.wait()
            return f"the process ended with status {status}" if status else ""
        except TimeoutError:
            return f"the process was not done within SNAPSHOT_SECONDS_MAX = {most:g}, and is ended"
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
