"""Keeps so many copies of results as their stages' policies ask for, on other nodes than the one that made them.

A commit waits for no copy: agents are told to fetch once it is decided, and each copy counts once the fact of it is
recorded. Copies are made, and those that were lost are made again, while a stage that reads the result is still to
run. Looks at the facts of each decision after all else is decided, so that nothing else has to think of copies.
"""

from collections.abc import Collection, Iterable
from heapq import heappop, heappush
from typing import Final

from starloom.agents.messages import Held, NotHeld, Replicate, Source
from starloom.dag import limits
from starloom.dag.facts import (
    AgentJoined,
    AgentLost,
    Fact,
    JobEnded,
    JobPatched,
    JobStatus,
    OutputsGone,
    OutputsHeld,
    StageCommitted,
    StageReopened,
)
from starloom.dag.ids import AgentId, JobId, StageId, TaskToken
from starloom.dag.stagestate import ENDED
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import AgentState, Fleet, Member
from starloom.orchestrator.paths import fetch_seconds
from starloom.orchestrator.replicaplacement import ReplicaPlacement, allowed_tiers
from starloom.orchestrator.runs import Copying, Run
from starloom.orchestrator.state import Ledger, State

_FOLLOWED: Final = frozenset(
    {StageCommitted, OutputsHeld, OutputsGone, StageReopened, JobPatched, JobEnded, AgentLost, AgentJoined}
)
_Key = tuple[JobId, StageId]


class Replicas:
    """Asks agents for copies, and records those that are there."""

    def __init__(self, state: State, ledger: Ledger, endings: Endings) -> None:
        self._fleet: Fleet = state.fleet
        self._ledger = ledger
        self._endings = endings
        #: jobs with results that are to be copied
        self._runs: dict[JobId, Run] = {}
        #: what each agent holds, or was asked to hold
        self._with: dict[AgentId, dict[_Key, None]] = {}
        #: results that found no place for a copy
        self._short: dict[_Key, None] = {}
        self._times: list[tuple[int, int, _Key]] = []
        self._seq = 0
        self._placement = ReplicaPlacement(state.fleet)

    @property
    def next_time(self) -> int | None:
        """When a copy is tried again next; a little early if it is no longer wanted."""
        return self._times[0][0] if self._times else None

    def boot(self) -> None:
        """After a restart: what copies there are the facts say, and whether they still are, each agent's hello."""
        for run in tuple(self._endings.runs.values()):
            self._look_at((run.job.id, name) for name in run.job.stages)

    def hello(self, agent: AgentId) -> None:
        """What the agent was asked for may have been lost with its session; and it may have room."""
        for key in tuple(self._with.get(agent, ())):
            run, name = self._runs[key[0]], key[1]
            copying = run.copying[name]
            if agent not in copying.agents:
                continue
            try:
                self._ask(run, name, copying, self._fleet.members[agent])
            except Exception as error:
                self._endings.contain(run.job.id, f"the copies of {name}", error)
        self._look_at_short()

    def held(self, run: Run, agent: AgentId, incarnation: str, report: Held) -> None:
        """An agent has a copy. That of a result which no longer counts is released with the job."""
        name = report.task.stage
        run.keepers[agent] = None
        self._answered(run, report.task, agent)
        stage = run.job.stages.get(name)
        if stage is None or stage.committed != report.task.token or run.job.status is not JobStatus.RUNNING:
            return
        if stage.holders and stage.spec.policy.replicate and stage.holders.get(agent) != incarnation:
            self._ledger.record(
                OutputsHeld(job=run.job.id, stage=name, token=report.task.token, agent=agent, incarnation=incarnation)
            )

    def not_held(self, run: Run, agent: AgentId, report: NotHeld) -> None:
        """An agent could not make a copy: another one, or the same later."""
        name = report.task.stage
        copying = self._answered(run, report.task, agent)
        stage = run.job.stages.get(name)
        if stage is None or stage.committed != report.task.token:
            return
        self.lacks(run, name, report.missing)
        if copying is not None:
            copying.unable[agent] = None
            self._later(run, name, copying)

    def lacks(self, run: Run, name: StageId, agents: Collection[AgentId]) -> bool:
        """Some agents do not have a result that they should; whether others have it, so that it need not be made again."""
        stage = run.job.stages[name]
        if stage.committed is None:
            return False
        for agent in dict.fromkeys(agents):
            if agent in stage.holders:
                self._ledger.record(OutputsGone(job=run.job.id, stage=name, token=stage.committed, agent=agent))
        return bool(self._fleet.having(stage.holders))

    def run(self) -> None:
        """Draws the consequences of what was decided, and of the time."""
        for fact in self._ledger.decision.facts:
            if type(fact) in _FOLLOWED:
                self._follow(fact)
        while self._times and self._times[0][0] <= self._ledger.now:
            _, _, key = heappop(self._times)
            run = self._runs.get(key[0])
            copying = run.copying.get(key[1]) if run is not None else None
            if run is not None and copying is not None and copying.waits:
                copying.waits = False
                self._look_at([key])

    def _follow(self, fact: Fact) -> None:
        match fact:
            case StageCommitted() | OutputsHeld() | OutputsGone():
                self._look_at([(fact.job, fact.stage)])
                if isinstance(fact, StageCommitted) and fact.growth is not None:
                    self._look_at_all(fact.job)
            case StageReopened():
                run = self._endings.runs.get(fact.job)
                if run is not None:
                    self._look_at((fact.job, arc.upstream) for arc in run.job.upstreams.get(fact.stage, ()))
            case JobPatched():
                self._look_at_all(fact.job)
            case JobEnded():
                self._ended(fact.job)
            case AgentLost():
                self._lost(fact.agent)
            case AgentJoined():
                self._look_at_short()

    def _ended(self, job: JobId) -> None:
        run = self._runs.pop(job, None)
        if run is not None:
            for name in tuple(run.copying):
                self._forget(run, name)

    def _lost(self, agent: AgentId) -> None:
        keys = tuple(self._with.pop(agent, ()))
        self._placement.lost(agent)
        for job, name in keys:
            self._runs[job].copying[name].agents.pop(agent, None)
        self._look_at(keys)

    def _look_at_short(self) -> None:
        keys = tuple(self._short)
        for job, name in keys:
            self._runs[job].copying[name].waits = False
        self._look_at(keys)

    def _look_at_all(self, job: JobId) -> None:
        """The job's stages changed: results may have other readers."""
        run = self._runs.get(job)
        if run is not None:
            self._look_at([(job, name) for name in run.copying])

    def _look_at(self, keys: Iterable[_Key]) -> None:
        for job, name in keys:
            run = self._endings.runs.get(job)
            if run is None:
                continue
            try:
                self._look(run, name)
            except Exception as error:
                self._endings.contain(job, f"the copies of {name}", error)

    def _look(self, run: Run, name: StageId) -> None:
        """Asks for as many copies of a stage's outputs as lack; keeps in mind what there is."""
        stage = run.job.stages.get(name)
        copying = run.copying.get(name)
        if stage is None or not stage.holders or not stage.spec.policy.replicate or stage.committed is None:
            if copying is not None:
                self._forget(run, name)
            return
        key = (run.job.id, name)
        if copying is None or copying.token != stage.committed:
            if copying is not None:
                self._forget(run, name)
            copying = run.copying[name] = Copying(stage.committed, sum(ref.bytes for ref in stage.held))
            self._runs[run.job.id] = run
        for agent in stage.holders:
            self._note(key, copying, agent)
        allowed = allowed_tiers(run, name)
        for agent in [each for each in copying.agents if self._fleet.members[each].profile.tier not in allowed]:
            # Asked for before its label came, and not to be asked again.
            del copying.agents[agent]
            self._placement.answered(agent, copying)
        self._short.pop(key, None)
        living = self._fleet.having(stage.holders)
        lacking = 1 + stage.spec.policy.replicate - len(living) - len(copying.agents)
        if lacking <= 0 or not living or copying.waits or not _needed(run, name):
            return
        for _ in range(lacking):
            place = self._placement.choose(run, stage, copying, living)
            if place is None and copying.unable:
                copying.unable.clear()
                place = self._placement.choose(run, stage, copying, living)
            if place is None:
                self._short[key] = None
                self._later(run, name, copying)
                return
            copying.agents[place.name] = None
            self._placement.asked(place.name, copying)
            self._note(key, copying, place.name)
            self._ask(run, name, copying, place)

    def _note(self, key: _Key, copying: Copying, agent: AgentId) -> None:
        copying.known[agent] = None
        self._with.setdefault(agent, {})[key] = None

    def _ask(self, run: Run, name: StageId, copying: Copying, place: Member) -> None:
        # Changes of the job in this very decision are looked at after it.
        stage = run.job.stages.get(name)
        if run.closed or stage is None or stage.committed != copying.token:
            return
        sources = nearest(self._fleet.having(stage.holders), place)
        if not sources:
            return
        run.keepers[place.name] = None
        self._ledger.send(
            place.name,
            Replicate(
                task=TaskToken(run.job.id, name, copying.token),
                values=stage.held,
                sources=tuple(Source(agent=member.name, address=member.profile.address) for member in sources),
            ),
        )

    def _later(self, run: Run, name: StageId, copying: Copying) -> None:
        """Looks again after a while, each time a longer one."""
        if copying.waits:
            return
        copying.waits = True
        wait = limits.REPLICATE_AGAIN_FIRST_SECONDS * 2.0 ** min(copying.failures, 20)
        copying.failures += 1
        self._seq += 1
        time = self._ledger.now + round(min(wait, limits.REPLICATE_AGAIN_LAST_SECONDS) * NANOS)
        heappush(self._times, (time, self._seq, (run.job.id, name)))

    def _answered(self, run: Run, task: TaskToken, agent: AgentId) -> Copying | None:
        """An agent is done with what it was asked for, however; None if it was not asked, or for what no longer counts."""
        copying = run.copying.get(task.stage)
        if copying is None or copying.token != task.token or agent not in copying.agents:
            return None
        del copying.agents[agent]
        self._placement.answered(agent, copying)
        return copying

    def _forget(self, run: Run, name: StageId) -> None:
        copying = run.copying.pop(name)
        key = (run.job.id, name)
        self._short.pop(key, None)
        for agent in copying.agents:
            self._placement.answered(agent, copying)
        for agent in copying.known:
            if agent in self._with:
                self._with[agent].pop(key, None)


def nearest(holders: Collection[Member], sink: Member) -> list[Member]:
    """Those who hold a value, the one first that is to be asked first: the sink itself, who is heard of, who is near."""

    def key(member: Member) -> tuple[bool, bool, float, str]:
        seconds = fetch_seconds(limits.CHUNK_BYTES, member, sink)
        return member is not sink, member.state is not AgentState.ONLINE, seconds, member.name

    return sorted(holders, key=key) if len(holders) > 1 else list(holders)


def _needed(run: Run, name: StageId) -> bool:
    """Whether a stage that reads the outputs is still to run."""
    stages = run.job.stages
    return run.job.status is JobStatus.RUNNING and any(
        arc.output and stages[arc.downstream].status not in ENDED for arc in run.job.downstreams[name]
    )
