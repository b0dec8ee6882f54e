"""The loop around the coordinator: inputs in, facts to the journal, and only then what follows from them.

Inputs are decided at once, in the order they came; their facts wait for the journal together, so that one
fsync serves all that came while the last one ran. The order of effects is the one that `Decision` states.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from starloom.agents.crashpoints import CrashPoint, reach
from starloom.agents.messages import Command
from starloom.dag import limits
from starloom.dag.errors import Unavailable
from starloom.dag.facts import AgentLost, Fact
from starloom.dag.ids import AgentId, JobId
from starloom.orchestrator import snapshots
from starloom.orchestrator.advice import Planned
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.effects import Decision, Result
from starloom.orchestrator.events import EventLog
from starloom.orchestrator.groupcommit import Done, GroupCommit, Undone
from starloom.orchestrator.inputs import CancelJob, Input, PatchJob, Submit, Tick
from starloom.orchestrator.jobstore import JobStore
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.kept import KeptJobs
from starloom.orchestrator.onethread import OneThread
from starloom.orchestrator.planningservice import PlanningService
from starloom.orchestrator.records import Record
from starloom.orchestrator.requests import Requests, gone
from starloom.orchestrator.retention import Retention
from starloom.orchestrator.stalls import Stalls

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where effects go that leave the orchestrator: commands to agents, and word that an agent was given up.

    `noted` takes facts that are journaled, before anybody is told, and `forgotten` the jobs that are not kept any more;
    this one in a thread.
    """

    send: Callable[[AgentId, Sequence[Command]], None]
    lost: Callable[[AgentId, str], None]
    noted: Callable[[Sequence[Fact]], None]
    forgotten: Callable[[Sequence[JobId]], None]


class Engine:
    """One coordinator on one journal. For one event loop; `failed` ends with the error that ended the loop.

    `plans_live`: the plans that the coordinator wants are made.
    """

    def __init__(
        self, journal: Journal, store: JobStore, coordinator: Coordinator, *, plans_live: bool = False
    ) -> None:
        self.coordinator = coordinator
        self.kept = KeptJobs()
        self._journal = journal
        self._store = store
        self._outlets: Outlets
        self.events = EventLog(self._read, journal.last_offset)
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._stalls = Stalls()
        self._writing = OneThread("journal")
        self._reading = ThreadPoolExecutor(1, "journal-read")
        self._planning = PlanningService(self._planned, self._is_open) if plans_live else None
        self.commits = GroupCommit(journal, self._writing, self._stalls, self._follow_up, self._fail, self.failed)
        self._retention = Retention(journal, store, coordinator, self._writing, self._reading)
        self._requests = Requests()
        self._inbox: deque[tuple[Input, Done | None]] = deque()
        self._deciding: asyncio.Handle | None = None
        self._checking: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at: int | None = None
        self._stopping = False

    async def start(self, outlets: Outlets) -> None:
        """Replays the journal and takes over. Raises JournalDamaged."""
        self._outlets = outlets
        begun = await self._loop.run_in_executor(self._reading, self._replay)
        await self._retention.start(begun, outlets.forgotten)
        self._check_later()
        if self._planning is not None:
            self._planning.start()
        self.commits.put(self.coordinator.boot(time.monotonic_ns()), [])
        self._arm()
        await self.commits.settled()

    async def stop(self) -> None:
        """Decides and carries out what has come, then ends. What clients still wait for ends as Unavailable."""
        self._stopping = True
        if self._planning is not None:
            await asyncio.to_thread(self._planning.close)
        while self._inbox and not self.failed.done():
            self._decide()
        for handle in (self._alarm, self._checking, self._deciding):
            if handle is not None:
                handle.cancel()
        with suppress(Unavailable):
            await self.commits.settled()
        self._requests.end()
        await self._retention.stop()
        self._writing.close()
        self._reading.shutdown()
        if self.failed.done():
            self.failed.exception()

    def post(self, item: Input, done: Done | None = None) -> None:
        """Takes an input; `done` is called once what follows from it is journaled."""
        self._inbox.append((item, done))
        if self._deciding is None and not self._stopping:
            # Whatever else arrives in this turn of the event loop joins the batch.
            self._deciding = self._loop.call_soon(self._decide)

    async def ask(self, make: Callable[[int], Submit | CancelJob | PatchJob]) -> Result:
        """Posts the input that `make` gives for a request's number, and returns the answer, or raises it."""
        if self._stopping or self.failed.done():
            raise gone()
        with self._requests.open() as (number, answer):
            self.post(make(number))
            return await answer

    def call_soon(self, function: Callable[[], None]) -> None:
        """Calls a function in the event loop's thread, from any thread."""
        self._loop.call_soon_threadsafe(function)

    def has_room(self) -> bool:
        """Whether the journal's disk has room for new jobs."""
        return self._journal.has_room()

    def _replay(self) -> int:
        """In the reading thread; returns the offset of the snapshot that it began with."""
        found = snapshots.newest(self._journal.reader)
        self.coordinator.adopt(found.state)
        self.kept = found.kept

        def facts() -> Iterator[Fact]:
            for record in self._journal.replay(found.offset):
                fact = record.fact
                self.kept.note(fact, record.unix_nanos)
                yield fact

        self.coordinator.replay(facts())
        self.kept.forget(self.coordinator.jobs)
        self._retention.adopt(self.kept)
        return found.offset

    async def _read(self, after: int, job: JobId | None) -> list[Record]:
        return await self._loop.run_in_executor(self._reading, self._journal.read, after, job)

    def _decide(self) -> None:
        self._deciding = None
        if self.failed.done() or not self._inbox:
            return
        count = min(len(self._inbox), limits.BATCH_INPUTS_MAX)
        batch = [self._inbox.popleft() for _ in range(count)]
        began = time.monotonic()
        try:
            decision = self.coordinator.handle([item for item, _ in batch], time.monotonic_ns())
        except Exception as error:
            self._fail(error)
            return
        self._stalls.took("deciding on inputs:", count, began)
        self.commits.put(decision, [done for _, done in batch if done is not None])
        self._arm()
        if self._inbox:
            self._deciding = self._loop.call_soon(self._decide)

    def _arm(self) -> None:
        due = self.coordinator.next_wake()
        if due == self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = due
        # The event loop's clock is the monotonic one as well, in seconds.
        self._alarm = None if due is None else self._loop.call_at(due / 1e9, self._ring)

    def _ring(self) -> None:
        self._alarm_at = None
        self.post(Tick())

    def _follow_up(self, undone: Undone, records: Sequence[Record], unix_nanos: int) -> None:
        """What follows from decisions that are journaled, in the order that `Decision` states."""
        end = 0
        for decision, done in undone:
            for each in done:
                each()
            self._note(decision.facts, unix_nanos)
            reach(CrashPoint.ACKNOWLEDGED)
            for answer in decision.answers:
                self._requests.answer(answer)
            reach(CrashPoint.ANSWERED)
            begin, end = end, end + len(decision.facts)
            self.events.publish(records[begin:end])
            reach(CrashPoint.PUBLISHED)
            self._send(decision)
        self._retention.wrote(records, whole=not self.commits.undone)

    def _note(self, facts: Sequence[Fact], unix_nanos: int) -> None:
        for fact in facts:
            self._store.taken(self.kept.note(fact, unix_nanos))
        self._outlets.noted(facts)

    def _check_later(self) -> None:
        # The event loop's clock is the monotonic one as well.
        due = self._loop.time() + limits.LEASE_SECONDS
        self._checking = self._loop.call_at(due, self._check, due)

    def _check(self, due: float) -> None:
        """One that was replaced and has nothing to write learns of it here, and gives up the agents that it keeps."""
        self._stalls.look(due)
        self._writing.call(self._check_epoch)
        self._check_later()

    def _check_epoch(self) -> None:
        """In the journal's thread."""
        try:
            self._journal.check_epoch()
        except Exception as error:
            self._loop.call_soon_threadsafe(self._fail, error)

    def _send(self, decision: Decision) -> None:
        by_agent: dict[AgentId, list[Command]] = {}
        for agent, command in decision.commands:
            by_agent.setdefault(agent, []).append(command)
        for agent, of_agent in by_agent.items():
            self._outlets.send(agent, of_agent)
        for fact in decision.facts:
            if isinstance(fact, AgentLost):
                self._outlets.lost(fact.agent, fact.incarnation)
        if self._planning is not None:
            for wanted in decision.plans:
                self._planning.want(wanted)

    def _planned(self, planned: Planned) -> None:
        """In the planning thread; a loop that is closed has nobody who waits."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.post, planned)

    def _is_open(self, job: JobId) -> bool:
        state = self.coordinator.jobs.get(job)
        return state is not None and not state.ended

    def _fail(self, error: Exception) -> None:
        if not self.failed.done():
            _log.error("the orchestrator cannot go on: %s", error, exc_info=error)
            self.failed.set_exception(error)
            self._requests.end()
