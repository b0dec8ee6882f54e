"""Where the coordinator's parts meet: what one of them leaves for another in the same decision, or beside it."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import FakeAgent, World, facts_of, node
from tests.orchestrator.test_coordinator_growth import FIND
from tests.orchestrator.test_coordinator_patch import constellation

from starloom.dag.errors import InvalidTransition
from starloom.dag.facts import StageCommitted, StageFailed
from starloom.dag.patch import Change
from starloom.dag.patchdoc import load_patch
from starloom.orchestrator.inputs import AgentHello, PatchJob


def lose(w: World, agent: FakeAgent) -> None:
    """An agent dies, with all that it has."""
    agent.tasks.clear()
    w.goodbye(agent.name)


class TestDeathsAndCopies:
    """A stage that was in flight at three deaths is poison, and its copy may still save it."""

    def three_deaths_and_a_copy(self, w: World) -> str:
        job = w.submit(
            constellation(
                "stages: {a: {kind: t.work, straggler: {factor: 2, after: 1s}}, b: {kind: t.work, in: {x: a.value}}}"
            )
        )
        for _ in range(2):
            lose(w, w.where("a"))
        elder = w.where("a")
        w.start("a")
        w.advance(1.5)
        lose(w, elder)
        assert (w.stage(job, "a").deaths, w.status(job, "a")) == (3, ["placed"])
        return job

    def nodes(self) -> list[Any]:
        return [node(f"edge-{index}") for index in range(1, 7)]

    def test_a_patch_takes_the_copy_without_another_death(self, world: Any) -> None:
        w = world(*self.nodes())
        job = self.three_deaths_and_a_copy(w)
        w.start("a")
        w.patched(w.patch(job, "- replace: {stage: a, params: {label: new}}", restart=True))
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_an_attempt_that_is_given_back_is_no_death(self, world: Any) -> None:
        w = world(*self.nodes())
        job = self.three_deaths_and_a_copy(w)
        request = w.patch(job, "- replace: {stage: a, params: {label: new}}")
        w.give_back()
        w.patched(request)
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_the_next_death_is_the_last(self, world: Any) -> None:
        w = world(*self.nodes())
        job = self.three_deaths_and_a_copy(w)
        lose(w, w.where("a"))
        assert w.status(job) == "failed"
        assert "in flight at the death of 4 agents" in facts_of(w, StageFailed)[-1].error.message


class TestInOneBatch:
    def test_a_result_of_what_the_next_report_takes_away(self, world: Any) -> None:
        """`find` runs again and grows differently: `find-1` ends in the same breath."""
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "aside", "find")
        w.lose_input("find-0", "find", gone=True)
        agent = w.agents["edge-1"]
        by_name = {task.stage: assign for task, assign in agent.tasks.items()}
        reports = [
            agent.result(by_name["find-1"]),
            agent.result(by_name["find"], growth=load_patch("patch:\n- add: {'@0': {kind: t.work}}")),
        ]
        w.report(agent, *reports)
        assert w.status(job) == "running", w.job(job).error
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_an_agent_that_is_to_copy_what_a_patch_removes_says_hello(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(
            constellation(
                "stages: {make: {kind: t.blob, require: {node: edge-1}, replicate: 1}, wait: {kind: t.work}, "
                "read: {kind: t.need, in: {data: make.data}, after: [wait]}}"
            )
        )
        w.finish("make")
        agent = w.agents["edge-2"]
        assert w.asked("make") == ["edge-2"]
        w.request += 1
        w.handle(
            PatchJob(
                request=w.request,
                job=job,
                patch=load_patch("patch:\n- remove: make\n- remove: read\nrestart: true"),
            ),
            AgentHello(
                agent=agent.name,
                incarnation=agent.incarnation,
                profile=agent.profile,
                kinds=agent.kinds,
                held=tuple(agent.tasks),
            ),
        )
        w.patched(w.request)
        w.finish_all()
        assert w.status(job) == "succeeded"


class TestWhole:
    def test_a_result_whose_growth_does_not_fit_is_not_taken_in_part(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "aside", "find")
        fact = facts_of(w, StageCommitted, "find")[0]
        other = world(node("edge-1"))
        other.submit(FIND)
        other.finish("see", "aside")
        state = other.job(job)
        for growth in (
            msgspec.structs.replace(fact.growth, revision=7),
            msgspec.structs.replace(
                fact.growth,
                difference=msgspec.structs.replace(
                    fact.growth.difference,
                    stages=(
                        *fact.growth.difference.stages,
                        Change(after=other.stage(job, "tell").spec),
                    ),
                ),
            ),
        ):
            with pytest.raises(InvalidTransition):
                state.apply(msgspec.structs.replace(fact, growth=growth))
            assert (other.status(job, "find"), state.revision) == (["placed"], 1)
            assert list(state.stages) == ["see", "find", "tell", "aside"]
            state.validate()
        other.finish_all()
        assert other.status(job) == "succeeded"


class TestForgotten:
    def test_jobs_that_have_ended_are_not_kept_until_their_times(self, world: Any) -> None:
        """A deadline, a back-off and a straggler's patience may lie days ahead."""
        w = world(node("edge-1"))
        policy = "deadline: 200h, straggler: {after: 200h}, retry: {times: 2, first: 200h, last: 200h}"
        wanted = constellation(f"deadline: 200h\nstages: {{a: {{kind: t.work, {policy}}}, b: {{kind: t.work}}}}")
        for index in range(1_100):
            w.submit(wanted, job=f"job-{index}")
            w.start("a")
            w.fail("a", transient=True)
            w.fail("b")
        c = w.coordinator
        for agenda in (c._clocks._looks, c._waits._times, c._stragglers._watched):
            assert len(agenda) <= 1_024

    def test_copies_of_a_job_that_was_stuck_are_forgotten(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3", labels={"rack": "left"}))
        job = w.submit(
            constellation(
                "stages: {make: {kind: t.blob, require: {node: edge-1}, replicate: 1}, "
                "read: {kind: t.need, in: {data: make.data}, require: {labels: {rack: left}}}}"
            )
        )
        w.goodbye("edge-3")
        w.finish("make")
        assert w.asked("make") == ["edge-2"]
        w.advance(400)
        assert w.status(job) == "failed"
        replicas = w.coordinator._replicas
        assert not replicas._runs
        assert not replicas._short
        assert not any(replicas._placement._coming.values())
