"""Properties of streams: what a reader gets, whom it reads from, how much is kept, and when its result counts."""

from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import StreamChunk, StreamEnd
from starloom.dag import facts as f
from starloom.dag.constellation import Constellation
from starloom.dag.facts import AnyFact
from starloom.dag.ids import FencingToken, StageId, TaskToken
from starloom.dag.patch import between
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.model import STREAM, STREAMING, gives
from starloom.orchestrator.simulate.property import Property, difference_of
from starloom.orchestrator.simulate.streams import WINDOW, Inlet


def touches_streams(before: Constellation, after: Constellation) -> bool:
    """Whether one constellation is made of another by changing stages with streams, or what is declared of them."""
    difference = between(before, after)
    declared = (change.after.upstream for change in difference.outputs.values() if change.after is not None)
    for name in (*difference.touched, *(name for name in declared if _gives_stream(after, name))):
        specs = (made.stages.get(name) for made in (before, after))
        if any(spec is not None and spec.kind in STREAMING for spec in specs):
            return True
    return False


def _gives_stream(made: Constellation, name: StageId) -> bool:
    return name in made.stages and gives(made.stages[name].kind) is STREAM


class NoGap(Property):
    """Of one attempt: each chunk once, in order, and all of them."""

    name = "a stream has no gap and no repeat"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._next: dict[tuple[TaskToken, str], int] = {}

    def received(self, process: AgentProcess, reader: TaskToken, inlet: Inlet, chunk: StreamChunk) -> None:
        key = reader, inlet.port
        due = self._next.get(key, 0)
        if chunk.offset != due:
            self.broken(f"{inlet.port} was given chunk {chunk.offset} after {due - 1}", reader.job, reader.stage)
        self._next[key] = chunk.offset + 1

    def drained(self, process: AgentProcess, reader: TaskToken, inlet: Inlet, end: StreamEnd) -> None:
        if (read := self._next.get((reader, inlet.port), 0)) != end.chunks:
            self.broken(f"{inlet.port} ends after {read} of {end.chunks} chunks", reader.job, reader.stage)


class StreamsAreBounded(Property):
    name = "what a stream keeps is bounded"

    def kept(self, process: AgentProcess, task: TaskToken, buffer: StreamBuffer) -> None:
        if buffer.kept.chunks > STREAM.chunks:
            self.broken(f"it keeps {buffer.kept.chunks} chunks of {STREAM.chunks}", task.job, task.stage)

    def received(self, process: AgentProcess, reader: TaskToken, inlet: Inlet, chunk: StreamChunk) -> None:
        if inlet.waiting > WINDOW.chunks:
            what = f"{inlet.waiting} chunks have come to {inlet.port}, and its window is {WINDOW.chunks}"
            self.broken(what, reader.job, reader.stage)


class ReadersCommitLast(Property):
    name = "a reader commits after its producer"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.StageCommitted) or job is None or stage is None or stage.spec.kind not in STREAMING:
            return
        for arc in job.upstreams[fact.stage]:
            upstream = job.stages[arc.upstream]
            # One that is made again had a result, which is what was read.
            if _is_stream(job, arc.upstream) and upstream.status is not StageStatus.SUCCEEDED and not upstream.again:
                self.broken(f"{fact.token} commits, and {arc.upstream} is {upstream.status}", fact.job, fact.stage)


class ReadsWhatCounts(Property):
    name = "no stream is read of an attempt that is over"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        #: of each attempt the tokens of its producers that lived or counted when it was placed
        self._may: dict[TaskToken, dict[StageId, set[FencingToken]]] = {}

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.StagePlaced) or job is None or stage is None or stage.spec.kind not in STREAMING:
            return
        may = self._may[TaskToken(fact.job, fact.stage, fact.token)] = {}
        for arc in job.upstreams[fact.stage]:
            if _is_stream(job, arc.upstream):
                upstream = job.stages[arc.upstream]
                may[arc.upstream] = {*upstream.live, *([upstream.committed] if upstream.committed else ())}

    def received(self, process: AgentProcess, reader: TaskToken, inlet: Inlet, chunk: StreamChunk) -> None:
        name = inlet.name
        if name.token not in self._may.get(reader, {}).get(name.stage, ()):
            self.broken(f"it reads {name.stage}'s attempt {name.token}, which was over", reader.job, reader.stage)


class StreamsStayAsTheyAre(Property):
    name = "stages that stream are not changed"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        difference = difference_of(fact)
        if difference is None or job is None:
            return
        for name in difference.touched:
            view = job.stages.get(name)
            if view is not None and view.spec.kind in STREAMING:
                self.broken("its job was changed there while it ran", job.submitted.job, name)


def _is_stream(job: JobView, upstream: StageId) -> bool:
    return gives(job.stages[upstream].spec.kind) is STREAM


STREAMS: tuple[type[Property], ...] = (
    NoGap,
    StreamsAreBounded,
    ReadersCommitLast,
    ReadsWhatCounts,
    StreamsStayAsTheyAre,
)
