"""The agent's core: what it does with each command at each phase, and what holds in every order of events."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.agents.fakes import assign, given, task

from starloom.agents.core import (
    AgentCore,
    Drop,
    Fetch,
    Forget,
    Instruction,
    Phase,
    Preload,
    Start,
    StartTogether,
    Stop,
    StopPreload,
    Tell,
    Wake,
)
from starloom.agents.messages import (
    Assign,
    Await,
    Cancel,
    Command,
    Failed,
    Finished,
    Release,
    Report,
    Revoke,
    Revoked,
    Started,
    WasCancelled,
)
from starloom.dag import limits
from starloom.dag.facts import ErrorInfo, Timing
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.kinds import Batch
from starloom.dag.values import PortType

SECOND = 1_000_000_000

EPOCH = Epoch(1)


def finished(done: TaskToken) -> Finished:
    return Finished(task=done, outputs={}, consumed={}, timing=Timing())


def cancelled(done: TaskToken) -> Tell:
    return Tell(WasCancelled(task=done))


def remote(stage: str = "s", kind: str = "basic.noop", **fields: Any) -> Assign:
    """An assignment with an input that another agent holds."""
    there = given("value", PortType.JSON, [1], holder="b", address="h:1", inline=False)
    return assign(stage, kind, inputs=(there,), **fields)


class Driven:
    """A core with one slot, and shorthand for what a test does to it."""

    def __init__(self, slots: int = 1, streaming: frozenset[str] = frozenset()) -> None:
        self.core = AgentCore(AgentId("a"), slots, streaming)
        self.now = 0

    def tell(self, *commands: Command, epoch: int = EPOCH) -> list[Instruction]:
        return self.core.commands(commands, Epoch(epoch), self.now)

    def finish(self, done: TaskToken, nanos: int = limits.AGENT_CHEAP_NANOS) -> list[Instruction]:
        if self.core.phase(done) is Phase.HANDED:
            self.core.began(done, self.now)
        self.now += nanos
        return self.core.ended(done, finished(done), self.now)


def starts(instructions: Sequence[Instruction]) -> list[str]:
    return [found.assign.task.stage for found in instructions if isinstance(found, Start)]


def test_streaming_attempts_start_at_once_whatever_takes_the_slots_and_take_none() -> None:
    driven = Driven(streaming=frozenset({"k.stream"}))
    upstream = FencingToken(Epoch(1), Attempt(1))
    reads = Await(upstream=StageId("up"), token=upstream, agent=AgentId("b"), address="h:1", streams={"in": "out"})
    assert starts(driven.tell(assign("long"), assign("queued"))) == ["long"]
    found = driven.tell(*(assign(f"s{number}", "k.stream", awaits=(reads,)) for number in range(4)))
    assert starts(found) == ["s0", "s1", "s2", "s3"]
    assert starts(driven.finish(task("s0"))) == []
    driven.core.began(task("s1"), driven.now)
    driven.core.computed(task("s1"), driven.now)
    assert starts(driven.tell(Cancel(task=task("s2")))) == []
    assert starts(driven.core.ended(task("s2"), WasCancelled(task=task("s2")), driven.now)) == []
    assert starts(driven.finish(task("long"))) == ["queued"]


def test_streaming_attempt_waits_for_what_is_no_stream_and_may_be_given_back_meanwhile() -> None:
    driven = Driven(streaming=frozenset({"k.stream"}))
    order = remote(kind="k.stream")
    assert starts(driven.tell(order)) == []
    assert starts(driven.core.fetched(order.task, 1)) == ["s"]
    assert driven.tell(Revoke(task=order.task)) == [Tell(Started(task=order.task))]
    other = remote("other", "k.stream")
    driven.tell(other)
    driven.tell(Revoke(task=other.task))
    assert driven.core.fetched(other.task, 1) == [Tell(Revoked(task=other.task)), Drop(other.task)]


def test_an_attempt_that_waits_is_given_back_and_stays_so() -> None:
    driven = Driven()
    running, waiting = assign("running"), assign("waiting")
    driven.tell(running, waiting)
    found = driven.tell(Revoke(task=waiting.task))
    assert found == [Drop(waiting.task), Tell(Revoked(task=waiting.task))]
    assert driven.tell(Revoke(task=waiting.task), waiting) == []
    assert driven.core.active == (running.task,)


def test_an_attempt_that_fetches_is_given_back_once_nothing_of_it_runs() -> None:
    driven = Driven()
    order = remote()
    driven.tell(order)
    assert driven.tell(Revoke(task=order.task)) == [Stop(order.task)]
    assert driven.tell(Revoke(task=order.task), Cancel(task=order.task)) == []
    assert driven.core.ended(order.task, WasCancelled(task=order.task), 1) == [Tell(Revoked(task=order.task))]


def test_an_attempt_whose_inputs_came_meanwhile_is_given_back() -> None:
    driven = Driven()
    order = remote()
    driven.tell(order)
    driven.tell(Revoke(task=order.task))
    assert driven.core.fetched(order.task, 1) == [Tell(Revoked(task=order.task)), Drop(order.task)]


def test_an_attempt_that_started_says_so_when_it_is_asked_back_and_runs_on() -> None:
    driven = Driven()
    order = assign("s")
    driven.tell(order)
    assert driven.tell(Revoke(task=order.task)) == [Tell(Started(task=order.task))], "a worker has it"
    driven.core.began(order.task, 1)
    assert driven.tell(Revoke(task=order.task)) == [Tell(Started(task=order.task))]
    assert driven.finish(order.task) == [Tell(finished(order.task))]
    assert driven.tell(Revoke(task=order.task)) == [], "its report says what it is"


def test_a_revocation_that_overtakes_its_assignment_wins() -> None:
    driven = Driven()
    order = assign("s")
    assert driven.tell(Revoke(task=order.task)) == [Tell(Revoked(task=order.task))]
    assert driven.tell(order, Revoke(task=order.task)) == []
    assert driven.core.idle


def test_what_is_being_cancelled_is_not_given_back() -> None:
    driven = Driven()
    order = assign("s")
    driven.tell(order)
    driven.tell(Cancel(task=order.task))
    assert driven.tell(Revoke(task=order.task)) == []
    assert driven.core.ended(order.task, finished(order.task), 1) == [cancelled(order.task)]


def test_an_attempt_starts_at_once_and_is_told_to_its_end() -> None:
    driven = Driven()
    order = assign("s")
    driven.now = 5
    assert driven.tell(order) == [Start(order, 5, 0)]
    assert driven.core.phase(order.task) is Phase.HANDED
    assert (driven.core.queued, driven.core.running) == (1, 0)
    assert driven.core.began(order.task, 6) == [Tell(Started(task=order.task))]
    assert (driven.core.queued, driven.core.running) == (0, 1)
    assert driven.core.ended(order.task, finished(order.task), 7) == [Tell(finished(order.task))]
    assert driven.core.active == ()


def test_a_report_with_answers_that_nobody_asked_for_is_told_as_it_is() -> None:
    driven = Driven()
    driven.tell(assign())
    driven.core.began(task(), driven.now)
    report = msgspec.structs.replace(finished(task()), holds=(True,))
    assert Tell(report) in driven.core.ended(task(), report, driven.now)


def test_an_agent_has_a_slot() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        AgentCore(AgentId("a"), 0)


def test_slots_bound_what_runs_and_priority_orders_what_waits() -> None:
    driven = Driven(slots=2)
    orders = [assign(name, priority=priority) for name, priority in [("a", 0), ("b", 0), ("c", 0), ("d", 5), ("e", 5)]]
    assert starts(driven.tell(*orders)) == ["d", "e"]
    assert starts(driven.finish(orders[3].task)) == ["a"]
    assert starts(driven.finish(orders[4].task)) == ["b"]
    assert starts(driven.finish(orders[0].task)) == ["c"]


def test_of_equal_priority_goes_first_what_its_plan_has_first_however_late_it_comes() -> None:
    driven = Driven()
    runs, late, early = assign("runs"), assign("late", after_seconds=5.0), assign("early", after_seconds=1.0)
    urgent = assign("urgent", after_seconds=9.0, priority=1)
    assert starts(driven.tell(runs)) == ["runs"]
    driven.tell(late, early, urgent)
    driven.now = 3 * SECOND
    overdue, unplanned, planned = assign("overdue", after_seconds=-2.5), assign("unplanned"), assign("planned")
    planned = msgspec.structs.replace(planned, after_seconds=1.5)
    driven.tell(overdue, unplanned, planned)
    order = []
    for done in (runs, urgent, overdue, early, unplanned, planned):
        order += starts(driven.finish(done.task))
    assert order == ["urgent", "overdue", "early", "unplanned", "planned", "late"]


def test_what_a_plan_has_first_is_fetched_first() -> None:
    driven = Driven()
    orders = [remote(f"s{number}", after_seconds=-float(number)) for number in range(3 + limits.AGENT_FETCHES_AHEAD)]
    found = driven.tell(*orders)
    assert found == [Fetch(order) for order in reversed(orders[2:])]


def test_a_kind_that_proved_cheap_is_handed_out_ahead() -> None:
    driven = Driven()
    driven.tell(assign("first"))
    assert starts(driven.finish(task("first"), nanos=10)) == []
    orders = [assign(f"s{number}") for number in range(limits.AGENT_AHEAD_STAGES + 5)]
    assert len(starts(driven.tell(*orders))) == limits.AGENT_AHEAD_STAGES + 1
    # One slow run, and the kind waits for a slot again.
    assert starts(driven.finish(orders[0].task)) == []
    assert starts(driven.tell(assign("last", kind="slow"))) == []


def test_a_second_assignment_of_a_token_is_ignored_whenever_it_comes() -> None:
    driven = Driven()
    order = assign("s")
    driven.tell(order)
    assert driven.tell(order) == []
    driven.core.began(order.task, 1)
    assert driven.tell(order) == []
    driven.finish(order.task)
    assert driven.tell(order) == []
    assert driven.tell(assign("s", attempt=2)) == [Start(assign("s", attempt=2), driven.now, 0)]


def test_inputs_are_fetched_ahead_within_bounds_and_counted_as_time() -> None:
    driven = Driven()
    orders = [remote(f"s{number}") for number in range(10)]
    found = driven.tell(*orders)
    assert found == [Fetch(order) for order in orders[: 1 + limits.AGENT_FETCHES_AHEAD]]
    driven.now = 7
    assert driven.core.fetched(orders[0].task, 7) == [Start(orders[0], 0, 7), Fetch(orders[5])]
    assert driven.core.fetched(orders[1].task, 7) == []
    assert driven.core.phase(orders[1].task) is Phase.READY
    assert starts(driven.finish(orders[0].task)) == ["s1"]


def test_room_to_fetch_ahead_comes_back_however_an_attempt_goes_on() -> None:
    driven = Driven()
    room = 1 + limits.AGENT_FETCHES_AHEAD
    for number in range(3 * room):
        done, stopped, waiting = (remote(f"{name}{number}") for name in ("done", "stopped", "waiting"))
        driven.tell(done, stopped, waiting)
        driven.core.fetched(done.task, driven.now)
        driven.finish(done.task)
        driven.tell(Cancel(task=stopped.task))
        driven.core.ended(stopped.task, WasCancelled(task=stopped.task), driven.now)
        driven.core.fetched(waiting.task, driven.now)
        driven.finish(waiting.task)
    orders = [remote(f"s{number}") for number in range(2 * room)]
    assert driven.tell(*orders) == [Fetch(order) for order in orders[:room]]


def test_token_that_comes_again_after_its_release_starts_once_more() -> None:
    driven = Driven(slots=2)
    driven.tell(assign("first", job="k"), assign("second", job="k"), assign("waiting"))
    driven.tell(Release(job=JobId("j")), assign("waiting"))
    assert starts(driven.finish(task("first", job="k"))) == ["waiting"]
    assert starts(driven.finish(task("second", job="k"))) == []
    assert driven.finish(task("waiting")) == [Tell(finished(task("waiting")))]


def test_own_and_inline_inputs_need_no_fetching() -> None:
    driven = Driven(slots=2)
    own = given("value", PortType.JSON, [1], holder="a", inline=False)
    inline = given("value", PortType.JSON, [1], holder="b")
    assert starts(driven.tell(assign("own", inputs=(own,)), assign("inline", inputs=(inline,)))) == ["own", "inline"]


def test_cancel_in_the_queue_is_acknowledged_at_once() -> None:
    driven = Driven()
    driven.tell(assign("running"), assign("waiting"))
    assert driven.tell(Cancel(task=task("waiting"))) == [Drop(task("waiting")), cancelled(task("waiting"))]
    assert driven.finish(task("running")) == [Tell(finished(task("running")))]


def test_cancel_before_its_turn_to_fetch_is_acknowledged_at_once() -> None:
    driven = Driven()
    orders = [remote(f"s{number}") for number in range(10)]
    driven.tell(*orders)
    assert driven.tell(Cancel(task=orders[9].task)) == [Drop(orders[9].task), cancelled(orders[9].task)]


@pytest.mark.parametrize("late", ["fetched", "ended"])
def test_cancel_while_fetching_is_acknowledged_when_nothing_is_fetched_any_more(late: str) -> None:
    driven = Driven()
    order = remote()
    driven.tell(order)
    assert driven.tell(Cancel(task=order.task)) == [Stop(order.task)]
    assert driven.tell(Cancel(task=order.task)) == []
    if late == "fetched":
        assert driven.core.fetched(order.task, 1) == [cancelled(order.task), Drop(order.task)]
    else:
        assert driven.core.ended(order.task, WasCancelled(task=order.task), 1) == [cancelled(order.task)]


@pytest.mark.parametrize("phase", [Phase.HANDED, Phase.RUNNING, Phase.PUBLISHING])
def test_cancel_wins_over_a_result_that_has_not_left(phase: Phase) -> None:
    driven = Driven()
    order = assign("s")
    driven.tell(order)
    if phase is not Phase.HANDED:
        driven.core.began(order.task, 1)
    if phase is Phase.PUBLISHING:
        driven.core.computed(order.task, 2)
    assert driven.core.phase(order.task) is phase
    assert driven.tell(Cancel(task=order.task)) == [Stop(order.task)]
    assert driven.core.is_cancelled(order.task)
    if phase is Phase.HANDED:
        assert driven.core.began(order.task, 2) == []
    assert driven.core.ended(order.task, finished(order.task), 3) == [cancelled(order.task)]


def test_cancel_of_what_has_ended_says_nothing_again() -> None:
    driven = Driven()
    driven.tell(assign("s"))
    driven.finish(task("s"))
    assert driven.tell(Cancel(task=task("s"))) == []


def test_cancel_that_overtakes_its_assignment_wins_until_the_job_is_released() -> None:
    driven = Driven()
    assert driven.tell(Cancel(task=task("s"))) == [cancelled(task("s"))]
    assert driven.tell(Cancel(task=task("s"))) == []
    assert driven.tell(assign("s")) == []
    assert list(driven.core.jobs) == ["j"]
    assert driven.tell(Release(job=JobId("j"))) == [Forget(JobId("j"))]
    assert list(driven.core.jobs) == []


def test_release_stops_what_still_runs_without_a_report() -> None:
    driven = Driven()
    driven.tell(assign("running"), assign("waiting"), assign("other", job="k"))
    found = driven.tell(Release(job=JobId("j")))
    assert set(found) == {Stop(task("running")), Drop(task("waiting")), Forget(JobId("j"))}
    assert found[-1] == Forget(JobId("j"))
    assert driven.core.held([]) == (task("other", job="k"),)
    assert driven.tell(assign("running")) == []
    assert starts(driven.finish(task("running"))) == ["other"]


def test_a_release_stops_in_the_order_in_which_attempts_came() -> None:
    """In the order of their hashes, which differ from process to process, a seed would not say all of a simulated run."""
    driven = Driven(slots=4)
    names = [f"s{index}" for index in range(12)]
    driven.tell(*map(assign, names))
    stops = [Stop(task(name)) for name in names[:4]]
    drops = [Drop(task(name)) for name in names[4:]]
    assert driven.tell(Release(job=JobId("j"))) == [*stops, *drops, Forget(JobId("j"))]


def test_a_slot_is_free_while_outputs_are_published() -> None:
    driven = Driven()
    driven.tell(assign("first"), assign("second"))
    driven.core.began(task("first"), 1)
    assert starts(driven.core.computed(task("first"), 2 + limits.AGENT_CHEAP_NANOS)) == ["second"]
    assert driven.core.ended(task("first"), finished(task("first")), 3) == [Tell(finished(task("first")))]


def test_commands_of_an_older_epoch_are_refused_and_counted() -> None:
    driven = Driven()
    assert starts(driven.tell(assign("s"), epoch=3)) == ["s"]
    assert driven.tell(Cancel(task=task("s")), Release(job=JobId("j")), epoch=2) == []
    assert (driven.core.stale_refused, driven.core.epoch_seen) == (2, 3)
    assert driven.core.phase(task("s")) is Phase.HANDED
    assert driven.core.admit(Epoch(4))
    assert not driven.core.admit(Epoch(3))


def test_held_are_active_attempts_and_those_whose_end_is_not_acknowledged() -> None:
    driven = Driven()
    driven.tell(assign("a"), assign("b"))
    driven.finish(task("a"))
    kept: list[Report] = [
        Started(task=task("c")),
        finished(task("a")),
        Failed(task=task("b"), error=ErrorInfo(message="")),
    ]
    assert driven.core.held(kept) == (task("b"), task("a"))


def test_an_agent_that_leaves_stops_everything() -> None:
    driven = Driven()
    driven.tell(assign("running"), assign("waiting"))
    assert driven.core.cancel_all() == [
        Stop(task("running")),
        Drop(task("waiting")),
        cancelled(task("waiting")),
    ]


class AnyOrder(RuleBasedStateMachine):
    """Commands in any order and number, and a shell that carries out instructions at any time."""

    def __init__(self) -> None:
        super().__init__()
        batch = Batch(max=2, wait_seconds=1e-6)
        self.core = AgentCore(AgentId("a"), 2, loading=frozenset({"slow"}), batching={"shared": batch})
        self.now = 0
        self.accepted: set[TaskToken] = set()
        self.cancelled: set[TaskToken] = set()
        self.started: set[TaskToken] = set()
        self.finals: dict[TaskToken, Report] = {}
        #: what the shell has under way
        self.fetching: list[TaskToken] = []
        self.handed: list[TaskToken] = []
        self.running: list[TaskToken] = []
        self.publishing: list[TaskToken] = []
        self.loading = False
        #: those that share a slot, as they were started
        self.together: list[set[TaskToken]] = []
        self.wakes: list[int] = []
        #: released while active: no report is due
        self.forgotten: set[TaskToken] = set()

    def carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Fetch(order):
                    assert order.task not in self.fetching
                    self.fetching.append(order.task)
                case Start(order):
                    assert order.kind != "shared"
                    self.start(order)
                case StartTogether(starts):
                    assert 1 <= len(starts) <= 2
                    for start in starts:
                        assert start.assign.kind == "shared"
                        self.start(start.assign)
                    # A released job's token may come again.
                    for known in self.together:
                        known -= {start.assign.task for start in starts}
                    self.together.append({start.assign.task for start in starts})
                case Wake(at):
                    assert at >= self.now
                    self.wakes.append(at)
                case Stop(stopped):
                    assert stopped in [*self.fetching, *self.handed, *self.running, *self.publishing]
                case Tell(report):
                    assert report.task not in self.forgotten
                    assert report.task not in self.finals, "told after its end"
                    if not isinstance(report, Started):
                        self.finals[report.task] = report
                        assert isinstance(report, WasCancelled) == (report.task in self.cancelled)
                case Preload(kind):
                    assert not self.loading, "two loads at once"
                    assert kind == "slow"
                    ready = [
                        one for one in self.core.active if self.core.phase(one) is Phase.READY and one.stage in "abcde"
                    ]
                    # What is next for a slot needs it: nobody who needs nothing is held up by it.
                    assert min(ready, key=lambda one: self.core._attempts[one].rank, default=task("a")).stage in "abc"
                    self.loading = True
                case StopPreload():
                    assert self.loading
                case Drop() | Forget():
                    pass

    def start(self, order: Assign) -> None:
        assert order.task not in self.started, "started twice"
        assert order.task not in self.cancelled, "started after its cancel"
        self.started.add(order.task)
        self.handed.append(order.task)

    def command(self, command: Command) -> None:
        self.now += 1
        self.carry_out(self.core.commands([command], EPOCH, self.now))

    @rule(
        stage=st.sampled_from("abcdefgh"),
        job=st.sampled_from("jk"),
        far=st.booleans(),
        priority=st.integers(0, 2),
        after=st.sampled_from((0.0, -1e-8, 2e-9)),
    )
    def assign(self, stage: str, job: str, far: bool, priority: int, after: float) -> None:
        kind = {"f": "shared", "g": "shared", "h": "shared"}.get(stage, "slow" if stage in "abc" else "quick")
        order = (remote if far else assign)(stage, kind, job=job, priority=priority, after_seconds=after)
        if order.task in self.forgotten:
            return
        self.accepted.add(order.task)
        self.command(order)

    @rule(data=st.data())
    def cancel_active(self, data: st.DataObject) -> None:
        if self.core.active:
            self.cancel(data.draw(st.sampled_from(self.core.active)))

    @rule(stage=st.sampled_from("abcdefgh"), job=st.sampled_from("jk"))
    def cancel_any(self, stage: str, job: str) -> None:
        self.cancel(task(stage, job=job))

    def cancel(self, wanted: TaskToken) -> None:
        if wanted in self.forgotten:
            return
        if wanted not in self.finals:
            self.cancelled.add(wanted)
        self.command(Cancel(task=wanted))

    @rule(job=st.sampled_from("jkxyz"))
    def release(self, job: str) -> None:
        self.forgotten |= {active for active in self.core.active if active.job == job}
        self.command(Release(job=JobId(job)))
        self.forgotten &= set(self.core.active)
        for known in (self.accepted, self.cancelled, self.started):
            known -= {ended for ended in known if ended.job == job and ended not in self.forgotten}
        for ended in [ended for ended in self.finals if ended.job == job]:
            del self.finals[ended]

    @rule(data=st.data(), lost=st.booleans())
    def fetch_ends(self, data: st.DataObject, lost: bool) -> None:
        if self.fetching:
            done = data.draw(st.sampled_from(self.fetching))
            self.fetching.remove(done)
            self.now += 1
            self.carry_out(
                self.core.ended(done, self.failure(done), self.now) if lost else self.core.fetched(done, self.now)
            )
            self.settle(done)

    @rule()
    def wake(self) -> None:
        if self.wakes:
            self.now = max(self.now, self.wakes.pop(0))
            self.carry_out(self.core.woken(self.now))

    @rule()
    def load_ends(self) -> None:
        if self.loading:
            self.loading = False
            self.carry_out(self.core.preloaded(self.now))

    @rule()
    def begin(self) -> None:
        if self.handed and len(self.running) < 2:
            begun = self.handed.pop(0)
            self.running.append(begun)
            self.carry_out(self.core.began(begun, self.now))

    @rule(data=st.data(), how=st.sampled_from(["finish", "fail", "publish"]))
    def end(self, data: st.DataObject, how: str) -> None:
        if self.running:
            done = data.draw(st.sampled_from(self.running))
            self.running.remove(done)
            self.now += limits.AGENT_CHEAP_NANOS if done.stage in "abc" else 1
            if how == "publish" and not self.core.is_cancelled(done):
                self.publishing.append(done)
                self.carry_out(self.core.computed(done, self.now))
            else:
                report = finished(done) if how == "finish" else self.failure(done)
                self.carry_out(self.core.ended(done, report, self.now))
                self.settle(done)

    @rule(data=st.data())
    def publish_ends(self, data: st.DataObject) -> None:
        if self.publishing:
            done = data.draw(st.sampled_from(self.publishing))
            self.publishing.remove(done)
            self.carry_out(self.core.ended(done, finished(done), self.now))
            self.settle(done)

    def failure(self, done: TaskToken) -> Failed:
        return Failed(task=done, error=ErrorInfo(message="no"))

    def settle(self, done: TaskToken) -> None:
        """A released attempt that has ended leaves no trace: its token may come again, though nobody sends it."""
        if done in self.forgotten and done not in self.core.active:
            self.forgotten.discard(done)
            for known in (self.accepted, self.cancelled, self.started):
                known.discard(done)

    @rule()
    def run_dry(self) -> None:
        while self.core.active:
            before = self.core.active
            for done in list(self.fetching):
                self.fetching.remove(done)
                self.carry_out(self.core.fetched(done, self.now))
                self.settle(done)
            while self.wakes:
                self.wake()
            while self.handed:
                self.carry_out(self.core.began(self.handed[0], self.now))
                self.running.append(self.handed.pop(0))
            for ending in (self.running, self.publishing):
                for done in list(ending):
                    ending.remove(done)
                    self.now += limits.AGENT_CHEAP_NANOS
                    self.carry_out(self.core.ended(done, finished(done), self.now))
                    self.settle(done)
            assert self.core.active != before, "nothing moves"
        assert self.accepted <= self.finals.keys(), "an accepted attempt has no end"

    @invariant()
    def slots_hold(self) -> None:
        busy = {*self.handed, *self.running}
        calls = sum(bool(together & busy) for together in self.together)
        assert sum(one.stage in "abc" for one in busy) + calls <= 2
        assert len(self.fetching) <= 2 + limits.AGENT_FETCHES_AHEAD

    @invariant()
    def every_accepted_attempt_is_active_or_told(self) -> None:
        for accepted in self.accepted - self.forgotten:
            assert (accepted in self.core.active) != (accepted in self.finals)


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestAnyOrder = AnyOrder.TestCase
