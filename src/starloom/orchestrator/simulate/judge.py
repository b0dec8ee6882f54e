"""Told of all that happens in a run: keeps what the journal says, and asks every property whether that may be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starloom.agents.core import Instruction
from starloom.agents.messages import Assign, Command, Finished, Report
from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import StreamChunk, StreamEnd
from starloom.dag import facts as f
from starloom.dag.facts import AnyFact, Fact, JobStatus, decode_fact
from starloom.dag.ids import AgentId, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.orchestrator.effects import Answer, Decision, Submitted
from starloom.orchestrator.inputs import Input
from starloom.orchestrator.simulate.jobview import Given, JobView, StageView
from starloom.orchestrator.simulate.model import STREAMING
from starloom.orchestrator.state import State

if TYPE_CHECKING:
    from starloom.dag.errors import StarloomError
    from starloom.orchestrator.simulate.agent import AgentProcess
    from starloom.orchestrator.simulate.clients import Client
    from starloom.orchestrator.simulate.daemon import Orchestrator
    from starloom.orchestrator.simulate.editing import Drawn
    from starloom.orchestrator.simulate.property import Property
    from starloom.orchestrator.simulate.streams import Inlet
    from starloom.orchestrator.simulate.world import World

STORY_LINES = 40


@dataclass(frozen=True, slots=True)
class Violation:
    """A property that does not hold, where and when: seconds since the run began. `story` is what led there."""

    property: str
    what: str
    seconds: float
    job: str = ""
    stage: str = ""
    story: tuple[str, ...] = ()


class Judge:
    """Keeps the views, and the violations that were found."""

    def __init__(self, world: "World", properties: Sequence[type["Property"]]) -> None:
        self.world = world
        self.violations: list[Violation] = []
        self.jobs: dict[JobId, JobView] = {}
        #: how many attempts each agent has; those with streams take no slots, and do not count
        self.agent_live: dict[AgentId, int] = {}
        #: the agents' processes that are not lost
        self.there: dict[AgentId, str] = {}
        #: what each attempt gave, wherever it ran
        self.made: dict[TaskToken, Finished] = {}
        #: attempts that others were told of before what they gave was hashed
        self.early: set[TaskToken] = set()
        #: attempts that are journaled, with what each was given out with
        self.placed: dict[TaskToken, Given] = {}
        #: those of them that were given out ahead of others, with these
        self.ahead: dict[TaskToken, dict[StageId, FencingToken]] = {}
        #: the patches that clients drew, by what names them
        self.patches: dict[str, Drawn] = {}
        #: the last time that something was journaled, and facts of no job, for stories
        self.moved = 0
        self._times: list[int] = []
        self._general: list[tuple[int, AnyFact]] = []
        self.properties = [each(self) for each in properties]
        self._hooks: dict[str, list[Callable[..., None]]] = {}

    def violated(self, name: str, what: str, job: str = "", stage: str = "") -> None:
        """A property does not hold."""
        story = self.story(JobId(job), StageId(stage)) if stage else ()
        self.violations.append(Violation(name, what, self.world.loop.seconds, job, stage, story))

    def journaled(self, facts: Sequence[Fact], lines: Sequence[bytes], orchestrator: "Orchestrator") -> None:
        """A batch is durable; of one that was torn there are no lines."""
        if not lines:
            return
        self.moved = self.world.loop.now
        offset = len(self.world.disk.lines) - len(lines)
        asked = self._of("fact")
        for line in lines:
            offset += 1
            self._times.append(self.moved)
            fact = decode_fact(line)
            job = self.jobs.get(getattr(fact, "job", JobId("")))
            stage = job.stages.get(getattr(fact, "stage", StageId(""))) if job is not None else None
            for ask in asked:
                ask(fact, job, stage)
            self._apply(fact, job, stage, offset, line)
        for written in self._of("written"):
            written()

    def decided(self, orchestrator: "Orchestrator", decision: Decision) -> None:
        """A coordinator has decided."""
        for ask in self._of("decided"):
            ask(orchestrator, decision)

    def replayed(self, orchestrator: "Orchestrator") -> None:
        """A coordinator has taken the journal over."""
        for ask in self._of("replayed"):
            ask(orchestrator)

    def restored(self, state: State, facts: Sequence[Fact]) -> None:
        """A new process has read a snapshot, which was taken after these facts."""
        for ask in self._of("restored"):
            ask(state, facts)

    def drawn(self, drawn: "Drawn") -> None:
        """A client is about to ask for a patch."""
        self.patches[drawn.patch.why] = drawn

    def asked(self, orchestrator: "Orchestrator", given: Input) -> None:
        """A client's request arrived."""
        for ask in self._of("asked"):
            ask(orchestrator, given)

    def answered(self, orchestrator: "Orchestrator", answer: Answer) -> None:
        """A client is being answered."""
        for ask in self._of("answered"):
            ask(orchestrator, answer)

    def sent(self, orchestrator: "Orchestrator", agent: AgentId, commands: Sequence[Command]) -> None:
        """Commands are on their way to an agent."""
        for ask in self._of("sent"):
            ask(orchestrator, agent, commands)

    def told(self, process: "AgentProcess", report: Report) -> None:
        """An agent has something to report."""
        for ask in self._of("told"):
            ask(process, report)

    def accepted(self, client: "Client", result: Submitted) -> None:
        """A client's job was accepted."""
        for ask in self._of("accepted"):
            ask(client, result)

    def refused(self, client: "Client", error: "StarloomError") -> None:
        """A client's job was not accepted, for good."""
        self.violated("every job ends", f"{client.name} was refused: {error}")

    def commanded(self, process: "AgentProcess", epoch: Epoch, instructions: Sequence[Instruction]) -> None:
        """An agent's core was given commands."""
        for ask in self._of("commanded"):
            ask(process, epoch, instructions)

    def began(self, process: "AgentProcess", assign: Assign) -> None:
        """An attempt began to run."""
        for ask in self._of("began"):
            ask(process, assign)

    def kept(self, process: "AgentProcess", task: TaskToken, buffer: StreamBuffer) -> None:
        """A stream has a chunk more."""
        for ask in self._of("kept"):
            ask(process, task, buffer)

    def received(self, process: "AgentProcess", reader: TaskToken, inlet: "Inlet", chunk: StreamChunk) -> None:
        """A stage takes a chunk."""
        for ask in self._of("received"):
            ask(process, reader, inlet, chunk)

    def drained(self, process: "AgentProcess", reader: TaskToken, inlet: "Inlet", end: StreamEnd) -> None:
        """A stage has read a stream to its end."""
        for ask in self._of("drained"):
            ask(process, reader, inlet, end)

    def ended(self, process: "AgentProcess", report: Report) -> None:
        """An attempt ended."""
        if isinstance(report, Finished):
            self.made[report.task] = report

    def waiting_on(self, agent: AgentId) -> int:
        """How many attempts an agent has that await others, streams apart. Takes time in the number of all open stages."""
        return sum(
            agent in stage.live.values()
            for job in self.jobs.values()
            if not job.ended
            for stage in job.stages.values()
            if stage.awaits and stage.spec.kind not in STREAMING
        )

    def end(self) -> None:
        """The run is over."""
        for ask in self._of("end"):
            ask()

    def story(self, job: JobId, stage: StageId) -> tuple[str, ...]:
        """What the journal says of a stage, of the processes that it was given to, and of orchestrators' starts."""
        view = self.jobs.get(job)
        if view is None:
            return ()
        own = [(offset, fact) for offset, fact in self._facts_of(view) if getattr(fact, "stage", "") == stage]
        agents = {fact.agent for _, fact in own if isinstance(fact, f.StagePlaced)}
        first = own[0][0] if own else 0
        around = [
            (offset, fact)
            for offset, fact in self._general
            if offset > first and (isinstance(fact, f.EpochStarted) or getattr(fact, "agent", "") in agents)
        ]
        told = sorted([*own, *around], key=lambda each: each[0])
        return tuple(self._line(offset, fact) for offset, fact in told[-STORY_LINES:])

    def _facts_of(self, view: JobView) -> list[tuple[int, AnyFact]]:
        return [(offset, decode_fact(line)) for offset, line in view.events]

    def _line(self, offset: int, fact: AnyFact) -> str:
        seconds = (self._times[offset - 1] - self._times[0]) / 1e9
        parts = {
            name: getattr(fact, name, None) for name in ("stage", "token", "agent", "incarnation", "reason", "error")
        }
        said = " ".join(f"{name}={value}" for name, value in parts.items() if value)
        return f"{seconds:9.3f} s  #{offset} {type(fact).__name__} {said}"

    def _of(self, hook: str) -> list[Callable[..., None]]:
        """What the properties that care for something have to say of it."""
        known = self._hooks.get(hook)
        if known is None:
            known = self._hooks[hook] = [getattr(each, hook) for each in self.properties if hasattr(each, hook)]
        return known

    def _apply(self, fact: AnyFact, job: JobView | None, stage: StageView | None, offset: int, line: bytes) -> None:
        if isinstance(fact, f.JobSubmitted):
            job = self.jobs[fact.job] = JobView(fact)
        if job is None:
            if isinstance(fact, f.AgentJoined):
                self.there[fact.agent] = fact.incarnation
            else:
                self._general.append((offset, fact))
            if isinstance(fact, f.AgentLost):
                self.there.pop(fact.agent, None)
            return
        job.events.append((offset, line))
        if isinstance(fact, f.JobCancelRequested):
            job.status, job.cancelled, job.ends = JobStatus.CANCELLING, True, fact.ends
        elif isinstance(fact, f.JobEnded):
            job.status = fact.status
            job.outputs = {name: ref.digest for name, ref in fact.outputs.items()}
        elif isinstance(fact, f.JobPatched):
            job.patch(fact)
        elif stage is not None:
            before = dict(stage.live)
            if isinstance(fact, f.StageCommitted):
                job.end_waits(fact)
            if isinstance(fact, f.StagePlaced):
                task = TaskToken(fact.job, fact.stage, fact.token)
                self.placed[task] = job.given(fact.stage)._replace(variant=fact.variant)
                if fact.awaits:
                    self.ahead[task] = fact.awaits
                slots = stage.spec.kind not in STREAMING
                self.agent_live[fact.agent] = self.agent_live.get(fact.agent, 0) + slots
            stage.apply(fact)
            if isinstance(fact, f.StageCommitted) and job.status is JobStatus.CANCELLING:
                job.unfollowed.add(fact.stage)
            if isinstance(fact, f.StageCommitted) and fact.growth is not None:
                made = self.made.get(TaskToken(fact.job, fact.stage, fact.token))
                job.grow(fact.stage, fact.growth, made.growth if made is not None else None)
            for token, agent in before.items():
                if token not in stage.live:
                    stage.awaits = stage.ahead_of = {}
                    stage.over.add(token)
                    self.agent_live[agent] -= stage.spec.kind not in STREAMING
            job.live += len(stage.live) - len(before)
