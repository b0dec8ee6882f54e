"""What an agent's process does for its core: fetches, runs, publishes, as `agents.runtime` has it."""

from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

import msgspec

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
from starloom.agents.late import name_of
from starloom.agents.messages import (
    Assign,
    Failed,
    Finished,
    Held,
    Input,
    InputLost,
    NotHeld,
    Outcome,
    Publish,
    Published,
    Replicate,
    Report,
    Source,
    WasCancelled,
)
from starloom.dag import limits
from starloom.dag.facts import Consumed, ErrorInfo, Timing
from starloom.dag.ids import AgentId, JobId, StageId, TaskToken
from starloom.devices.faults import FaultKind
from starloom.orchestrator.simulate.fetching import FetchOne
from starloom.orchestrator.simulate.loop import SECOND, Timer
from starloom.orchestrator.simulate.model import KINDS, STREAMING, Made, answers, make
from starloom.orchestrator.simulate.peering import HASH_SECONDS
from starloom.orchestrator.simulate.streamrun import StreamRun

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.agent import AgentProcess

EVENT_SECONDS = (0.00001, 0.0003)
STOP_SECONDS = (0.0005, 0.05)
STUBBORN_SECONDS = (0.05, 4.0)
PUT_SECONDS = (0.002, 0.02)
FOREVER_SECONDS = 10_000.0

_Lost = tuple[Input, bool, tuple[AgentId, ...]]
"""An input that cannot be had, whether it is gone, and the holders that do not have it."""


class Doing(Enum):
    """What becomes of an attempt at the moment."""

    FETCH = auto()
    WAIT = auto()
    RUN = auto()
    PUBLISH = auto()
    HASH = auto()
    STREAM = auto()


class _Work:
    """One attempt that is fetched, run or published."""

    __slots__ = (
        "accepted",
        "assign",
        "began",
        "cancelled",
        "doing",
        "fetches",
        "fetching",
        "left",
        "lost",
        "step",
        "stream",
        "timed_out",
        "timer",
    )

    def __init__(self, assign: Assign) -> None:
        self.assign = assign
        self.accepted = self.fetching = self.began = 0
        self.cancelled = self.timed_out = False
        self.doing = Doing.WAIT
        #: fetches of inputs, how many of them are under way, and those that cannot be had
        self.fetches: list[FetchOne] = []
        self.left = 0
        self.lost: list[tuple[Input, FetchOne]] = []
        #: the present step's end, and the end of its patience
        self.step: Timer | None = None
        self.timer: Timer | None = None
        self.stream: StreamRun | None = None


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
        self._replicas: dict[TaskToken, list[FetchOne]] = {}
        #: what others told of before it was hashed, and can be read here from then on
        self.early: dict[TaskToken, Outcome] = {}
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
        others = (task.job for task in (*self._works, *self._replicas))
        process = self._process
        return tuple(dict.fromkeys([*self.held, *self._copies, *others, *process.peering.jobs, *process.streams.jobs]))

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
                    self._keep_replica(command)
                case Bring(command):
                    self._loop.after(self._chance.between(*PUT_SECONDS), partial(self._bring, command), self._process)
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
            self._fetch_one(work, item)

    def _fetch_one(self, work: _Work, item: Input) -> None:
        job = work.assign.task.job
        if item.late or item.ref.digest in self._copies.get(job, ()):
            self._fetched_one(work, item, None)
            return
        first = Source(agent=AgentId(item.ref.holder), address=item.address)
        done = partial(self._fetched_one, work, item)
        work.fetches.append(FetchOne(self._process, job, item.ref, (first, *item.others), done))

    def _fetched_one(self, work: _Work, item: Input, fetch: FetchOne | None) -> None:
        if fetch is not None and fetch.gone is None:
            self._copies.setdefault(fetch.job, set()).add(item.ref.digest)
        elif fetch is not None:
            work.lost.append((item, fetch))
        work.left -= 1
        if work.left or work.cancelled:
            return
        task = work.assign.task
        work.doing = Doing.WAIT
        if work.lost:
            self._ended(task, _lost(task, [(item, bool(f.gone), tuple(f.missing)) for item, f in work.lost]))
        else:
            self.carry_out(self._process.core.fetched(task, self._loop.now))

    # -- replicas

    def _keep_replica(self, command: Replicate) -> None:
        job = command.task.job
        fetches: list[FetchOne] = []

        def fetched(fetch: FetchOne) -> None:
            fetches.remove(fetch)
            if fetch.gone is not None:
                for other in fetches:
                    other.stop()
                del self._replicas[command.task]
                report: Report = NotHeld(task=command.task, reason="it is not there", missing=tuple(fetch.missing))
                self.carry_out(self._process.core.replicated(report))
                return
            if not fetches:
                del self._replicas[command.task]
                self.held.setdefault(job, {}).update((ref.digest, ref.bytes) for ref in command.values)
                self.carry_out(self._process.core.replicated(Held(task=command.task)))

        self._replicas[command.task] = fetches
        fetches += [FetchOne(self._process, job, ref, command.sources, fetched) for ref in command.values]

    def _bring(self, command: Publish) -> None:
        task = command.task
        held = self.held.get(task.job)
        if held is None or self.leaving:
            return
        digests = [ref.digest for ref in command.values]
        there = all(digest in held for digest in digests) and self._world.put(self._process, digests)
        report = Published(task=task, reason="" if there else "the job store did not take it")
        self.carry_out(self._process.core.published(report))

    def _forget(self, job: JobId) -> None:
        for task in [task for task in self._replicas if task.job == job]:
            for fetch in self._replicas.pop(task):
                fetch.stop()
        self.held.pop(job, None)
        self._copies.pop(job, None)
        self._process.streams.forget(job)

    # -- running

    def _start(self, start: Start) -> list[Instruction]:
        assign = start.assign
        task = assign.task
        work = self._works.get(task)
        if work is None:
            work = self._works[task] = _Work(assign)
        work.assign = assign
        work.accepted, work.fetching = start.accepted, start.fetching
        held = self.held.get(task.job, {})
        me = self._process.name
        lost: list[_Lost] = [
            (item, True, (me,))
            for item in assign.inputs
            if item.ref.inline is None
            and item.ref.holder == me
            and not held.keys() & {item.ref.digest, self._world.truth(item.ref.digest)}
        ]
        if lost:
            del self._works[task]
            report = _lost(task, lost)
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

    def _flows(self, work: _Work) -> None:
        """A stage with streams begins, in no slot: as `agents.streams.runner` has it."""
        task = work.assign.task
        if work.stream is None or self._works.get(task) is not work:
            return
        work.began = self._loop.now
        self._world.judge.began(self._process, work.assign)
        self.carry_out(self._process.core.began(task, self._loop.now))
        work.stream.begin()

    def _streamed(self, work: _Work, made: Report | Made) -> None:
        """A stage with streams is done: with what it made, or with how else it ended."""
        assert work.stream is not None
        if not isinstance(made, Made):
            self._ended(work.assign.task, made)
            return
        report = self._report(work, made)
        report = msgspec.structs.replace(report, consumed={**report.consumed, **work.stream.consumed})
        self._hold(work, made)
        self._tell(work, made, report)

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
        for fetch in work.fetches:
            fetch.stop()
        if work.doing in (Doing.FETCH, Doing.PUBLISH, Doing.HASH):
            if work.step is not None:
                work.step.cancel()
            work.step = self._loop.after(0, partial(self._ended, task, WasCancelled(task=task)), self._process)
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
        inputs = {item.port: self._world.truth(item.ref.digest) for item in assign.inputs}
        salt = self._world.salt(assign)
        made = make(assign.kind, assign.params, inputs, self._process.name, salt, private=assign.private)
        lost = KINDS[assign.kind].grows and self._world.trouble.fires(FaultKind.GROWTH_LOST)
        late = [port for port, ref in made.outputs.items() if ref.inline is None and not ref.stream]
        if late and not (lost or assign.private or assign.publish) and self._chance.happens(0.7):
            self._keep_early(work, made, late)
            return
        if not lost:
            self._hold(work, made)
        self._tell(work, made, self._report(work, made))

    def _keep_early(self, work: _Work, made: Made, late: list[str]) -> None:
        """Tells of what is not hashed yet; the rest follows."""
        task = work.assign.task
        names = {port: name_of(task, port) for port in late}
        refs = {port: msgspec.structs.replace(made.outputs[port], digest=name) for port, name in names.items()}
        self.held.setdefault(task.job, {}).update((ref.digest, ref.bytes) for ref in refs.values())
        self._world.truths.update((name, made.outputs[port].digest) for port, name in names.items())
        self._world.judge.early.add(task)
        work.doing = Doing.HASH
        hashed = partial(self._hashed, work, made, names)
        work.step = self._loop.after(self._chance.between(*HASH_SECONDS), hashed, self._process)
        outputs = made.outputs | refs
        self.carry_out(self._process.core.made(task, outputs, answers(work.assign, made), late, self._loop.now))

    def _hashed(self, work: _Work, made: Made, names: dict[str, str]) -> None:
        held = self.held.get(work.assign.task.job, {})
        # Of a job that was released meanwhile nothing is kept.
        if all(held.pop(name, None) is not None for name in names.values()):
            self._hold(work, made)
        self._tell(work, made, self._report(work, made))

    def _hold(self, work: _Work, made: Made) -> None:
        for ref in made.outputs.values():
            if ref.inline is None and not ref.stream:
                self.held.setdefault(work.assign.task.job, {})[ref.digest] = ref.bytes

    def _tell(self, work: _Work, made: Made, report: Finished) -> None:
        """Reports a result, once what the job store is to have of it is there."""
        assign = work.assign
        task = assign.task
        refs = made.outputs
        to_put = [port for port in assign.publish if refs[port].inline is None and not refs[port].stream]
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
            growth=self._world.growth(assign, made),
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


def _lost(task: TaskToken, lost: list[_Lost]) -> InputLost:
    """What is gone is told first."""
    gone = [item for item, is_gone, _ in lost if is_gone]
    told = gone or [item for item, _, _ in lost]
    upstreams: tuple[StageId, ...] = tuple(dict.fromkeys(item.consumed.upstream for item in told))
    missing: dict[StageId, tuple[AgentId, ...]] = {}
    for item, _, agents in lost:
        if agents:
            known = missing.get(item.consumed.upstream, ())
            missing[item.consumed.upstream] = tuple(dict.fromkeys([*known, *agents]))
    return InputLost(task=task, upstreams=upstreams, reason="it is not there", gone=bool(gone), missing=missing)


def misread(report: Finished, port: str) -> Finished:
    """The report with another digest read at a port than was."""
    known = report.consumed[port]
    wrong = Consumed(known.upstream, known.token, "0" * 64)
    return msgspec.structs.replace(report, consumed={**report.consumed, port: wrong})
