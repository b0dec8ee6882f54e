"""A scripted fleet in virtual time, for tests of the coordinator.

A World holds a coordinator and agents that answer its commands with reports when told to. Every decision's
facts go through the journal's codec into `facts`, every job is validated after every step, and
`check_replay` compares the coordinator with one that has only the facts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from tests.agents.fakes import NoModels

from starloom.agents.growing import Growing
from starloom.agents.messages import (
    NOT_ENDS,
    Assign,
    Cancel,
    Command,
    Failed,
    Finished,
    Held,
    Input,
    InputLost,
    Load,
    NotHeld,
    Release,
    Replicate,
    Report,
    Revoke,
    Revoked,
    Started,
    WasCancelled,
)
from starloom.agents.stage import Grown, StageCall
from starloom.agents.values import digest, encode
from starloom.dag.conditions import comparison_key, holds
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.dag.errors import StarloomError
from starloom.dag.facts import AnyFact, Consumed, ErrorInfo, Fact, JobOptions, Timing, decode_fact, encode_fact
from starloom.dag.ids import AgentId, Epoch, JobId, StageId, TaskToken
from starloom.dag.job import JobState
from starloom.dag.kinds import Cost, CostParams, KindCatalog, KindSpec, Param
from starloom.dag.patch import Patch
from starloom.dag.patchdoc import load_patch
from starloom.dag.stagestate import StageState, StageStatus
from starloom.dag.values import JOB_STORE, Port, PortType, ValueRef
from starloom.devices.node import NodeProfile, Target
from starloom.orchestrator.advice import PlanWanted
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.costs import Costs
from starloom.orchestrator.effects import Answer, Decision, Patched, Stopped, Submitted
from starloom.orchestrator.inputs import (
    AgentGoodbye,
    AgentHeartbeat,
    AgentHello,
    AgentReports,
    CancelJob,
    PatchJob,
    Submit,
    Tick,
)
from starloom.orchestrator.inputs import Input as Given
from starloom.orchestrator.lineage import Verdict, verdict
from starloom.orchestrator.placement import EarliestFinish, Planner

SECOND = 1_000_000_000
JSON, BYTES, TEXT = Port(PortType.JSON), Port(PortType.BYTES), Port(PortType.TEXT)
TICKS = Port(PortType.JSON, stream=True)

KINDS = KindCatalog(
    [
        KindSpec(
            name="t.work",
            variadic_input=JSON,
            outputs={"value": JSON},
            params={"seed": Param(type="integer", default=7), "label": Param(type="string")},
        ),
        KindSpec(
            name="t.blob",
            variadic_input=BYTES,
            outputs={"data": BYTES},
            params={"size": Param(type="integer", default=1_000_000)},
        ),
        KindSpec(name="t.need", inputs={"data": BYTES}, outputs={"value": JSON}),
        KindSpec(
            name="t.judge",
            variadic_input=JSON,
            outputs={"value": JSON},
            params={"score": Param(type="number", default=0)},
        ),
        KindSpec(name="t.say", variadic_input=JSON, outputs={"text": TEXT}),
        KindSpec(name="t.blur", variadic_input=JSON, outputs={"value": JSON}, declassifies=True),
        KindSpec(name="t.see", variadic_input=JSON, outputs={"value": JSON}, targets=("npu", "cpu")),
        KindSpec(
            name="t.heavy",
            variadic_input=BYTES,
            outputs={"value": JSON},
            tier=Tier.EDGE,
            cost=Cost(run_seconds=1.0, load_seconds=4.0),
        ),
        KindSpec(
            name="t.task",
            variadic_input=JSON,
            outputs={"value": JSON},
            params={"seconds": Param(type="number", default=1.0)},
            cost=Cost(params=CostParams(run_seconds="seconds")),
        ),
        KindSpec(
            name="t.grow",
            variadic_input=JSON,
            outputs={"value": JSON},
            params={
                "adds": Param(type="integer", default=0),
                "rounds": Param(type="integer", default=0),
                "label": Param(type="string"),
            },
            grows=True,
        ),
        KindSpec(name="t.ticks", variadic_input=JSON, outputs={"ticks": TICKS, "count": JSON}),
        KindSpec(name="t.twice", inputs={"ticks": TICKS}, variadic_input=JSON, outputs={"ticks": TICKS}),
        KindSpec(name="t.sum", variadic_input=TICKS, outputs={"value": JSON}),
        KindSpec(name="t.stream", inputs={"sound": Port(PortType.AUDIO, stream=True)}, outputs={"value": JSON}),
    ]
)
"""Kinds of tests; `t.blob` makes values that are too large to travel inline."""


def node(name: str, tier: Tier = Tier.EDGE, targets: Iterable[str] = ("cpu",), **more: Any) -> NodeProfile:
    """A node with two slots that offers all test kinds."""
    more.setdefault("slots", 2)
    more.setdefault("memory_bytes", 2**30)
    return NodeProfile(
        name=AgentId(name),
        tier=tier,
        targets=tuple(Target(name=target) for target in targets),
        kinds=tuple(KINDS),
        address=f"{name}:1",
        **more,
    )


def growth_of(assign: Assign, salt: str = "") -> Patch | None:
    """What `t.grow` adds: so many workers and their sum, or the next of so many rounds, which are read in its place."""
    adds, rounds = assign.params["adds"] + bool(salt), assign.params["rounds"]
    grow = Growing(StageCall(inputs={item.port: None for item in assign.inputs}, params={}, models=NoModels()))
    workers = [grow.stage("t.work", {"seed": n}, x=grow.own("value")) for n in range(adds)]
    if workers:
        total = grow.stage("t.work", inputs={f"part-{n}": worker["value"] for n, worker in enumerate(workers)})
        grow.redirect("value", total["value"])
    elif rounds:
        grow.redirect("value", grow.again({"rounds": rounds - 1}, before=grow.own("value"))["value"])
    found = grow.result({})
    return found.patch if isinstance(found, Grown) else None


def inline(value: Any) -> ValueRef:
    """A JSON value, inline."""
    data, meta = encode(PortType.JSON, value)
    return ValueRef(type=PortType.JSON, bytes=len(data), digest=digest(data), meta=meta, inline=data)


def stored(text: str = "input", size: int = 1_000_000) -> ValueRef:
    """Large bytes in the job store."""
    return ValueRef(type=PortType.BYTES, bytes=size, digest=digest(text.encode()))


@dataclass
class FakeAgent:
    """One agent: what it was told, and what it would answer. Nothing happens by itself."""

    profile: NodeProfile
    incarnation: str
    kinds: tuple[KindSpec, ...] = tuple(KINDS.values())
    connected: bool = True
    #: accepted attempts without a final report
    tasks: dict[TaskToken, Assign] = field(default_factory=dict)
    cancelled: set[TaskToken] = field(default_factory=set)
    #: how attempts ended whose reports are on their way
    unsent: dict[TaskToken, Report] = field(default_factory=dict)
    #: attempts that it was asked to give back, and that are still here
    revoking: set[TaskToken] = field(default_factory=set)
    held: set[tuple[JobId, str]] = field(default_factory=set)
    #: copies that it was asked for, and has not answered
    asked: dict[TaskToken, Replicate] = field(default_factory=dict)
    #: what its heartbeats say that it holds
    held_bytes: int = 0
    log: list[Command] = field(default_factory=list)

    @property
    def name(self) -> AgentId:
        return self.profile.name

    def receive(self, command: Command) -> None:
        """Takes a command in; a cancel that overtakes its assignment wins."""
        self.log.append(command)
        match command:
            case Assign(task=task):
                if task not in self.cancelled:
                    self.tasks[task] = command
            case Cancel(task=task):
                self.cancelled.add(task)
            case Revoke(task=task):
                self.revoking.add(task)
            case Replicate(task=task):
                self.asked[task] = command
            case Release(job=job):
                self.asked = {task: command for task, command in self.asked.items() if task.job != job}
                self.tasks = {task: assign for task, assign in self.tasks.items() if task.job != job}
                self.unsent = {task: report for task, report in self.unsent.items() if task.job != job}
                self.cancelled = {task for task in self.cancelled if task.job != job}
                self.held = {value for value in self.held if value[0] != job}

    def result(self, assign: Assign, salt: str = "", growth: Patch | None = None, **timing: float) -> Finished:
        """What an attempt finishes with: equal for equal kinds, parameters, inputs and salts."""
        outputs = {name: self._output(assign, name, port, salt) for name, port in KINDS[assign.kind].outputs.items()}
        value = {"score": assign.params.get("score"), "salt": salt}
        answers = tuple(
            holds(comparison, "text" if assign.kind == "t.say" else value) for comparison in assign.comparisons
        )
        return Finished(
            task=assign.task,
            outputs=outputs,
            consumed={item.port: item.consumed for item in assign.inputs} | _streamed(assign),
            timing=Timing(**timing),
            target=assign.target,
            published=assign.publish,
            holds=answers,
            growth=growth_of(assign, salt) if growth is None and assign.kind == "t.grow" else growth,
        )

    def _output(self, assign: Assign, name: str, port: Port, salt: str) -> ValueRef:
        read = sorted((item.port, item.ref.digest) for item in assign.inputs)
        read += sorted((port, each.upstream) for each in assign.awaits for port in each.streams)
        content = f"{assign.kind} {sorted(assign.params.items())} {read} {name} {salt}"
        if port.stream:
            meta = {"stream": True, "chunks": 3}
            ref = ValueRef(type=port.type, bytes=9, digest=digest(content.encode()), meta=meta)
            self.held.add((assign.task.job, ref.digest))
        elif port.type is not PortType.BYTES:
            data, meta = encode(port.type, content)
            ref = ValueRef(type=port.type, bytes=len(data), digest=digest(data), meta=meta, inline=data)
        else:
            ref = ValueRef(type=port.type, bytes=assign.params["size"], digest=digest(content.encode()))
            self.held.add((assign.task.job, ref.digest))
        return msgspec.structs.replace(ref, holder=self.name)


def _streamed(assign: Assign) -> dict[str, Consumed]:
    """The lineage of streams that were read in part."""
    token = {each.upstream: each.token if each.upstream else None for each in assign.awaits}
    return {port: Consumed(each.upstream, token[each.upstream], "") for each in assign.awaits for port in each.streams}


class World:
    """A coordinator, its journal and its fleet, at a virtual time."""

    def __init__(self, *nodes: NodeProfile, delegate: bool = False, guided: bool = False) -> None:
        self.now = 100 * SECOND
        self.delegate = delegate
        self.guided = guided
        #: whether who reads a stream reads it to its end; else in part, and may end before its producer
        self.reads_all = False
        #: every assignment that was sent, and what attempts gave, which agents tell each other
        self.sent: dict[TaskToken, Assign] = {}
        self.made: dict[TaskToken, Finished] = {}
        self.epoch = Epoch(1)
        self.facts: list[AnyFact] = []
        self.answers: dict[int, Any] = {}
        self.agents: dict[str, FakeAgent] = {}
        self.incarnations = 0
        self.request = 0
        #: plans that were wanted, in order
        self.plans: list[PlanWanted] = []
        #: stages that were given out, in order
        self.placed: list[tuple[str, str]] = []
        self.watch: Callable[[Decision], None] = lambda decision: None
        self.coordinator = Coordinator(self.epoch, delegate=delegate, guided=guided)
        self._carry_out(self.coordinator.boot(self.now))
        for profile in nodes:
            self.join(profile)

    # -- steps

    def handle(self, *inputs: Given) -> Decision:
        """Gives inputs to the coordinator and carries out what it decides."""
        for given in inputs:
            for report in given.reports if isinstance(given, AgentReports) else ():
                if isinstance(report, Finished):
                    self.made.setdefault(report.task, report)
        decision = self.coordinator.handle(inputs, self.now)
        self._carry_out(decision)
        return decision

    def _carry_out(self, decision: Decision) -> None:
        self.facts.extend(decode_fact(encode_fact(fact)) for fact in decision.facts)
        self.plans += decision.plans
        for answer in decision.answers:
            assert answer.request not in self.answers, "answered twice"
            self.answers[answer.request] = answer.result
        for name, command in decision.commands:
            if isinstance(command, Assign):
                self.placed.append((command.task.stage, name))
                self.sent[command.task] = command
            agent = self.agents.get(name)
            if agent is not None and agent.connected:
                agent.receive(command)
        touched = {getattr(fact, "job", "") for fact in decision.facts}
        for job in self.coordinator.jobs.values():
            if job.id in touched:
                job.validate()
        for run in self.coordinator._endings.runs.values():
            for stage in run.queued:
                assert run.job.stages[stage].status is StageStatus.PENDING
                said = run.streams.verdict if stage in run.streams.groups else verdict
                assert said(run.job, stage) is Verdict.RUN, f"{stage} is queued, but may not run"
        self.watch(decision)

    def advance(self, seconds: float, beat: bool = True) -> None:
        """Time passes, as the coordinator asked to be woken; connected agents send heartbeats twice a second."""
        end = self.now + round(seconds * SECOND)
        beat_at = self.now
        while self.now < end:
            wake = self.coordinator.next_wake()
            beat_at = beat_at + SECOND // 2 if beat_at <= self.now else beat_at
            self.now = min(end, beat_at, *([] if wake is None else [max(wake, self.now)]))
            beats: list[Given] = [
                AgentHeartbeat(
                    agent=agent.name,
                    incarnation=agent.incarnation,
                    load=Load(queued=len(agent.tasks), held_bytes=agent.held_bytes),
                )
                for agent in self.agents.values()
                if beat and agent.connected
            ]
            self.handle(*beats, Tick())
            if self.now == wake == self.coordinator.next_wake():
                raise AssertionError("the coordinator wants to be woken again at the same time")

    # -- the fleet

    def join(
        self, profile: NodeProfile, kinds: Iterable[KindSpec] | None = None, after: Iterable[Given] = ()
    ) -> FakeAgent:
        """A new process of an agent says hello, in one decision with what came just before."""
        self.incarnations += 1
        agent = FakeAgent(profile, f"i{self.incarnations}")
        if kinds is not None:
            agent.kinds = tuple(kinds)
        self.agents[profile.name] = agent
        self.hello(agent, after=after)
        return agent

    def hello(
        self,
        agent: FakeAgent,
        *,
        resumed: bool = False,
        held: Iterable[TaskToken] | None = None,
        after: Iterable[Given] = (),
    ) -> Decision:
        """A process says hello, with what it holds, in one decision with what came just before."""
        agent.connected = True
        jobs = {task.job for task in (*agent.tasks, *agent.asked)} | {job for job, _ in agent.held}
        return self.handle(
            *after,
            AgentHello(
                agent=agent.name,
                incarnation=agent.incarnation,
                profile=agent.profile,
                kinds=agent.kinds,
                resumed=resumed,
                held=tuple([*agent.tasks, *agent.unsent] if held is None else held),
                jobs=tuple(sorted(jobs)),
            ),
        )

    def goodbye(self, name: str, reason: str = "") -> Decision:
        """A process is gone."""
        agent = self.agents[name]
        agent.connected = False
        return self.handle(AgentGoodbye(agent=agent.name, incarnation=agent.incarnation, reason=reason))

    def silence(self, name: str) -> None:
        """An agent is cut off: it hears nothing and is not heard."""
        self.agents[name].connected = False

    # -- jobs

    def submit(
        self,
        constellation: Constellation,
        inputs: Mapping[str, ValueRef] | None = None,
        *,
        job: str = "",
        key: str = "",
        **options: Any,
    ) -> JobId:
        """Submits a job; raises the answer if it is an error."""
        result = self.ask_submit(constellation, inputs, job=job, key=key, **options)
        if isinstance(result, StarloomError):
            raise result
        return result.job

    def ask_submit(
        self,
        constellation: Constellation,
        inputs: Mapping[str, ValueRef] | None = None,
        *,
        job: str = "",
        key: str = "",
        **options: Any,
    ) -> Submitted | StarloomError:
        """Submits a job, for its answer."""
        self.request += 1
        name = JobId(job or f"job-{self.request}")
        self.handle(
            Submit(
                request=self.request,
                job=name,
                constellation=constellation,
                inputs=dict(inputs or {}),
                key=key,
                options=JobOptions(**options),
            )
        )
        result: Submitted | StarloomError = self.answers[self.request]
        return result

    def cancel(self, job: str) -> int:
        """Asks to cancel a job; gives the request's number, under which the answer will be."""
        self.request += 1
        self.handle(CancelJob(request=self.request, job=job, principal="tester", reason="test"))
        return self.request

    def patch(self, job: str, text: str, **fields: Any) -> int:
        """Asks for a patch, given as the operations of its document; gives the request's number."""
        self.request += 1
        patch = msgspec.structs.replace(load_patch(f"patch:\n{text}"), **fields)
        self.handle(PatchJob(request=self.request, job=job, patch=patch, principal="tester"))
        return self.request

    def patched(self, request: int) -> Patched:
        """The answer to a patch that was taken."""
        result = self.answers[request]
        assert isinstance(result, Patched), result
        return result

    def refused(self, request: int) -> str:
        """The words of the answer to a patch that was refused."""
        result = self.answers[request]
        assert isinstance(result, StarloomError), result
        return str(result)

    def stopped(self, request: int) -> Stopped:
        """The answer to a cancel request."""
        result = self.answers[request]
        assert isinstance(result, Stopped), result
        return result

    def job(self, job: JobId) -> JobState:
        return self.coordinator.jobs[job]

    def stage(self, job: JobId, stage: str) -> StageState:
        return self.coordinator.jobs[job].stages[StageId(stage)]

    def status(self, job: JobId, *stages: str) -> Any:
        """The status of the job, or of its stages."""
        if not stages:
            return self.job(job).status.value
        return [self.stage(job, stage).status.value for stage in stages]

    # -- attempts

    def where(self, stage: str) -> FakeAgent:
        """The agent that has an attempt of the stage."""
        found = [agent for agent in self.agents.values() if any(task.stage == stage for task in agent.tasks)]
        assert len(found) == 1, f"{stage} is with {[agent.name for agent in found]}"
        return found[0]

    def assigned(self, stage: str) -> Assign:
        """The attempt of a stage that an agent has."""
        return next(assign for task, assign in self.where(stage).tasks.items() if task.stage == stage)

    def active(self) -> list[str]:
        """The stages that agents have attempts of, by name."""
        return sorted(task.stage for agent in self.agents.values() for task in agent.tasks)

    def report(self, agent: FakeAgent, *reports: Report) -> Decision:
        """An agent reports."""
        for report in reports:
            if not isinstance(report, NOT_ENDS):
                agent.tasks.pop(report.task, None)
        return self.handle(AgentReports(agent=agent.name, incarnation=agent.incarnation, reports=reports))

    def start(self, *stages: str) -> None:
        for stage in stages:
            self.report(self.where(stage), Started(task=self.assigned(stage).task))

    def finish(self, *stages: str, salt: str = "", growth: Patch | None = None, **timing: float) -> Finished:
        """Attempts of these stages finish; gives the last report."""
        for stage in stages:
            agent = self.where(stage)
            report = agent.result(self.whole(self.assigned(stage)), salt, growth, **timing)
            self.report(agent, report)
        return report

    def make(self, stage: str, salt: str = "") -> None:
        """An attempt of the stage finishes, as its agent and others know; its report is on its way until `tell`."""
        agent, assign = self.where(stage), self.assigned(stage)
        report = agent.unsent[assign.task] = agent.result(self.whole(assign), salt)
        del agent.tasks[assign.task]
        self.made[assign.task] = report

    def tell(self, *stages: str) -> None:
        """Reports that were on their way arrive, of these stages."""
        for stage in stages:
            for agent in self.agents.values():
                for task in [task for task in agent.unsent if task.stage == stage]:
                    self.report(agent, agent.unsent.pop(task))

    def may_start(self, assign: Assign) -> bool:
        """Whether all that an attempt awaits has succeeded, and the comparisons hold."""
        for awaited in assign.awaits:
            if awaited.streams and not (self.reads_all and awaited.upstream):
                continue
            task = TaskToken(assign.task.job, awaited.upstream, awaited.token)
            if task not in self.made:
                return False
            asked = zip(self.sent[task].comparisons, self.made[task].holds, strict=True)
            if not set(awaited.holds) <= {comparison_key(comparison) for comparison, held in asked if held}:
                return False
        return True

    def whole(self, assign: Assign) -> Assign:
        """The assignment with all its inputs, once it may start."""
        assert self.may_start(assign), f"{assign.task} waits"
        inputs = list(assign.inputs)
        for awaited in assign.awaits:
            if awaited.streams and not (self.reads_all and awaited.upstream):
                continue
            made = self.made[TaskToken(assign.task.job, awaited.upstream, awaited.token)]
            for port, output in (*awaited.feeds.items(), *awaited.streams.items()):
                consumed = Consumed(awaited.upstream, awaited.token, made.outputs[output].digest)
                inputs.append(Input(port=port, ref=made.outputs[output], consumed=consumed, address=awaited.address))
        streams = tuple(a for a in assign.awaits if a.streams and not (self.reads_all and a.upstream))
        return msgspec.structs.replace(assign, inputs=tuple(inputs), awaits=streams)

    def fail(self, stage: str, message: str = "broken", *, transient: bool = False) -> None:
        """An attempt of the stage fails."""
        error = ErrorInfo(message=message, transient=transient)
        self.report(self.where(stage), Failed(task=self.assigned(stage).task, error=error))

    def lose_input(self, stage: str, *upstreams: str, gone: bool, missing: Iterable[str] = ()) -> None:
        """An attempt of the stage cannot get the values of these upstreams; agents that are `missing` lack them all."""
        names = tuple(StageId(name) for name in upstreams)
        agents = {name: tuple(map(AgentId, missing)) for name in names} if missing else {}
        task = self.assigned(stage).task
        report = InputLost(task=task, upstreams=names, reason="test", gone=gone, missing=agents)
        self.report(self.where(stage), report)

    # -- copies

    def asked(self, stage: str) -> list[str]:
        """The agents that were asked for a copy of a stage's outputs, and have not answered."""
        return [name for name, agent in self.agents.items() if any(task.stage == stage for task in agent.asked)]

    def hold(self, *stages: str) -> None:
        """Agents make the copies that they were asked for; of these stages, or of all."""
        for agent in self.agents.values():
            for task, command in [(t, c) for t, c in agent.asked.items() if not stages or t.stage in stages]:
                if agent.connected:
                    del agent.asked[task]
                    agent.held |= {(task.job, ref.digest) for ref in command.values}
                    self.report(agent, Held(task=task))

    def cannot_hold(self, name: str, stage: str, *missing: str) -> None:
        """An agent could not make a copy; of these sources it learned that they do not have it."""
        agent = self.agents[name]
        task = next(task for task in agent.asked if task.stage == stage)
        del agent.asked[task]
        self.report(agent, NotHeld(task=task, reason="test", missing=tuple(map(AgentId, missing))))

    def acknowledge_cancels(self) -> None:
        """Every agent stops what it was told to stop, and says so."""
        for agent in self.agents.values():
            for task in [task for task in agent.tasks if task in agent.cancelled]:
                self.report(agent, WasCancelled(task=task))

    def give_back(self, *stages: str) -> None:
        """Agents give back what they were asked for; of these stages, or of all."""
        for agent in self.agents.values():
            for task in [
                task for task in agent.tasks if task in agent.revoking and (not stages or task.stage in stages)
            ]:
                self.report(agent, Revoked(task=task))

    def finish_all(self, salt: str = "") -> None:
        """Attempts finish, whatever their order, until no agent has any."""
        while active := [(agent, task) for agent in self.agents.values() for task in agent.tasks]:
            assert any(self.may_start(agent.tasks[task]) for agent, task in active), f"all wait: {active}"
            for agent, task in active:
                if task in agent.tasks and self.may_start(agent.tasks[task]):
                    self.report(agent, agent.result(self.whole(agent.tasks[task]), salt))

    # -- restarts

    def restart(self, *, hello: bool = True) -> None:
        """The orchestrator dies and another takes over its journal; agents that are there say hello."""
        self.epoch = Epoch(self.epoch + 1)
        self.coordinator = Coordinator(self.epoch, delegate=self.delegate, guided=self.guided)
        self.coordinator.replay(self.facts)
        self._carry_out(self.coordinator.boot(self.now))
        for agent in self.agents.values():
            if hello and agent.connected:
                self.hello(agent)

    def check_replay(self) -> None:
        """A coordinator that has only the facts is in the same state."""
        other = Coordinator(self.epoch)
        other.replay(self.facts)
        assert snapshot(other) == snapshot(self.coordinator)


def snapshot(coordinator: Coordinator) -> dict[str, Any]:
    """All that lasts of a coordinator, to compare."""
    state = coordinator._state
    return {
        "epoch": state.epoch,
        "jobs": {name: _job(job) for name, job in state.jobs.items()},
        "open": list(state.open),
        "keys": dict(state.keys),
        "kinds": dict(state.fleet.kinds),
        "members": {
            name: (
                member.incarnation,
                member.profile,
                member.state.value == "lost",
                dict(member.offers),
                list(member.assigned),
                sorted(member.resident),
            )
            for name, member in state.fleet.members.items()
        },
        "costs": learned(state.planner),
    }


def learned(planner: Planner) -> dict[str, Any]:
    """What a planner knows of run times, copied; nothing of one that is a test's own."""
    if not isinstance(planner, EarliestFinish):
        return {}
    costs = planner.costs
    plain = {name: dict(getattr(costs, name)) for name in Costs.__slots__ if name != "forecasts"}
    return {**plain, "nodes": dict(costs.forecasts.nodes), "asks": dict(costs.forecasts.asks)}


def _job(job: JobState) -> dict[str, Any]:
    plain = {name: value for name, value in vars(job).items() if name not in ("stages", "shape")}
    stages = {name: {slot: getattr(stage, slot) for slot in StageState.__slots__} for name, stage in job.stages.items()}
    for stage in stages.values():
        for slot in ("outputs", "holds", "consumed", "holders"):
            stage[slot] = dict(stage[slot])
    return {**plain, "constellation": job.constellation, "submitted": job.submitted, "stages": stages}


def facts_of(world: World, kind: type[Fact], stage: str = "") -> list[Any]:
    """The facts of a kind, of one stage or all."""
    return [
        fact for fact in world.facts if isinstance(fact, kind) and (not stage or getattr(fact, "stage", None) == stage)
    ]


__all__ = [
    "BYTES",
    "JOB_STORE",
    "JSON",
    "KINDS",
    "SECOND",
    "TEXT",
    "Answer",
    "FakeAgent",
    "Requirements",
    "World",
    "facts_of",
    "inline",
    "node",
    "snapshot",
    "stored",
]
