"""Agents that come, fall silent, come back, and are lost."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import JSON, KINDS, SECOND, World, facts_of, node

from starloom.agents.messages import Assign, Cancel, Release
from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Policy, Requirements, Retry
from starloom.dag.facts import AgentJoined, AgentLost, StageFailed, StagePlaced, StageSuperseded
from starloom.dag.ids import Attempt, FencingToken, JobId, StageId, TaskToken
from starloom.dag.kinds import KindSpec
from starloom.orchestrator.fleet import AgentState
from starloom.orchestrator.inputs import AgentHeartbeat, AgentReports, CancelJob, Tick

LOST = limits.LEASE_SECONDS + limits.LOST_AFTER_SUSPECT_SECONDS


def wide(count: int = 1, name: str = "s", **more: Any) -> Constellation:
    graph = Graph("wide")
    for index in range(count):
        graph.stage(f"{name}{index}", "t.work", policy=Policy(retry=Retry(times=0)), **more)
    return graph.build(KINDS)


def state(w: World, name: str) -> AgentState:
    return next(view.state for view in w.coordinator.fleet_view() if view.name == name)


class TestLeases:
    def test_a_silent_agent_is_suspected_and_then_lost(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(wide(3))
        w.silence("edge-1")
        w.advance(limits.LEASE_SECONDS - 0.1)
        assert state(w, "edge-1") is AgentState.ONLINE
        w.advance(0.2)
        assert state(w, "edge-1") is AgentState.SUSPECT
        assert w.status(job, "s0") == ["placed"], "its work may still come"
        assert w.coordinator.waits_for(job, "s0") == "edge-1 to start it, but it is not heard of"
        w.advance(limits.LOST_AFTER_SUSPECT_SECONDS)
        assert state(w, "edge-1") is AgentState.LOST
        assert all(fact.death for fact in facts_of(w, StageSuperseded))
        assert {w.stage(job, name).agent for name in ("s0", "s1", "s2")} == {"edge-2"}
        assert facts_of(w, AgentLost)[0].reason == "not heard of for 6.0 s"

    def test_nothing_new_is_given_to_a_suspect(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.silence("edge-1")
        w.advance(limits.LEASE_SECONDS + 0.1)
        job = w.submit(wide(4))
        assert {w.stage(job, f"s{index}").agent for index in range(4)} == {"edge-2"}

    def test_any_sign_of_life_renews_the_lease(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(wide(3))
        for index in range(3):
            w.silence("edge-1")
            w.advance(limits.LEASE_SECONDS - 0.1)
            w.finish(f"s{index}")
        assert state(w, "edge-1") is AgentState.ONLINE
        assert w.status(job) == "succeeded"

    def test_a_heartbeat_brings_a_suspect_back(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.silence("edge-1")
        w.advance(limits.LEASE_SECONDS + 0.1)
        job = w.submit(wide())
        assert w.status(job, "s0") == ["pending"]
        w.agents["edge-1"].connected = True
        w.handle(AgentHeartbeat(agent=w.agents["edge-1"].name, incarnation=w.agents["edge-1"].incarnation))
        assert w.status(job, "s0") == ["placed"]
        w.advance(LOST)
        assert state(w, "edge-1") is AgentState.ONLINE

    def test_a_heartbeat_of_another_process_does_not(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.silence("edge-1")
        for _ in range(8):
            w.handle(AgentHeartbeat(agent=w.agents["edge-1"].name, incarnation="other"))
            w.advance(1.0)
        assert state(w, "edge-1") is AgentState.LOST

    def test_an_orchestrator_that_was_stopped_blames_nobody(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.submit(wide())
        w.now += 60 * SECOND
        w.handle(Tick())
        assert state(w, "edge-1") is AgentState.ONLINE
        w.silence("edge-1")
        w.advance(LOST + 0.1)
        assert state(w, "edge-1") is AgentState.LOST

    def test_the_load_is_shown_as_it_was_measured(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.submit(wide(3))
        w.advance(0.7, beat=True)
        (view,) = w.coordinator.fleet_view(w.now + SECOND)
        assert (view.load.queued, view.assigned) == (3, 3)
        assert 1.0 <= view.heard_seconds <= 1.7
        assert (view.name, view.incarnation, view.profile.address) == ("edge-1", "i1", "edge-1:1")


class TestLoss:
    def test_goodbye_waits_for_no_lease(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(wide())
        w.goodbye("edge-1", "scaled down")
        assert w.stage(job, "s0").agent == "edge-2"
        assert facts_of(w, AgentLost)[0].reason == "scaled down"
        w.goodbye("edge-1")
        assert len(facts_of(w, AgentLost)) == 1

    def test_a_death_costs_no_retry_but_three_are_poison(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(wide())
        for death in range(limits.AGENT_DEATHS_PER_STAGE_MAX):
            assert w.status(job) == "running"
            assert w.stage(job, "s0").deaths == death
            w.goodbye("edge-1", "crash")
            w.join(node("edge-1"))
            w.advance(limits.AGENT_FLAP_REST_SECONDS)
        assert w.status(job) == "failed"
        assert "in flight at the death of 3 agents; the last time: edge-1 was lost: crash" in w.job(job).error
        assert len(facts_of(w, StageFailed)) == 1

    def test_a_new_process_is_not_told_of_what_the_dead_one_ran(self, world: Any) -> None:
        """A cancel of what it never had would make it remember a job that has ended, and that nobody releases."""
        w = world(node("edge-1"))
        job = w.submit(wide(2))
        for _ in range(limits.AGENT_DEATHS_PER_STAGE_MAX):
            process = w.join(node("edge-1"))
            w.advance(limits.AGENT_FLAP_REST_SECONDS)
        assert w.status(job) == "failed"
        assert process.log == []

    def test_nor_is_it_told_what_was_decided_for_the_dead_one_a_moment_before(self, world: Any) -> None:
        """In one decision a job's attempts are cancelled, and the process that has them is found to be another one."""
        w = world(node("edge-1"))
        job = w.submit(wide())
        cancel = CancelJob(request=99, job=job, principal="tester", reason="test")
        process = w.join(node("edge-1"), after=[cancel])
        assert w.status(job) == "cancelled"
        assert process.log == [Release(job=job)]

    def test_only_what_was_in_flight_is_touched(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("two")
        a = graph.stage("a", "t.work")
        graph.stage("b", "t.work", x=a["value"])
        job = w.submit(graph.build(KINDS))
        w.finish("a")
        w.goodbye("edge-1")
        assert w.status(job, "a", "b") == ["succeeded", "pending"]
        assert w.coordinator.waits_for(job, "b").startswith("a node that may run it: edge-1 is lost")


class TestHello:
    def test_a_new_process_takes_the_place_of_the_old(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(wide())
        w.join(node("edge-1"))
        names = [type(fact).__name__ for fact in w.facts[-4:]]
        assert names == ["AgentLost", "StageSuperseded", "AgentJoined", "StagePlaced"]
        assert facts_of(w, StageSuperseded)[0].death
        assert facts_of(w, StagePlaced)[-1].incarnation == "i2"
        w.finish("s0")
        assert w.status(job) == "succeeded"

    def test_a_resumed_session_changes_nothing(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.submit(wide())
        before = len(w.facts)
        w.hello(w.agents["edge-1"], resumed=True, held=())
        assert len(w.facts) == before

    def test_assignments_that_did_not_arrive_go_out_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.silence("edge-1")
        job = w.submit(wide(2))
        agent = w.agents["edge-1"]
        assert agent.tasks == {}
        w.hello(agent)
        assert {task.stage for task in agent.tasks} == {"s0", "s1"}
        assert {task.token.attempt for task in agent.tasks} == {2}
        assert not any(fact.death for fact in facts_of(w, StageSuperseded))
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_the_tombstone_goes_before_the_next_attempt(self, world: Any) -> None:
        """The lost assignment may still be on its way: cancelled, it cannot run beside the new one."""
        w = world(node("edge-1"))
        w.silence("edge-1")
        w.submit(wide())
        (lost,) = facts_of(w, StagePlaced)
        w.hello(w.agents["edge-1"])
        kinds = [(type(c), c.task.token) for c in w.agents["edge-1"].log if isinstance(c, Assign | Cancel)]
        assert kinds == [(Cancel, lost.token), (Assign, facts_of(w, StagePlaced)[-1].token)]

    def test_held_attempts_stay(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(wide())
        w.hello(w.agents["edge-1"])
        assert w.stage(job, "s0").attempt == 1
        w.finish("s0")
        assert w.status(job) == "succeeded"

    def test_what_is_held_in_vain_is_cancelled_or_released(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        old = w.submit(wide(name="old"))
        w.finish_all()
        job = w.submit(wide())
        agent = w.where("s0")
        agent.log.clear()
        ghost = TaskToken(JobId("ghost"), StageId("x"), FencingToken(w.epoch, Attempt(1)))
        stale = TaskToken(job, StageId("s0"), FencingToken(w.epoch, Attempt(7)))
        agent.held.add((old, "digest"))
        w.hello(agent, held=[*agent.tasks, ghost, stale])
        assert agent.log == [Cancel(task=ghost), Cancel(task=stale), Release(job=old), Release(job=JobId("ghost"))]

    def test_a_late_hello_of_a_lost_process_joins_it_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(wide())
        agent = w.where("s0")
        (task,) = agent.tasks
        w.silence(agent.name)
        w.advance(LOST + 0.1)
        assert w.stage(job, "s0").agent != agent.name
        w.hello(agent)
        assert state(w, agent.name) is AgentState.ONLINE
        assert agent.log[-1] == Cancel(task=task)
        joined = [fact.incarnation for fact in facts_of(w, AgentJoined) if fact.agent == agent.name]
        assert joined == [agent.incarnation] * 2

    def test_a_lost_process_has_to_say_hello_first(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.goodbye("edge-1")
        agent = w.agents["edge-1"]
        w.handle(
            AgentHeartbeat(agent=agent.name, incarnation=agent.incarnation),
            AgentReports(agent=agent.name, incarnation=agent.incarnation, reports=()),
        )
        assert state(w, "edge-1") is AgentState.LOST

    def test_a_profile_that_changed_is_taken_over(self, world: Any) -> None:
        w = world(node("edge-1"))
        agent = w.agents["edge-1"]
        agent.profile = msgspec.structs.replace(agent.profile, address="edge-1:2")
        w.hello(agent)
        assert len(facts_of(w, AgentLost)) == 0
        assert w.coordinator.fleet_view()[0].profile.address == "edge-1:2"


class TestForgotten:
    def test_nodes_under_ever_new_names_are_not_kept_for_ever(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "LOST_NODES_KEPT", 2)
        w = world(node("edge-1"))
        graph = Graph("pair")
        a = graph.stage("a", "t.blob", require=Requirements(node="n-0"))
        hold = graph.stage("hold", "t.work", require=Requirements(node="edge-1"))
        graph.stage("b", "t.need", data=a["data"], after=[hold])
        w.join(node("n-0"))
        job = w.submit(graph.build(KINDS))
        w.finish("a")
        for index in range(5):
            w.join(node(f"n-{index + 1}"))
            w.goodbye(f"n-{index}")
        assert [view.name for view in w.coordinator.fleet_view()] == ["edge-1", "n-3", "n-4", "n-5"]
        w.advance(LOST)
        w.finish("hold")
        assert w.status(job, "a", "b") == ["pending", "pending"], "what a forgotten node held is gone"
        w.join(node("n-0"))
        w.finish_all()
        assert w.status(job) == "succeeded"


class TestFlapping:
    def test_an_agent_that_keeps_dying_rests_before_it_gets_work(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(wide())
        w.cancel(job)
        for _ in range(limits.AGENT_FLAPS_MAX):
            w.goodbye("edge-1", "crash")
            w.join(node("edge-1"))
        other = w.submit(wide(name="t"))
        assert w.status(other, "t0") == ["pending"]
        w.advance(limits.AGENT_FLAP_REST_SECONDS - 0.1)
        assert w.status(other, "t0") == ["pending"]
        w.advance(0.2)
        assert w.status(other, "t0") == ["placed"]

    def test_deaths_long_ago_are_forgotten(self, world: Any) -> None:
        w = world(node("edge-1"))
        for _ in range(limits.AGENT_FLAPS_MAX + 1):
            w.goodbye("edge-1", "crash")
            w.advance(limits.AGENT_FLAP_WINDOW_SECONDS / 2)
            w.join(node("edge-1"))
        job = w.submit(wide())
        assert w.status(job, "s0") == ["placed"]

    def test_two_processes_of_one_name_do_not_make_a_storm(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(wide(4))
        first = w.agents["edge-1"]
        second = w.join(node("edge-1"))
        for _ in range(10):
            w.agents["edge-1"] = first
            w.hello(first, held=())
            w.agents["edge-1"] = second
            w.hello(second, held=())
        assert len(facts_of(w, StagePlaced)) <= 4 * (limits.AGENT_FLAPS_MAX + 1)
        w.finish_all()
        assert w.status(job) == "succeeded"


class TestKinds:
    def test_the_kinds_are_those_of_all_agents(self, world: Any) -> None:
        w = world()
        w.join(node("edge-1"), kinds=[KINDS["t.work"]])
        w.join(node("edge-2"), kinds=[KINDS["t.say"]])
        assert set(w.coordinator.kinds) == {"t.work", "t.say"}
        graph = Graph("both")
        graph.stage("a", "t.work")
        graph.stage("b", "t.say")
        job = w.submit(graph.build(KINDS))
        assert [w.stage(job, name).agent for name in "ab"] == ["edge-1", "edge-2"]

    def test_an_agent_with_another_signature_does_not_run_the_kind(self, world: Any) -> None:
        other = KindSpec(name="t.work", outputs={"value": JSON, "more": JSON})
        w = world(node("edge-1"))
        w.join(node("edge-2"), kinds=[other, KINDS["t.say"]])
        job = w.submit(wide(8))
        assert {w.stage(job, f"s{index}").agent for index in range(8)} == {"edge-1"}
        assert w.coordinator.kinds["t.work"] == KINDS["t.work"]
        w.finish_all()
        w.goodbye("edge-1")
        w.join(node("edge-2"), kinds=[other])
        assert w.coordinator.kinds["t.work"] == other, "once nobody offers the old one, the new one counts"

    def test_kinds_are_known_after_a_restart_before_anybody_is_back(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.restart(hello=False)
        assert w.coordinator.kinds == KINDS
        job = w.submit(wide(1, require=Requirements(node="edge-1")))
        assert w.status(job, "s0") == ["pending"]
