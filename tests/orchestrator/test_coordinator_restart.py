"""A coordinator that starts on the facts of another goes on where that one was."""

from typing import Any

import pytest
from tests.orchestrator.harness import KINDS, World, facts_of, learned, node

from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Policy, Requirements, Retry
from starloom.dag.errors import InvalidTransition
from starloom.dag.facts import EpochStarted, JobEnded, StagePlaced
from starloom.dag.ids import Epoch
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.fleet import AgentState


def chain(count: int = 3, kind: str = "t.work", port: str = "value") -> Constellation:
    graph = Graph("chain")
    policy = Policy(retry=Retry(times=3, first_seconds=2.0))
    stage = graph.stage("s0", kind, policy=policy)
    for index in range(1, count):
        stage = graph.stage(f"s{index}", kind, x=stage[port], policy=policy)
    graph.output("out", stage[port])
    return graph.build(KINDS)


class TestRestart:
    @pytest.mark.parametrize("stages_before", range(4))
    def test_a_job_goes_on_wherever_the_restart_came(self, world: Any, stages_before: int) -> None:
        quiet, w = world(node("edge-1")), world(node("edge-1"))
        for each in (quiet, w):
            each.submit(chain(), job="job")
        for index in range(stages_before):
            w.finish(f"s{index}")
        w.restart()
        w.finish_all()
        quiet.finish_all()
        assert w.status("job") == "succeeded"
        assert w.job("job").outputs == quiet.job("job").outputs
        assert all(stage.tries == 1 for stage in w.job("job").stages.values()), "nothing ran twice"

    def test_tokens_from_before_stay_live(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(chain())
        w.restart()
        assert w.assigned("s0").task.token.epoch == 1
        w.finish("s0")
        assert w.status(job, "s0") == ["succeeded"]
        assert w.assigned("s1").task.token.epoch == 2

    def test_agents_have_one_lease_to_come_back(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(chain())
        holder = w.where("s0")
        (other,) = [agent for agent in w.agents.values() if agent is not holder]
        holder.connected = False
        w.restart()
        assert {view.name: view.state for view in w.coordinator.fleet_view()} == {
            holder.name: AgentState.SUSPECT,
            other.name: AgentState.ONLINE,
        }
        w.advance(limits.LEASE_SECONDS - 0.1)
        assert w.stage(job, "s0").agent == holder.name
        w.advance(0.2)
        assert w.stage(job, "s0").agent == other.name

    def test_nothing_is_given_out_before_somebody_is_back(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.goodbye("edge-1")
        job = w.submit(chain())
        w.join(node("edge-1"))
        w.finish("s0")
        w.restart(hello=False)
        assert facts_of(w, StagePlaced)[-1].stage == "s1"
        w.hello(w.agents["edge-1"])
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_process_that_was_started_anew_meanwhile_is_noticed(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(chain())
        w.restart(hello=False)
        w.join(node("edge-1"))
        assert w.stage(job, "s0").deaths == 1
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_back_off_starts_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(chain())
        w.fail("s0", "busy", transient=True)
        w.restart()
        assert w.coordinator.waits_for(job, "s0") == "the next attempt, in 2.0 s, after: busy"
        w.advance(1.9)
        assert w.active() == []
        w.advance(0.2)
        assert w.active() == ["s0"]

    def test_values_held_by_a_lost_agent_are_still_known_to_be_gone(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("pair")
        a = graph.stage("a", "t.blob", require=Requirements(node="edge-1"))
        hold = graph.stage("hold", "t.work", require=Requirements(node="edge-2"))
        graph.stage("b", "t.need", data=a["data"], after=[hold], require=Requirements(node="edge-2"))
        job = w.submit(graph.build(KINDS))
        w.finish("a")
        w.join(node("edge-1"))
        w.restart()
        w.finish("hold")
        assert w.status(job, "a", "b") == ["placed", "pending"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_keys_and_ended_jobs_are_known(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(chain(), key="mine")
        w.finish_all()
        w.restart()
        assert w.coordinator.find("mine").outputs == w.job(job).outputs
        assert w.ask_submit(chain(), key="mine").existing

    def test_many_restarts_in_a_row(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(chain(5))
        for index in range(5):
            w.restart()
            w.restart(hello=False)
            w.restart()
            w.finish(f"s{index}")
        assert w.status(job) == "succeeded"
        assert [fact.epoch for fact in facts_of(w, EpochStarted)] == list(range(1, 17))
        assert len(facts_of(w, JobEnded)) == 1

    def test_bounds_and_order_hold_after_it(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("wide")
        for index in range(6):
            graph.stage(f"s{index}", "t.work")
        job = w.submit(graph.build(KINDS), max_parallel=2)
        w.restart()
        assert w.active() == ["s0", "s1"]
        w.finish("s0")
        assert w.active() == ["s1", "s2"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_what_was_learned_is_learned_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.submit(chain(1))
        w.finish("s0", run=5.0, load=1.0)
        before = learned(w.coordinator._state.planner)
        w.restart()
        assert learned(w.coordinator._state.planner) == before
        assert before["run"] == {("t.work", "edge-1", "cpu"): 5.0}


class TestPurity:
    def test_the_same_inputs_give_the_same_decisions(self, world: Any) -> None:
        def story() -> list[Decision]:
            decisions: list[Decision] = []
            w = World(node("edge-1"), node("edge-2"), node("cloud"))
            w.watch = decisions.append
            for index in range(3):
                w.submit(chain(4), job=f"j{index}", priority=index)
            w.finish_all()
            w.goodbye("cloud")
            return decisions

        assert story() == story()

    def test_time_does_not_go_back(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(chain())
        w.fail("s0", transient=True)
        w.now -= 10**12
        assert w.coordinator.waits_for(job, "s0").startswith("the next attempt, in 2.0 s")
        w.handle()
        assert w.coordinator.waits_for(job, "s0").startswith("the next attempt, in 2.0 s")

    def test_a_journal_that_does_not_fit_is_refused(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.submit(chain())
        w.finish("s0")
        coordinator = Coordinator(Epoch(9))
        facts = [fact for fact in w.facts if not isinstance(fact, StagePlaced)]
        with pytest.raises(InvalidTransition, match="StageCommitted"):
            coordinator.replay(facts)
