"""Two agents' cores with values that are told of early, in any order of events: all that started is told of once, by digests."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from tests.agents.fakes import reference, task
from tests.agents.test_awaiting import STAGES, TwoCores

from starloom.agents.core import Instruction, Start, Stop, Tell, Unask
from starloom.agents.late import name_of
from starloom.agents.messages import Failed, Finished, Outcome, Report, Revoked, WasCancelled
from starloom.dag.facts import Timing
from starloom.dag.ids import TaskToken
from starloom.dag.values import PortType, ValueRef


class EarlyCores(TwoCores):
    """As TwoCores, where values may be told of early, and a break of the stream has who has read one hash it.

    Besides, everything that has started is told of once, by digests alone, whatever was cancelled or broke meanwhile.
    """

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        super().begin(data)
        self.hashing: list[tuple[str, TaskToken]] = []
        #: what each agent was told early of on its present stream, and what it hashes itself since that broke
        self.early: dict[str, dict[TaskToken, Outcome]] = {"a": {}, "b": {}}
        self.hashing_here: list[tuple[str, TaskToken]] = []
        self.told: dict[str, Report] = {}
        self.stopped: set[TaskToken] = set()

    def truth(self, ref: ValueRef, of: TaskToken) -> ValueRef:
        found = reference(PortType.TEXT, of.stage, holder=ref.holder)
        assert ref.digest in (found.digest, name_of(of, "value"))
        return found

    def carry_out(self, agent: str, instructions: list[Instruction]) -> None:
        for number, instruction in enumerate(instructions):
            match instruction:
                case Start(order, accepted, fetching):
                    inputs = tuple(
                        msgspec.structs.replace(item, ref=self.truth(item.ref, task(item.port)))
                        for item in order.inputs
                    )
                    instructions[number] = Start(msgspec.structs.replace(order, inputs=inputs), accepted, fetching)
                case Tell(Finished() | Failed() | WasCancelled() | Revoked() as report):
                    assert report.task.stage not in self.told, "told twice"
                    self.told[report.task.stage] = report
                    if isinstance(report, Finished):
                        digests = {ref.digest for ref in report.outputs.values()}
                        digests |= {read.digest for read in report.consumed.values()}
                        assert not digests & {name_of(task(each), "value") for each in STAGES}
                case Unask(wanted):
                    self.early[agent].pop(wanted, None)
                case Stop(stopped):
                    self.stopped.add(stopped)
        super().carry_out(agent, instructions)

    @rule(data=st.data())
    def makes(self, data: st.DataObject) -> None:
        """A stage is done, and what it gave is being hashed from now on."""
        going = [(agent, done) for agent, done in self.working if not self.cores[agent].is_cancelled(done)]
        if not going:
            return
        agent, done = data.draw(st.sampled_from(going))
        self.working.remove((agent, done))
        self.hashing.append((agent, done))
        self.succeeded.add(done.stage)
        core = self.cores[agent]
        core.began(done, self.now)
        ref = msgspec.structs.replace(reference(PortType.TEXT, done.stage, holder=agent), digest=name_of(done, "value"))
        self.carry_out(agent, core.made(done, {"value": ref}, (), ("value",), self.now))

    @rule(data=st.data())
    def hashes(self, data: st.DataObject) -> None:
        if self.hashing:
            self.hashed(*data.draw(st.sampled_from(self.hashing)))

    @rule(data=st.data())
    def is_cancelled_meanwhile(self, data: st.DataObject) -> None:
        if self.hashing:
            _, done = data.draw(st.sampled_from(self.hashing))
            self.is_taken_back(done.stage, revoked=False)

    def hashed(self, agent: str, done: TaskToken) -> None:
        self.hashing.remove((agent, done))
        attempt = self.cores[agent]._attempts[done]
        read = {item.port: item.consumed for item in attempt.assign.inputs}
        outputs = {"value": reference(PortType.TEXT, done.stage, holder=agent)}
        report: Report = Finished(task=done, outputs=outputs, consumed=read, timing=Timing())
        if done in self.stopped:
            report = WasCancelled(task=done)
        self.carry_out(agent, self.cores[agent].ended(done, report, self.now))

    def finish(self, agent: str, done: TaskToken, fails: bool) -> None:
        if not fails:
            self.cores[agent].began(done, self.now)
            if not self.cores[agent].is_cancelled(done):
                self.succeeded.add(done.stage)
            self.working.remove((agent, done))
            self.hashing.append((agent, done))
            self.hashed(agent, done)
        else:
            super().finish(agent, done, fails)

    @rule(agent=st.sampled_from("ab"))
    def reconnects(self, agent: str) -> None:
        self.hashing_here += [(agent, each) for each in self.early[agent] if (agent, each) not in self.hashing_here]
        super().reconnects(agent)

    @rule(data=st.data())
    def hashes_here(self, data: st.DataObject) -> None:
        if self.hashing_here:
            self.hashed_here(*data.draw(st.sampled_from(self.hashing_here)))

    def hashed_here(self, agent: str, of: TaskToken) -> None:
        self.hashing_here.remove((agent, of))
        if (early := self.early[agent].pop(of, None)) is not None:
            outputs = {"value": self.truth(early.outputs["value"], of)}
            self.carry_out(agent, self.cores[agent].hashed(Outcome(task=of, outputs=outputs), self.now))

    def deliver(self, agent: str, message: TaskToken | Outcome) -> None:
        if isinstance(message, Outcome) and message.late:
            if message.task in self.asks[agent]:
                self.early[agent][message.task] = message
                self.carry_out(agent, self.cores[agent].answered(message, self.now))
            return
        if isinstance(message, Outcome):
            self.early[agent].pop(message.task, None)
        super().deliver(agent, message)

    def teardown(self) -> None:
        if not hasattr(self, "told"):  # `begin` never came
            return
        for stage in tuple(self.unassigned):
            self.command(self.at[stage], self.orders[stage])
        self.unassigned = []
        for agent in "ab":
            self.reconnects(agent)
        while self.flying or self.working or self.hashing or self.hashing_here:
            while self.flying:
                self.deliver(*self.flying.pop())
            while self.hashing_here:
                self.hashed_here(*self.hashing_here[0])
            while self.hashing:
                self.hashed(*self.hashing[0])
            while self.working:
                self.finish(*self.working[0], fails=False)
        super().teardown()
        assert self.started.keys() <= self.told.keys(), "what has started was never told of"
        for core in self.cores.values():
            waiting = core._awaiting
            assert (waiting._owed, waiting._owes, waiting._early) == ({}, {}, {})
            assert all(waiting._waiting.values())


def test_all_that_has_started_is_told_of_once_by_digests() -> None:
    run_state_machine_as_test(EarlyCores, settings=settings(max_examples=100, stateful_step_count=60, deadline=None))
