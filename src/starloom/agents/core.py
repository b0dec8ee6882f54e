"""What an agent does with commands: accepts by token, queues, fetches ahead, starts, stops, forgets. Pure.

The shell (`agents.runtime`) tells it commands and what became of its instructions, with the monotonic
time in nanoseconds, and carries out the instructions that come back, in order.

    WAITING -> QUEUED -> FETCHING -> READY -> HANDED -> RUNNING -> PUBLISHING -> ended, with exactly one final report
                                                                -> SETTLING

An attempt that awaits no other is QUEUED at once, one without remote inputs READY, and one that publishes nothing ends
from RUNNING. What an end completes starts in the same call. A cancel ends WAITING, QUEUED and READY at once, and the
others when the shell says that nothing of them runs any more.

One whose outputs are large is SETTLING until they are hashed, while what awaits it runs, and so is a result until the
digests of all that it was made of are known: it ends then, in the order in which data flows.
"""

from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType

from starloom.agents.attempts import Attempt
from starloom.agents.attempts import Phase as Phase
from starloom.agents.awaiting import Awaiting
from starloom.agents.cancellation import Cancellation
from starloom.agents.instructions import Answer as Answer
from starloom.agents.instructions import Ask as Ask
from starloom.agents.instructions import Bring as Bring
from starloom.agents.instructions import Drop as Drop
from starloom.agents.instructions import Fetch as Fetch
from starloom.agents.instructions import Forget as Forget
from starloom.agents.instructions import Instruction as Instruction
from starloom.agents.instructions import Keep as Keep
from starloom.agents.instructions import Named as Named
from starloom.agents.instructions import Preload as Preload
from starloom.agents.instructions import Start as Start
from starloom.agents.instructions import StartTogether as StartTogether
from starloom.agents.instructions import Stop as Stop
from starloom.agents.instructions import StopPreload as StopPreload
from starloom.agents.instructions import Tell as Tell
from starloom.agents.instructions import Unask as Unask
from starloom.agents.instructions import Wake as Wake
from starloom.agents.late import outcome_of
from starloom.agents.lines import Lines
from starloom.agents.messages import (
    NOT_ENDS,
    Assign,
    Cancel,
    Command,
    Finished,
    Outcome,
    Publish,
    Published,
    Release,
    Replicate,
    Report,
    Resolve,
    Revoke,
    Started,
)
from starloom.agents.preloads import Preloads
from starloom.agents.replicas import ReplicaQueue
from starloom.agents.settling import Settling
from starloom.dag.ids import AgentId, Epoch, JobId, TaskToken
from starloom.dag.kinds import Batch
from starloom.dag.values import ValueRef


class AgentCore:
    """One agent's attempts. At most `slots` run at once.

    Kinds of `streaming` take no slot, and start as soon as their inputs are there: whoever runs them has a slot taken
    for each computation. Models of `loading` kinds are loaded while their attempts wait, unless others wait for a slot.
    Attempts of `batching` kinds share a slot and a call.
    """

    def __init__(
        self,
        agent: AgentId,
        slots: int,
        streaming: Container[str] = (),
        loading: Container[str] = (),
        batching: Mapping[str, Batch] = MappingProxyType({}),
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; an agent needs at least 1")
        self.agent = agent
        self.slots = slots
        self.epoch_seen = Epoch(0)
        #: commands of an orchestrator whose time is over
        self.stale_refused = 0
        self._attempts: dict[TaskToken, Attempt] = {}
        self._order = 0
        self._replicas = ReplicaQueue()
        # What gathers attempts, or runs on a loop that others are on, cannot wait for a digest as one thread can.
        self._awaiting = Awaiting(agent, lambda assign: assign.kind not in streaming and assign.kind not in batching)
        self._settling = Settling(self._attempts, self._awaiting, self._complete, self._end)
        self._cancellation = Cancellation(self._attempts, self._settling, self._end)
        self._preloads = Preloads(loading)
        self._lines = Lines(self._attempts, slots, streaming, batching, self._preloads)

    @property
    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that something is remembered of."""
        return tuple(dict.fromkeys([*self._cancellation.known, *self._replicas.jobs]))

    @property
    def queued(self) -> int:
        """Attempts that did not begin."""
        return len(self._attempts) - self.running

    @property
    def running(self) -> int:
        """Attempts that began and did not end."""
        return sum(attempt.phase is Phase.RUNNING for attempt in self._attempts.values())

    @property
    def active(self) -> tuple[TaskToken, ...]:
        """Attempts accepted and not ended."""
        return tuple(self._attempts)

    @property
    def idle(self) -> bool:
        """Whether no attempt is active."""
        return not self._attempts

    @property
    def more_to_come(self) -> bool:
        """Whether other attempts may well end within moments: those with the workers, and those that await others."""
        return self._lines.handed > 0 or self._awaiting.any

    def phase(self, task: TaskToken) -> Phase | None:
        """How far an attempt is; None where it is not active."""
        attempt = self._attempts.get(task)
        return attempt.phase if attempt else None

    def is_cancelled(self, task: TaskToken) -> bool:
        """Whether a cancel of an active attempt came, so that its result is not wanted."""
        return self._attempts[task].cancelled

    def held(self, kept: Iterable[Report]) -> tuple[TaskToken, ...]:
        """Attempts accepted whose last report is not acknowledged: the active ones, and those of `kept` reports."""
        active = [task for task, attempt in self._attempts.items() if not attempt.released]
        return tuple(dict.fromkeys([*active, *(report.task for report in kept if not isinstance(report, NOT_ENDS))]))

    def admit(self, sender_epoch: Epoch) -> bool:
        """Whether a sender's commands are to be obeyed: not if a later orchestrator was heard."""
        self.epoch_seen = max(self.epoch_seen, sender_epoch)
        return sender_epoch == self.epoch_seen

    def commands(self, commands: Iterable[Command], sender_epoch: Epoch, now: int) -> list[Instruction]:
        """Takes commands in, in order."""
        if not self.admit(sender_epoch):
            self.stale_refused += sum(1 for _ in commands)
            return []
        found: list[Instruction] = []
        for command in commands:
            match command:
                case Assign():
                    self._accept(command, found, now)
                case Resolve():
                    self._complete(self._awaiting.resolve(command, found), found, now)
                case Cancel(task=task):
                    self._cancellation.cancel(task, found, now)
                case Revoke(task=task):
                    self._cancellation.revoke(task, found)
                case Release(job=job):
                    self._release(job, found, now)
                case Replicate():
                    self._replicas.ask(command)
                case Publish():
                    found.append(Bring(command))
        return self._advance(found, now)

    def fetched(self, task: TaskToken, now: int) -> list[Instruction]:
        """The inputs of an attempt are here."""
        attempt = self._attempts[task]
        attempt.fetching = now - attempt.since
        found: list[Instruction] = []
        if attempt.cancelled:
            self._end(attempt, attempt.stopped, found)
            found.append(Drop(task))
        else:
            self._lines.make_ready(attempt, found, now)
        return self._advance(found, now)

    def began(self, task: TaskToken, now: int) -> list[Instruction]:
        """A worker took an attempt up at `now`."""
        attempt = self._attempts[task]
        attempt.phase, attempt.since = Phase.RUNNING, now
        return [] if attempt.cancelled else [Tell(Started(task=task))]

    def computed(self, task: TaskToken, now: int) -> list[Instruction]:
        """The stage is done, and its outputs are on their way into the job store: its slot is free."""
        attempt = self._attempts[task]
        self._compute_no_more(attempt, now, Phase.PUBLISHING)
        return self._advance([], now)

    def made(
        self, task: TaskToken, outputs: Mapping[str, ValueRef], holds: Iterable[bool], late: Iterable[str], now: int
    ) -> list[Instruction]:
        """The stage is done, and those of its outputs that are `late` are being hashed: its slot is free; then `ended`.

        Not of one that was cancelled. Who awaits it begins.
        """
        attempt = self._attempts[task]
        self._compute_no_more(attempt, now)
        attempt.early = True
        found: list[Instruction] = []
        self._complete(self._awaiting.early(outcome_of(attempt.assign, outputs, holds, late), found), found, now)
        return self._advance(found, now)

    def ended(self, task: TaskToken, report: Report, now: int) -> list[Instruction]:
        """Nothing of an attempt runs any more; `report` says how it ended, unless a cancel came first."""
        attempt = self._attempts[task]
        found: list[Instruction] = []
        if attempt.cancelled:
            if isinstance(report, Finished):
                self._settling.pass_on(attempt, report, found, now)
            report = attempt.stopped
        if attempt.phase is Phase.RUNNING:
            self._compute_no_more(attempt, now)
        if isinstance(report, Finished):
            self._settling.finished(attempt, report, found, now)
        else:
            self._end(attempt, report, found)
        return self._advance(found, now)

    def overran(self, task: TaskToken, report: Report) -> list[Instruction]:
        """Its time is over, and its stage does not stop, which `report` says now: nothing is told of what it comes to.

        It keeps its slot until it has ended. One that is cancelled is waited for: a cancel is acknowledged once nothing runs.
        """
        attempt = self._attempts[task]
        if attempt.cancelled:
            return []
        attempt.cancelled = attempt.released = True
        return [Tell(report)]

    def answered(self, outcome: Outcome, now: int) -> list[Instruction]:
        """Another agent's attempt succeeded; one that nobody awaits here any more changes nothing."""
        found: list[Instruction] = []
        self._complete(self._awaiting.answered(outcome, found), found, now)
        self._settling.hashed(outcome, found, now)
        return self._advance(found, now)

    def hashed(self, outcome: Outcome, now: int) -> list[Instruction]:
        """What another agent told of early was hashed here, for that agent may never tell the digests.

        Those that have read it get them. Who awaits more than what can be read goes on waiting.
        """
        found: list[Instruction] = []
        self._settling.hashed(outcome, found, now)
        return self._advance(found, now)

    def unreachable(self, task: TaskToken, reason: str) -> list[Instruction]:
        """The agent that has an awaited attempt cannot be asked for now. Who awaits it goes on waiting."""
        return [Tell(report) for report in self._awaiting.unreachable(task, reason)]

    def subscribed(self, subscriber: int, task: TaskToken) -> list[Instruction]:
        """Another agent awaits an attempt, which may come to be assigned here only later."""
        found: list[Instruction] = []
        self._awaiting.subscribe(subscriber, task, found)
        return found

    def unsubscribed(self, subscriber: int, task: TaskToken | None = None) -> None:
        """Another agent awaits an attempt no more; without one, nothing."""
        self._awaiting.unsubscribe(subscriber, task)

    def replicated(self, report: Report) -> list[Instruction]:
        """What became of a replica that was asked for: Held or NotHeld."""
        found: list[Instruction] = [Tell(report)] if self._replicas.ended(report.task) else []
        return self._replicate(found)

    def preloaded(self, now: int) -> list[Instruction]:
        """What was being loaded ahead is there, or could not be loaded."""
        self._preloads.ended()
        return self._advance([], now)

    def woken(self, now: int) -> list[Instruction]:
        """The time is there that was asked for."""
        return self._advance([], now)

    def published(self, report: Published) -> list[Instruction]:
        """What became of values that the job store was to get."""
        return [Tell(report)]

    def cancel_all(self) -> list[Instruction]:
        """Stops everything, for an agent that leaves."""
        found: list[Instruction] = []
        for task in self.active:
            self._attempts[task].early = False
            self._cancellation.cancel(task, found, 0)
        return found

    def _accept(self, assign: Assign, found: list[Instruction], now: int) -> None:
        known = self._cancellation.known.setdefault(assign.task.job, {})
        if assign.task in known or assign.task in self._attempts:
            return
        known[assign.task] = None
        self._order += 1
        self._attempts[assign.task] = Attempt(assign, now, self._order)
        self._preloads.want(assign)
        if (complete := self._awaiting.accept(assign, found)) is not None:
            self._complete([complete], found, now)

    def _complete(self, assigns: Iterable[Assign], found: list[Instruction], now: int) -> None:
        """Nothing is awaited any more: from now on these are accepted as others are."""
        for assign in assigns:
            attempt = self._attempts[assign.task]
            attempt.assign, attempt.accepted = assign, now
            attempt.phase = Phase.QUEUED
            if any(item.ref.inline is None and item.ref.holder != self.agent for item in assign.inputs):
                self._lines.fetch(attempt)
            else:
                self._lines.make_ready(attempt, found, now)

    def _compute_no_more(self, attempt: Attempt, now: int, phase: Phase = Phase.SETTLING) -> None:
        self._lines.learn(attempt, now)
        self._lines.free_slot(attempt)
        attempt.phase = phase

    def _release(self, job: JobId, found: list[Instruction], now: int) -> None:
        self._cancellation.release(job, found, now)
        self._replicas.release(job)
        self._awaiting.release(job)
        found.append(Forget(job))

    def _end(self, attempt: Attempt, report: Report, found: list[Instruction]) -> None:
        self._lines.leave(attempt)
        self._awaiting.remove(report.task, found)
        if self._preloads.dropped(attempt.assign):
            found.append(StopPreload())
        del self._attempts[report.task]
        if not attempt.released:
            found.append(Tell(report))

    def _advance(self, found: list[Instruction], now: int) -> list[Instruction]:
        """Starts what has a slot, and fetches for what comes next."""
        self._lines.advance(found, now)
        return self._replicate(found)

    def _replicate(self, found: list[Instruction]) -> list[Instruction]:
        found += map(Keep, self._replicas.begin())
        return found
