"""Attempts that await others, here or with other agents, and the outcomes that others may await. Pure.

An outcome is known by its attempt's token alone: an attempt that awaits another token is not served by it.
"""

import msgspec

from starloom.agents.instructions import Answer, Ask, Instruction, Unask
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

    def __init__(self, agent: AgentId) -> None:
        self._agent = agent
        self._waits: dict[TaskToken, _Wait] = {}
        #: those that wait, by the attempt that they await
        self._waiting: dict[TaskToken, dict[TaskToken, None]] = {}
        self._asked: set[TaskToken] = set()
        #: what succeeded here, until the job is released
        self._outcomes: dict[JobId, dict[TaskToken, Outcome]] = {}
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
            if (outcome := known.get(_awaited(assign, awaited))) is not None:
                _take(wait, awaited, outcome)
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
        self._outcomes.setdefault(outcome.task.job, {})[outcome.task] = outcome
        found += [Answer(subscriber, outcome) for subscriber in self._subscribers.pop(outcome.task, ())]
        return self.answered(outcome, found)

    def answered(self, outcome: Outcome, found: list[Instruction]) -> list[Assign]:
        """An attempt succeeded, here or elsewhere. Returns the assignments that are complete by that."""
        self._asked.discard(outcome.task)
        complete = []
        for task in tuple(self._waiting.get(outcome.task, ())):
            wait = self._waits[task]
            for awaited in tuple(wait.open):
                if _awaited(wait.assign, awaited) == outcome.task:
                    _take(wait, awaited, outcome)
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
        """An assignment waits no more: it was taken back."""
        wait = self._waits.pop(task)
        for awaited in wait.open:
            self._leave(task, _awaited(wait.assign, awaited), found)

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
        if waiting:
            return
        self._waiting.pop(upstream, None)
        if upstream in self._asked:
            self._asked.discard(upstream)
            found.append(Unask(upstream))


def _awaited(assign: Assign, awaited: Await) -> TaskToken:
    return TaskToken(assign.task.job, awaited.upstream, awaited.token)


def _take(wait: _Wait, awaited: Await, outcome: Outcome) -> None:
    """Closes an await, unless a comparison does not hold: then the orchestrator takes the attempt back."""
    if not set(awaited.holds) <= set(outcome.holds):
        return
    wait.open.remove(awaited)
    for port, output in awaited.feeds.items():
        if (ref := outcome.outputs.get(output)) is not None:
            consumed = Consumed(awaited.upstream, awaited.token, ref.digest)
            wait.inputs.append(Input(port=port, ref=ref, consumed=consumed, address=awaited.address))
