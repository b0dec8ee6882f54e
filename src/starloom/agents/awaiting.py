"""Attempts that await others, here or with other agents, and the outcomes that others may await. Pure.

An outcome is known by its attempt's token alone: an attempt that awaits another token is not served by it. One that is
early starts what can do without digests for now; that is owed them, and its agent goes on asking.
"""

from collections.abc import Callable

import msgspec

from starloom.agents.instructions import Answer, Ask, Instruction, Unask
from starloom.agents.late import named
from starloom.agents.messages import Assign, Await, AwaitUnreachable, Input, Outcome, Resolve
from starloom.dag.facts import Consumed
from starloom.dag.ids import AgentId, JobId, TaskToken


class _Wait:
    """One assignment, the inputs that outcomes gave it, and what it still awaits."""

    __slots__ = ("assign", "inputs", "open")

    def __init__(self, assign: Assign, open_: list[Await]) -> None:
        self.assign = assign
        self.inputs: list[Input] = []
        self.open = open_

    @property
    def complete(self) -> Assign:
        streams = tuple(awaited for awaited in self.assign.awaits if awaited.streams)
        return msgspec.structs.replace(self.assign, inputs=(*self.assign.inputs, *self.inputs), awaits=streams)


class Awaiting:
    """What waits on one agent, and what is known there. Methods append the instructions that follow to `found`."""

    def __init__(self, agent: AgentId, takes_early: Callable[[Assign], bool] = lambda _: True) -> None:
        """`takes_early`: whether an attempt may begin before the digests of its inputs are known."""
        self._agent = agent
        self._takes_early = takes_early
        self._waits: dict[TaskToken, _Wait] = {}
        #: those that wait, by the attempt that they await
        self._waiting: dict[TaskToken, dict[TaskToken, None]] = {}
        self._asked: set[TaskToken] = set()
        #: what succeeded here, until the job is released
        self._outcomes: dict[JobId, dict[TaskToken, Outcome]] = {}
        #: what was computed here, and is still being hashed
        self._early: dict[TaskToken, Outcome] = {}
        #: those that read what has no digest yet, by the attempt that gave it; and the other way round
        self._owed: dict[TaskToken, dict[TaskToken, None]] = {}
        self._owes: dict[TaskToken, dict[TaskToken, None]] = {}
        #: who is to be told, by attempt
        self._subscribers: dict[TaskToken, dict[int, None]] = {}

    @property
    def asked(self) -> frozenset[TaskToken]:
        """Attempts of other agents whose outcome is awaited here."""
        return frozenset(self._asked)

    @property
    def any(self) -> bool:
        """Whether something waits."""
        return bool(self._waits)

    def accept(self, assign: Assign, found: list[Instruction]) -> Assign | None:
        """Takes an assignment in; the complete one if it awaits nothing, or only what is known; else None."""
        if not assign.awaits:
            return assign
        open_ = [awaited for awaited in assign.awaits if not awaited.streams or awaited.feeds or awaited.holds]
        wait = _Wait(assign, open_)
        known = self._outcomes.get(assign.task.job, {})
        for awaited in tuple(open_):
            upstream = _awaited(assign, awaited)
            if (outcome := known.get(upstream) or self._early.get(upstream)) is not None:
                self._take(wait, awaited, outcome)
        if not wait.open:
            return wait.complete
        self._waits[assign.task] = wait
        for awaited in wait.open:
            task = _awaited(assign, awaited)
            self._waiting.setdefault(task, {})[assign.task] = None
            if awaited.agent != self._agent and task not in self._asked:
                self._asked.add(task)
                found.append(Ask(task, awaited.agent, awaited.address))
        return None

    def remember(self, outcome: Outcome, found: list[Instruction]) -> list[Assign]:
        """An attempt succeeded here; tells subscribers. Returns the assignments that are complete by that."""
        self._early.pop(outcome.task, None)
        self._outcomes.setdefault(outcome.task.job, {})[outcome.task] = outcome
        found += [Answer(subscriber, outcome) for subscriber in self._subscribers.pop(outcome.task, ())]
        return self.answered(outcome, found)

    def early(self, outcome: Outcome, found: list[Instruction]) -> list[Assign]:
        """As `remember`, of an attempt whose outputs are still being hashed: those who are told now are told again."""
        self._early[outcome.task] = outcome
        found += [Answer(subscriber, outcome) for subscriber in self._subscribers.get(outcome.task, ())]
        return self.answered(outcome, found)

    def owes(self, task: TaskToken) -> bool:
        """Whether an attempt has read what has no digest yet."""
        return task in self._owes

    def settled(self, outcome: Outcome, found: list[Instruction]) -> list[TaskToken]:
        """The digests of an attempt's outputs are known. Returns the attempts that have read these, and await nothing else."""
        reading: list[TaskToken] = []
        if outcome.late:
            return reading
        for task in self._owed.pop(outcome.task, ()):
            self._pay(task, outcome.task)
            if (wait := self._waits.get(task)) is None:
                reading.append(task)
            else:
                wait.inputs = [*named(wait.inputs, outcome)]
        self._unask(outcome.task, found)
        return reading

    def answered(self, outcome: Outcome, found: list[Instruction]) -> list[Assign]:
        """An attempt succeeded, here or elsewhere. Returns the assignments that are complete by that."""
        if not outcome.late:
            self._asked.discard(outcome.task)
        complete = []
        for task in tuple(self._waiting.get(outcome.task, ())):
            wait = self._waits[task]
            for awaited in tuple(wait.open):
                if _awaited(wait.assign, awaited) == outcome.task:
                    self._take(wait, awaited, outcome)
            complete += self._settle(wait, outcome.task, found)
        return complete

    def resolve(self, command: Resolve, found: list[Instruction]) -> list[Assign]:
        """The orchestrator says what a peer did not. Returns the assignment if it is complete by that."""
        wait = self._waits.get(command.task)
        if wait is None:
            return []
        upstream = TaskToken(command.task.job, command.upstream, command.token)
        closed = [
            awaited
            for awaited in wait.open
            if _awaited(wait.assign, awaited) == upstream and set(awaited.holds) <= set(command.holds)
        ]
        if not closed:
            return []
        wait.open = [awaited for awaited in wait.open if awaited not in closed]
        ports = {port for awaited in closed for port in awaited.feeds}
        wait.inputs += [item for item in command.inputs if item.port in ports]
        return self._settle(wait, upstream, found)

    def remove(self, task: TaskToken, found: list[Instruction]) -> None:
        """An attempt has ended, and waits no more if it did: it was taken back then."""
        self._early.pop(task, None)
        if (wait := self._waits.pop(task, None)) is not None:
            for awaited in wait.open:
                self._leave(task, _awaited(wait.assign, awaited), found)
        for upstream in tuple(self._owes.get(task, ())):
            self._pay(task, upstream)
            self._owed[upstream].pop(task)
            if not self._owed[upstream]:
                del self._owed[upstream]
            self._leave(task, upstream, found)

    def unreachable(self, task: TaskToken, reason: str) -> list[AwaitUnreachable]:
        """The agent that has an attempt cannot be asked for now: what to report of those who await it."""
        if task not in self._asked:
            return []
        waiting = self._waiting.get(task, ())
        return [AwaitUnreachable(task=each, upstreams=(task.stage,), reason=reason) for each in waiting]

    def subscribe(self, subscriber: int, task: TaskToken, found: list[Instruction]) -> None:
        """Another agent awaits an attempt of this one, which need not have been assigned yet."""
        outcome = self._outcomes.get(task.job, {}).get(task)
        if outcome is not None:
            found.append(Answer(subscriber, outcome))
        else:
            self._subscribers.setdefault(task, {})[subscriber] = None
            if (early := self._early.get(task)) is not None:
                found.append(Answer(subscriber, early))

    def unsubscribe(self, subscriber: int, task: TaskToken | None = None) -> None:
        """Another agent awaits an attempt no more, or nothing at all."""
        for each in (task,) if task is not None else tuple(self._subscribers):
            subscribers = self._subscribers.get(each, {})
            subscribers.pop(subscriber, None)
            if not subscribers:
                self._subscribers.pop(each, None)

    def release(self, job: JobId) -> None:
        """The job has ended: forgets outcomes, and who asked for more."""
        self._outcomes.pop(job, None)
        for task in [task for task in self._early if task.job == job]:
            del self._early[task]
        for task in [task for task in self._subscribers if task.job == job]:
            del self._subscribers[task]

    def _settle(self, wait: _Wait, upstream: TaskToken, found: list[Instruction]) -> list[Assign]:
        """After an outcome of `upstream` was taken: who awaits it no more, and whether nothing else is awaited."""
        task = wait.assign.task
        if any(_awaited(wait.assign, awaited) == upstream for awaited in wait.open):
            return []
        self._leave(task, upstream, found)
        if wait.open:
            return []
        del self._waits[task]
        return [wait.complete]

    def _leave(self, task: TaskToken, upstream: TaskToken, found: list[Instruction]) -> None:
        waiting = self._waiting.get(upstream, {})
        waiting.pop(task, None)
        if not waiting:
            self._waiting.pop(upstream, None)
        self._unask(upstream, found)

    def _unask(self, upstream: TaskToken, found: list[Instruction]) -> None:
        """Nobody needs to be asked for an attempt that none awaits, and whose digests none is owed."""
        if upstream in self._asked and upstream not in self._waiting and upstream not in self._owed:
            self._asked.discard(upstream)
            found.append(Unask(upstream))

    def _take(self, wait: _Wait, awaited: Await, outcome: Outcome) -> None:
        """Closes an await, unless a comparison does not hold: then the orchestrator takes the attempt back."""
        if not set(awaited.holds) <= set(outcome.holds) or (outcome.late and not self._takes_early(wait.assign)):
            return
        wait.open.remove(awaited)
        for port, output in awaited.feeds.items():
            if (ref := outcome.outputs.get(output)) is None:
                continue
            consumed = Consumed(awaited.upstream, awaited.token, ref.digest)
            late = output in outcome.late
            wait.inputs.append(Input(port=port, ref=ref, consumed=consumed, address=awaited.address, late=late))
            if late:
                self._owed.setdefault(outcome.task, {})[wait.assign.task] = None
                self._owes.setdefault(wait.assign.task, {})[outcome.task] = None

    def _pay(self, task: TaskToken, upstream: TaskToken) -> None:
        del self._owes[task][upstream]
        if not self._owes[task]:
            del self._owes[task]


def _awaited(assign: Assign, awaited: Await) -> TaskToken:
    return TaskToken(assign.task.job, awaited.upstream, awaited.token)
