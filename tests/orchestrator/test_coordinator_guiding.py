"""Plans of jobs that run: when one is wanted, what is told of the job, and how far its advice goes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import SECOND, facts_of, node
from tests.orchestrator.test_coordinator_patch import constellation

from starloom.dag import limits
from starloom.dag.constellation import Constellation, Tier
from starloom.dag.facts import StagePlaced
from starloom.dag.ids import AgentId, JobId, StageId
from starloom.orchestrator import guiding
from starloom.orchestrator.advice import Place, Planned, PlannedRounds, PlanWanted
from starloom.orchestrator.dispatch import Dispatcher
from starloom.orchestrator.guide import Guide
from starloom.orchestrator.planner.live import advise

#: what is compiled at its first use takes a while on a busy machine
pytestmark = pytest.mark.timeout(600)

LONG = """
stages:
  a: {kind: t.task, params: {seconds: 0.4}}
  b: {kind: t.task, in: {x: a.value}, params: {seconds: 0.4}}
  c: {kind: t.task, in: {x: b.value}, params: {seconds: 0.4}}
  d: {kind: t.task, params: {seconds: 9}}
  e: {kind: t.task, in: {x: d.value}, params: {seconds: 1}}
"""
"""Its chain may go ahead within two seconds, and it is long enough to be kept back for a plan."""

WIDE = "stages:\n" + "".join(f"  s{n}: {{kind: t.task, params: {{seconds: 2}}}}\n" for n in range(6))
WIDE += "  last: {kind: t.task, in: {x: s0.value}}\n"
"""More that is ready at once than there are slots, and long enough to be kept back for a plan."""

CHAIN = """
stages:
  a: {kind: t.task, params: {seconds: 2}}
  b: {kind: t.task, in: {x: a.value}, params: {seconds: 2}}
  c: {kind: t.task, in: {x: b.value}, params: {seconds: 2}}
"""


@pytest.fixture
def world(world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Worlds whose coordinators ask for plans, though nothing ran there."""
    monkeypatch.setattr(limits, "PLAN_KNOWN_SHARE", 0.0)
    return partial(world, guided=True)


def chain() -> Constellation:
    return constellation(CHAIN)


def planned(w: Any, finish: float = 100.0, **places: str) -> Planned:
    """An answer to the last plan that was wanted: stages with their nodes."""
    wanted: PlanWanted = w.plans[-1]
    found = {StageId(name): Place(AgentId(where), "cpu", 0.0, finish) for name, where in places.items()}
    return Planned(job=wanted.job, number=wanted.number, places=found, ends=finish, method="test")


def where(w: Any) -> dict[str, str]:
    """Where each stage was placed last."""
    return {fact.stage: fact.agent for fact in facts_of(w, StagePlaced)}


class TestOff:
    def test_nothing_is_asked_for_and_nothing_taken(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"), delegate=True, guided=False)
        plain = world(node("a"), node("b"), node("c"), delegate=True, guided=False)
        for each in (w, plain):
            each.submit(constellation(LONG))
        assert not w.plans
        w.handle(Planned(job=JobId("job-1"), number=1, places={StageId("b"): Place(AgentId("c"), "cpu", 0.0, 9.0)}))
        for each in (w, plain):
            each.goodbye("c")
            each.finish_all()
        assert w.facts == plain.facts
        assert not w.plans


class TestWanted:
    def test_a_job_whose_stages_wait_for_each_other_and_take_long_gets_a_plan(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(chain())
        (wanted,) = w.plans
        assert (wanted.job, wanted.revision) == (job, 1)
        assert [each.profile.name for each in wanted.nodes] == ["a", "b"]
        # The first stage was placed before: nothing waits for a plan.
        assert w.status(job) == "running"
        assert wanted.standing.keys() == {"a"}
        assert not wanted.standing["a"].ended

    @pytest.mark.parametrize(
        "text",
        [
            "stages: {a: {kind: t.task, params: {seconds: 9}}, b: {kind: t.task, in: {x: a.value}, params: {seconds: 9}}}",
            "stages: {a: {kind: t.task, params: {seconds: 9}}, b: {kind: t.task}, c: {kind: t.task}}",
            CHAIN.replace("seconds: 2", "seconds: 0.1"),
            CHAIN.replace("t.task", "t.work").replace("params: {seconds: 2}", "params: {seed: 2}"),
            "stages: {a: {kind: t.ticks}, b: {kind: t.twice, in: {ticks: a.ticks}}, c: {kind: t.task, in: {x: a.count}, params: {seconds: 9}}}",
        ],
        ids=["few stages", "nothing waits", "little work", "hinted to be brief", "streams"],
    )
    def test_one_that_a_plan_does_not_help_gets_none(self, world: Any, text: str) -> None:
        w = world(node("a"), node("b"))
        w.submit(constellation(text))
        assert not w.plans

    def test_nor_does_one_that_runs_one_stage_at_a_time_or_has_one_node(self, world: Any) -> None:
        w = world(node("a"))
        w.submit(chain())
        assert not w.plans
        w.join(node("b"))
        (wanted,) = w.plans
        assert len(wanted.nodes) == 2
        w.submit(chain(), max_parallel=1)
        assert len(w.plans) == 1

    def test_what_was_measured_counts_more_than_hints(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        text = CHAIN.replace("t.task", "t.work").replace("params: {seconds: 2}", "params: {seed: 2}")
        w.submit(constellation(text))
        assert not w.plans
        w.finish("a", run=30.0)
        w.submit(constellation(text))
        (wanted,) = w.plans
        assert {(run.kind, run.seconds) for run in wanted.seconds} == {("t.work", 30.0)}

    def test_what_runs_were_off_by_is_told_with_them(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        text = CHAIN.replace("t.task", "t.work").replace("params: {seconds: 2}", "params: {seed: 2}")
        w.submit(
            constellation("stages: {x: {kind: t.work, require: {node: a}}, y: {kind: t.work, require: {node: a}}}")
        )
        w.finish("x", run=20.0)
        w.finish("y", run=30.0)
        w.submit(constellation(text))
        told = {str(run.node): run.deviation for run in w.plans[-1].seconds}
        assert told == {"a": pytest.approx(0.5), "b": limits.PLAN_DEVIATION}

    def test_a_loss_is_a_reason_for_another_but_not_too_soon(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        w.submit(chain())
        w.handle(planned(w, b="b", c="b"))
        w.goodbye("b")
        w.agents["b"].tasks.clear()
        assert len(w.plans) == 1
        w.advance(limits.PLAN_EVERY_SECONDS)
        _, again = w.plans
        assert again.number > w.plans[0].number
        assert [each.profile.name for each in again.nodes] == ["a", "c"]
        assert {name: place.node for name, place in again.old.items()} == {"b": "b", "c": "b"}

    def test_one_is_asked_for_at_a_time(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        w.submit(chain())
        for name in ("c", "d"):
            w.join(node(name))
            w.advance(2 * limits.PLAN_EVERY_SECONDS)
        assert len(w.plans) == 1
        w.handle(planned(w))
        assert len(w.plans) == 2
        # One that never comes is given up some day.
        w.join(node("e"))
        w.advance(limits.PLAN_ANSWER_SECONDS)
        assert len(w.plans) == 3

    def test_a_patch_and_growth_are_reasons(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        text = CHAIN + "  d: {kind: t.grow, params: {adds: 2}}\n"
        job = w.submit(constellation(text))
        w.handle(planned(w))
        w.advance(limits.PLAN_EVERY_SECONDS)
        w.patched(w.patch(job, "- replace: {stage: c, params: {seconds: 7}}"))
        w.handle(planned(w))
        w.advance(limits.PLAN_EVERY_SECONDS)
        w.finish("d")
        assert [plan.revision for plan in w.plans] == [1, 2, 3]
        assert len(w.plans[-1].constellation.stages) == 7

    def test_a_small_job_that_grows_gets_one(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(
            constellation("stages: {a: {kind: t.task, params: {seconds: 9}}, b: {kind: t.task, in: {x: a.value}}}")
        )
        assert not w.plans
        w.patched(w.patch(job, "- add: {c: {kind: t.task, in: {x: b.value}}}"))
        assert [plan.revision for plan in w.plans] == [2]

    @pytest.mark.parametrize(("seconds", "asked"), [(2.0, 1), (9.0, 2)], ids=["in time", "late"])
    def test_an_end_that_was_planned_otherwise_is_a_reason(self, world: Any, seconds: float, asked: int) -> None:
        w = world(node("a"), node("b"))
        w.submit(constellation(CHAIN + "  d: {kind: t.task, in: {x: c.value}}\n"))
        answer = planned(w, b="b", c="b")
        answer.places[StageId("b")] = Place(AgentId("b"), "cpu", 0.0, 2.0)
        w.handle(msgspec.structs.replace(answer, ends=4.0))
        w.finish("a")
        w.advance(seconds)
        w.finish("b")
        assert len(w.plans) == asked

    def test_after_a_restart_it_is_asked_for_once_nodes_are_there(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        w.submit(chain())
        w.handle(planned(w, b="b", c="b"))
        w.restart()
        assert len(w.plans) == 1
        w.advance(limits.PLAN_EVERY_SECONDS)
        assert len(w.plans) == 2
        assert [each.takes for each in w.plans[-1].nodes] == [True, True]
        assert not w.plans[-1].old


class TestSnapshot:
    def test_it_tells_what_has_ended_runs_and_waits(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        text = """
stages:
  a: {kind: t.blob, params: {size: 5000000}}
  b: {kind: t.need, in: {data: a.data}}
  c: {kind: t.task, in: {x: b.value}, params: {seconds: 4}}
  d: {kind: t.task, in: {x: c.value}, params: {seconds: 4}}
"""
        w.submit(constellation(text))
        w.handle(planned(w))
        w.finish("a", run=0.2)
        holder = where(w)["a"]
        w.finish("b")
        w.start("c")
        w.advance(1.0)
        w.join(node("e"))
        standing = w.plans[-1].standing
        assert standing.keys() == {"a", "b", "c"}
        assert (standing["a"].node, standing["a"].free, standing["a"].sizes) == (holder, False, {"data": 5_000_000})
        assert standing["b"].free
        assert (standing["c"].started, standing["c"].left) == (True, pytest.approx(3.0))

    @pytest.mark.parametrize("read", [False, True], ids=["not read", "read later"])
    def test_what_is_lost_is_to_be_made_again_if_something_reads_it(self, world: Any, read: bool) -> None:
        w = world(node("a"), node("b"), node("c"))
        data = "in: {data: a.data}, " if read else "in: {data: b.data}, "
        text = f"""
stages:
  a: {{kind: t.blob}}
  b: {{kind: t.blob, require: {{node: c}}}}
  c: {{kind: t.task, after: [a, b], params: {{seconds: 4}}, require: {{node: c}}}}
  d: {{kind: t.need, {data}after: [c]}}
"""
        w.submit(constellation(text))
        w.handle(planned(w))
        w.finish("a", "b")
        maker = where(w)["a"]
        w.goodbye(maker)
        w.advance(limits.PLAN_EVERY_SECONDS)
        standing = w.plans[-1].standing
        assert len(w.plans) == 2
        assert standing["b"].node == "c"
        assert ("a" in standing) == (not read)


class TestAdvice:
    def test_a_stage_goes_where_its_plan_has_it(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        job = w.submit(chain())
        w.handle(planned(w, b="c", c="b"))
        w.advance(1.5)
        assert w.coordinator.planned(job, StageId("b")) == "c (cpu), by a plan of 1.50 s ago"
        assert w.coordinator.planned(job) == "all ends in 98.50 s, by a plan of 1.50 s ago"
        w.finish("a")
        w.advance(3.0)
        assert w.coordinator.planned(job, StageId("b")) == "c (cpu), where it went by a plan of 1.50 s before"
        w.finish_all()
        assert where(w) == {"a": "a", "b": "c", "c": "b"}
        assert w.status(job) == "succeeded"
        assert "2 of 2 stages with a plan went where it said" in w.coordinator.planned(job)
        assert w.coordinator.planned(job, StageId("b")) == "c (cpu), where it went by a plan of 1.50 s before"

    def test_what_goes_ahead_waits_for_a_plan_and_follows_it_as_soon_as_it_is_there(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"), delegate=True)
        w.submit(constellation(LONG))
        assert where(w).keys() == {"a", "d"}
        w.handle(planned(w, b="c", c="c"))
        assert where(w) == {"a": "b", "b": "c", "c": "c", "d": "a"}
        assert w.stage(w.plans[0].job, "b").awaits

    def test_without_a_plan_it_goes_ahead_after_a_moment(self, world: Any) -> None:
        w = world(node("a"), node("b"), delegate=True)
        w.submit(constellation(LONG))
        assert w.coordinator.next_wake() == w.now + limits.PLAN_FIRST_WAITS_SECONDS * SECOND
        w.advance(limits.PLAN_FIRST_WAITS_SECONDS)
        assert where(w).keys() == {"a", "b", "c", "d"}

    def test_where_there_is_no_planner_it_goes_ahead_at_once_and_one_is_asked_for_later(self, world: Any) -> None:
        w = world(node("a"), node("b"), delegate=True)
        job = w.submit(constellation(LONG))
        w.handle(Planned(job=job, number=w.plans[-1].number, refusal="it is being started", again=True))
        assert where(w).keys() == {"a", "b", "c", "d"}
        assert w.coordinator.planned(job) == "there is none: it is being started"
        w.advance(limits.PLAN_AGAIN_SECONDS)
        assert len(w.plans) == 2
        w.handle(Planned(job=job, number=w.plans[-1].number, refusal="it has no plan"))
        w.advance(10 * limits.PLAN_AGAIN_SECONDS)
        assert len(w.plans) == 2

    def test_what_is_ready_waits_for_a_plan_only_where_it_would_stand_in_line(self, world: Any) -> None:
        w = world(node("a", slots=1), node("b", slots=1))
        job = w.submit(constellation(WIDE))
        assert where(w).keys() == {"s0", "s1"}
        assert "first plan" in w.coordinator.waits_for(job, StageId("s2"))
        assert w.coordinator.next_wake() == w.now + limits.PLAN_FIRST_WAITS_SECONDS * SECOND
        # What has a slot has begun for all that a plan can do: nothing may go before it.
        assert {name for name, how in w.plans[-1].standing.items() if how.started} == {"s0", "s1"}
        w.handle(planned(w, s2="b", s3="b", s4="b", s5="b"))
        assert [where(w)[f"s{n}"] for n in range(2, 6)] == ["b"] * 4
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_without_a_plan_what_is_ready_is_given_out_after_a_moment(self, world: Any) -> None:
        w = world(node("a", slots=1), node("b", slots=1))
        job = w.submit(constellation(WIDE))
        w.advance(limits.PLAN_FIRST_WAITS_SECONDS)
        assert where(w).keys() == {f"s{n}" for n in range(6)}
        other = w.submit(constellation(WIDE))
        w.handle(Planned(job=other, number=w.plans[-1].number, refusal="there is none"))
        assert len(w.stage(other, "s5").live) == 1
        third = w.submit(constellation(WIDE))
        w.cancel(third)
        w.handle(planned(w, s5="b"))
        w.finish_all()
        assert [w.status(each) for each in (job, other, third)] == ["succeeded", "succeeded", "cancelled"]

    def test_a_job_of_which_nothing_is_known_waits_for_no_plan(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "PLAN_KNOWN_SHARE", 0.5)
        w = world(node("a", slots=1), node("b", slots=1))
        w.submit(constellation(WIDE))
        assert where(w).keys() == {f"s{n}" for n in range(6)}

    def test_agents_are_told_the_order_of_the_plan_within_bounds(self, world: Any) -> None:
        w = world(node("a", slots=1), node("b", slots=1))
        w.submit(constellation(WIDE))
        answer = planned(w, s2="b", s3="b", s4="b")
        for name, start in (("s2", 7.0), ("s3", 2.0), ("s4", 1e6)):
            answer.places[StageId(name)] = Place(AgentId("b"), "cpu", start, start + 1)
        w.now += SECOND // 10
        w.handle(answer)
        after = {task.stage: assign.after_seconds for task, assign in w.sent.items()}
        told = [after[f"s{n}"] for n in range(6)]
        assert told == pytest.approx([0.0, 0.0, 6.9, 1.9, limits.PLAN_ORDER_SECONDS_MAX, 0.0])

    def test_a_short_job_waits_for_no_plan(self, world: Any) -> None:
        """What it may save is less than the wait."""
        w = world(node("a"), node("b"), delegate=True)
        w.submit(constellation(CHAIN.replace("seconds: 2", "seconds: 0.4")))
        assert where(w).keys() == {"a", "b", "c"}

    def test_nor_does_one_that_cannot_get_one(self, world: Any) -> None:
        w = world(node("a", slots=8), delegate=True)
        w.submit(constellation(LONG))
        assert not w.plans
        assert where(w).keys() == {"a", "b", "c", "d"}

    @pytest.mark.parametrize(
        ("require", "advised"),
        [("{tier: edge}", "cloud"), ("{node: a}", "b"), ("{}", "gone"), ("{tier: edge}", "lost")],
        ids=["another tier", "another node", "no node", "a lost node"],
    )
    def test_it_widens_nothing(self, world: Any, require: str, advised: str) -> None:
        w = world(node("a"), node("b"), node("cloud", Tier.CLOUD), node("lost"))
        w.goodbye("lost")
        job = w.submit(constellation(CHAIN.replace("in: {x: a.value}", f"in: {{x: a.value}}, require: {require}")))
        w.handle(planned(w, b=advised))
        w.finish("a")
        assert where(w)["b"] in ("a", "b", *([] if "edge" in require else ["cloud"]))
        assert where(w)["b"] != advised
        assert "had no room, or may not have it" in w.coordinator.planned(job, StageId("b"))
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_what_is_private_stays(self, world: Any) -> None:
        w = world(node("pi", Tier.DEVICE), node("edge"), node("cloud", Tier.CLOUD))
        text = CHAIN.replace("a: {kind: t.task,", "a: {kind: t.task, private: device,")
        job = w.submit(constellation(text))
        w.handle(planned(w, b="cloud", c="edge"))
        w.finish_all()
        assert where(w) == {"a": "pi", "b": "pi", "c": "pi"}
        assert w.status(job) == "succeeded"

    def test_a_node_that_was_lost_with_a_stage_is_not_followed_to(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(chain())
        w.handle(planned(w, b="b", c="b"))
        w.finish("a")
        w.goodbye("b")
        w.agents["b"].tasks.clear()
        w.join(node("b"))
        w.advance(0.1)
        assert where(w)["b"] == "a"
        assert w.status(job) == "running"

    def test_where_another_place_is_much_sooner_than_planned_it_goes_there(self, world: Any) -> None:
        w = world(node("a", slots=1), node("b", slots=1))
        w.submit(chain())
        w.submit(constellation("stages: {x: {kind: t.task, params: {seconds: 50}, require: {node: b}}}"))
        w.plans[:] = w.plans[:1]
        w.handle(planned(w, finish=4.0, b="b", c="a"))
        w.finish("a")
        assert where(w)["b"] == "a"
        said = w.coordinator.planned(w.plans[0].job, StageId("b"))
        assert said.startswith("b (cpu) by a plan of 0.00 s before, but that would have ended it 50.00 s later")

    def test_where_the_plan_had_foreseen_the_wait_it_goes_where_it_says(self, world: Any) -> None:
        w = world(node("a", slots=1), node("b", slots=1))
        w.submit(chain())
        w.submit(constellation("stages: {x: {kind: t.task, params: {seconds: 50}, require: {node: b}}}"))
        w.plans[:] = w.plans[:1]
        w.handle(planned(w, finish=60.0, b="b", c="a"))
        w.finish("a")
        assert where(w)["b"] == "b"

    def test_answers_that_nothing_waits_for_are_none(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        w.submit(chain())
        answer = planned(w, b="c")
        w.handle(msgspec.structs.replace(answer, number=answer.number + 1))
        w.handle(msgspec.structs.replace(answer, job="job-unknown"))
        assert w.coordinator.planned(answer.job, StageId("b")) == ""
        w.handle(answer)
        w.handle(planned(w, b="b"))
        assert w.coordinator.planned(answer.job, StageId("b")).startswith("c (cpu), by")
        w.finish_all()
        w.handle(answer)
        assert where(w)["b"] == "c"

    def test_without_a_plan_stages_are_placed_as_ever_and_the_reason_is_told(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(chain())
        assert w.coordinator.planned(job) == "it is being made"
        w.handle(Planned(job=job, number=w.plans[-1].number, refusal="there is no planner"))
        assert w.coordinator.planned(job) == "there is none: there is no planner"
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert w.coordinator.planned(job) == ""

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e300, 1e12])
    def test_a_plan_that_cannot_be_is_none(self, world: Any, number: float) -> None:
        w = world(node("a"), node("b"), node("c"))
        job = w.submit(chain())
        answer = planned(w, b="c")
        answer.places[StageId("c")] = Place(AgentId("c"), "cpu", 0.0, number)
        w.handle(answer)
        assert w.coordinator.planned(job) == "there is none: it has stages start or end at no time that can be"
        w.join(node("d"))
        w.advance(limits.PLAN_EVERY_SECONDS)
        w.handle(msgspec.structs.replace(planned(w, c="d"), ends=number))
        assert not w.coordinator.planned(job, StageId("c"))
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_plan_of_an_old_revision_advises_what_has_not_changed(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        job = w.submit(chain())
        w.patched(w.patch(job, "- replace: {stage: c, params: {seconds: 7}}\n- add: {d: {kind: t.task}}"))
        w.handle(planned(w, b="c", c="c", d="c"))
        told = {name: w.coordinator.planned(job, StageId(name)) for name in "abcd"}
        assert [name for name, said in told.items() if said] == ["b"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_node_that_is_not_heard_of_is_not_followed_to(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(chain())
        w.handle(planned(w, b="b", c="b"))
        w.agents["b"].connected = False
        w.advance(limits.LEASE_SECONDS)
        w.finish("a")
        assert where(w)["b"] == "a"
        assert w.status(job) == "running"

    def test_a_defect_costs_a_job_its_plan_alone(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("a"), node("b"), delegate=True)

        def breaks(*_: Any) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(guiding, "plan_wanted", breaks)
            first = w.submit(constellation(LONG))
        assert not w.plans
        assert where(w).keys() == {"a", "b", "c", "d"}
        assert "a defect of Starloom's" in w.coordinator.planned(first)
        second = w.submit(chain())
        with monkeypatch.context() as patched:
            patched.setattr(Guide, "take", breaks)
            w.handle(planned(w, b="b"))
        third = w.submit(chain())
        with monkeypatch.context() as patched:
            patched.setattr(Guide, "drifts", breaks)
            w.handle(planned(w, b="b"))
            w.finish_all()
        assert [w.status(job) for job in (first, second, third)] == ["succeeded"] * 3

    def test_so_many_are_asked_for_that_the_answers_are_fresh(self, world: Any) -> None:
        w = world(node("a", slots=16), node("b", slots=16))
        for _ in range(limits.PLANS_ASKED_MAX + 3):
            w.submit(chain())
        assert len(w.plans) == limits.PLANS_ASKED_MAX
        for answered in range(4):
            assert len(w.plans) == limits.PLANS_ASKED_MAX + min(answered, 3)
            w.handle(Planned(job=w.plans[answered].job, number=w.plans[answered].number, refusal="none"))

    def test_one_that_does_not_come_is_given_up(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(chain())
        w.advance(limits.PLAN_ANSWER_SECONDS)
        assert w.coordinator.planned(job).startswith("there is none: it did not come within PLAN_ANSWER_SECONDS")

    def test_what_was_foreseen_is_told_beside_what_came(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(chain())
        w.handle(planned(w, finish=6.0, b="b", c="b"))
        w.now += 7 * SECOND
        w.finish_all()
        told = w.coordinator.planned(job)
        assert told.startswith("the first plan had all end 6.00 s after its acceptance, and it took 7.00 s")


def test_of_kinds_that_hardly_ran_there_is_no_plan(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs take elsewhere says little of nodes that differ, and a plan follows it to the end."""
    monkeypatch.setattr(limits, "PLAN_KNOWN_SHARE", 0.5)
    w = world(node("a", slots=1), node("b", slots=1), node("c", slots=1))
    text = CHAIN.replace("{x: a.value}", "{x: a.value}, require: {node: b}").replace("a: {", "a: {require: {node: a}, ")
    job = w.submit(constellation(text))
    w.handle(advise(w.plans[-1], iterations=20))
    assert "how long its stages run is known of 0% of their places" in w.coordinator.planned(job)
    for name in "abc":
        w.finish(name, run=2.0)
    assert w.status(job) == "succeeded"
    again = w.submit(chain())
    w.handle(advise(w.plans[-1], iterations=20))
    assert "all ends in" in w.coordinator.planned(again)


def varied(stages: int = 6, deadline: str = "deadline: 20s\n", large: float = 2.0) -> str:
    """A chain whose stages have a large and a small variant."""
    ways = f"[{{name: large, quality: 0.9, params: {{seconds: {large}}}}}, {{name: small, quality: 0.5, params: {{seconds: 0.5}}}}]"
    lines = [f"  s{n}: {{kind: t.task, {f'after: [s{n - 1}], ' if n else ''}variants: {ways}}}" for n in range(stages)]
    return "\n".join([f"{deadline}stages:", *lines])


def side_by_side(stages: int, large: float) -> str:
    """The same with nothing that waits for another, and a deadline that is far."""
    text = varied(stages, "deadline: 600s\n", large)
    for n in range(stages):
        text = text.replace(f"after: [s{n}], ", "")
    return text


def given(w: Any) -> dict[str, list[str]]:
    """The variants of each stage's attempts."""
    found: dict[str, list[str]] = {}
    for fact in facts_of(w, StagePlaced):
        found.setdefault(fact.stage, []).append(fact.variant)
    return found


def lessened(w: Any, *stages: str) -> Planned:
    """An answer to the last plan that was wanted, which has these stages in their small variants."""
    waits = [name for name in w.plans[-1].constellation.stages if name not in w.plans[-1].standing]
    answer = planned(w, finish=9.0, **dict.fromkeys(waits, "b"))
    for name in stages:
        place = answer.places[StageId(name)]
        answer.places[StageId(name)] = msgspec.structs.replace(place, variant="small")
    return answer


class TestVariants:
    def test_stages_that_wait_take_lesser_ones_for_the_deadline_and_keep_them(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(varied()))
        assert w.plans[-1].left == pytest.approx(20.0)
        w.handle(lessened(w, "s1", "s2"))
        assert "s1" not in given(w)
        assert "with 2 stages to come in lesser variants for its deadline" in w.coordinator.planned(job)
        assert w.coordinator.planned(job, StageId("s1")).startswith("b (cpu) as small, by a plan of")
        w.finish("s0")
        assert w.sent[next(task for task in w.sent if task.stage == "s1")].params["seconds"] == 0.5
        w.fail("s1", transient=True)
        w.advance(limits.PLAN_EVERY_SECONDS)
        # Another plan would have it in its large one: it had a place.
        w.handle(lessened(w))
        w.restart()
        w.advance(5)
        w.handle(lessened(w))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert given(w)["s1"] == ["small", "small"]
        assert given(w)["s0"] == ["large"]
        assert given(w)["s3"] == ["large"]
        assert w.job(job).degraded == ()
        w.check_replay()

    def test_better_ones_come_back_with_another_plan(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(varied()))
        w.handle(lessened(w, "s1", "s2"))
        w.advance(3)
        assert len(w.plans) == 2
        assert {name: place.variant for name, place in w.plans[-1].old.items()} == {
            f"s{n}": "small" if n < 3 else "" for n in range(1, 6)
        }
        w.handle(lessened(w, "s1"))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert given(w) == {f"s{n}": ["small" if n == 1 else "large"] for n in range(6)}

    def test_what_a_plan_said_of_a_stage_before_it_was_patched_is_no_advice_on_it(self, world: Any) -> None:
        """Its variants are others, though one of them has the old one's name."""
        w = world(node("a"), node("b"))
        job = w.submit(constellation(varied()))
        w.handle(lessened(w, "s1", "s2"))
        ways = (
            "[{name: large, quality: 0.9, params: {seconds: 0.1}}, {name: small, quality: 0.2, params: {seconds: 9}}]"
        )
        w.patched(w.patch(job, f"- set_variants: {{stage: s1, variants: {ways}}}"))
        assert "with 1 stage to come in lesser variants" in w.coordinator.planned(job)
        w.finish("s0")
        assert given(w)["s1"] == ["large"]
        w.finish_all()
        assert given(w)["s2"] == ["small"]

    def test_what_is_ready_and_has_no_place_yet_is_so_in_its_new_variant(self, world: Any) -> None:
        """The one that it was ready in may go to one node only, which is full; the other may go anywhere."""
        w = world(node("a", slots=1), node("b", slots=1))
        ways = "[{name: large, quality: 0.9, require: {node: b}, params: {seconds: 9}}, {name: small, quality: 0.5, params: {seconds: 1}}]"
        text = f"deadline: 60s\nstages:\n  s0: {{kind: t.task, params: {{seconds: 1}}, require: {{node: a}}}}\n  s1: {{kind: t.task, after: [s0], variants: {ways}}}\n"
        filler = "".join(f"  f{n}: {{kind: t.task, params: {{seconds: 1}}}}\n" for n in range(65))
        w.submit(constellation("stages:\n" + filler.replace("seconds: 1}", "seconds: 1}, require: {node: b}")))
        job = w.submit(constellation(text))
        w.finish("s0")
        assert "s1" not in given(w)
        w.advance(7)
        w.handle(lessened(w, "s1"))
        assert given(w)["s1"] == ["small"]
        assert where(w)["s1"] == "a"
        w.finish_all()
        assert w.status(job) == "succeeded"

    @pytest.mark.parametrize(
        ("text", "taken"),
        [
            (varied(deadline=""), "large"),
            (varied().replace("kind: t.task,", "kind: t.task, variant: large,"), "large"),
            (f"least_quality: 0.6\n{varied()}", "large"),
            (varied().replace("{name: small, quality", "{name: small, require: {node: gone}, quality"), "large"),
        ],
        ids=["without a deadline", "named", "under the floor", "nowhere"],
    )
    def test_advice_that_may_not_be_is_none(self, world: Any, text: str, taken: str) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(text))
        if w.plans:
            w.handle(lessened(w, "s1"))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert given(w)["s1"] == [taken]

    def test_a_first_stage_waits_a_moment_for_the_plan_that_may_choose_its_variant(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(varied()))
        assert given(w) == {}
        assert "first plan" in w.coordinator.waits_for(job, StageId("s0"))
        w.handle(lessened(w, "s0"))
        assert given(w) == {"s0": ["small"]}
        other = w.submit(constellation(varied()))
        w.advance(limits.PLAN_FIRST_WAITS_SECONDS)
        assert w.stage(other, "s0").variant == "large"
        # What takes no longer than twenty such moments waits for none.
        short = w.submit(constellation(varied(large=0.6)))
        assert w.stage(short, "s0").variant == "large"

    def test_one_whose_variant_is_not_open_waits_for_no_plan(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        named = varied().replace("s0: {kind: t.task,", "s0: {kind: t.task, variant: small,")
        job = w.submit(constellation(named))
        assert w.stage(job, "s0").variant == "small"

    def test_it_does_not_stand_in_line_for_long_behind_its_own_job(self, world: Any) -> None:
        w = world(node("a", slots=1), node("b", slots=1))
        text = "\n".join(line for line in varied(12, "deadline: 60s\n", 1.5).replace("after", "label").split("\n"))
        for n in range(12):
            text = text.replace(f"label: [s{n}], ", "")
        job = w.submit(constellation(text))
        w.handle(planned(w))
        assert len(given(w)) == 4
        assert "its variant may still be chosen" in w.coordinator.waits_for(job, StageId("s7"))
        w.advance(6.5)
        assert len(given(w)) == 4
        w.handle(lessened(w, *(f"s{n}" for n in range(4, 12))))
        while w.status(job) == "running":
            w.finish_all()
            w.advance(1)
        assert w.status(job) == "succeeded"
        assert given(w) == {f"s{n}": ["large" if n < 4 else "small"] for n in range(12)}

    def test_every_slot_is_used_while_variants_are_open(self, world: Any) -> None:
        """A long run on one slot is no line, and the next is there before a slot is free."""
        w = world(node("a", slots=4), node("b", slots=4))
        job = w.submit(constellation(side_by_side(24, large=10.0)))
        w.handle(planned(w))
        assert len(given(w)) == 8
        assert "its variant may still be chosen" in w.coordinator.waits_for(job, StageId("s9"))
        w.advance(7.4)
        assert len(given(w)) == 8
        w.advance(1.6)
        # Not all at once: each of them has its variant from then on.
        assert 8 < len(given(w)) <= 16
        w.finish_all()
        w.advance(1)
        assert len(given(w)) >= 16

    def test_what_waits_with_an_open_variant_is_not_looked_at_all_the_time(self, world: Any, monkeypatch: Any) -> None:
        """There is a little more in line than may be, as long as nothing ends: that was a reason to look again after so little."""
        w = world(node("a", slots=1), node("b", slots=1))
        w.submit(constellation(side_by_side(60, large=0.5003)))
        w.handle(planned(w))
        assert len(given(w)) < 60
        looks, plain = 0, Dispatcher._awaits_plan

        def awaits_plan(*args: Any) -> bool:
            nonlocal looks
            looks += 1
            return plain(*args)

        monkeypatch.setattr(Dispatcher, "_awaits_plan", awaits_plan)
        until = w.now + SECOND
        while (due := w.coordinator.next_wake()) is not None and due < until and looks < 1000:
            w.now = max(w.now, due)
            w.handle()
        assert looks <= 3 * 60

    @pytest.mark.parametrize("said", ["variant: large, ", "least_quality: 0.8, "])
    def test_one_that_has_no_choice_stands_in_line_as_others_do(self, world: Any, said: str) -> None:
        w = world(node("a", slots=1), node("b", slots=1))
        text = side_by_side(13, large=1.5).replace("kind: t.task, ", f"kind: t.task, {said}")
        w.submit(constellation(text.replace(said, "", 1)))
        w.handle(planned(w))
        assert len(given(w)) >= 12

    def test_a_job_in_which_nothing_is_open_any_more_is_not_looked_at_again(self, world: Any) -> None:
        """What was skipped never has a variant."""
        w = world(node("a"), node("b"))
        text = (
            varied(2, "deadline: 600s\n", 6.0)
            + "\n  long: {kind: t.task, params: {seconds: 500}}\n  last: {kind: t.task, after: [long]}\n"
        )
        job = w.submit(
            constellation(text.replace("[s0]", "[{stage: s0, when: {output: value, path: x, is: '==', value: 1}}]"))
        )
        w.handle(lessened(w))
        w.finish("s0")
        assert w.stage(job, "s1").status == "skipped"
        w.advance(1)
        w.handle(lessened(w))
        count = len(w.plans)
        w.advance(100)
        assert len(w.plans) == count

    def test_a_job_with_a_deadline_is_looked_at_again_as_long_as_variants_are_open(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        w.submit(constellation(varied(2, "deadline: 30s\n", 6.0)))
        w.handle(lessened(w))
        for count in (2, 3):
            w.advance(29 * limits.PLAN_LOOK_SHARE + 0.2)
            assert len(w.plans) == count
            w.handle(lessened(w))
        w.finish("s0")
        assert given(w).keys() == {"s0", "s1"}
        w.advance(6)
        assert len(w.plans) <= 4


ROUND = """
every: 500ms
stages:
  a: {kind: t.task, params: {seconds: 0.4}}
  b: {kind: t.task, after: [a], params: {seconds: 0.4}}
  c: {kind: t.task, after: [b], params: {seconds: 0.4}}
"""


def told(w: Any, **places: str) -> Planned:
    """An answer to the last plan that was wanted, for a period."""
    rounds = PlannedRounds(holds=True, least=0.44, p95=1.3, busy={AgentId("b"): 0.4})
    return msgspec.structs.replace(planned(w, finish=1.3, **places), rounds=rounds)


def places_of(w: Any, job: str) -> dict[str, str]:
    return {fact.stage: fact.agent for fact in facts_of(w, StagePlaced) if fact.job == job}


class TestRounds:
    def test_every_round_is_placed_by_the_plan_of_the_period_from_its_acceptance_on(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        first = w.submit(constellation(ROUND))
        (wanted,) = w.plans
        assert (wanted.job, wanted.rounds, wanted.standing) == (first, True, {})
        # It is brief, and has begun where it would without a plan.
        assert places_of(w, first) == {"a": "a"}
        w.handle(told(w, a="b", b="c", c="a"))
        second = w.submit(constellation(ROUND))
        assert len(w.plans) == 1
        assert places_of(w, second) == {"a": "b"}
        assert w.coordinator.planned(second) == (
            "a round every 0.5 s can be held, and 95 % end within 1.30 s, by a plan of 0.00 s ago"
        )
        w.finish_all()
        assert places_of(w, first) == {"a": "a", "b": "c", "c": "a"}
        assert places_of(w, second) == {"a": "b", "b": "c", "c": "a"}
        assert w.status(second) == "succeeded"
        assert "3 of 3 stages with a plan went where it said" in w.coordinator.planned(second)

    def test_a_plan_that_comes_after_its_round_is_for_those_that_follow(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        w.submit(constellation(ROUND))
        w.finish_all()
        w.handle(told(w, a="b", b="c", c="a"))
        assert places_of(w, w.submit(constellation(ROUND))) == {"a": "b"}
        assert len(w.plans) == 1

    def test_one_that_never_comes_is_given_up_though_no_round_runs_any_more(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        w.submit(constellation(ROUND))
        w.finish_all()
        late = w.now + limits.PLAN_ANSWER_SECONDS * SECOND
        assert w.coordinator.next_wake() is not None
        w.advance(limits.PLAN_ANSWER_SECONDS + 1.0)
        wake = w.coordinator.next_wake()
        assert wake is None or wake > late
        w.submit(constellation(ROUND))
        w.advance(limits.PLAN_AGAIN_SECONDS)
        assert len(w.plans) == 2

    def test_other_jobs_are_no_rounds_of_it(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        w.submit(constellation(ROUND))
        w.handle(told(w, a="b", b="c", c="a"))
        other = w.submit(constellation(ROUND.replace("0.4", "0.3")))
        assert len(w.plans) == 2
        assert w.coordinator.planned(other) == "it is being made"
        streamed = "every: 1s\nstages: {a: {kind: t.ticks}, b: {kind: t.twice, in: {ticks: a.ticks}}}"
        w.submit(constellation(streamed))
        w.submit(constellation(ROUND.replace("0.4", "0.2")), max_parallel=1)
        assert len(w.plans) == 2

    def test_one_with_a_deadline_of_its_own_is_planned_by_itself(self, world: Any) -> None:
        """As a round it had its best variants, which hold the period, and was late."""
        w = world(node("a", slots=1), node("b", slots=1))
        text = f"every: 60s\n{varied(deadline='')}"
        w.submit(constellation(text), deadline_seconds=5.0)
        assert [(plan.rounds, plan.left) for plan in w.plans] == [(False, 5.0)]
        w.submit(constellation(text))
        w.submit(constellation(f"deadline: 5s\n{text}"), deadline_seconds=5.0)
        assert [plan.rounds for plan in w.plans] == [False, True, True]

    def test_of_many_constellations_the_oldest_is_forgotten_and_not_the_one_that_begins(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "PLAN_SERIES_MAX", 2)
        w = world(node("a"), node("b"), node("c"))
        for number in (1, 2, 3, 4):
            job = w.submit(constellation(ROUND.replace("0.4", f"0.{number}")))
            assert len(w.plans) == number
            w.handle(told(w, a="b", b="c", c="a"))
            assert "can be held" in w.coordinator.planned(job)
            w.finish_all()
            w.advance(1.0)
        assert places_of(w, w.submit(constellation(ROUND.replace("0.4", "0.3")))) == {"a": "b"}
        # The oldest has no plan any more, and is asked for one again.
        assert places_of(w, w.submit(constellation(ROUND.replace("0.4", "0.1")))) == {"a": "a"}
        assert len(w.plans) == 5

    def test_one_that_would_keep_the_planner_for_long_is_planned_job_by_job(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "PLAN_ROUNDS_CELLS_MAX", 8)
        w = world(node("a"), node("b"), node("c"))
        w.submit(constellation(ROUND))
        assert [plan.rounds for plan in w.plans] == [False]

    def test_the_plan_is_made_anew_when_nodes_come_or_go_and_from_time_to_time(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        w.submit(constellation(ROUND))
        w.handle(told(w, a="b", b="c", c="a"))
        w.advance(limits.PLAN_EVERY_SECONDS)
        w.goodbye("c")
        w.advance(limits.PLAN_EVERY_SECONDS)
        assert [plan.rounds for plan in w.plans] == [True, True]
        assert {name: place.node for name, place in w.plans[-1].old.items()} == {"a": "b", "b": "c", "c": "a"}
        w.handle(told(w, a="b", b="a", c="a"))
        w.finish_all()
        w.advance(limits.PLAN_ROUNDS_SECONDS)
        assert len(w.plans) == 2
        w.submit(constellation(ROUND))
        assert len(w.plans) == 3
        # One that never comes is given up, and asked for again.
        w.advance(limits.PLAN_ANSWER_SECONDS + limits.PLAN_AGAIN_SECONDS + 0.5)
        assert len(w.plans) == 4

    def test_without_a_planner_or_a_sound_plan_rounds_go_where_they_would(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        first = w.submit(constellation(ROUND))
        w.handle(Planned(job=first, number=w.plans[-1].number, refusal="it is being started", again=True))
        assert w.coordinator.planned(first) == "there is none: it is being started"
        w.advance(limits.PLAN_AGAIN_SECONDS)
        assert len(w.plans) == 2
        w.handle(msgspec.structs.replace(told(w, a="b"), ends=float("inf")))
        w.finish_all()
        assert w.status(first) == "succeeded"

    def test_what_other_jobs_and_other_series_take_of_nodes_is_told(self, world: Any) -> None:
        w = world(node("a", slots=1), node("b", slots=1))
        w.submit(constellation(ROUND))
        w.handle(told(w, a="b", b="b", c="b"))
        long = "stages: {x: {kind: t.task, params: {seconds: 4}, require: {node: a}}}"
        w.submit(constellation(long))
        w.submit(constellation(ROUND.replace("0.4", "0.3")))
        taken = {each.profile.name: (each.taken, each.busy_seconds) for each in w.plans[-1].nodes}
        # Of b the other series takes 0.4 s of each 0.5; its round that runs there counts no second time.
        assert taken == {"a": (pytest.approx(4 / limits.PLAN_ROUNDS_SECONDS), 0.0), "b": (pytest.approx(0.8), 0.0)}

    def test_after_a_restart_rounds_go_on_and_a_plan_is_asked_for(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        job = w.submit(constellation(ROUND))
        w.handle(told(w, a="b", b="c", c="a"))
        w.restart()
        count = len(w.plans)
        w.advance(limits.PLAN_EVERY_SECONDS)
        assert len(w.plans) == count + 1
        assert w.plans[-1].rounds
        w.finish_all()
        assert w.status(job) == "succeeded"
        w.check_replay()

    def test_with_the_real_planner_rounds_do_not_pile_up_on_one_node(self, world: Any) -> None:
        w = world(node("a", slots=1), node("b", slots=1), node("c", slots=1))
        w.submit(constellation(ROUND))
        w.handle(advise(w.plans[-1], iterations=20))
        w.finish_all()
        job = w.submit(constellation(ROUND))
        w.finish_all()
        assert set(places_of(w, job).values()) == {"a", "b", "c"}
        assert "a round every 0.5 s can be held" in w.coordinator.planned(job)
        assert "3 of 3 stages" in w.coordinator.planned(job)


def test_with_the_real_planner_a_job_that_is_slow_ends_in_time_by_lesser_variants(world: Any) -> None:
    """Its first stage takes 4 s longer than told, so that the others cannot all be large."""
    w = world(node("a", slots=1), node("b", slots=1))
    job = w.submit(constellation(varied(deadline="deadline: 15s\n")))
    w.handle(advise(w.plans[-1], iterations=20))
    assert given(w) == {"s0": ["large"]}
    w.advance(6.0)
    w.finish("s0", run=2.0)
    began = w.now
    while w.status(job) == "running":
        if w.plans and (w.plans[-1].job, w.plans[-1].number) != w.__dict__.get("last"):
            w.last = (w.plans[-1].job, w.plans[-1].number)
            w.handle(advise(w.plans[-1], iterations=20))
        (stage,) = {task.stage for agent in w.agents.values() for task in agent.tasks}
        seconds = {"large": 2.0, "small": 0.5}[w.stage(job, stage).variant]
        w.advance(seconds)
        w.finish(stage, run=seconds)
    assert w.status(job) == "succeeded"
    assert (w.now - began) / SECOND < 9.0
    assert {way for ways in given(w).values() for way in ways} == {"large", "small"}


def test_with_the_real_planner_the_busiest_nodes_loss_is_planned_around(world: Any) -> None:
    w = world(node("a", slots=1), node("b", slots=1), node("c", slots=1))
    layers = [f"  s{n}: {{kind: t.task, in: {{x: first.value}}, params: {{seconds: {1 + n % 5}}}}}" for n in range(12)]
    layers += [f"  t{n}: {{kind: t.task, in: {{x: s{n}.value}}, params: {{seconds: {1 + n % 3}}}}}" for n in range(12)]
    job = w.submit(constellation("stages:\n  first: {kind: t.task}\n" + "\n".join(layers)))
    w.handle(advise(w.plans[-1], iterations=200))
    w.finish("first")
    counts = {name: sum(agent == name for agent in where(w).values()) for name in ("a", "b", "c")}
    assert min(counts.values()) > 0
    busiest = max(counts, key=lambda name: counts[name])
    w.goodbye(busiest)
    w.agents[busiest].tasks.clear()
    w.advance(limits.PLAN_EVERY_SECONDS)
    assert len(w.plans) == 2
    answer = advise(w.plans[-1], iterations=200)
    assert not answer.refusal
    assert len(answer.places) == 12
    assert busiest not in {place.node for place in answer.places.values()}
    w.handle(answer)
    w.finish_all()
    assert w.status(job) == "succeeded"
    assert {name: agent for name, agent in where(w).items() if name.startswith("t")} == {
        name: place.node for name, place in answer.places.items()
    }


class TestVariantsAfterARestart:
    def test_stages_go_on_in_the_variant_that_the_last_like_them_had(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(varied()))
        w.handle(lessened(w, "s1", "s2", "s3", "s4", "s5"))
        w.finish("s0")
        w.restart()
        w.finish("s1")
        assert given(w)["s2"] == ["small"]
        # The new plan has the last word.
        w.advance(limits.PLAN_EVERY_SECONDS)
        w.handle(lessened(w, "s3"))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert {name: ways[-1] for name, ways in given(w).items()} == {
            f"s{n}": "small" if 0 < n < 4 else "large" for n in range(6)
        }
        w.check_replay()

    def test_what_is_ready_is_so_in_that_variant(self, world: Any) -> None:
        """Nobody had room for it when the restart came."""
        w = world(node("a", slots=1))
        job = w.submit(constellation(side_by_side(80, large=0.5003)))
        w.handle(lessened(w, *(f"s{n}" for n in range(80))))
        before = len(given(w))
        assert before < 80
        w.restart()
        w.advance(0.5)
        w.finish_all()
        assert len(given(w)) > before
        assert {ways[-1] for ways in given(w).values()} == {"small"}
        assert w.status(job) == "running" or len(given(w)) == 80

    def test_without_a_planner_they_do_not_go_on_so_for_ever(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(varied(deadline="deadline: 600s\n")))
        w.handle(lessened(w, "s1", "s2", "s3", "s4", "s5"))
        w.finish("s0")
        w.restart()
        w.finish("s1")
        assert given(w)["s2"] == ["small"]
        seen = len(w.plans)
        for _ in range(round(limits.PLAN_ANSWER_SECONDS) + 5):
            w.advance(1)
            for wanted in w.plans[seen:]:
                w.handle(Planned(job=job, number=wanted.number, refusal="it is being started", again=True))
            seen = len(w.plans)
        w.finish("s2")
        assert given(w)["s3"] == ["large"]

    def test_a_job_of_which_nothing_was_placed_awaits_its_plan_as_a_new_one_does(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(varied(25, "deadline: 600s\n")))
        assert not given(w)
        w.restart()
        assert not given(w)
        # All nodes have said hello.
        assert len(w.plans) == 2
        assert "first plan" in w.coordinator.waits_for(job, StageId("s0"))
        w.handle(lessened(w, "s0"))
        assert given(w) == {"s0": ["small"]}

    def test_it_awaits_a_planner_that_is_started_as_well_but_not_for_long(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(varied(25, "deadline: 600s\n")))
        w.restart()
        began = w.now
        while not given(w):
            assert w.now - began < 3 * SECOND
            if w.plans[-1].number in range(1, len(w.plans) + 1):
                w.handle(Planned(job=job, number=w.plans[-1].number, refusal="it is being started", again=True))
            assert given(w) or w.coordinator.planned(job) == "there is none: it is being started"
            w.advance(0.25)
        assert w.now - began == pytest.approx(limits.PLAN_RESUMED_WAITS_SECONDS * SECOND, abs=SECOND // 2)
        assert given(w) == {"s0": ["large"]}
        assert len(w.plans) <= 10

    def test_where_a_node_stays_away_the_plan_is_asked_for_in_a_second(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        w.submit(constellation(varied(25, "deadline: 600s\n")))
        w.silence("b")
        w.restart()
        assert len(w.plans) == 1
        assert not given(w)
        w.advance(limits.PLAN_EVERY_SECONDS)
        assert len(w.plans) == 2
        w.handle(lessened(w, "s0"))
        assert given(w) == {"s0": ["small"]}

    def test_a_short_one_awaits_none(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        w.submit(constellation(varied()))
        assert not given(w)
        w.restart()
        assert given(w) == {"s0": ["large"]}
