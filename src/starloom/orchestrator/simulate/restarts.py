"""Properties of what lasts: states are valid, and a restart, a snapshot and another orchestrator change nothing."""

from collections.abc import Sequence

from starloom.agents.core import Instruction
from starloom.dag import facts as f
from starloom.dag.facts import Fact
from starloom.dag.ids import Epoch
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.same import difference
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.daemon import Orchestrator
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.property import LARGE_JOB_STAGES, Property
from starloom.orchestrator.simulate.snapshot import replayed
from starloom.orchestrator.state import State


class StatesAreValid(Property):
    name = "states are valid"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._since: dict[str, int] = {}

    def decided(self, orchestrator: Orchestrator, decision: Decision) -> None:
        touched: dict[str, int] = {}
        for fact in decision.facts:
            if isinstance(fact, f.StageFact | f.StageCancelled | f.JobEnded | f.JobSubmitted | f.JobPatched):
                touched[fact.job] = touched.get(fact.job, 0) + 1
        jobs = orchestrator.coordinator.jobs
        for name, job in jobs.items() if touched else ():
            count = touched.get(name)
            if count is None:
                continue
            # A large job is looked at once for as many facts as it has stages: a share of the work, not a multiple.
            self._since[name] = since = self._since.get(name, 0) + count
            if len(job.stages) > LARGE_JOB_STAGES and since < len(job.stages):
                continue
            self._since[name] = 0
            try:
                job.validate()
            except AssertionError as error:
                self.broken(str(error), name)


class ReplayIsTheSame(Property):
    name = "replay gives the same state"

    def replayed(self, orchestrator: Orchestrator) -> None:
        jobs = orchestrator.coordinator.jobs
        for name, job in self.judge.jobs.items():
            state = jobs.get(name)
            if state is None:
                if not job.ended:
                    self.broken("an open job is not there", name)
                continue
            if state.status is not job.status:
                self.broken(f"is {state.status}, and the journal says {job.status}", name)
            if state.stages.keys() != job.stages.keys():
                self.broken(f"has other stages than revision {job.revision} in the journal", name)
                continue
            for stage, view in job.stages.items():
                got = state.stages[stage]
                if (got.status, got.committed, got.live) != (view.status, view.committed, view.live):
                    self.broken(f"{got!r}, and the journal says {view.status} of {view.live}", name, stage)

    def end(self) -> None:
        self.replayed(self.world.current)


class SnapshotIsTheSame(Property):
    name = "a snapshot gives the same state"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._looked = False

    def restored(self, state: State, facts: Sequence[Fact]) -> None:
        # A comparison takes longer than all that led to a large state: one of these a run is enough.
        large = any(len(job.stages) > LARGE_JOB_STAGES for job in self.judge.jobs.values())
        if large and self._looked:
            return
        self._looked = True
        if what := difference(replayed(facts), state):
            self.broken(f"after {len(facts)} facts, {what}")


class NoOldEpoch(Property):
    name = "no command from an old epoch"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._heard: dict[str, Epoch] = {}

    def commanded(self, process: AgentProcess, epoch: Epoch, instructions: Sequence[Instruction]) -> None:
        heard = self._heard.get(process.incarnation, epoch)
        if epoch < heard and instructions:
            self.broken(
                f"{process.name} had obeyed epoch {heard}, and did what epoch {epoch} said: {instructions[0]!r}"
            )
        self._heard[process.incarnation] = max(heard, epoch)


class OneIsLeft(Property):
    name = "a replaced orchestrator ends"

    def end(self) -> None:
        for orchestrator in self.world.orchestrators:
            if orchestrator.alive and orchestrator is not self.world.current:
                self.broken(f"{orchestrator!r} goes on beside {self.world.current!r}")
