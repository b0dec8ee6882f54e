"""The streams of one job: which stages they connect, when these start, and what they are told of those they read from.

A group of them (`dag.streams`) starts together. Its first stage takes room and counts for `max_parallel` as any stage does;
the others follow at once, whatever room there is: they take no slot of their agents while they wait for chunks, and
a producer that ran without its reader would only wait for it. None starts before all that the others need from outside
the group is there, nor while one of them has no node to go to.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from starloom.agents.messages import Await, Reader
from starloom.dag.constellation import Dependency
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, StageId
from starloom.dag.job import JobState
from starloom.dag.kinds import KindSpec
from starloom.dag.stagestate import ACTIVE, ENDED, StageStatus
from starloom.dag.streams import Groups, groups_of, has_streams, is_stream
from starloom.dag.values import JOB_STORE, Full
from starloom.orchestrator.fleet import Fleet, Member
from starloom.orchestrator.lineage import Verdict, satisfied

OF_JOB: Final = StageId("")
NO_TOKEN: Final = FencingToken(Epoch(0), Attempt(0))


class Streams:
    """The streams of one job, by its stages; of most jobs there are none."""

    def __init__(self, job: JobState, kinds: Mapping[str, KindSpec]) -> None:
        #: stages that stream into each other, and those alone that read a stream of the job
        self.groups: Groups = {}
        #: the stream arcs into and out of a stage
        self.into: dict[StageId, list[Dependency]] = {}
        self.out_of: dict[StageId, list[Dependency]] = {}
        #: the job's input streams, by the stage and the port that they feed
        self.fed: dict[StageId, dict[str, str]] = {}
        self._readers: dict[StageId, tuple[Reader, ...]] = {}
        names = {stage.spec.kind for stage in job.stages.values()}
        if any(has_streams(kinds.get(name)) for name in names):
            self._find(job, kinds)

    def _find(self, job: JobState, kinds: Mapping[str, KindSpec]) -> None:
        for name, stage in job.stages.items():
            kind = kinds.get(stage.spec.kind)
            for arc in job.downstreams[name]:
                if is_stream(arc, kind):
                    self.out_of.setdefault(name, []).append(arc)
                    self.into.setdefault(arc.downstream, []).append(arc)
                    reader = _reader(arc, kind, kinds.get(job.stages[arc.downstream].spec.kind))
                    self._readers[name] = (*self._readers.get(name, ()), reader)
            for binding in job.bindings[name]:
                port = kind.input_port(binding.input) if kind is not None else None
                if port is not None and port.stream:
                    self.fed.setdefault(name, {})[binding.input] = binding.source
        self.groups = groups_of(arc for arcs in self.out_of.values() for arc in arcs)
        for name in self.fed:
            self.groups.setdefault(name, (name,))

    def readers(self, job: JobState, stage: StageId) -> tuple[Reader, ...]:
        """Who will read from an attempt of a stage that is given out now: it would wait for ever for one that has ended."""
        if stage not in self._readers:
            return ()
        known = zip(self._readers[stage], self.out_of[stage], strict=True)
        return tuple(reader for reader, arc in known if job.stages[arc.downstream].status not in ENDED)

    def held_up(self, job: JobState, stage: StageId) -> list[StageId]:
        """The producers under way that wait for a stage to read, which will not; not where a job's input would be read again."""
        if stage not in self.into or any(each in self.fed for each in self.groups.get(stage, ())):
            return []
        return [arc.upstream for arc in self.into[stage] if job.stages[arc.upstream].live]

    def ports(self, stage: StageId) -> set[str]:
        """The input ports of a stage that streams feed."""
        return {arc.input for arc in self.into.get(stage, ())} | set(self.fed.get(stage, ()))

    def reads(self, stage: StageId) -> bool:
        """Whether streams feed a stage."""
        return stage in self.into or stage in self.fed

    def producers(self, job: JobState, stage: StageId) -> list[AgentId]:
        """The agents that have attempts which a stage reads from."""
        return [agent for arc in self.into.get(stage, ()) for agent in job.stages[arc.upstream].live.values()]

    def begun(self, job: JobState, stage: StageId) -> bool:
        """Whether another stage of its group is with an agent."""
        return any(job.stages[each].status in ACTIVE for each in self.groups[stage] if each != stage)

    def stalled(self, job: JobState) -> int:
        """How many attempts are under way of groups that have to wait for a stage outside to go on whole.

        Takes time in the number of stages in groups.
        """
        found = 0
        for group in {id(group): group for group in self.groups.values()}.values():
            stages = {each: job.stages[each] for each in group}
            if any(each.status is StageStatus.PENDING for each in stages.values()) and any(
                stage.status not in ENDED and self._outside(job, each) is Verdict.WAIT for each, stage in stages.items()
            ):
                found += sum(len(each.live) for each in stages.values())
        return found

    def verdict(self, job: JobState, stage: StageId) -> Verdict:
        """What its upstreams, and its group, let a stage of a group do. AHEAD: a producer of it is under way."""
        own = self._outside(job, stage)
        if own is Verdict.SKIP:
            return own
        ahead = False
        for arc in self.into.get(stage, ()):
            upstream = job.stages[arc.upstream]
            if upstream.status in ENDED:
                if not satisfied(arc, upstream):
                    return Verdict.SKIP
            elif len(upstream.live) == 1:
                ahead = True
            else:
                own = Verdict.WAIT
        for other in self.groups[stage]:
            if job.stages[other].status not in ENDED and self._outside(job, other) is Verdict.WAIT:
                own = Verdict.WAIT
        return Verdict.AHEAD if own is Verdict.RUN and ahead else own

    def waits_for(self, job: JobState, stage: StageId) -> Iterator[StageId]:
        """The upstreams outside its group that have not ended, and that it or another stage of its group needs."""
        for each in self.groups[stage]:
            if job.stages[each].status not in ENDED:
                for arc in self._others(job, each):
                    if job.stages[arc.upstream].status not in ENDED:
                        yield arc.upstream

    def _others(self, job: JobState, stage: StageId) -> Iterator[Dependency]:
        streams = self.into.get(stage, ())
        return (arc for arc in job.upstreams[stage] if arc not in streams)

    def _outside(self, job: JobState, stage: StageId) -> Verdict:
        """What a stage's upstreams outside its group let it do."""
        if job.stages[stage].spec.cancelled:
            return Verdict.SKIP
        found = Verdict.RUN
        for arc in self._others(job, stage):
            upstream = job.stages[arc.upstream]
            if upstream.status not in ENDED:
                found = Verdict.WAIT
            elif not satisfied(arc, upstream):
                return Verdict.SKIP
        return found

    def awaits(
        self, job: JobState, stage: StageId, holders: Mapping[str, Sequence[Member]], fleet: Fleet
    ) -> list[Await]:
        """What an attempt of a stage is told of the streams that it reads.

        `holders` has, by port, who keeps the streams of producers that have ended.
        """
        ports: dict[StageId, dict[str, str]] = {}
        for arc in self.into.get(stage, ()):
            ports.setdefault(arc.upstream, {})[arc.input] = arc.output
        found = []
        for name, streams in ports.items():
            token, agent = _whom(job, name, next(iter(streams)), holders)
            member = fleet.members[agent] if agent else None
            found.append(
                Await(
                    upstream=name,
                    token=token,
                    agent=agent,
                    address=member.profile.address if member is not None else "",
                    streams=streams,
                    incarnation=member.incarnation if member is not None else "",
                )
            )
        if fed := self.fed.get(stage):
            found.append(Await(upstream=OF_JOB, token=NO_TOKEN, streams=dict(fed)))
        return found


def _reader(arc: Dependency, upstream: KindSpec | None, downstream: KindSpec | None) -> Reader:
    """Its policy is that of its port, else that of the port which it reads from."""
    source = upstream.outputs.get(arc.output) if upstream is not None else None
    port = downstream.input_port(arc.input) if downstream is not None else None
    full = (port.full if port is not None else None) or (source.full if source is not None else None) or Full.BLOCK
    return Reader(port=arc.output, reader=f"{arc.downstream}.{arc.input}", full=full)


def _whom(
    job: JobState, name: StageId, port: str, holders: Mapping[str, Sequence[Member]]
) -> tuple[FencingToken, AgentId]:
    """The attempt that a stream is read from, and the agent that has it; an empty one is the orchestrator."""
    stage = job.stages[name]
    if stage.live:
        ((token, agent),) = stage.live.items()
        return token, agent
    assert stage.committed is not None
    keepers = holders.get(port)
    return stage.committed, keepers[0].name if keepers else AgentId(JOB_STORE)


def pending(job: JobState, stages: Iterable[StageId]) -> list[StageId]:
    """Those of the stages that wait."""
    return [name for name in stages if job.stages[name].status is StageStatus.PENDING]
