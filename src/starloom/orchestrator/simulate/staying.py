"""The property that private data stays on its tiers, by what each attempt has really read."""

from collections.abc import Iterator
from typing import NamedTuple

from starloom.agents.messages import Assign, Held, Report
from starloom.dag import facts as f
from starloom.dag.constellation import Constellation
from starloom.dag.facts import AnyFact
from starloom.dag.ids import TaskToken
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.model import KINDS
from starloom.orchestrator.simulate.private import EVERYWHERE, OF, Tiers, given_by, has_labels, said_of
from starloom.orchestrator.simulate.property import LARGE_JOB_STAGES, Property


class _Source(NamedTuple):
    """What was read at one port: an output of an attempt, or an input of the job, which has no `task`."""

    task: TaskToken | None
    name: str


class StaysOnItsTiers(Property):
    """No attempt reads or gives what may not be where it runs, whether its result counts or not; nor is a replica of that elsewhere.

    And what may not be everywhere is not told to the orchestrator with a report. What people say by patches of what is
    there holds for what is given out from then on.
    """

    name = "private data stays on its tiers"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        #: the jobs' constellations when attempts were given out, of jobs with labels, and what attempts read
        self._then: dict[TaskToken, Constellation] = {}
        self._read: dict[TaskToken, tuple[_Source, ...]] = {}

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if job is None or stage is None or len(job.stages) > LARGE_JOB_STAGES:
            return
        if isinstance(fact, f.StagePlaced) and has_labels(job.constellation):
            self._then[TaskToken(fact.job, fact.stage, fact.token)] = job.constellation
        elif isinstance(fact, f.StageCommitted):
            task = TaskToken(fact.job, fact.stage, fact.token)
            for name, tiers in self._ports(task, self._then.get(task)).items():
                if tiers != EVERYWHERE and fact.outputs[name].inline is not None:
                    self.broken(f"the journal has its output {name}", fact.job, fact.stage)

    def began(self, process: AgentProcess, assign: Assign) -> None:
        task = assign.task
        given = self.judge.placed.get(task)
        if given is None:
            return
        self._read[task] = tuple(self._sources(assign))
        then = self._then.get(task)
        if then is None:
            return
        reads = self._reads([task], then)[task]
        allowed = reads & said_of(then.stages[task.stage])
        tier = process.profile.tier
        if tier not in allowed:
            where = ", ".join(sorted(allowed)) or "nowhere"
            self.broken(f"it runs on {process.name} of the {tier} tier, and may be on {where}", task.job, task.stage)

    def told(self, process: AgentProcess, report: Report) -> None:
        if not isinstance(report, Held):
            return
        task, tier = report.task, process.profile.tier
        job = self.judge.jobs[task.job]
        # It was asked for some time between that the result was made and now.
        ways = [self._ports(task, made) for made in (self._then.get(task), job.constellation)]
        if all(any(tier not in tiers for tiers in way.values()) for way in ways):
            self.broken(f"{process.name} of the {tier} tier has a replica", task.job, task.stage)

    def _sources(self, assign: Assign) -> Iterator[_Source]:
        job, given = assign.task.job, self.judge.placed[assign.task]
        outputs = {(arc.upstream, arc.input): arc.output for arc in given.arcs if arc.output}
        names = {binding.input: binding.source for binding in given.bindings}
        read = [(item.port, item.consumed.upstream, item.consumed.token) for item in assign.inputs]
        for awaited in assign.awaits:
            read += [(port, awaited.upstream, awaited.token) for port in (*awaited.feeds, *awaited.streams)]
        for port, upstream, token in read:
            if not upstream or token is None:
                yield _Source(None, names.get(port, ""))
            else:
                yield _Source(TaskToken(job, upstream, token), outputs.get((upstream, port), ""))

    def _ports(self, task: TaskToken, then: Constellation | None) -> dict[str, Tiers]:
        """Where what an attempt gave may be, by output, as a constellation has it."""
        spec = then.stages.get(task.stage) if then is not None else None
        if then is None or spec is None or task not in self._read or len(then.stages) > LARGE_JOB_STAGES:
            return {}
        reads = self._reads([task], then)[task]
        return {name: given_by(spec, reads, name) for name in KINDS[spec.kind].outputs}

    def _reads(self, waiting: list[TaskToken], then: Constellation) -> dict[TaskToken, Tiers]:
        """Where what attempts have read may be, and what those had read that gave it, as a constellation has it."""
        found: dict[TaskToken, Tiers] = {}
        while waiting:
            task = waiting[-1]
            missing = [
                source.task
                for source in self._read.get(task, ())
                if source.task is not None and source.task in self._read and source.task not in found
            ]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            tiers = EVERYWHERE
            for source in self._read.get(task, ()):
                if source.task is None:
                    tiers &= OF[then.private.get(source.name)]
                elif source.task in found:
                    spec = then.stages.get(source.task.stage) or self.judge.placed[source.task].spec
                    tiers &= given_by(spec, found[source.task], source.name)
            found[task] = tiers
        return found
