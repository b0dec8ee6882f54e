"""What all properties share."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from starloom.dag import facts as f
from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import Dependency, Join, On
from starloom.dag.facts import Fact
from starloom.dag.ids import FencingToken, StageId
from starloom.dag.patch import Difference
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.model import STREAMING

DONE = (StageStatus.SUCCEEDED, StageStatus.SKIPPED)
_NOTHING: Final[Mapping[StageId, FencingToken]] = MappingProxyType({})
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


def may(
    job: JobView, name: StageId, stage: StageView, run: bool, awaits: Mapping[StageId, FencingToken] = _NOTHING
) -> bool:
    """Whether a stage may run, or may be skipped, by what is journaled of its upstreams.

    `awaits`: as if these of them had succeeded, each by the given attempt, which has to be under way.
    """
    if stage.spec.cancelled:
        return not run
    lets = [_lets(arc, job.stages[arc.upstream]) for arc in job.upstreams[name]]
    if awaits:
        if any(token not in job.stages[upstream].live for upstream, token in awaits.items()):
            return False
        ways = zip(job.upstreams[name], lets, strict=True)
        lets = [arc.on is not On.COMPLETION if arc.upstream in awaits else way for arc, way in ways]
    if stage.spec.join is Join.ANY and lets:
        return True in lets if run else all(one is False for one in lets)
    # Its producers would keep chunks for a stage that reads streams: it is skipped as soon as that is known.
    early = stage.spec.kind in STREAMING
    return all(lets) if run else (early or None not in lets) and False in lets
