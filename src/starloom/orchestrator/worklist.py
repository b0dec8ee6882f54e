"""What is left to be looked at before a decision is whole: stages that have ended, and jobs that may have."""

from collections import deque
from dataclasses import dataclass, field

from starloom.dag.ids import JobId, StageId
from starloom.orchestrator.runs import Run


@dataclass(slots=True)
class Worklist:
    """Filled as stages settle, and worked off by `Propagation.drain`."""

    #: stages that ended, in that order, also those that run again since
    ended: deque[tuple[Run, StageId]] = field(default_factory=deque)
    #: those of them by which their dependents are not judged yet
    unjudged: set[tuple[JobId, StageId]] = field(default_factory=set)
    #: jobs that may have nothing left to do
    touched: dict[JobId, Run] = field(default_factory=dict)

    def touch(self, run: Run) -> None:
        """The job may have nothing left to do."""
        self.touched[run.job.id] = run
