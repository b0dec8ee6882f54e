"""Copies of results that a process keeps because the orchestrator wants them there, as `agents.replicator` has it."""

from typing import TYPE_CHECKING

from starloom.agents.messages import Held, NotHeld, Replicate, Report
from starloom.dag.ids import JobId, TaskToken
from starloom.orchestrator.simulate.fetching import FetchOne

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.agent import AgentProcess


class Replicator:
    """Fetches the values of each copy, and says whether all of them are here."""

    def __init__(self, process: "AgentProcess") -> None:
        self._process = process
        self._fetches: dict[TaskToken, list[FetchOne]] = {}

    @property
    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that copies are on their way for."""
        return tuple(task.job for task in self._fetches)

    def keep(self, command: Replicate) -> None:
        """A copy of a result is asked for."""
        fetches: list[FetchOne] = []

        def fetched(fetch: FetchOne) -> None:
            fetches.remove(fetch)
            if fetch.gone is not None:
                for other in fetches:
                    other.stop()
                del self._fetches[command.task]
                report: Report = NotHeld(task=command.task, reason="it is not there", missing=tuple(fetch.missing))
                self._process.runner.carry_out(self._process.core.replicated(report))
                return
            if not fetches:
                del self._fetches[command.task]
                self._process.holder.hold(command.task.job, command.values)
                self._process.runner.carry_out(self._process.core.replicated(Held(task=command.task)))

        self._fetches[command.task] = fetches
        fetches += [FetchOne(self._process, command.task.job, ref, command.sources, fetched) for ref in command.values]

    def forget(self, job: JobId) -> None:
        """No copy of a job is wanted any more."""
        for task in [task for task in self._fetches if task.job == job]:
            for fetch in self._fetches.pop(task):
                fetch.stop()
