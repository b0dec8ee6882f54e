"""Copies of stages that run too long: on another node, with a live token of their own; the first result wins."""

from itertools import islice
from typing import Final, NamedTuple

from starloom.dag import limits
from starloom.dag.expectation import told_seconds
from starloom.dag.facts import JobStatus
from starloom.dag.ids import FencingToken, JobId, StageId
from starloom.orchestrator.agenda import Agenda
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.dispatch import Dispatcher, Spare
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.runs import Run
from starloom.orchestrator.state import Ledger, State

_LEAST_NANOS: Final = round(limits.STRAGGLER_AFTER_SECONDS_MIN * NANOS)
_LOOK_NANOS: Final = round(limits.STRAGGLERS_LOOK_SECONDS * NANOS)


class _Watched(NamedTuple):
    """An attempt that runs, and may come to run too long. Times in monotonic nanoseconds."""

    run: Run
    stage: StageId
    token: FencingToken
    began: int


class Stragglers:
    """Looks after running stages whose policy wants copies."""

    def __init__(self, state: State, ledger: Ledger, endings: Endings, dispatcher: Dispatcher) -> None:
        self._state = state
        self._ledger = ledger
        self._endings = endings
        self._dispatcher = dispatcher
        self._watched: Agenda[_Watched] = Agenda(_runs)
        #: attempts that run too long and have no copy, because no other node was free
        self._waiting: dict[tuple[JobId, StageId], _Watched] = {}
        #: when to look again, where not all could be looked at
        self._again: int | None = None

    @property
    def next_time(self) -> int | None:
        """When an attempt may have run too long; a little early if it has ended."""
        return self._watched.next_time if self._again is None else self._again

    def waits(self, job: JobId, name: StageId) -> bool:
        """Whether a stage runs too long, and waits for a node that is free for its copy."""
        watched = self._waiting.get((job, name))
        return watched is not None and _runs(watched) and len(watched.run.job.stages[name].live) == 1

    def started(self, run: Run, name: StageId, token: FencingToken) -> None:
        """An attempt runs from now on, as far as is known."""
        if self._patience(run, name) is not None:
            now = self._ledger.now
            self._watch(_Watched(run, name, token, now))

    def look(self) -> None:
        """Finds the attempts that run too long, and gives copies of them to free nodes, some of both at a time."""
        now = self._ledger.now
        for watched in islice(self._watched.due(now), limits.STRAGGLERS_LOOKED_AT):
            try:
                self._look_at(watched)
            except Exception as error:
                self._endings.contain(watched.run.job.id, f"the copy of {watched.stage}", error)
        more = self._copy_some()
        due = self._watched.next_time
        self._again = now + _LOOK_NANOS if more or (due is not None and due <= now) else None

    def _look_at(self, watched: _Watched) -> None:
        patience = self._patience(watched.run, watched.stage)
        if patience is None:
            return
        if watched.began + patience > self._ledger.now or len(watched.run.job.stages[watched.stage].live) > 1:
            self._watch(watched)
        else:
            self._waiting[watched.run.job.id, watched.stage] = watched

    def _copy_some(self) -> bool:
        """Returns whether there may be room for more copies than were made."""
        spare: Spare = {}
        copies = 0
        for key in list(islice(self._waiting, limits.STRAGGLERS_LOOKED_AT)):
            watched = self._waiting.pop(key)
            if not _runs(watched):
                continue
            stage = watched.run.job.stages[watched.stage]
            held = watched.stage in watched.run.held
            try:
                copied = not held and len(stage.live) == 1 and self._dispatcher.copy(watched.run, watched.stage, spare)
            except Exception as error:
                self._endings.contain(watched.run.job.id, f"the copy of {watched.stage}", error)
                continue
            if copied or len(stage.live) > 1:
                self._watch(watched)
            else:
                self._waiting[key] = watched
            copies += copied
            if copies >= limits.STRAGGLERS_COPIED_AT_ONCE:
                return True
        return False

    def _watch(self, watched: _Watched) -> None:
        """Looks again when it will have run too long; if it has, after as long again, for its copy may be lost."""
        patience = max(self._patience(watched.run, watched.stage) or 0, _LEAST_NANOS)
        look = watched.began + patience
        if look <= self._ledger.now:
            look = self._ledger.now + patience
        self._watched.put(look, watched)

    def _patience(self, run: Run, name: StageId) -> int | None:
        """How long an attempt may run before it gets a copy, in nanoseconds; None if it never does."""
        stage = run.job.stages[name]
        policy = stage.spec.policy.straggler
        kind = self._state.fleet.kinds.get(stage.spec.kind)
        if policy is None or kind is None or kind.effects:
            return None
        told = told_seconds(stage.taken, kind)
        expected = self._state.planner.expected_seconds(kind, stage.agent, stage.target, told)
        return round(max(policy.after_seconds, policy.factor * expected) * NANOS)


def _runs(watched: _Watched, _: int = 0) -> bool:
    """Whether the attempt still runs."""
    run = watched.run
    stage = run.job.stages.get(watched.stage)
    return (
        not run.closed and run.job.status is JobStatus.RUNNING and stage is not None and watched.token in stage.started
    )
