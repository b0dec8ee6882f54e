"""Stages given out ahead of their upstreams: which, where, what becomes of their reports, and that they die with what they await."""

from typing import Any

import pytest
from tests.orchestrator.harness import World, facts_of, node
from tests.orchestrator.test_coordinator_patch import constellation

from starloom.agents.messages import (
    AwaitUnreachable,
    Cancel,
    Failed,
    InputLost,
    Resolve,
    Revoke,
    Started,
    WasCancelled,
)
from starloom.dag import limits
from starloom.dag.facts import ErrorInfo, StageCommitted, StageFailed, StagePlaced, StageReopened, StageSuperseded
from starloom.dag.ids import StageId
from starloom.dag.patchdoc import load_patch
from starloom.dag.stagestate import StageStatus

LINE = constellation(
    """
stages:
  a: {kind: t.work}
  b: {kind: t.work, in: {x: a.value}}
  c: {kind: t.work, in: {x: b.value}}
outputs: {c: c.value}
"""
)
BLOBS = constellation(
    """
stages:
  a: {kind: t.blob}
  b: {kind: t.need, in: {data: a.data}}
  c: {kind: t.work, in: {x: b.value}}
"""
)
DIAMOND = constellation(
    """
stages:
  a: {kind: t.work}
  left: {kind: t.work, in: {x: a.value}}
  right: {kind: t.work, in: {x: a.value}}
  end: {kind: t.work, in: {x: left.value, y: right.value}}
"""
)
ASKED = constellation(
    """
stages:
  a: {kind: t.judge, params: {score: 1}}
  b: {kind: t.work, in: {x: {from: a.value, when: {path: score, is: ">", value: 0}}}}
  c: {kind: t.work, in: {x: b.value}}
"""
)


@pytest.fixture
def ahead(world: Any) -> Any:
    """Makes worlds that delegate; of two nodes unless others are given."""
    return lambda *nodes: world(*(nodes or (node("edge-1"), node("edge-2"))), delegate=True)


def waits(w: World, job: Any, stage: str) -> dict[str, str]:
    return {upstream: str(token) for upstream, token in w.stage(job, stage).awaits.items()}


def agent_of(w: World, job: Any, stage: str) -> str:
    (agent,) = w.stage(job, stage).live.values()
    return agent


def commands(w: World, kind: type, stage: str) -> list[Any]:
    log: list[Any] = [each for agent in w.agents.values() for each in agent.log if isinstance(each, kind)]
    return [command for command in log if command.task.stage == stage]


def apart(w: World) -> Any:
    """A job whose `a` is on edge-1 and whose `b` awaits it on edge-2."""
    w.join(node("edge-1"))
    w.join(node("edge-2"))
    job = w.submit(
        constellation(
            """
stages:
  a: {kind: t.blob, require: {node: edge-1}}
  b: {kind: t.need, in: {data: a.data}, require: {node: edge-2}}
  c: {kind: t.work, in: {x: b.value}, require: {node: edge-2}}
"""
        )
    )
    assert (agent_of(w, job, "a"), agent_of(w, job, "b"), agent_of(w, job, "c")) == ("edge-1", "edge-2", "edge-2")
    return job


class TestPlaced:
    def test_a_chain_is_given_out_in_one_decision_where_its_head_is(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        assert w.status(job, "a", "b", "c") == ["placed"] * 3
        assert len({agent_of(w, job, stage) for stage in ("a", "b", "c")}) == 1
        (awaited,) = w.assigned("b").awaits
        assert (awaited.upstream, awaited.token) == ("a", w.assigned("a").task.token)
        assert (awaited.agent, awaited.address) == ("edge-1", "edge-1:1")
        assert (awaited.feeds, awaited.holds, w.assigned("b").inputs) == ({"x": "value"}, (), ())
        assert (waits(w, job, "b"), waits(w, job, "c")) == ({"a": "1.1"}, {"b": "1.1"})

    def test_a_layer_is_given_out_as_well_and_what_is_there_goes_in_as_ever(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(DIAMOND)
        assert w.status(job, "a", "left", "right", "end") == ["placed"] * 4
        assert waits(w, job, "end") == {"left": "1.1", "right": "1.1"}
        w.finish("a", "left", "right", "end")
        assert w.status(job) == "succeeded"
        assert len(facts_of(w, StagePlaced)) == 4

    def test_one_whose_other_upstream_has_ended_reads_that_and_awaits_the_rest(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(
            constellation(
                """
stages:
  a: {kind: t.work}
  late: {kind: t.work, in: {x: {from: a.value, on: completion}}}
  end: {kind: t.work, in: {x: a.value, y: late.value}}
"""
            )
        )
        assert w.status(job, "late", "end") == ["pending", "pending"]
        w.finish("a")
        assert [item.consumed.upstream for item in w.assigned("end").inputs] == ["a"]
        assert waits(w, job, "end") == {"late": "1.1"}
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_comparison_is_awaited_as_well(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(ASKED)
        (awaited,) = w.assigned("b").awaits
        assert len(awaited.holds) == 1
        assert w.assigned("a").comparisons
        w.finish("a", "b", "c")
        assert w.status(job) == "succeeded"

    @pytest.mark.parametrize(
        "text",
        [
            "{a: {kind: t.work, on_failure: skip}, b: {kind: t.work, in: {x: a.value}}}",
            "{a: {kind: t.work, on_failure: default, defaults: {value: 1}}, b: {kind: t.work, in: {x: a.value}}}",
            "{a: {kind: t.work}, b: {kind: t.work, in: {x: {from: a.value, on: completion}}}}",
            "{a: {kind: t.work}, o: {kind: t.work}, b: {kind: t.work, in: {x: a.value, y: o.value}, join: any}}",
            "{a: {kind: t.grow}, b: {kind: t.work, in: {x: a.value}}}",
        ],
        ids=["skips", "defaults", "completion", "any", "grows"],
    )
    def test_only_what_goes_on_by_success_alone_goes_ahead(self, ahead: Any, text: str) -> None:
        w = ahead()
        job = w.submit(constellation(f"stages: {text}"))
        assert w.status(job, "a", "b") == ["placed", "pending"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_job_with_max_parallel_sends_nothing_ahead(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE, max_parallel=2)
        assert w.status(job, "a", "b", "c") == ["placed", "pending", "pending"]

    def test_nothing_goes_ahead_of_what_has_failed_before(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.fail("a", transient=True)
        w.advance(0.2)
        assert w.status(job, "a", "b") == ["placed", "pending"]

    def test_nothing_goes_ahead_of_an_agent_that_is_not_heard_of(self, ahead: Any) -> None:
        w = ahead(node("edge-1"))
        job = w.submit(constellation("stages: {a: {kind: t.work}, b: {kind: t.see, in: {x: a.value}}}"))
        w.silence("edge-1")
        w.patch(job, "- add: {late: {kind: t.work, in: {x: a.value}}}")
        assert waits(w, job, "b") == {"a": "1.1"}
        w.advance(limits.LEASE_SECONDS + 0.5)
        request = w.patch(job, "- add: {later: {kind: t.work, in: {x: a.value}}}")
        assert w.patched(request).revision == 3
        assert w.status(job, "later") == ["pending"]

    def test_nothing_goes_ahead_of_what_is_to_be_replicated(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(
            constellation("stages: {a: {kind: t.blob, replicate: 1}, b: {kind: t.need, in: {data: a.data}}}")
        )
        assert w.status(job, "a", "b") == ["placed", "pending"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_nothing_waits_for_more_peers_than_one(self, ahead: Any) -> None:
        w = ahead(node("edge-1"), node("edge-2"), node("edge-3"))
        pinned = ", ".join(f"a{n}: {{kind: t.work, require: {{node: edge-{n}}}}}" for n in (1, 2, 3))
        job = w.submit(
            constellation(
                f"stages: {{{pinned}, two: {{kind: t.work, in: {{x: a1.value, y: a2.value}}}}, "
                "three: {kind: t.work, in: {x: a1.value, y: a2.value, z: a3.value}}}"
            )
        )
        assert w.status(job, "two", "three") == ["placed", "pending"]

    def test_what_waits_is_decided_anew_where_the_holder_of_an_input_is_lost(self, ahead: Any) -> None:
        w = ahead(node("edge-1"), node("edge-2"), node("edge-3"))
        job = w.submit(
            constellation(
                """
stages:
  made: {kind: t.blob, require: {node: edge-1}}
  a: {kind: t.work, require: {node: edge-2}, in: {x: {from: first.value, on: completion}}}
  first: {kind: t.work, require: {node: edge-3}}
  end: {kind: t.need, require: {node: edge-2}, in: {data: made.data}, after: a}
"""
            )
        )
        w.finish("made", "first")
        assert [item.consumed.upstream for item in w.assigned("end").inputs] == ["made"]
        w.goodbye("edge-1", "killed")
        (fact,) = facts_of(w, StageSuperseded, "end")
        assert (fact.reason, fact.input_lost) == ("edge-1, which held an input, was lost", False)
        w.acknowledge_cancels()
        w.join(node("edge-1"))
        w.finish_all()
        assert w.status(job) == "succeeded"


class TestRoom:
    def test_what_is_ready_gets_its_slot_though_much_is_delegated(self, ahead: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(limits, "AGENT_BACKLOG_STAGES", 0)
        w = ahead(node("edge-1", slots=1))
        w.submit(LINE, job="line")
        member = w.coordinator._state.fleet.members["edge-1"]
        assert (len(member.assigned), member.in_hand, member.open, member.open_ahead) == (3, 1, False, True)
        one = w.submit(constellation("stages: {z: {kind: t.work}}"), job="one")
        assert w.status(one, "z") == ["pending"]
        w.finish("a")
        assert (member.in_hand, list(member.delegated)) == (1, [w.assigned("c").task])
        w.finish("b", "c")
        assert w.status(one, "z") == ["placed"]
        assert (member.in_hand, member.delegated, member.delegated_seconds) == (1, {}, 0.0)

    def test_a_ready_stage_goes_before_one_that_waits(self, ahead: Any) -> None:
        w = ahead(node("edge-1"))
        w.submit(constellation("stages: {a: {kind: t.work}, b: {kind: t.work, in: {x: a.value}}, z: {kind: t.work}}"))
        assert [stage for stage, _ in w.placed] == ["a", "z", "b"]

    def test_an_agent_holds_no_more_than_a_few_seconds_ahead(self, ahead: Any) -> None:
        chain = {"s0": "{kind: t.heavy}"}
        chain |= {f"s{n}": f"{{kind: t.heavy, after: [s{n - 1}]}}" for n in range(1, 5)}
        w = ahead()
        job = w.submit(constellation(f"stages: {{{', '.join(f'{k}: {v}' for k, v in chain.items())}}}"))
        # One that is to load for four seconds first is not awaited; what runs for one second each is, up to two ahead.
        assert w.status(job, "s0", "s1") == ["placed", "pending"]
        w.finish("s0", run=0.9, load=0.0)
        assert w.status(job, "s1", "s2", "s3") == ["placed", "placed", "pending"]
        w.finish("s1", run=0.9)
        w.advance(1.0)
        assert w.status(job, "s2", "s3", "s4") == ["placed", "placed", "pending"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_of_a_kind_that_never_ran_little_goes_ahead(self, ahead: Any) -> None:
        chain = "a: {kind: t.work}"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True):
            chain += f", {name}: {{kind: t.work, in: {{x: {before}.value}}}}"
        w = ahead()
        job = w.submit(constellation(f"stages: {{{chain}}}"), job="first")
        assert w.status(job, *"abcdefghi").count("placed") == 1 + int(2.0 / limits.DELEGATED_UNKNOWN_SECONDS) - 1
        w.finish_all()
        known = w.submit(constellation(f"stages: {{{chain}}}"), job="second")
        assert w.status(known, *"abcdefghi").count("placed") == 9

    def test_an_agent_holds_no_more_than_so_many(self, ahead: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(limits, "DELEGATED_STAGES_PER_AGENT_MAX", 1)
        w = ahead(node("edge-1"))
        job = w.submit(LINE)
        assert w.status(job, "a", "b", "c") == ["placed", "placed", "pending"]
        w.finish("a")
        assert w.status(job, "b", "c") == ["placed", "placed"]

    def test_many_consumers_do_not_all_queue_behind_their_upstream(self, ahead: Any) -> None:
        w = ahead(node("edge-1", slots=1), node("edge-2", slots=1))
        first = w.submit(constellation("stages: {w: {kind: t.work}}"))
        w.finish("w", run=0.3)
        assert w.status(first) == "succeeded"
        fan = ", ".join(f"f{n}: {{kind: t.work, in: {{x: a.value}}}}" for n in range(4))
        job = w.submit(constellation(f"stages: {{a: {{kind: t.work}}, {fan}}}"))
        places = [agent_of(w, job, f"f{n}") for n in range(4)]
        assert sorted(places) == ["edge-1", "edge-1", "edge-2", "edge-2"]


class TestReports:
    def test_a_report_that_overtakes_is_kept_and_counts_in_its_turn(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        w.finish("b")
        assert w.status(job, "a", "b") == ["placed", "placed"]
        assert facts_of(w, StageCommitted) == []
        w.tell("a")
        assert [fact.stage for fact in facts_of(w, StageCommitted)] == ["a", "b"]
        w.finish("c")
        assert w.status(job) == "succeeded"
        assert w.coordinator.stale_refused == 0

    def test_a_whole_chain_that_came_in_the_wrong_order_commits_at_once(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        w.make("b")
        w.finish("c")
        w.tell("b")
        assert facts_of(w, StageCommitted) == []
        w.tell("a")
        assert [fact.stage for fact in facts_of(w, StageCommitted)] == ["a", "b", "c"]
        assert w.status(job) == "succeeded"

    def test_a_kept_report_may_come_again(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        agent = w.where("b")
        report = w.finish("b")
        w.report(agent, report, report)
        w.tell("a")
        w.report(agent, report)
        assert [fact.stage for fact in facts_of(w, StageCommitted)] == ["a", "b"]
        assert w.coordinator.stale_refused == 0
        assert w.status(job, "c") == ["placed"]

    def test_a_start_is_known_at_once(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        w.start("b")
        assert w.status(job, "a", "b") == ["placed", "running"]
        assert "it was sent ahead to edge-1, where it has started" in w.coordinator.waits_for(job, StageId("b"))
        w.tell("a")
        w.finish("b", "c")
        assert w.status(job) == "succeeded"

    def test_a_failure_counts_only_once_what_it_read_counts(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        w.fail("b", "broken by a")
        assert facts_of(w, StageFailed) == []
        w.tell("a")
        assert w.job(job).error == "stage b failed on edge-1: broken by a"

    def test_a_failure_that_rests_on_what_never_came_to_count_is_refused(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        agent, task = w.where("a"), w.assigned("a").task
        w.make("a")
        w.fail("b", "broken by a")
        agent.unsent.clear()
        w.report(agent, Failed(task=task, error=ErrorInfo(message="lost it", transient=True)))
        assert w.status(job, "a", "b") == ["pending", "pending"]
        assert (w.stage(job, "b").failures, w.coordinator.stale_refused) == (0, 1)
        w.advance(0.2)
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_an_input_that_is_gone_is_made_again_once_it_counts(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(BLOBS)
        w.make("a")
        task = w.assigned("b").task
        lost = InputLost(task=task, upstreams=(StageId("a"),), reason="test", gone=True)
        w.report(w.where("b"), lost)
        assert facts_of(w, StageReopened) == []
        w.tell("a")
        assert [fact.stage for fact in facts_of(w, StageReopened)] == ["a"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_result_that_read_something_else_is_refused_when_its_turn_comes(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        w.finish("b")
        ((agent, task),) = [(agent, task) for agent in w.agents.values() for task in agent.unsent]
        agent.unsent[task] = agent.result(w.sent[task], "other")
        w.tell("a")
        assert [fact.stage for fact in facts_of(w, StageCommitted)] == ["a"]
        assert facts_of(w, StageSuperseded, "b")[0].input_lost
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_no_more_reports_are_kept_than_the_bound(self, ahead: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(limits, "DELEGATED_REPORTS_KEPT_MAX", 1)
        w = ahead()
        job = w.submit(DIAMOND)
        w.make("a")
        w.finish("left")
        w.finish("right")
        assert facts_of(w, StageSuperseded, "right")[0].reason == "too many reports wait for those they rest on"
        w.tell("a")
        assert [fact.stage for fact in facts_of(w, StageCommitted)] == ["a", "left"]
        w.finish_all()
        assert w.status(job) == "succeeded"


class TestTakenBack:
    def superseded(self, w: World) -> list[tuple[str, bool, bool]]:
        return [(fact.stage, fact.death, fact.input_lost) for fact in facts_of(w, StageSuperseded)]

    def test_a_failure_takes_back_all_that_awaited_it(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.fail("a", transient=True)
        assert self.superseded(w) == [("b", False, False), ("c", False, False)]
        assert w.status(job, "a", "b", "c") == ["pending"] * 3
        assert [len(commands(w, Cancel, stage)) for stage in "abc"] == [0, 1, 1]
        w.acknowledge_cancels()
        w.advance(0.2)
        w.finish_all()
        assert w.status(job) == "succeeded"
        stage = w.stage(job, "b")
        assert (stage.failures, stage.deaths, stage.input_losses) == (0, 0, 0)

    def test_a_failure_for_good_ends_the_job_and_all_that_was_ahead(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.fail("a")
        assert w.status(job, "a", "b", "c") == ["failed", "cancelled", "cancelled"]
        assert w.status(job) == "failed"

    def test_a_comparison_that_does_not_hold_takes_back_and_skips(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(constellation(ASKED_NOT))
        assert w.status(job, "a", "b", "c") == ["placed"] * 3
        w.finish("a")
        assert w.status(job, "a", "b", "c") == ["succeeded", "skipped", "skipped"]
        assert self.superseded(w) == [("b", False, False), ("c", False, False)]
        assert len(commands(w, Cancel, "b")) == 1
        assert w.status(job) == "succeeded"

    def test_one_that_is_reached_on_two_ways_is_taken_back_once(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(
            constellation(
                """
stages:
  a: {kind: t.judge, params: {score: 0}}
  b: {kind: t.work, in: {x: {from: a.value, when: {path: score, is: ">", value: 0}}}}
  c: {kind: t.work, in: {x: b.value, y: {from: a.value, when: {path: score, is: ">", value: 0}}}}
"""
            )
        )
        w.finish("a")
        assert w.status(job, "a", "b", "c") == ["succeeded", "skipped", "skipped"]
        assert self.superseded(w) == [("b", False, False), ("c", False, False)]

    def test_an_agent_that_is_lost_takes_along_what_awaits_its_attempts_elsewhere(self, ahead: Any) -> None:
        w = ahead(node("edge-3"))
        job = apart(w)
        w.goodbye("edge-1", "killed")
        assert self.superseded(w) == [("a", True, False), ("b", False, False), ("c", False, False)]
        w.join(node("edge-1"))
        # What died may be to blame: nothing goes ahead of it any more.
        assert w.status(job, "a", "b", "c") == ["placed", "pending", "pending"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_what_awaits_is_not_to_blame_for_the_death_of_its_agent(self, ahead: Any) -> None:
        w = ahead(node("edge-3"))
        job = apart(w)
        w.goodbye("edge-2", "killed")
        assert self.superseded(w) == [("b", False, False), ("c", False, False)]
        assert w.status(job, "a") == ["placed"]

    def test_a_lost_agent_with_a_whole_chain_is_one_death_of_its_head(self, ahead: Any) -> None:
        w = ahead(node("edge-1"))
        job = w.submit(LINE)
        w.goodbye("edge-1", "killed")
        assert self.superseded(w) == [("a", True, False), ("b", False, False), ("c", False, False)]
        assert w.status(job, "a", "b", "c") == ["pending"] * 3

    def test_a_copy_that_wins_takes_back_what_awaits_the_other(self, ahead: Any) -> None:
        w = ahead()
        job, _, copy = self.copied(w)
        assert waits(w, job, "b") == {"a": "1.1"}
        w.report(copy, copy.result(next(assign for task, assign in copy.tasks.items() if task.stage == "a")))
        assert self.superseded(w) == [("b", False, False)]
        assert w.status(job, "a", "b") == ["succeeded", "placed"]
        assert waits(w, job, "b") == {}
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"

    @pytest.mark.parametrize("salt", ["", "other"])
    def test_what_has_started_on_the_other_stands_if_that_gave_the_same(self, ahead: Any, salt: str) -> None:
        w = ahead()
        job, elder, copy = self.copied(w)
        task = next(task for task in elder.tasks if task.stage == "a")
        w.made[task] = elder.result(elder.tasks[task])
        w.start("b")
        w.report(copy, copy.result(next(assign for task, assign in copy.tasks.items() if task.stage == "a"), salt))
        assert (w.status(job, "b"), waits(w, job, "b")) == (["running"], {})
        w.finish("b")
        assert w.status(job, "b") == (["succeeded"] if not salt else ["placed"])
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_what_awaits_is_never_copied(self, ahead: Any) -> None:
        w = ahead()
        soon = "straggler: {factor: 1, after: 1s}"
        job = w.submit(
            constellation(f"stages: {{a: {{kind: t.work}}, b: {{kind: t.work, in: {{x: a.value}}, {soon}}}}}")
        )
        w.make("a")
        w.start("b")
        w.advance(5.0)
        assert w.stage(job, "b").copies == 0
        w.tell("a")
        w.advance(5.0)
        assert w.stage(job, "b").copies == 1

    def copied(self, w: World) -> tuple[Any, Any, Any]:
        soon = "straggler: {factor: 1, after: 1s}"
        job = w.submit(
            constellation(f"stages: {{a: {{kind: t.work, {soon}}}, b: {{kind: t.work, in: {{x: a.value}}}}}}")
        )
        elder = w.where("a")
        w.start("a")
        w.advance(2.0)
        (copy,) = [agent for agent in w.agents.values() if agent is not elder]
        assert any(task.stage == "a" for task in copy.tasks)
        return job, elder, copy


class TestChanged:
    def test_a_patch_of_the_upstream_takes_back_what_awaits_it(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        request = w.patch(job, "- replace: {stage: a, params: {label: new}}")
        assert [len(commands(w, Revoke, stage)) for stage in "abc"] == [1, 0, 0]
        w.give_back("a")
        assert w.patched(request).revision == 2
        assert [str(token) for stage in "abc" for token in w.stage(job, stage).live] == ["1.2"] * 3
        assert (waits(w, job, "b"), waits(w, job, "c")) == ({"a": "1.2"}, {"b": "1.2"})
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_patch_of_what_awaits_is_taken_once_it_is_given_back(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.start("a")
        request = w.patch(job, "- replace: {stage: b, params: {label: new}}")
        assert [len(commands(w, Revoke, stage)) for stage in "abc"] == [0, 1, 0]
        assert w.stage(job, "a").status is StageStatus.RUNNING
        w.give_back("b")
        assert w.patched(request).revision == 2
        assert w.assigned("b").params["label"] == "new"
        assert w.status(job, "a", "b", "c") == ["running", "placed", "placed"]

    def test_what_an_agent_has_started_meanwhile_refuses_the_patch(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        request = w.patch(job, "- replace: {stage: b, params: {label: new}}")
        w.report(w.where("b"), Started(task=w.assigned("b").task))
        assert "stages.b: runs on edge-1" in w.refused(request)
        w.tell("a")
        w.finish("b", "c")
        assert w.status(job) == "succeeded"

    def test_a_restart_takes_back_upstream_and_downstream_together(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.start("a")
        request = w.patch(
            job,
            "- replace: {stage: a, params: {label: new}}\n- replace: {stage: b, params: {label: new}}",
            restart=True,
        )
        assert w.patched(request).revision == 2
        assert w.status(job, "a", "b", "c") == ["placed"] * 3
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_nothing_goes_ahead_of_what_a_patch_holds(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        request = w.patch(job, "- replace: {stage: b, params: {label: new}}")
        w.fail("a", transient=True)
        w.advance(0.2)
        assert w.status(job, "a", "b") == ["placed", "pending"]
        assert w.patched(request).revision == 2

    def test_a_growth_may_feed_what_only_waits(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(
            constellation(
                """
stages:
  grow: {kind: t.grow}
  other: {kind: t.work}
  either: {kind: t.work, in: {x: grow.value, y: other.value}, join: any}
  end: {kind: t.work, in: {x: either.value}}
"""
            )
        )
        w.finish("other")
        assert waits(w, job, "end") == {"either": "1.1"}
        growth = load_patch(
            "patch:\n- rewire: {stage: end, in: {x: either.value, y: .own.value}}".replace(".own", "grow")
        )
        w.finish("grow", growth=growth)
        assert w.job(job).revision == 2
        assert [fact.stage for fact in facts_of(w, StageSuperseded)] == ["end"]
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"


class TestEnds:
    def test_a_cancelled_job_does_not_wait_for_what_was_reported(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        w.finish("b")
        request = w.cancel(job)
        assert w.status(job, "a", "b", "c") == ["placed", "cancelled", "placed"]
        assert commands(w, Cancel, "b") == []
        w.acknowledge_cancels()
        w.tell("a")
        assert w.stopped(request).status == "cancelled"

    def test_what_ends_while_its_job_is_stopped_is_not_kept(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        request = w.cancel(job)
        w.finish("b")
        w.tell("a")
        w.report(w.where("c"), WasCancelled(task=w.assigned("c").task))
        assert w.stopped(request).status == "cancelled"
        assert w.status(job, "a", "b", "c") == ["succeeded", "cancelled", "cancelled"]

    def test_the_time_of_what_awaits_begins_when_its_dependencies_hold(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(
            constellation("stages: {a: {kind: t.work}, b: {kind: t.work, in: {x: a.value}, deadline: 5s, retry: 0}}")
        )
        w.start("a")
        w.advance(60.0)
        assert w.status(job, "a", "b") == ["running", "placed"]
        w.finish("a")
        w.advance(4.0)
        assert w.status(job, "b") == ["placed"]
        w.advance(1.5)
        assert "it waited 5.0 s and ran 0.0 s" in w.job(job).error


class TestRestart:
    def test_what_awaits_lives_on_over_a_restart(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.restart()
        assert facts_of(w, StageSuperseded) == []
        assert (waits(w, job, "b"), waits(w, job, "c")) == ({"a": "1.1"}, {"b": "1.1"})
        w.finish("a", "b", "c")
        assert w.status(job) == "succeeded"

    def test_a_kept_report_is_lost_with_the_orchestrator_and_the_stage_runs_again(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        w.finish("b")
        w.restart()
        assert [fact.stage for fact in facts_of(w, StageSuperseded)] == ["b", "c"]
        w.tell("a")
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_an_upstream_that_was_journaled_lets_the_downstream_go_on(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.finish("a")
        w.make("b")
        w.restart()
        assert w.status(job, "a", "b", "c") == ["succeeded", "placed", "placed"]
        w.tell("b")
        w.finish("c")
        assert w.status(job) == "succeeded"

    def test_a_new_session_does_not_lose_what_is_kept(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        w.make("a")
        w.finish("b")
        w.hello(w.where("c"))
        assert facts_of(w, StageSuperseded) == []
        w.tell("a")
        w.finish("c")
        assert w.status(job) == "succeeded"

    def test_an_assignment_that_did_not_arrive_takes_back_what_awaits_it(self, ahead: Any) -> None:
        w = ahead()
        job = w.submit(LINE)
        agent = w.where("a")
        held = [w.assigned("b").task, w.assigned("c").task]
        del agent.tasks[w.assigned("a").task]
        w.hello(agent, held=held)
        assert [fact.stage for fact in facts_of(w, StageSuperseded)] == ["a", "b", "c"]
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"


class TestThroughTheCentre:
    def unreachable(self, w: World) -> None:
        w.report(w.where("b"), AwaitUnreachable(task=w.assigned("b").task, upstreams=(StageId("a"),), reason="test"))

    def test_what_a_peer_does_not_tell_the_orchestrator_does(self, ahead: Any) -> None:
        w = ahead(node("edge-3"))
        job = apart(w)
        self.unreachable(w)
        assert commands(w, Resolve, "b") == []
        made = w.finish("a")
        (command,) = commands(w, Resolve, "b")
        assert (command.task, command.upstream) == (w.assigned("b").task, "a")
        assert command.token == made.task.token
        (item,) = command.inputs
        assert (item.port, item.ref.digest, item.address) == ("data", made.outputs["data"].digest, "edge-1:1")
        assert facts_of(w, StageSuperseded) == []
        w.finish("b", "c")
        assert w.status(job) == "succeeded"

    def test_it_tells_at_once_what_it_knows(self, ahead: Any) -> None:
        w = ahead(node("edge-3"))
        apart(w)
        w.finish("a")
        assert commands(w, Resolve, "b") == []
        self.unreachable(w)
        assert len(commands(w, Resolve, "b")) == 1

    def test_it_tells_again_after_a_new_session_and_after_a_restart(self, ahead: Any) -> None:
        w = ahead(node("edge-3"))
        job = apart(w)
        w.restart()
        w.finish("a")
        assert len(commands(w, Resolve, "b")) == 1
        w.restart()
        assert len(commands(w, Resolve, "b")) == 2
        w.start("b")
        w.hello(w.agents["edge-2"])
        assert len(commands(w, Resolve, "b")) == 2
        w.finish("b", "c")
        assert w.status(job) == "succeeded"

    def test_of_an_agent_that_is_lost_nobody_can_learn_what_it_had_made(self, ahead: Any) -> None:
        """The value is gone as well: it is made again."""
        w = ahead(node("edge-3"))
        job = apart(w)
        w.finish("a")
        w.goodbye("edge-1", "killed")
        assert [fact.reason for fact in facts_of(w, StageSuperseded)][:1] == ["what it awaited of a is gone"]
        w.join(node("edge-1"))
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert [fact.stage for fact in facts_of(w, StageReopened)] == ["a"]

    def test_what_travelled_with_the_report_is_told_though_its_maker_is_lost(self, ahead: Any) -> None:
        w = ahead(node("edge-1"), node("edge-2"))
        job = w.submit(
            constellation(
                """
stages:
  a: {kind: t.work, require: {node: edge-1}}
  b: {kind: t.work, in: {x: a.value}, require: {node: edge-2}}
"""
            )
        )
        w.finish("a")
        w.goodbye("edge-1", "killed")
        (command,) = commands(w, Resolve, "b")
        assert command.inputs[0].ref.inline is not None
        w.finish("b")
        assert w.status(job) == "succeeded"

    def test_nothing_is_told_of_what_counts_no_more(self, ahead: Any) -> None:
        w = ahead(node("edge-3"))
        apart(w)
        self.unreachable(w)
        w.goodbye("edge-1", "killed")
        assert commands(w, Resolve, "b") == []
        assert len(commands(w, Cancel, "b")) == 1


def test_a_stage_says_what_it_was_sent_ahead_of(ahead: Any) -> None:
    w = ahead()
    job = w.submit(LINE)
    assert w.coordinator.waits_for(job, StageId("b")) == "its upstreams: a; it was sent ahead to edge-1"
    assert w.coordinator.waits_for(job, StageId("a")) == "edge-1 to start it"


ASKED_NOT = """
stages:
  a: {kind: t.judge, params: {score: 0}}
  b: {kind: t.work, in: {x: {from: a.value, when: {path: score, is: ">", value: 0}}}}
  c: {kind: t.work, in: {x: b.value}}
"""
