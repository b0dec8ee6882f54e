"""Replicas that an agent was asked to keep, until they are there or their job has ended. Pure."""

from starloom.agents.messages import Replicate
from starloom.dag import limits
from starloom.dag.ids import JobId, TaskToken


class ReplicaQueue:
    """At most AGENT_REPLICATIONS_AT_ONCE replicas are fetched at a time, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._asked: dict[TaskToken, Replicate] = {}
        self._fetching: dict[TaskToken, None] = {}

    @property
    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that replicas are awaited of."""
        return tuple(dict.fromkeys(task.job for task in self._asked))

    def ask(self, command: Replicate) -> None:
        """A replica is wanted. One that is asked for again while it is on its way is fetched once."""
        self._asked.setdefault(command.task, command)

    def begin(self) -> list[Replicate]:
        """Those that are to be fetched from now on."""
        found = []
        for task, command in self._asked.items():
            if len(self._fetching) == limits.AGENT_REPLICATIONS_AT_ONCE:
                break
            if task not in self._fetching:
                self._fetching[task] = None
                found.append(command)
        return found

    def ended(self, task: TaskToken) -> bool:
        """A fetch is over; whether anybody still waits for what came of it."""
        self._fetching.pop(task, None)
        return self._asked.pop(task, None) is not None

    def release(self, job: JobId) -> None:
        """Nothing of the job is wanted any more; fetches of it are broken off."""
        for task in [task for task in self._asked if task.job == job]:
            self.ended(task)
