"""The orchestrator's process, as `orchestrator.engine` has it: inputs in, facts to the disk, then what follows.

It may die at each of the points that `_at` names, and while a batch is being written.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from starloom.agents.messages import Command
from starloom.dag import limits
from starloom.dag.errors import Fenced, StarloomError, Unavailable
from starloom.dag.facts import AgentLost, Fact
from starloom.dag.ids import AgentId, Epoch, JobId
from starloom.devices.faults import FaultKind
from starloom.orchestrator.effects import Answer, Decision, Patched, Stopped, Submitted
from starloom.orchestrator.inputs import CancelJob, Input, PatchJob, Submit, Tick
from starloom.orchestrator.simulate.disk import DiskFullError
from starloom.orchestrator.simulate.hub import Hub
from starloom.orchestrator.simulate.loop import DiedError, Process, Timer
from starloom.orchestrator.simulate.snapshot import TAKEN

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.clients import Client
    from starloom.orchestrator.simulate.world import World

Done = Callable[[], None]
Undone = list[tuple[Decision, list[Done]]]
Reply = Callable[[Submitted | Stopped | Patched | StarloomError], None]

TURN_SECONDS = (0.0001, 0.001)
FSYNC_SECONDS = (0.0005, 0.004)
REPLAY_SECONDS = (0.05, 0.5)


class Orchestrator(Process):
    """One start of the orchestrator."""

    def __init__(self, world: "World", epoch: Epoch) -> None:
        self._world = world
        self._loop = world.loop
        self._disk = world.disk
        self._chance = world.chances.of("orchestrator")
        self.epoch = epoch
        self.coordinator = world.parts.coordinator(epoch)
        self.hub = Hub(world.loop, self, epoch, self.post, world.parts.channel)
        self.listening = False
        self._inbox: list[tuple[Input, Done | None]] = []
        self._undone: Undone = []
        #: what is with the disk, and whether something is on its way through it
        self._writing: list[Fact] = []
        self._carrying = False
        self._deciding = False
        self._alarm: Timer | None = None
        self._alarm_at: int | None = None
        self._replies: dict[int, Reply] = {}
        self._requests = 0
        #: of each job, who follows it, and what that one was told
        self._followers: dict[JobId, dict[Client, int]] = {}
        #: the events of each job, which are published: offsets with lines
        self._events: dict[JobId, list[tuple[int, bytes]]] = {}

    def __repr__(self) -> str:
        return f"<Orchestrator epoch={self.epoch} alive={self.alive}>"

    def start(self) -> None:
        """Replays, and takes over."""
        facts = self._disk.facts()
        chance = self._world.chances.of("snapshots")
        begin = chance.below(len(facts) + 1) if chance.happens(TAKEN) else 0
        if begin:
            state = self._world.parts.snapshot(facts[:begin])
            self._world.judge.restored(state, facts[:begin])
            self.coordinator.adopt(state)
        self.coordinator.replay(facts[begin:])
        self._world.judge.replayed(self)
        self._publish(facts, self._disk.lines, 0)
        wait = self._chance.between(*REPLAY_SECONDS)
        self._loop.after(wait, self._boot, self)

    def _boot(self) -> None:
        decision = self.coordinator.boot(self._loop.now)
        self._world.judge.decided(self, decision)
        self._put(decision, [self._listen])
        self._arm()
        self._check_later()

    def _check_later(self) -> None:
        self._loop.after(limits.LEASE_SECONDS, self._check, self)

    def _check(self) -> None:
        if not self._disk.is_of(self.epoch):
            self.die()
            raise DiedError
        self._check_later()

    def _listen(self) -> None:
        self.listening = True

    def post(self, item: Input, done: Done | None) -> None:
        """Takes an input; `done` is called once what follows from it is journaled."""
        self._inbox.append((item, done))
        if not self._deciding:
            self._deciding = True
            self._loop.after(self._chance.between(*TURN_SECONDS), self._decide, self)

    def ask(self, make: Callable[[int], Submit | CancelJob | PatchJob], reply: Reply) -> None:
        """A client's request."""
        self._requests += 1
        given = make(self._requests)
        if not isinstance(given, CancelJob) and not self._disk.has_room():
            reply(Unavailable("the disk is full"))
            return
        self._replies[self._requests] = reply
        self._world.judge.asked(self, given)
        self.post(given, None)

    def follow(self, client: "Client", job: JobId, after: int) -> None:
        """A client reads a job's events, from an offset on."""
        self._followers.setdefault(job, {})[client] = after
        self._tell(client, job)

    def unfollow(self, client: "Client", job: JobId) -> None:
        """The client's stream of events has ended."""
        self._followers.get(job, {}).pop(client, None)

    def die(self) -> None:
        """The process is killed now. What it was writing may be on the disk."""
        self.alive = self.listening = False
        if self._writing:
            lines = self._disk.torn(self._writing, self.epoch)
            self._world.judge.journaled(self._writing, lines, self)
        self._world.orchestrator_died(self)

    def _at(self, point: FaultKind) -> None:
        if self._world.trouble.fires(point):
            self.die()
            raise DiedError

    def _decide(self) -> None:
        batch, self._inbox = self._inbox[: limits.BATCH_INPUTS_MAX], self._inbox[limits.BATCH_INPUTS_MAX :]
        self._deciding = bool(self._inbox)
        if self._deciding:
            self._loop.after(self._chance.between(*TURN_SECONDS), self._decide, self)
        decision = self.coordinator.handle([item for item, _ in batch], self._loop.now)
        self._world.judge.decided(self, decision)
        self._put(decision, [done for _, done in batch if done is not None])
        self._arm()

    def _put(self, decision: Decision, done: list[Done]) -> None:
        self._undone.append((decision, done))
        if not self._carrying:
            self._carry_out()

    def _arm(self) -> None:
        due = self.coordinator.next_wake()
        if due == self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = due
        self._alarm = None if due is None else self._loop.at(due, self._ring, self)

    def _ring(self) -> None:
        self._alarm = self._alarm_at = None
        self.post(Tick(), None)

    def _carry_out(self) -> None:
        undone, self._undone = self._undone, []
        facts = [fact for decision, _ in undone for fact in decision.facts]
        self._carrying = True
        if not facts:
            self._follow_up(undone, [], 0)
            return
        self._at(FaultKind.CRASH_BEFORE_APPEND)
        self._writing = facts
        self._loop.after(self._chance.between(*FSYNC_SECONDS), partial(self._append, undone), self)

    def _append(self, undone: Undone) -> None:
        facts, self._writing = self._writing, []
        try:
            lines = self._disk.append(facts, self.epoch)
        except (Fenced, DiskFullError):
            self.die()
            raise DiedError from None
        self._world.judge.journaled(facts, lines, self)
        self._at(FaultKind.CRASH_AFTER_APPEND)
        self._follow_up(undone, lines, len(self._disk.lines) - len(facts))

    def _follow_up(self, undone: Undone, lines: list[bytes], offset: int) -> None:
        """In the order that `Decision` states; `offset` is that of the last fact before these."""
        begin = 0
        touched: dict[AgentId, None] = {}
        for decision, done in undone:
            for each in done:
                each()
            if self.hub.dirty:
                self.hub.acknowledge_dirty()
                self._at(FaultKind.CRASH_AFTER_ACKNOWLEDGEMENTS)
            for answer in decision.answers:
                self._answer(answer)
            end = begin + len(decision.facts)
            self._publish(decision.facts, lines[begin:end], offset + begin)
            begin = end
            self._send(decision, touched)
        self._flush(touched)
        self._carrying = False
        if self._undone:
            self._carry_out()

    def _send(self, decision: Decision, touched: dict[AgentId, None]) -> None:
        by_agent: dict[AgentId, list[Command]] = {}
        for agent, command in decision.commands:
            by_agent.setdefault(agent, []).append(command)
        for agent, commands in by_agent.items():
            self._world.judge.sent(self, agent, commands)
            self.hub.send(agent, commands)
            touched[agent] = None
        for fact in decision.facts:
            if isinstance(fact, AgentLost):
                self.hub.forget(fact.agent, fact.incarnation)
        for wanted in decision.plans:
            for seconds, planned in self._world.adviser.answers(wanted):
                self._loop.after(seconds, partial(self.post, planned, None), self)

    def _flush(self, touched: dict[AgentId, None]) -> None:
        for agent in touched:
            session = self.hub.sessions.get(agent)
            if session is not None:
                self.hub.flush(session)
                self._at(FaultKind.CRASH_AMID_SENDING)

    def _answer(self, answer: Answer) -> None:
        reply = self._replies.pop(answer.request, None)
        if reply is not None:
            self._world.judge.answered(self, answer)
            reply(answer.result)
            self._at(FaultKind.CRASH_AMID_SENDING)

    def _publish(self, facts: Sequence[Fact], lines: Sequence[bytes], offset: int) -> None:
        jobs: dict[JobId, None] = {}
        for number, (fact, line) in enumerate(zip(facts, lines, strict=True), offset + 1):
            job: JobId | None = getattr(fact, "job", None)
            if job is not None:
                self._events.setdefault(job, []).append((number, line))
                jobs[job] = None
        for job in jobs:
            for client in tuple(self._followers.get(job, ())):
                self._tell(client, job)

    def _tell(self, client: "Client", job: JobId) -> None:
        told = self._followers[job]
        events = self._events.get(job, [])
        found = events[bisect_right(events, told[client], key=itemgetter(0)) :]
        if found:
            told[client] = found[-1][0]
            client.send_events(self, found)
