"""When a plan of a job is wanted, and what becomes of one that is there: advice on the places of its stages.

A plan is made beside the coordinator, which never waits for it, and is lost with the process. What it advises is only
weighed among the places that a stage may have anyway. So a plan that is late, old or wrong makes a job slower at worst.
"""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Final, NamedTuple

from starloom.dag import limits
from starloom.dag.constellation import StageSpec
from starloom.dag.facts import (
    AgentJoined,
    AgentLost,
    Fact,
    JobEnded,
    JobPatched,
    JobStatus,
    JobSubmitted,
    StageCommitted,
)
from starloom.dag.ids import JobId, StageId
from starloom.dag.stagestate import ENDED
from starloom.orchestrator.advice import Planned
from starloom.orchestrator.ahead import Ahead
from starloom.orchestrator.clocks import JOB, NANOS
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import AgentState
from starloom.orchestrator.guide import Guide
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.planwanted import plan_wanted
from starloom.orchestrator.roundplans import RoundPlans
from starloom.orchestrator.runs import Run, Waits
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.worth import chooses, is_known, is_open, may_gain
from starloom.orchestrator.worth import work_seconds as work_seconds_of

_EVERY: Final = round(limits.PLAN_EVERY_SECONDS * NANOS)
_ANSWER: Final = round(limits.PLAN_ANSWER_SECONDS * NANOS)
_AGAIN: Final = round(limits.PLAN_AGAIN_SECONDS * NANOS)
_FIRST_WAITS: Final = round(limits.PLAN_FIRST_WAITS_SECONDS * NANOS)
_RESUMED_WAITS: Final = round(limits.PLAN_RESUMED_WAITS_SECONDS * NANOS)


class _Outcome(NamedTuple):
    """Of an ended job: what its plan had said beside what came, and of stages with a plan where they stood, and why."""

    told: str
    stages: Mapping[StageId, str]


class Guiding:
    """Asks for plans of jobs that are worth one, and takes what comes; nothing of that unless it is `on`."""

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        endings: Endings,
        ahead: Ahead,
        waits: Waits,
        settler: Settler,
        lanes: ReadyLanes,
        *,
        on: bool,
    ) -> None:
        self._on = on
        self._state = state
        self._ledger = ledger
        self._endings = endings
        self._ahead = ahead
        self._waits = waits
        self._settler = settler
        self._lanes = lanes
        #: numbers of plans
        self._numbers = count(1)
        #: the decision that is being made, and how many of its facts were looked at
        self._decision = ledger.decision
        self._seen = 0
        #: jobs of which a plan is wanted
        self._wanting: dict[JobId, Run] = {}
        #: open jobs that have, or may have, a plan
        self._guided: dict[JobId, Run] = {}
        #: those of them of which a plan was asked for and has not come
        self._asked: dict[JobId, Run] = {}
        #: those whose stages do not go ahead yet
        self._holding: dict[JobId, Run] = {}
        #: those whose deadline may yet ask for other variants
        self._hurrying: dict[JobId, Run] = {}
        self._outcomes: dict[JobId, _Outcome] = {}
        #: jobs that come again and again
        self._rounds = RoundPlans(state, ledger, lanes, self._numbers, self._defect)
        self._of: dict[type[Fact], Callable[[Fact], None]] = {
            JobSubmitted: self._submitted,
            JobPatched: self._patched,
            JobEnded: self._ended,
            StageCommitted: self._committed,
            AgentJoined: self._fleet_changed,
            AgentLost: self._fleet_changed,
        }

    @property
    def next_time(self) -> int | None:
        """When a plan is to be asked for, or given up, or stages need not wait for one any more."""
        now = self._ledger.now
        times = [run.guide.asked + _ANSWER for run in self._asked.values() if run.guide is not None]
        times += [] if (late := self._rounds.next_late) is None else [late]
        if len(self._asked) + self._rounds.pending < limits.PLANS_ASKED_MAX:
            times += [] if (due := self._rounds.next_due) is None else [due]
            times += [
                run.guide.due for run in self._wanting.values() if run.guide is not None and not run.guide.pending
            ]
            times += [look for run in self._hurrying.values() if (look := _look(run)) is not None]
        for run in self._holding.values():
            if run.guide is not None and (until := run.guide.awaited_until(now)) is not None:
                times.append(until)
        return min(times, default=None)

    def boot(self) -> None:
        """After a restart there is no plan; nodes have a while to say hello first."""
        if not self._on:
            return
        for run in self._endings.runs.values():
            try:
                self._begin(run, "it was taken up again", resumed=True)
            except Exception as error:
                self._defect(run.job.id, error)

    def look(self) -> None:
        """What was decided may be a reason for plans."""
        if not self._on:
            return
        decision = self._ledger.decision
        if decision is not self._decision:
            self._decision, self._seen = decision, 0
        for fact in decision.facts[self._seen :]:
            seen = self._of.get(type(fact))
            if seen is None:
                continue
            try:
                seen(fact)
            except Exception as error:
                self._defect(getattr(fact, "job", None), error)
        self._seen = len(decision.facts)

    def ask(self) -> bool:
        """Asks for the plans that are wanted and due, once all else is decided; so many at a time that the answers are fresh.

        Returns whether stages that were kept back for a plan may go ahead now, for there will be none.
        """
        if not self._guided and not self._rounds.pending:
            return False
        now, freed = self._ledger.now, False
        for run in [run for run in self._asked.values() if run.guide is None or run.guide.asked + _ANSWER <= now]:
            del self._asked[run.job.id]
            if run.guide is not None:
                run.guide.give_up(f"it did not come within PLAN_ANSWER_SECONDS = {limits.PLAN_ANSWER_SECONDS:g} s")
        self._hasten()
        self._look_again()
        self._rounds.ask(limits.PLANS_ASKED_MAX - len(self._asked))
        for run in list(self._wanting.values()):
            if len(self._asked) + self._rounds.pending >= limits.PLANS_ASKED_MAX:
                break
            guide = run.guide
            if guide is not None and not run.closed and (guide.pending or guide.due > now):
                continue
            del self._wanting[run.job.id]
            if guide is not None and run.job.status is JobStatus.RUNNING and not run.closed:
                self._ask(run, guide)
                freed |= not guide.pending and self._go_ahead(run)
        return freed

    def _hasten(self) -> None:
        """After a restart what stages wait for is asked for as soon as all nodes have said hello."""
        waiting = [run.guide for run in self._holding.values() if run.guide is not None and run.guide.resumed]
        first = [guide for guide in waiting if not guide.looked]
        if first and all(
            each.there for each in self._state.fleet.members.values() if each.state is not AgentState.LOST
        ):
            for guide in first:
                guide.due = min(guide.due, self._ledger.now)

    def _look_again(self) -> None:
        """Of jobs whose deadline comes nearer another plan is wanted, as long as that may choose variants."""
        now = self._ledger.now
        for run in [run for run in self._hurrying.values() if (look := _look(run)) is not None and look <= now]:
            if any(is_open(run, stage) for stage in run.job.stages.values()):
                self._want(run, "its deadline has come nearer")
            else:
                del self._hurrying[run.job.id]

    def _ask(self, run: Run, guide: Guide) -> None:
        now = guide.looked = self._ledger.now
        number = next(self._numbers)
        try:
            wanted = plan_wanted(run, guide, self._state, number, now)
        except Exception as error:
            self._defect(run.job.id, error)
            return
        if wanted is not None:
            guide.number, guide.asked, guide.pending = number, now, True
            guide.asked_of = wanted.constellation.stages
            guide.why, guide.due = guide.wanted, now + _EVERY
            self._asked[run.job.id] = run
            self._ledger.decision.plans.append(wanted)
        guide.wanted = ""

    def take(self, given: Planned) -> None:
        """A plan is there, or the reason why not. One that nothing waits for is none."""
        if self._rounds.take(given):
            return
        run = self._guided.get(given.job)
        guide = run.guide if run is not None else None
        if run is None or guide is None or not guide.pending or given.number != guide.number:
            return
        self._asked.pop(given.job, None)
        try:
            self._lanes.varied(run, guide.take(given, run.job.shape.specs))
        except Exception as error:
            self._defect(given.job, error)
        now = self._ledger.now
        if given.again:
            self._want(run, guide.wanted or guide.why)
            waits = guide.awaited_until(now) is not None
            guide.due = now + _FIRST_WAITS if waits else max(guide.due, now + _AGAIN)
        if guide.awaited_until(now) is None:
            self._go_ahead(run)

    def told(self, job: JobId) -> str:
        """The plan of a job in a line, or, once it has ended, how far that was off; empty without one."""
        run = self._guided.get(job)
        if run is None or run.guide is None:
            outcome = self._outcomes.get(job)
            return outcome.told if outcome is not None else ""
        waiting = (name for name, stage in run.job.stages.items() if not stage.variant and stage.status not in ENDED)
        return run.guide.told(self._ledger.now, waiting)

    def of_stage(self, job: JobId, stage: StageId) -> str:
        """Where the plan of a job has a stage, and whether it stands there by that; empty without one."""
        run = self._guided.get(job)
        if run is None or run.guide is None:
            outcome = self._outcomes.get(job)
            return outcome.stages.get(stage, "") if outcome is not None else ""
        return run.guide.of_stage(stage, self._ledger.now)

    # -- reasons

    def _submitted(self, fact: Fact) -> None:
        assert isinstance(fact, JobSubmitted)
        run = self._endings.runs.get(fact.job)
        if run is not None:
            self._begin(run, "it was accepted")

    def _patched(self, fact: Fact) -> None:
        assert isinstance(fact, JobPatched)
        run = self._guided.get(fact.job)
        if run is not None and run.guide is not None:
            run.guide.forget(change.stage for change in fact.difference.stages)
        self._changed(fact.job, "it was patched")

    def _changed(self, job: JobId, why: str) -> None:
        run = self._endings.runs.get(job)
        if run is not None and run.guide is None:
            self._begin(run, why)
        elif run is not None and not _is_round(run):
            self._hurry(run)
            self._want(run, why)

    def _committed(self, fact: Fact) -> None:
        assert isinstance(fact, StageCommitted)
        if fact.growth is not None:
            self._changed(fact.job, f"{fact.stage} grew it")
            return
        run = self._guided.get(fact.job) if self._guided else None
        if run is None or run.guide is None or _is_round(run):
            return
        if run.guide.drifts(fact.stage, self._ledger.now, limits.PLAN_DRIFT_SHARE, limits.PLAN_DRIFT_SECONDS):
            self._want(run, f"{fact.stage} did not end when it was planned to")

    def _fleet_changed(self, fact: Fact) -> None:
        assert isinstance(fact, AgentJoined | AgentLost)
        why = f"{fact.agent} {'was lost' if isinstance(fact, AgentLost) else 'joined'}"
        self._rounds.fleet_changed()
        for run in self._guided.values():
            if not _is_round(run):
                self._want(run, why)

    def _ended(self, fact: Fact) -> None:
        assert isinstance(fact, JobEnded)
        self._wanting.pop(fact.job, None)
        self._holding.pop(fact.job, None)
        self._hurrying.pop(fact.job, None)
        self._rounds.leave(fact.job)
        self._asked.pop(fact.job, None)
        run = self._guided.pop(fact.job, None)
        now = self._ledger.now
        if run is None or run.guide is None or not (told := run.guide.outcome(now)):
            return
        self._outcomes[fact.job] = _Outcome(told, {name: run.guide.of_stage(name, now) for name in run.guide.stood})
        if len(self._outcomes) > limits.PLANS_TOLD_MAX:
            del self._outcomes[next(iter(self._outcomes))]

    # -- jobs

    def _begin(self, run: Run, why: str, *, resumed: bool = False) -> None:
        if (series := self._rounds.join(run, resumed=resumed)) is not None:
            run.guide = Guide(self._ledger.now, resumed, series=series)
            self._guided[run.job.id] = run
            if series.places:
                run.guide.follow(series, run.job.shape.specs)
            return
        work_seconds = work_seconds_of(run, self._state) if may_gain(run, len(self._state.fleet.members)) else 0.0
        if work_seconds < limits.PLAN_LIVE_WORK_SECONDS_MIN:
            return
        now, job = self._ledger.now, run.job.id
        guide = run.guide = Guide(now, resumed, due=now + (_EVERY if resumed else 0))
        self._guided[job] = run
        self._hurry(run)
        waits, least = _FIRST_WAITS, limits.PLAN_FIRST_WORK_SECONDS_MIN
        if resumed:
            waits, least = (_RESUMED_WAITS if self._take_up(run, guide) else 0), limits.PLAN_RESUMED_WORK_SECONDS_MIN
        # What goes ahead does so for two seconds to come, so that most of a short job would be gone before its plan is
        # there. That is worth a moment's wait only where the moment is little beside the job; what is ready never waits.
        if waits and work_seconds >= least and is_known(run, self._state):
            guide.holds = now + waits
            self._holding[job] = run
        self._want(run, why)

    def _take_up(self, run: Run, guide: Guide) -> bool:
        """After a restart stages go on in the variants that others like them had; whether some had none, and a plan may choose theirs."""
        if not guide.hurries:
            return False
        had = {_likeness(stage.spec): stage.variant for stage in run.job.stages.values() if stage.variant}
        waiting = [stage for stage in run.job.stages.values() if is_open(run, stage)]
        guide.alike = {stage.spec.id: had[key] for stage in waiting if (key := _likeness(stage.spec)) in had}
        self._lanes.varied(run, guide.alike)
        return len(guide.alike) < len(waiting)

    def _hurry(self, run: Run) -> None:
        """Whether its plans may choose variants."""
        if run.guide is not None and chooses(run):
            run.guide.hurries = True
            self._hurrying[run.job.id] = run

    def _go_ahead(self, run: Run) -> bool:
        """Its stages need not wait for its first plan any more; returns whether they did."""
        held = self._holding.pop(run.job.id, None) is not None
        if held:
            self._ahead.look_again(run)
            for name in () if run.closed else self._waits.planned(run):
                self._settler.decide(run, name)
        return held

    def _defect(self, job: JobId | None, error: Exception) -> None:
        """Something here was not as it should be: that costs a job its plan, and nothing else."""
        run = self._guided.get(job) if job is not None else None
        if run is not None and run.guide is not None:
            self._asked.pop(run.job.id, None)
            run.guide.give_up(f"a defect of Starloom's, please report it: {error!r}")
            run.guide.wanted = ""

    def _want(self, run: Run, why: str) -> None:
        if run.guide is not None:
            run.guide.wanted = why
            self._wanting[run.job.id] = run


def _likeness(spec: StageSpec) -> tuple[str, ...]:
    """What stages have in common that are alike: their kind, and what their variants are called."""
    return spec.kind, *(each.name for each in spec.variants)


def _is_round(run: Run) -> bool:
    return run.guide is not None and run.guide.series is not None


def _look(run: Run) -> int | None:
    """When a job whose deadline may ask for other variants is to be planned anew; None while a plan is made, or wanted."""
    guide, clock = run.guide, run.clocks.get(JOB)
    if guide is None or clock is None or guide.pending or guide.wanted:
        return None
    return guide.look(clock.ends)
