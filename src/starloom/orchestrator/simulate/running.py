"""What an agent's process does for its core: carries out its instructions, and runs its attempts, as `agents.runtime` has it."""

from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from starloom.agents.core import (
    Answer,
    Ask,
    Bring,
    Drop,
    Fetch,
    Forget,
    Instruction,
    Keep,
    Named,
    Start,
    Stop,
    Tell,
    Unask,
)
from starloom.agents.messages import Assign, Failed, Outcome, Report, WasCancelled
from starloom.dag.facts import ErrorInfo
from starloom.dag.ids import JobId, TaskToken
from starloom.devices.faults import FaultKind
from starloom.orchestrator.simulate.fetching import InputFetches, Lost, input_lost
from starloom.orchestrator.simulate.model import STREAMING, Made
from starloom.orchestrator.simulate.results import Results
from starloom.orchestrator.simulate.streamrun import StreamRun
from starloom.orchestrator.simulate.work import Doing, Work

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.agent import AgentProcess

EVENT_SECONDS = (0.00001, 0.0003)
STOP_SECONDS = (0.0005, 0.05)
STUBBORN_SECONDS = (0.05, 4.0)
FOREVER_SECONDS = 10_000.0


class Runner:
    """Carries out one core's instructions."""

    def __init__(self, process: "AgentProcess") -> None:
        self._process = process
        self._world = process.world
        self._loop = process.loop
        self._chance = process.chance
        self._works: dict[TaskToken, Work] = {}
        self._queue: deque[TaskToken] = deque()
        self._threads = process.core.slots
        self.running = 0
        self._results = Results(process)
        #: what others told of before it was hashed, and can be read here from then on
        self.early: dict[TaskToken, Outcome] = {}
        self.leaving = False

    @property
    def keeps(self) -> tuple[JobId, ...]:
        """The jobs that anything is kept for, copies included."""
        process = self._process
        others = (task.job for task in self._works)
        parts = (process.holder.keeps, others, process.replicator.jobs, process.peering.jobs, process.streams.jobs)
        return tuple(dict.fromkeys(job for part in parts for job in part))

    def carry_out(self, instructions: Iterable[Instruction]) -> None:
        """Does what the core says."""
        todo = deque(instructions)
        while todo:
            match todo.popleft():
                case Tell(report):
                    if not self.leaving:
                        self._process.tell(report)
                case Start() as start:
                    todo.extend(self._start(start))
                case Fetch(assign):
                    self._fetch(assign)
                case Stop(task):
                    self._stop(self._works[task])
                case Drop(task):
                    self._works.pop(task, None)
                case Keep(command):
                    self._process.replicator.keep(command)
                case Bring(command):
                    self._results.bring(command)
                case Forget(job):
                    self._forget(job)
                case Ask() as ask:
                    self._process.peering.ask(ask)
                case Named(assign) if assign.task in self._works:
                    self._works[assign.task].assign = assign
                case Unask(task):
                    self.early.pop(task, None)
                    self._process.peering.unask(task)
                case Answer(subscriber, outcome):
                    self._process.peering.answer(subscriber, outcome)

    def ended(self, task: TaskToken, report: Report) -> None:
        """An attempt has ended."""
        work = self._works.pop(task)
        for timer in (work.timer, work.step):
            if timer is not None:
                timer.cancel()
        self._world.judge.ended(self._process, report)
        self.carry_out(self._process.core.ended(task, report, self._loop.now))

    def _forget(self, job: JobId) -> None:
        self._process.replicator.forget(job)
        self._process.holder.forget(job)
        self._process.streams.forget(job)

    def _fetch(self, assign: Assign) -> None:
        work = self._works[assign.task] = Work(assign)
        work.doing = Doing.FETCH
        work.fetches = InputFetches(self._process, assign, partial(self._fetched, work))
        work.fetches.begin()

    def _fetched(self, work: Work, lost: list[Lost]) -> None:
        task = work.assign.task
        work.doing = Doing.WAIT
        if lost:
            self.ended(task, input_lost(task, lost))
        else:
            self.carry_out(self._process.core.fetched(task, self._loop.now))

    def _start(self, start: Start) -> list[Instruction]:
        assign = start.assign
        task = assign.task
        work = self._works.get(task)
        if work is None:
            work = self._works[task] = Work(assign)
        work.assign = assign
        work.accepted, work.fetching = start.accepted, start.fetching
        held = self._process.holder.held.get(task.job, {})
        me = self._process.name
        lost: list[Lost] = [
            (item, True, (me,))
            for item in assign.inputs
            if item.ref.inline is None
            and item.ref.holder == me
            and not held.keys() & {item.ref.digest, self._world.truth(item.ref.digest)}
        ]
        if lost:
            del self._works[task]
            report = input_lost(task, lost)
            self._world.judge.ended(self._process, report)
            return self._process.core.ended(task, report, self._loop.now)
        if assign.kind in STREAMING:
            work.doing = Doing.STREAM
            work.stream = StreamRun(self._process, assign, partial(self._streamed, work))
            self._loop.after(self._chance.between(*EVENT_SECONDS), partial(self._flows, work), self._process)
            return []
        self._queue.append(task)
        self._feed()
        return []

    def _flows(self, work: Work) -> None:
        """A stage with streams begins, in no slot: as `agents.streams.runner` has it."""
        task = work.assign.task
        if work.stream is None or self._works.get(task) is not work:
            return
        work.began = self._loop.now
        self._world.judge.began(self._process, work.assign)
        self.carry_out(self._process.core.began(task, self._loop.now))
        work.stream.begin()

    def _streamed(self, work: Work, made: Report | Made) -> None:
        """A stage with streams is done: with what it made, or with how else it ended."""
        if isinstance(made, Made):
            self._results.keep_streamed(work, made)
        else:
            self.ended(work.assign.task, made)

    def _feed(self) -> None:
        while self._threads and self._queue:
            self._threads -= 1
            task = self._queue.popleft()
            delay = self._chance.between(*EVENT_SECONDS)
            self._loop.after(delay, partial(self._began, self._works[task]), self._process)

    def _began(self, work: Work) -> None:
        task = work.assign.task
        work.began = self._loop.now
        work.doing = Doing.RUN
        self.running += 1
        self._world.judge.began(self._process, work.assign)
        seconds = self._chance.between(*EVENT_SECONDS) if work.cancelled else self._seconds(work)
        if work.assign.timeout_seconds and not work.cancelled:
            work.timer = self._loop.after(work.assign.timeout_seconds, partial(self._time_out, work), self._process)
        work.step = self._loop.after(seconds, partial(self._ran, work), self._process)
        self.carry_out(self._process.core.began(task, self._loop.now))

    def _seconds(self, work: Work) -> float:
        if self._world.trouble.fires(FaultKind.STAGE_HANGS):
            self._world.trouble.hanging.append(partial(self._wake, work))
            return FOREVER_SECONDS
        return self._world.run_seconds(self._process, work.assign)

    def _wake(self, work: Work) -> None:
        """A stage that hung goes on."""
        if work.doing is Doing.RUN and work.step is not None:
            work.step.cancel()
            work.step = self._loop.after(0.1, partial(self._ran, work), self._process)

    def _time_out(self, work: Work) -> None:
        work.timed_out = True
        self._stop(work)

    def _stop(self, work: Work) -> None:
        """A cancel token is set: what runs reacts after a while, or has ended by then."""
        was, work.cancelled = work.cancelled, True
        task = work.assign.task
        if was:
            return
        if work.fetches is not None:
            work.fetches.stop()
        if work.doing in (Doing.FETCH, Doing.PUBLISH, Doing.HASH):
            if work.step is not None:
                work.step.cancel()
            work.step = self._loop.after(0, partial(self.ended, task, WasCancelled(task=task)), self._process)
        elif work.stream is not None:
            stubborn = self._chance.happens(0.2)
            work.stream.stop(self._chance.between(*(STUBBORN_SECONDS if stubborn else STOP_SECONDS)))
        elif work.doing is Doing.RUN and work.step is not None:
            work.step.cancel()
            seconds = self._chance.between(*(STUBBORN_SECONDS if self._chance.happens(0.2) else STOP_SECONDS))
            work.step = self._loop.after(seconds, partial(self._ran, work), self._process)

    def _free(self) -> None:
        self.running -= 1
        self._threads += 1
        self._feed()

    def _ran(self, work: Work) -> None:
        """The worker is done with it."""
        task = work.assign.task
        if work.timer is not None:
            work.timer.cancel()
        work.doing = Doing.WAIT
        self._free()
        if work.cancelled and not self._chance.happens(0.1):
            if work.timed_out:
                error = ErrorInfo(message="it ran too long", cause="DeadlineExceeded", transient=True)
                self.ended(task, Failed(task=task, error=error))
            else:
                self.ended(task, WasCancelled(task=task))
            return
        error_ = self._world.misbehaviour.failure(work.assign)
        if error_ is not None:
            self.ended(task, Failed(task=task, error=error_))
        else:
            self._results.keep(work)
