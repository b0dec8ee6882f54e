"""What an agent's process does for its core: fetches, runs, publishes, as `agents.runtime` has it."""

from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from starloom.agents.core import Drop, Fetch, Forget, Instruction, Start, Stop, Tell
from starloom.agents.messages import Assign, Failed, Finished, Input, InputLost, Report, WasCancelled
from starloom.dag import limits
from starloom.dag.facts import Consumed, ErrorInfo, Timing
from starloom.dag.ids import JobId, StageId, TaskToken
from starloom.devices.faults import FaultKind
from starloom.orchestrator.simulate.loop import SECOND, Timer
from starloom.orchestrator.simulate.model import Made, answers, make

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.agent import AgentProcess

EVENT_SECONDS = (0.00001, 0.0003)
STOP_SECONDS = (0.0005, 0.05)
STUBBORN_SECONDS = (0.05, 4.0)
PUT_SECONDS = (0.002, 0.02)
FOREVER_SECONDS = 10_000.0


class Doing(Enum):
    """What becomes of an attempt at the moment."""

    FETCH = auto()
    WAIT = auto()
    RUN = auto()
    PUBLISH = auto()


class _Work:
    """One attempt that is fetched, run or published."""

    __slots__ = (
        "accepted",
        "assign",
        "began",
        "cancelled",
        "doing",
        "fetching",
        "left",
        "lost",
        "step",
        "timed_out",
        "timer",
    )

    def __init__(self, assign: Assign) -> None:
        self.assign = assign
        self.accepted = self.fetching = self.began = 0
        self.cancelled = self.timed_out = False
        self.doing = Doing.WAIT
        #: inputs that are being fetched, and those that cannot be had, with whether they are gone
        self.left = 0
        self.lost: list[tuple[Input, bool]] = []
        #: the present step's end, and the end of its patience
        self.step: Timer | None = None
        self.timer: Timer | None = None


class Runner:
    """Carries out one core's instructions. Values are digests by job."""

    def __init__(self, process: "AgentProcess") -> None:
        self._process = process
        self._world = process.world
        self._loop = process.loop
        self._chance = process.chance
        self._works: dict[TaskToken, _Work] = {}
        self._queue: deque[TaskToken] = deque()
        self._threads = process.core.slots
        self.running = 0
        self.held: dict[JobId, dict[str, int]] = {}
        self._copies: dict[JobId, set[str]] = {}
        self.leaving = False

    @property
    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that values are kept for."""
        return tuple(self.held)

    @property
    def held_bytes(self) -> int:
        return sum(sum(values.values()) for values in self.held.values())

    @property
    def keeps(self) -> tuple[JobId, ...]:
        """The jobs that anything is kept for, copies included."""
        return tuple(dict.fromkeys([*self.held, *self._copies, *(task.job for task in self._works)]))

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
                case Forget(job):
                    self.held.pop(job, None)
                    self._copies.pop(job, None)

    def _ended(self, task: TaskToken, report: Report) -> None:
        work = self._works.pop(task)
        for timer in (work.timer, work.step):
            if timer is not None:
                timer.cancel()
        self._world.judge.ended(self._process, report)
        self.carry_out(self._process.core.ended(task, report, self._loop.now))

    # -- fetching

    def _fetch(self, assign: Assign) -> None:
        work = self._works[assign.task] = _Work(assign)
        work.doing = Doing.FETCH
        me = self._process.name
        items = [item for item in assign.inputs if item.ref.inline is None and item.ref.holder != me]
        work.left = len(items)
        for item in items:
            self._fetch_one(work, item, self._loop.now + round(limits.INPUT_PATIENCE_SECONDS * SECOND), 0.05)

    def _fetch_one(self, work: _Work, item: Input, give_up: int, wait: float) -> None:
        if work.cancelled:
            return
        if item.ref.digest in self._copies.get(work.assign.task.job, ()):
            self._fetched_one(work, item, None)
            return
        seconds = self._world.transfer_seconds(self._process, item)
        self._loop.after(seconds, partial(self._try, work, item, give_up, wait), self._process)

    def _try(self, work: _Work, item: Input, give_up: int, wait: float) -> None:
        if work.cancelled:
            return
        there = self._world.has(self._process, item, work.assign.task.job)
        if there is None:
            if item.address and self._loop.now > give_up:
                self._fetched_one(work, item, False)
            else:
                again = partial(self._fetch_one, work, item, give_up, min(2 * wait, limits.RECONNECT_LAST_SECONDS))
                self._loop.after(wait, again, self._process)
            return
        if there:
            self._copies.setdefault(work.assign.task.job, set()).add(item.ref.digest)
        self._fetched_one(work, item, None if there else True)

    def _fetched_one(self, work: _Work, item: Input, gone: bool | None) -> None:
        if gone is not None:
            work.lost.append((item, gone))
        work.left -= 1
        if work.left or work.cancelled:
            return
        task = work.assign.task
        work.doing = Doing.WAIT
        if work.lost:
            self._ended(task, _lost(task, work.lost))
        else:
            self.carry_out(self._process.core.fetched(task, self._loop.now))

    # -- running

    def _start(self, start: Start) -> list[Instruction]:
        assign = start.assign
        task = assign.task
        work = self._works.get(task)
        if work is None:
            work = self._works[task] = _Work(assign)
        work.accepted, work.fetching = start.accepted, start.fetching
        held = self.held.get(task.job, {})
        me = self._process.name
        lost = [
            (item, True)
            for item in assign.inputs
            if item.ref.inline is None and item.ref.holder == me and item.ref.digest not in held
        ]
        if lost:
            del self._works[task]
            report = _lost(task, lost)
            self._world.judge.ended(self._process, report)
            return self._process.core.ended(task, report, self._loop.now)
        self._queue.append(task)
        self._feed()
        return []

    def _feed(self) -> None:
        while self._threads and self._queue:
            self._threads -= 1
            task = self._queue.popleft()
            delay = self._chance.between(*EVENT_SECONDS)
            self._loop.after(delay, partial(self._began, self._works[task]), self._process)

    def _began(self, work: _Work) -> None:
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

    def _seconds(self, work: _Work) -> float:
        if self._world.trouble.fires(FaultKind.STAGE_HANGS):
            self._world.trouble.hanging.append(partial(self._wake, work))
            return FOREVER_SECONDS
        return self._world.run_seconds(self._process, work.assign)

    def _wake(self, work: _Work) -> None:
        """A stage that hung goes on."""
        if work.doing is Doing.RUN and work.step is not None:
            work.step.cancel()
            work.step = self._loop.after(0.1, partial(self._ran, work), self._process)

    def _time_out(self, work: _Work) -> None:
        work.timed_out = True
        self._stop(work)

    def _stop(self, work: _Work) -> None:
        """A cancel token is set: what runs reacts after a while, or has ended by then."""
        was, work.cancelled = work.cancelled, True
        task = work.assign.task
        if was:
            return
        if work.doing in (Doing.FETCH, Doing.PUBLISH):
            if work.step is not None:
                work.step.cancel()
            work.step = self._loop.after(0, partial(self._ended, task, WasCancelled(task=task)), self._process)
        elif work.doing is Doing.RUN and work.step is not None:
            work.step.cancel()
            seconds = self._chance.between(*(STUBBORN_SECONDS if self._chance.happens(0.2) else STOP_SECONDS))
            work.step = self._loop.after(seconds, partial(self._ran, work), self._process)

    def _free(self) -> None:
        self.running -= 1
        self._threads += 1
        self._feed()

    def _ran(self, work: _Work) -> None:
        """The worker is done with it."""
        task = work.assign.task
        if work.timer is not None:
            work.timer.cancel()
        work.doing = Doing.WAIT
        self._free()
        if work.cancelled and not self._chance.happens(0.1):
            if work.timed_out:
                error = ErrorInfo(message="it ran too long", cause="DeadlineExceeded", transient=True)
                self._ended(task, Failed(task=task, error=error))
            else:
                self._ended(task, WasCancelled(task=task))
            return
        error_ = self._world.failure(work.assign)
        if error_ is not None:
            self._ended(task, Failed(task=task, error=error_))
        else:
            self._keep(work)

    def _keep(self, work: _Work) -> None:
        assign = work.assign
        task = assign.task
        if self._process.core.is_cancelled(task):
            self._ended(task, WasCancelled(task=task))
            return
        inputs = {item.port: item.ref.digest for item in assign.inputs}
        made = make(assign.kind, assign.params, inputs, self._process.name, self._world.salt(assign))
        for ref in made.outputs.values():
            if ref.inline is None:
                self.held.setdefault(task.job, {})[ref.digest] = ref.bytes
        report = self._report(work, made)
        to_put = [port for port in assign.publish if made.outputs[port].inline is None]
        report = self._world.lie(report)
        if not to_put:
            self._ended(task, report)
            return
        work.doing = Doing.PUBLISH
        self.carry_out(self._process.core.computed(task, self._loop.now))
        digests = [made.outputs[port].digest for port in to_put]
        self._publish(work, digests, report, limits.BACKOFF_FIRST_SECONDS)

    def _report(self, work: _Work, made: Made) -> Finished:
        assign = work.assign
        queue = max(0, work.began - work.accepted - work.fetching)
        timing = Timing(
            queue=queue / SECOND, transfer=work.fetching / SECOND, run=(self._loop.now - work.began) / SECOND
        )
        return Finished(
            task=assign.task,
            outputs=made.outputs,
            consumed={item.port: item.consumed for item in assign.inputs},
            timing=timing,
            target=assign.target,
            published=assign.publish,
            holds=answers(assign, made),
        )

    def _publish(self, work: _Work, digests: list[str], report: Finished, wait: float) -> None:
        step = partial(self._put, work, digests, report, wait)
        work.step = self._loop.after(self._chance.between(*PUT_SECONDS), step, self._process)

    def _put(self, work: _Work, digests: list[str], report: Finished, wait: float) -> None:
        if self._world.put(self._process, digests):
            self._ended(work.assign.task, report)
            return
        longer = min(wait * limits.BACKOFF_FACTOR, limits.RECONNECT_LAST_SECONDS)
        work.step = self._loop.after(wait, partial(self._publish, work, digests, report, longer), self._process)


def _lost(task: TaskToken, lost: list[tuple[Input, bool]]) -> InputLost:
    """What is gone is told first."""
    gone = [item for item, is_gone in lost if is_gone]
    told = gone or [item for item, _ in lost]
    upstreams: tuple[StageId, ...] = tuple(dict.fromkeys(item.consumed.upstream for item in told))
    return InputLost(task=task, upstreams=upstreams, reason="it is not there", gone=bool(gone))


def misread(report: Finished, port: str) -> Finished:
    """The report with another digest read at a port than was."""
    known = report.consumed[port]
    wrong = Consumed(known.upstream, known.token, "0" * 64)
    return msgspec.structs.replace(report, consumed={**report.consumed, port: wrong})
