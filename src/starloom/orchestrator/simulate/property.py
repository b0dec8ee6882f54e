"""What all properties share."""

from starloom.dag import facts as f
from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import Dependency, Join, On
from starloom.dag.facts import Fact
from starloom.dag.ids import StageId
from starloom.dag.patch import Difference
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.simulate.judge import JobView, Judge, StageView

DONE = (StageStatus.SUCCEEDED, StageStatus.SKIPPED)
LARGE_JOB_STAGES = 300
"""What takes time in a whole job's size is asked less often of larger ones."""


class Property:
    """The base of all properties."""

    name = ""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.world = judge.world

    def broken(self, what: str, job: str = "", stage: str = "") -> None:
        """It does not hold."""
        self.judge.violated(self.name, what, job, stage)


def difference_of(fact: Fact) -> Difference | None:
    """What a fact makes differ of its job's constellation, if it does."""
    if isinstance(fact, f.JobPatched):
        return fact.difference
    return fact.growth.difference if isinstance(fact, f.StageCommitted) and fact.growth is not None else None


def _lets(arc: Dependency, upstream: StageView) -> bool | None:
    """Whether an upstream lets a stage start; None while it has not ended."""
    if upstream.status not in DONE:
        return None
    if arc.on is On.COMPLETION:
        return True
    if upstream.status is not StageStatus.SUCCEEDED:
        return False
    return arc.comparison is None or upstream.holds.get(comparison_key(arc.comparison), False)


def may(job: JobView, name: StageId, stage: StageView, run: bool) -> bool:
    """Whether a stage may run, or may be skipped, by what is journaled of its upstreams."""
    if stage.spec.cancelled:
        return not run
    lets = [_lets(arc, job.stages[arc.upstream]) for arc in job.upstreams[name]]
    if stage.spec.join is Join.ANY and lets:
        return True in lets if run else all(one is False for one in lets)
    return all(lets) if run else None not in lets and False in lets
