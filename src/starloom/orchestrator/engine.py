"""The loop around the coordinator: inputs in, facts to the journal, and only then what follows from them.

Inputs are decided at once, in the order they came; their facts wait for the journal together, so that one
fsync serves all that came while the last one ran. The order of effects is the one that `Decision` states.
"""

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import ParamSpec

from starloom.agents import crashpoints
from starloom.agents.crashpoints import CrashPoint, reach
from starloom.agents.messages import Command
from starloom.dag import limits
from starloom.dag.errors import StarloomError, Unavailable
from starloom.dag.facts import AgentLost, Fact, JobEnded
from starloom.dag.ids import AgentId, JobId
from starloom.orchestrator import snapshots
from starloom.orchestrator.advice import Planned
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.effects import Answer, Decision, Result
from starloom.orchestrator.events import EventLog
from starloom.orchestrator.inputs import CancelJob, Input, PatchJob, Submit, Tick
from starloom.orchestrator.jobstore import JobStore
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.kept import KeptJobs
from starloom.orchestrator.onethread import OneThread
from starloom.orchestrator.planningservice import PlanningService
from starloom.orchestrator.records import Record
from starloom.orchestrator.snapshotting import Snapshotting
from starloom.orchestrator.stalls import Stalls

_log = logging.getLogger(__name__)

Done = Callable[[], None]
Undone = Sequence[tuple[Decision, list[Done]]]
"""Decisions with what is to be called back once they are journaled."""

Parameters = ParamSpec("Parameters")


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
        self._inbox: deque[tuple[Input, Done | None]] = deque()
        self._undone: deque[tuple[Decision, list[Done]]] = deque()
        self._answers: dict[int, asyncio.Future[Result]] = {}
        self._requests = 0
        self._snapshots = Snapshotting(journal.folder, self._drop)
        #: jobs whose records are to be deleted, with the offset of the last record when they were forgotten
        self._dropped: list[tuple[int, JobId]] = []
        self._deciding: asyncio.Handle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._checking: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at: int | None = None
        self._carrying = False
        self._stopping = False

    async def start(self, outlets: Outlets) -> None:
        """Replays the journal and takes over. Raises JournalDamaged."""
        self._outlets = outlets
        begun = await self._loop.run_in_executor(self._reading, self._replay)
        self._snapshots.begin(begun, self._journal.last_offset)
        # Not before the snapshots are known, which hold on to some records.
        self._drop()
        await self._loop.run_in_executor(self._reading, self._store.adopt, self.kept.digests)
        self._sweep()
        self._check_later()
        if self._planning is not None:
            self._planning.start()
        self._put(self.coordinator.boot(time.monotonic_ns()), [])
        self._arm()
        await self.settled()

    async def stop(self) -> None:
        """Decides and carries out what has come, then ends. What clients still wait for ends as Unavailable."""
        self._stopping = True
        if self._planning is not None:
            await asyncio.to_thread(self._planning.close)
        while self._inbox and not self.failed.done():
            self._decide()
        for handle in (self._alarm, self._sweeping, self._checking, self._deciding):
            if handle is not None:
                handle.cancel()
        with suppress(Unavailable):
            await self.settled()
        self._end_answers()
        await self._snapshots.stop()
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
            raise _gone()
        self._requests += 1
        request = self._requests
        answer: asyncio.Future[Result] = self._loop.create_future()
        self._answers[request] = answer
        try:
            self.post(make(request))
            return await answer
        finally:
            del self._answers[request]

    def call_soon(self, function: Callable[[], None]) -> None:
        """Calls a function in the event loop's thread, from any thread."""
        self._loop.call_soon_threadsafe(function)

    def has_room(self) -> bool:
        """Whether the journal's disk has room for new jobs."""
        return self._journal.has_room()

    async def settled(self) -> None:
        """Returns once everything decided so far is journaled: what was seen of the state cannot be lost any more."""
        if self.failed.done():
            raise _gone()
        if self._undone or self._carrying:
            written = asyncio.Event()
            self._put(Decision(), [written.set])
            waiting = asyncio.ensure_future(written.wait())
            await asyncio.wait((waiting, self.failed), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not written.is_set():
                raise _gone()

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
        kept, last = self.coordinator.jobs, self._journal.last_offset
        self._dropped = [(last, job) for job in self._journal.reader.jobs() if job not in kept]
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
        self._put(decision, [done for _, done in batch if done is not None])
        self._arm()
        if self._inbox:
            self._deciding = self._loop.call_soon(self._decide)

    def _put(self, decision: Decision, done: list[Done]) -> None:
        self._undone.append((decision, done))
        if not self._carrying:
            self._carry_out()

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

    def _carry_out(self) -> None:
        """Hands all that is undone to the journal; what is written in the meantime waits, to be written together."""
        undone = tuple(self._undone)
        self._undone.clear()
        facts = [fact for decision, _ in undone for fact in decision.facts]
        self._carrying = True
        if facts:
            self._writing.call(self._append, undone, facts, time.time_ns(), self._stalls.handed(len(facts)))
        else:
            self._written(undone, [], 0)

    def _append(self, undone: Undone, facts: Sequence[Fact], unix_nanos: int, handed: float) -> None:
        """In the journal's thread."""
        begun = time.monotonic()
        ends = crashpoints.ON and any(isinstance(fact, JobEnded) for fact in facts)
        try:
            reach(CrashPoint.BEFORE_APPEND)
            if ends:
                reach(CrashPoint.JOB_ENDING)
            records = self._journal.append(facts, unix_nanos)
            self._stalls.wrote(handed, begun, len(facts))
            reach(CrashPoint.AFTER_FSYNC)
            if ends:
                reach(CrashPoint.JOB_ENDED)
        except Exception as error:
            self._loop.call_soon_threadsafe(self._fail, error)
        else:
            self._loop.call_soon_threadsafe(self._written, undone, records, unix_nanos)

    def _written(self, undone: Undone, records: Sequence[Record], unix_nanos: int) -> None:
        began = time.monotonic()
        try:
            self._follow_up(undone, records, unix_nanos)
        except Exception as error:
            self._fail(error)
            return
        self._stalls.took("telling of facts:", len(records), began)
        self._carrying = False
        if self._undone:
            self._carry_out()

    def _follow_up(self, undone: Undone, records: Sequence[Record], unix_nanos: int) -> None:
        """What follows from decisions that are journaled, in the order that `Decision` states."""
        end = 0
        for decision, done in undone:
            for each in done:
                each()
            self._note(decision.facts, unix_nanos)
            reach(CrashPoint.ACKNOWLEDGED)
            for answer in decision.answers:
                self._answer(answer)
            reach(CrashPoint.ANSWERED)
            begin, end = end, end + len(decision.facts)
            self.events.publish(records[begin:end])
            reach(CrashPoint.PUBLISHED)
            self._send(decision)
        self._snapshots.wrote(records)
        self._forget_dropped()

    def _note(self, facts: Sequence[Fact], unix_nanos: int) -> None:
        for fact in facts:
            self._store.taken(self.kept.note(fact, unix_nanos))
        self._outlets.noted(facts)

    def _forget_dropped(self) -> None:
        # With nothing undone the coordinator's state is the journal's: a job that is gone there is gone for good.
        if not self._undone and len(self.kept) > len(self.coordinator.jobs):
            jobs, free = self.kept.forget(self.coordinator.jobs)
            self._reading.submit(_guarded, self._store.drop, free)
            self._reading.submit(_guarded, self._outlets.forgotten, jobs)
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
            self._writing.call(_guarded, self._journal.trim, until, frozenset(self.coordinator.agents))

    def _sweep(self) -> None:
        self._reading.submit(_guarded, self._store.expire)
        self._sweeping = self._loop.call_later(limits.UPLOAD_KEPT_SECONDS, self._sweep)

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

    def _answer(self, answer: Answer) -> None:
        waiting = self._answers.get(answer.request)
        if waiting is None or waiting.done():
            return
        if isinstance(answer.result, StarloomError):
            waiting.set_exception(answer.result)
        else:
            waiting.set_result(answer.result)

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
            self._end_answers()

    def _end_answers(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(_gone())


def _gone() -> Unavailable:
    return Unavailable("the orchestrator is stopping; ask again when it is back")


def _guarded(function: Callable[Parameters, object], *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
    """Housekeeping that failed is done again later; nothing hangs on it."""
    try:
        function(*args, **kwargs)
    except (OSError, sqlite3.Error, StarloomError):
        _log.exception("what no job needs any more could not be deleted")
