"""Attempts that await others: what starts them, in every order of events, on one agent and across two."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tests.agents.fakes import assign, reference, task
from tests.agents.test_core import EPOCH, Driven, cancelled, starts

from starloom.agents.core import (
    AgentCore,
    Answer,
    Ask,
    Drop,
    Fetch,
    Forget,
    Instruction,
    Phase,
    Start,
    Stop,
    Tell,
    Unask,
)
from starloom.agents.messages import (
    Assign,
    Await,
    AwaitUnreachable,
    Cancel,
    Command,
    Failed,
    Finished,
    Input,
    Outcome,
    Release,
    Resolve,
    Revoke,
    Revoked,
    Started,
    WasCancelled,
)
from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import Comparison
from starloom.dag.facts import Consumed, ErrorInfo, Timing
from starloom.dag.ids import AgentId, JobId, StageId, TaskToken
from starloom.dag.values import PortType, ValueRef

VALUE = reference(PortType.JSON, 7, holder="a")
BLOB = reference(PortType.JSON, [1], holder="b", inline=False)
LIKED = Comparison(output="value", operator="==", value=7)


def awaits(stage: str = "up", agent: str = "a", attempt: int = 1, **fields: Any) -> Await:
    token = task(stage, attempt).token
    return Await(upstream=StageId(stage), token=token, agent=AgentId(agent), address=f"{agent}:1", **fields)


def gave(done: TaskToken, *, holds: tuple[bool, ...] = (), **outputs: ValueRef) -> Finished:
    return Finished(task=done, outputs=outputs, consumed={}, timing=Timing(), holds=holds)


def outcome(stage: str = "up", **outputs: ValueRef) -> Outcome:
    return Outcome(task=task(stage), outputs=outputs)


def ended(driven: Driven, report: Finished) -> list[Instruction]:
    driven.core.began(report.task, driven.now)
    return driven.core.ended(report.task, report, driven.now)


def fed(port: str, ref: ValueRef, stage: str = "up", address: str = "a:1") -> Input:
    consumed = Consumed(StageId(stage), task(stage).token, ref.digest)
    return Input(port=port, ref=ref, consumed=consumed, address=address)


def test_a_local_end_starts_what_awaits_it_in_the_same_call_with_its_inputs_filled() -> None:
    driven = Driven()
    down = assign("down", awaits=(awaits(feeds={"x": "value"}),))
    assert driven.tell(assign("up"), down) == [Start(assign("up"), 0, 0)]
    assert driven.core.phase(down.task) is Phase.WAITING
    driven.now = 9
    found = ended(driven, gave(task("up"), value=VALUE))
    complete = assign("down", inputs=(fed("x", VALUE),))
    assert found == [Tell(gave(task("up"), value=VALUE)), Start(complete, 9, 0)]


def test_an_assignment_that_comes_after_what_it_awaits_has_ended_starts_at_once() -> None:
    driven = Driven()
    driven.tell(assign("up"))
    ended(driven, gave(task("up"), value=VALUE))
    assert driven.tell(assign("down", awaits=(awaits(feeds={"x": "value"}),))) == [
        Start(assign("down", inputs=(fed("x", VALUE),)), driven.now, 0)
    ]


@pytest.mark.parametrize("order", permutations(["assign", "left", "right"]))
def test_a_join_starts_once_both_have_ended_whatever_comes_first(order: tuple[str, ...]) -> None:
    driven = Driven(slots=2)
    driven.tell(assign("left"), assign("right"))
    down = assign("down", awaits=(awaits("left"), awaits("right")))
    started: list[str] = []
    for step in order:
        assert not started
        started += starts(driven.tell(down) if step == "assign" else ended(driven, gave(task(step))))
    assert started == ["down"]


def test_what_waits_holds_no_slot_and_a_chain_goes_on_by_itself() -> None:
    driven = Driven()
    names = [f"s{number}" for number in range(5)]
    pairs = zip(names[1:], names, strict=False)
    chain = [assign(name, awaits=(awaits(before),)) for name, before in pairs]
    assert starts(driven.tell(*reversed(chain), assign("s0"), assign("other"))) == ["s0"]
    begun = []
    while driven.core.active:
        (current,) = [each for each in driven.core.active if driven.core.phase(each) is Phase.HANDED]
        begun.append(current.stage)
        driven.finish(current)
    assert sorted(begun) == sorted([*names, "other"])
    assert [name for name in begun if name != "other"] == names


def test_a_failure_and_another_attempt_start_nothing() -> None:
    driven = Driven()
    down = assign("down", awaits=(awaits(attempt=2),))
    driven.tell(assign("up"), down)
    driven.core.began(task("up"), 1)
    failed = Failed(task=task("up"), error=ErrorInfo(message=""))
    assert driven.core.ended(task("up"), failed, 2) == [Tell(failed)]
    driven.tell(assign("up", attempt=3))
    assert starts(ended(driven, gave(task("up", 3)))) == []
    driven.tell(assign("up", attempt=2))
    assert starts(ended(driven, gave(task("up", 2)))) == ["down"]


@pytest.mark.parametrize(("answer", "started"), [(True, ["down"]), (False, [])])
def test_a_comparison_that_does_not_hold_starts_nothing(answer: bool, started: list[str]) -> None:
    driven = Driven()
    up = assign("up", comparisons=(LIKED,))
    down = assign("down", awaits=(awaits(holds=(comparison_key(LIKED),)),))
    driven.tell(up, down)
    assert starts(ended(driven, gave(up.task, holds=(answer,), value=VALUE))) == started
    driven.finish(down.task) if answer else driven.tell(Cancel(task=down.task))
    assert starts(driven.tell(assign("late", awaits=down.awaits))) == (["late"] if answer else [])


def test_more_ends_are_to_come_while_something_runs_or_awaits_what_may_run() -> None:
    driven = Driven()
    assert not driven.core.more_to_come
    far = assign("far", awaits=(awaits("else", "b"),))
    driven.tell(assign("up"), assign("down", awaits=(awaits(),)), far)
    assert driven.core.more_to_come
    ended(driven, gave(task("up")))
    driven.finish(task("down"))
    assert driven.core.more_to_come, "another agent's attempt is awaited"
    driven.tell(Cancel(task=far.task))
    assert not driven.core.more_to_come


def test_outputs_that_were_not_given_feed_nothing() -> None:
    driven = Driven()
    driven.tell(assign("up"), assign("down", awaits=(awaits(feeds={"x": "absent", "y": "value"}),)))
    found = ended(driven, gave(task("up"), value=VALUE))
    assert found[-1] == Start(assign("down", inputs=(fed("y", VALUE),)), driven.now, 0)


def test_streams_hold_no_start_and_stay_in_the_assignment() -> None:
    driven = Driven()
    streams = awaits("up", "b", streams={"s": "chunks"})
    only = assign("only", awaits=(streams,))
    assert driven.tell(only) == [Start(only, 0, 0)]
    driven.finish(only.task)
    both = assign("both", awaits=(streams, awaits("left")))
    driven.tell(assign("left"), both)
    assert ended(driven, gave(task("left")))[-1] == Start(assign("both", awaits=(streams,)), driven.now, 0)


@pytest.mark.parametrize("command", [Revoke, Cancel])
def test_what_waits_is_given_back_at_once(command: type[Revoke | Cancel]) -> None:
    driven = Driven()
    down = assign("down", awaits=(awaits(), awaits("far", "b")))
    driven.tell(assign("up"), down)
    report = Revoked(task=down.task) if command is Revoke else WasCancelled(task=down.task)
    assert driven.tell(command(task=down.task)) == [Drop(down.task), Unask(task("far")), Tell(report)]
    assert driven.tell(command(task=down.task), down) == []
    assert starts(ended(driven, gave(task("up")))) == []
    assert driven.core.idle


@pytest.mark.parametrize("order", permutations(["assign", "end", "revoke"]))
def test_a_revocation_wins_unless_the_attempt_has_started(order: tuple[str, ...]) -> None:
    driven = Driven()
    driven.tell(assign("up"))
    down = assign("down", awaits=(awaits(),))
    found: list[Instruction] = []
    for step in order:
        match step:
            case "assign":
                found += driven.tell(down)
            case "end":
                found += ended(driven, gave(task("up")))
            case _:
                found += driven.tell(Revoke(task=down.task))
    first = order.index("revoke") < 2
    assert starts(found) == ([] if first else ["down"])
    assert Tell(Revoked(task=down.task) if first else Started(task=down.task)) in found


def test_a_cancel_of_what_is_awaited_starts_nothing_even_if_its_result_was_made() -> None:
    driven = Driven()
    driven.tell(assign("up"), assign("down", awaits=(awaits(),)))
    driven.tell(Cancel(task=task("up")))
    assert ended(driven, gave(task("up"))) == [cancelled(task("up"))]
    assert driven.tell(assign("late", awaits=(awaits(),))) == []


def test_a_release_ends_what_waits_and_forgets_outcomes_and_subscribers() -> None:
    driven = Driven()
    driven.tell(assign("up"), assign("down", awaits=(awaits("far", "b"),)))
    ended(driven, gave(task("up")))
    driven.core.subscribed(1, task("never"))
    assert driven.tell(Release(job=JobId("j"))) == [Drop(task("down")), Unask(task("far")), Forget(JobId("j"))]
    assert driven.core.idle
    assert driven.core.subscribed(1, task("up")) == []
    assert driven.tell(assign("never"))
    assert ended(driven, gave(task("never"))) == [Tell(gave(task("never")))]


def test_another_agents_attempt_is_asked_for_once_and_its_answer_starts_all_that_await_it() -> None:
    driven = Driven(slots=2)
    one = assign("one", awaits=(awaits("far", "b", feeds={"x": "value"}),))
    two = assign("two", awaits=(awaits("far", "b"),))
    assert driven.tell(one, two) == [Ask(task("far"), AgentId("b"), "b:1")]
    complete = assign("one", inputs=(fed("x", VALUE, "far", "b:1"),))
    assert driven.core.answered(outcome("far", value=VALUE), 3) == [Start(complete, 3, 0), Start(assign("two"), 3, 0)]
    assert driven.core.answered(outcome("far", value=VALUE), 4) == []


def test_bytes_that_another_agent_made_are_fetched_from_it() -> None:
    driven = Driven()
    driven.tell(assign("down", awaits=(awaits("far", "b", feeds={"x": "data"}),)))
    complete = assign("down", inputs=(fed("x", BLOB, "far", "b:1"),))
    assert driven.core.answered(outcome("far", data=BLOB), 3) == [Fetch(complete)]
    assert driven.core.fetched(complete.task, 5) == [Start(complete, 3, 2)]


def test_a_later_assignment_asks_again_for_what_was_answered() -> None:
    driven = Driven()
    driven.tell(assign("one", awaits=(awaits("far", "b"),)))
    driven.core.answered(outcome("far"), 0)
    assert driven.tell(assign("two", awaits=(awaits("far", "b"),))) == [Ask(task("far"), AgentId("b"), "b:1")]


def test_the_last_that_awaits_another_agents_attempt_takes_the_question_back() -> None:
    driven = Driven()
    one, two = (assign(name, awaits=(awaits("far", "b"),)) for name in ("one", "two"))
    driven.tell(one, two)
    assert Unask(task("far")) not in driven.tell(Cancel(task=one.task))
    assert Unask(task("far")) in driven.tell(Cancel(task=two.task))
    assert driven.core.answered(outcome("far"), 0) == []


def test_a_subscriber_is_told_at_once_or_when_the_attempt_ends_with_success() -> None:
    driven = Driven()
    assert driven.core.subscribed(1, task("up")) == [], "it is not assigned yet"
    driven.tell(assign("up", comparisons=(LIKED,)))
    assert driven.core.subscribed(2, task("up")) == driven.core.subscribed(2, task("up")) == []
    report = gave(task("up"), holds=(True,), value=VALUE)
    told = Outcome(task=task("up"), outputs={"value": VALUE}, holds=(comparison_key(LIKED),))
    assert ended(driven, report) == [Answer(1, told), Answer(2, told), Tell(report)]
    assert driven.core.subscribed(1, task("up")) == [Answer(1, told)]


def test_a_subscriber_that_left_or_asks_no_more_is_told_nothing() -> None:
    driven = Driven()
    for subscriber, wanted in [(1, "up"), (1, "other"), (2, "up"), (3, "up")]:
        driven.core.subscribed(subscriber, task(wanted))
    driven.core.unsubscribed(1)
    driven.core.unsubscribed(2, task("up"))
    driven.core.unsubscribed(2, task("up"))
    driven.tell(assign("up"), assign("other"))
    assert ended(driven, gave(task("up")))[0] == Answer(3, outcome("up"))
    assert ended(driven, gave(task("other"))) == [Tell(gave(task("other")))]


def test_subscribers_of_what_failed_are_told_nothing() -> None:
    driven = Driven()
    driven.core.subscribed(1, task("up"))
    driven.tell(assign("up"))
    driven.core.began(task("up"), 1)
    failed = Failed(task=task("up"), error=ErrorInfo(message=""))
    assert driven.core.ended(task("up"), failed, 2) == [Tell(failed)]


def test_an_unreachable_peer_is_reported_and_the_orchestrators_word_starts_what_waits() -> None:
    driven = Driven()
    down = assign("down", awaits=(awaits("far", "b", feeds={"x": "value"}, holds=("k",)), awaits("up")))
    driven.tell(assign("up"), down)
    report = AwaitUnreachable(task=down.task, upstreams=(StageId("far"),), reason="gone")
    assert driven.core.unreachable(task("far"), "gone") == [Tell(report)]
    assert driven.core.unreachable(task("other"), "gone") == []
    assert driven.core.phase(down.task) is Phase.WAITING
    relayed = fed("x", VALUE, "far", "c:1")
    token = task("far").token
    said = Resolve(task=down.task, upstream=StageId("far"), token=token, inputs=(relayed,), holds=("k", "l"))
    assert driven.tell(Resolve(task=down.task, upstream=StageId("far"), token=token)) == [], "its comparison fails"
    other = task("far", 2).token
    assert driven.tell(Resolve(task=down.task, upstream=StageId("far"), token=other, holds=("k",))) == []
    assert driven.tell(said) == [Unask(task("far"))]
    assert driven.tell(said) == []
    assert driven.core.answered(outcome("far", value=VALUE), 0) == []
    assert ended(driven, gave(task("up")))[-1] == Start(assign("down", inputs=(relayed,)), driven.now, 0)
    assert driven.tell(said) == []


def test_reports_of_awaits_say_nothing_of_what_is_held() -> None:
    driven = Driven()
    report = AwaitUnreachable(task=task("down"), upstreams=(StageId("far"),), reason="gone")
    assert driven.core.held([report]) == ()


STAGES = "abcdefgh"


class TwoCores(RuleBasedStateMachine):
    """Two agents with a sub-graph over both, and a channel that loses, repeats and reorders.

    Once everything has come through, exactly those have started whose upstreams all succeeded and that were not
    taken back, each once and with the value of each upstream.
    """

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.cores = {name: AgentCore(AgentId(name), 1) for name in "ab"}
        self.now = 0
        self.at: dict[str, str] = {}
        self.orders: dict[str, Assign] = {}
        self.unassigned: list[str] = []
        for number, stage in enumerate(STAGES):
            self.at[stage] = data.draw(st.sampled_from("ab"), label=f"agent of {stage}")
            ups = data.draw(st.sets(st.sampled_from(STAGES[:number]), max_size=3) if number else st.just(set()))
            awaited = tuple(awaits(up, self.at[up], feeds={up: "value"}) for up in sorted(ups))
            self.orders[stage] = assign(stage, awaits=awaited)
            self.unassigned.append(stage)
        self.started: dict[str, Assign] = {}
        self.succeeded: set[str] = set()
        self.over: set[str] = set()
        #: what each agent has asked the other for, and what is under way between them: to whom, and what
        self.asks: dict[str, list[TaskToken]] = {"a": [], "b": []}
        self.flying: list[tuple[str, TaskToken | Outcome]] = []
        self.working: list[tuple[str, TaskToken]] = []

    def carry_out(self, agent: str, instructions: list[Instruction]) -> None:
        other = "b" if agent == "a" else "a"
        for instruction in instructions:
            match instruction:
                case Ask(wanted, at):
                    assert at == other
                    assert wanted not in self.asks[agent], "asked for twice"
                    self.asks[agent].append(wanted)
                    self.flying.append((other, wanted))
                case Unask(wanted):
                    self.asks[agent].remove(wanted)
                    self.cores[other].unsubscribed(0, wanted)
                case Answer(_, told):
                    self.flying.append((other, told))
                case Start(order):
                    assert order.task.stage not in self.started, "started twice"
                    assert order.task.stage not in self.over, "started after it was taken back"
                    self.started[order.task.stage] = order
                    self.working.append((agent, order.task))
                case Tell() | Stop() | Drop() | Fetch() | Forget():
                    pass

    def command(self, agent: str, *commands: Command) -> None:
        self.now += 1
        self.carry_out(agent, self.cores[agent].commands(commands, EPOCH, self.now))

    @rule(data=st.data())
    def assigns(self, data: st.DataObject) -> None:
        if self.unassigned:
            stage = data.draw(st.sampled_from(self.unassigned))
            self.unassigned.remove(stage)
            self.command(self.at[stage], self.orders[stage])

    @rule(stage=st.sampled_from(STAGES))
    def assigns_again(self, stage: str) -> None:
        if stage not in self.unassigned:
            self.command(self.at[stage], self.orders[stage])

    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def ends(self, data: st.DataObject, fails: bool) -> None:
        if self.working:
            agent, done = data.draw(st.sampled_from(self.working))
            self.finish(agent, done, fails)

    def finish(self, agent: str, done: TaskToken, fails: bool) -> None:
        self.working.remove((agent, done))
        self.now += 1
        core = self.cores[agent]
        core.began(done, self.now)
        ref = reference(PortType.TEXT, done.stage, holder=agent)
        if fails:
            report: Failed | Finished = Failed(task=done, error=ErrorInfo(message=""))
        else:
            report = gave(done, value=ref)
            if not core.is_cancelled(done):
                self.succeeded.add(done.stage)
        self.carry_out(agent, core.ended(done, report, self.now))

    @rule(stage=st.sampled_from(STAGES), revoked=st.booleans())
    def is_taken_back(self, stage: str, revoked: bool) -> None:
        if revoked and stage in self.started:
            return
        self.over.add(stage)
        self.command(self.at[stage], (Revoke if revoked else Cancel)(task=task(stage)))

    @rule(data=st.data(), keep=st.booleans())
    def arrives(self, data: st.DataObject, keep: bool) -> None:
        """Any message first; one that is kept comes again."""
        if self.flying:
            number = data.draw(st.integers(0, len(self.flying) - 1))
            self.deliver(*(self.flying[number] if keep else self.flying.pop(number)))

    @rule(data=st.data())
    def is_lost(self, data: st.DataObject) -> None:
        if self.flying:
            self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))

    @rule(agent=st.sampled_from("ab"))
    def reconnects(self, agent: str) -> None:
        """The stream of `agent` to the other breaks, and what is open is asked for again on a new one."""
        other = "b" if agent == "a" else "a"
        self.cores[other].unsubscribed(0)
        self.flying += [(other, wanted) for wanted in self.asks[agent]]

    def deliver(self, agent: str, message: TaskToken | Outcome) -> None:
        self.now += 1
        if isinstance(message, Outcome):
            if message.task in self.asks[agent]:
                self.asks[agent].remove(message.task)
            self.carry_out(agent, self.cores[agent].answered(message, self.now))
        else:
            self.carry_out(agent, self.cores[agent].subscribed(0, message))

    def teardown(self) -> None:
        if not hasattr(self, "cores"):
            return
        for stage in tuple(self.unassigned):
            self.command(self.at[stage], self.orders[stage])
        self.unassigned = []
        # From here on nothing is lost any more: what is open is asked for once again, and no more than once.
        for agent in "ab":
            self.reconnects(agent)
        while self.flying or self.working:
            while self.flying:
                self.deliver(*self.flying.pop())
            while self.working:
                self.finish(*self.working[0], fails=False)
        for stage, order in self.orders.items():
            ups = {awaited.upstream for awaited in order.awaits}
            if stage in self.over and stage not in self.started:
                continue
            assert (stage in self.started) == (ups <= self.succeeded), stage
        for order in self.started.values():
            wanted = {awaited.upstream for awaited in self.orders[order.task.stage].awaits}
            assert {item.port: item.ref for item in order.inputs} == {
                up: reference(PortType.TEXT, up, holder=self.at[up]) for up in wanted
            }


TestTwoCores = TwoCores.TestCase
TestTwoCores.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
