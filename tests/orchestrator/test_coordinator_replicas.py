"""Copies of outputs on other nodes: asked for, recorded, used where the original is lost, and replaced."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import KINDS, SECOND, World, facts_of, node

from starloom.agents.messages import Held, Release, Replicate
from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Policy, Requirements, Retry, Tier
from starloom.dag.facts import OutputsGone, OutputsHeld, StageFailed, StageReopened
from starloom.dag.ids import Attempt, FencingToken, JobId

LOST = limits.LEASE_SECONDS + limits.LOST_AFTER_SUSPECT_SECONDS


def on(name: str) -> Requirements:
    return Requirements(node=name)


def waiting(copies: int = 1, where: str = "edge-1", size: int = 1_000_000, reader: str = "") -> Constellation:
    """`make` gives a large value with copies on the node `where`; `read` reads it once `wait` has ended as well."""
    graph = Graph("waiting")
    policy = Policy(replicate=copies, retry=Retry(times=0))
    make = graph.stage("make", "t.blob", require=on(where), policy=policy, params={"size": size})
    wait = graph.stage("wait", "t.work", require=on(reader or where))
    require = on(reader) if reader else None
    graph.stage("read", "t.need", data=make["data"], after=wait, require=require, policy=Policy(retry=Retry(times=0)))
    return graph.build(KINDS)


def holders(w: World, job: JobId) -> list[str]:
    return list(w.stage(job, "make").holders)


class TestCopies:
    def test_a_commit_waits_for_no_copy(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(waiting())
        w.finish("make")
        assert w.status(job, "make") == ["succeeded"]
        assert w.asked("make") == ["edge-2"]
        assert holders(w, job) == ["edge-1"]
        w.hold()
        assert holders(w, job) == ["edge-1", "edge-2"]
        (fact,) = facts_of(w, OutputsHeld)
        assert (fact.stage, fact.agent, fact.incarnation) == ("make", "edge-2", "i2")

    def test_the_command_names_the_values_and_who_holds_them(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(waiting())
        w.finish("make")
        (command,) = [command for command in w.agents["edge-2"].log if isinstance(command, Replicate)]
        assert command.task.token == w.stage(job, "make").committed
        assert command.values == w.stage(job, "make").held
        assert [(source.agent, source.address) for source in command.sources] == [("edge-1", "edge-1:1")]

    def test_so_many_beside_the_original(self, world: Any) -> None:
        w = world(*(node(f"edge-{index}") for index in range(1, 6)))
        job = w.submit(waiting(3))
        w.finish("make")
        assert len(w.asked("make")) == 3
        w.hold()
        assert len(holders(w, job)) == 4
        assert not w.asked("make")

    @pytest.mark.parametrize("kind", ["t.work", "t.blob"])
    def test_nothing_is_asked_for_without_need(self, world: Any, kind: str) -> None:
        """Not of inline values, not of what is in the job store, and not of what nobody reads any more."""
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("inline")
        policy = Policy(replicate=1)
        stage = graph.stage("make", kind, policy=policy)
        port = "value" if kind == "t.work" else "data"
        if kind == "t.blob":
            graph.output("made", stage[port])
        graph.stage(
            "read", "t.need" if kind == "t.blob" else "t.work", data=stage[port], after=graph.stage("w", "t.work")
        )
        graph.stage("unread", "t.blob", policy=policy)
        w.submit(graph.build(KINDS))
        w.finish("make", "unread")
        assert not w.asked("make")
        assert not w.asked("unread")

    def test_a_value_is_copied_once_a_patch_gives_it_a_reader(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("unread")
        graph.stage("make", "t.blob", policy=Policy(replicate=1), require=on("edge-1"))
        graph.stage("wait", "t.work")
        job = w.submit(graph.build(KINDS))
        w.finish("make")
        assert not w.asked("make")
        w.patched(w.patch(job, "- add: {read: {kind: t.need, in: {data: make.data}, after: [wait]}}"))
        assert w.asked("make") == ["edge-2"]

    def test_a_patch_sets_the_policy_of_what_has_not_started(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("later")
        first = graph.stage("first", "t.work")
        make = graph.stage("make", "t.blob", after=first, require=on("edge-1"))
        graph.stage("read", "t.need", data=make["data"], after=graph.stage("wait", "t.work"))
        job = w.submit(graph.build(KINDS))
        w.patched(w.patch(job, "- set_policy: {stage: make, replicate: 1}"))
        w.finish("first", "make")
        assert w.asked("make") == ["edge-2"]


class TestPlaces:
    def place(self, w: World, **more: Any) -> list[str]:
        w.submit(waiting(**more))
        w.finish("make")
        return w.asked("make")

    def test_another_zone_goes_first(self, world: Any) -> None:
        labels = {"zone": "hall"}
        w = world(node("edge-1", labels=labels), node("edge-2", labels=labels), node("edge-3", labels={"zone": "roof"}))
        assert self.place(w) == ["edge-3"]

    def test_then_another_tier_but_a_device_last(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("cam", Tier.DEVICE), node("cloud-1", Tier.CLOUD))
        assert self.place(w, copies=3) == ["edge-2", "cam", "cloud-1"]
        w = world(node("edge-1"), node("edge-2"), node("cam", Tier.DEVICE), node("cloud-1", Tier.CLOUD))
        assert self.place(w) == ["cloud-1"]
        w = world(node("edge-1"), node("edge-2"), node("cam", Tier.DEVICE))
        assert self.place(w) == ["edge-2"]

    def test_two_copies_are_apart_from_each_other_as_well(self, world: Any) -> None:
        zones = {"edge-1": "a", "edge-2": "b", "edge-3": "b", "edge-4": "c"}
        w = world(*(node(name, labels={"zone": zone}) for name, zone in zones.items()))
        assert self.place(w, copies=2) == ["edge-2", "edge-4"]

    def test_who_holds_less_goes_first_and_who_is_full_gets_none(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"), node("edge-4"))
        w.agents["edge-2"].held_bytes = 5_000
        w.agents["edge-3"].held_bytes = 4_000
        w.agents["edge-4"].held_bytes = limits.AGENT_REPLICA_BYTES_MAX
        w.advance(1.0)
        assert self.place(w, copies=3) == ["edge-2", "edge-3"]
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        w.agents["edge-2"].held_bytes = 5_000
        w.advance(1.0)
        assert self.place(w) == ["edge-3"]

    def test_what_is_on_its_way_counts_as_held(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        size = limits.AGENT_REPLICA_BYTES_MAX // 2 + 1
        assert self.place(w, size=size) == ["edge-2"]
        w.submit(waiting(size=size), job="second")
        w.finish("make")
        assert len(w.agents["edge-2"].asked) == 1
        w.hold()
        w.agents["edge-2"].held_bytes = 0
        w.advance(2 * limits.REPLICATE_AGAIN_FIRST_SECONDS)
        assert len(w.agents["edge-2"].asked) == 1, "its heartbeat says that there is room again"

    def test_of_very_many_nodes_some_are_compared(self, world: Any) -> None:
        w = world(*(node(f"edge-{index:03}") for index in range(3 * limits.REPLICA_NODES_COMPARED_MAX)))
        job = w.submit(waiting(where="edge-000", copies=3))
        w.finish("make")
        assert len(w.asked("make")) == 3
        w.hold()
        assert len(holders(w, job)) == 4

    def test_one_that_comes_gets_the_copy_that_had_no_place(self, world: Any) -> None:
        w = world(node("edge-1"))
        assert self.place(w) == []
        w.join(node("edge-2"))
        assert w.asked("make") == ["edge-2"]

    def test_one_that_could_not_make_it_is_asked_again_after_the_others(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        assert self.place(w) == ["edge-2"]
        w.cannot_hold("edge-2", "make")
        assert w.asked("make") == []
        w.advance(limits.REPLICATE_AGAIN_FIRST_SECONDS + 0.1)
        assert w.asked("make") == ["edge-3"]
        w.cannot_hold("edge-3", "make")
        w.advance(limits.REPLICATE_AGAIN_LAST_SECONDS)
        assert len(w.asked("make")) == 1

    def test_waits_between_tries_grow_up_to_a_bound(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        self.place(w)
        waited = []
        for _ in range(9):
            w.cannot_hold("edge-2", "make")
            since = w.now
            while not w.asked("make"):
                w.advance(0.25)
            waited.append((w.now - since) / SECOND)
        assert waited == sorted(waited)
        assert limits.REPLICATE_AGAIN_FIRST_SECONDS <= waited[0] < 3 * limits.REPLICATE_AGAIN_FIRST_SECONDS
        assert waited[-1] <= 2 * limits.REPLICATE_AGAIN_LAST_SECONDS + 1


class TestUse:
    def test_a_lost_original_is_read_from_its_copy(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job = w.submit(waiting(reader="edge-3"))
        w.finish("make")
        w.hold()
        w.finish("wait")
        read = w.assigned("read").inputs[0]
        assert (read.ref.holder, read.address) == ("edge-1", "edge-1:1")
        assert [(other.agent, other.address) for other in read.others] == [("edge-2", "edge-2:1")]
        w.lose_input("read", "make", gone=False)
        w.goodbye("edge-1")
        w.advance(limits.UNREACHABLE_LAST_SECONDS)
        read = w.assigned("read").inputs[0]
        assert (read.ref.holder, read.address) == ("edge-2", "edge-2:1")
        w.finish("read")
        assert w.status(job) == "succeeded"
        assert not facts_of(w, StageReopened)
        assert not facts_of(w, StageFailed)
        assert w.stage(job, "make").tries == 1

    def test_before_the_copy_is_recorded_a_loss_means_that_it_is_made_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(waiting())
        w.finish("make", "wait")
        w.goodbye("edge-1")
        (fact,) = facts_of(w, StageReopened)
        assert (fact.stage, fact.lost) == ("make", True)
        w.hold()
        assert not facts_of(w, OutputsHeld), "it is of a result that no longer counts"
        w.join(node("edge-1"))
        w.finish("make")
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_where_a_copy_is_nothing_has_to_move(self, world: Any) -> None:
        w = world(node("edge-1", slots=1), node("edge-2", slots=1))
        graph = Graph("locality")
        policy = Policy(replicate=1)
        make = graph.stage("make", "t.blob", require=on("edge-1"), policy=policy, params={"size": 500_000_000})
        wait = graph.stage("wait", "t.work", require=on("edge-1"))
        graph.stage("busy", "t.work", require=on("edge-1"), after=make)
        graph.stage("read", "t.need", data=make["data"], after=wait)
        w.submit(graph.build(KINDS))
        w.finish("make")
        w.hold()
        w.finish("wait")
        read = w.assigned("read").inputs[0]
        assert w.where("read").name == "edge-2"
        assert read.ref.holder == "edge-2"
        assert [other.agent for other in read.others] == ["edge-1"], "for the case that edge-2 lacks its copy"

    def test_a_silent_holder_is_not_waited_for_where_there_is_a_copy(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        w.submit(waiting(reader="edge-3"))
        w.finish("make")
        w.hold()
        w.silence("edge-1")
        w.advance(limits.LEASE_SECONDS + 0.3)
        w.finish("wait")
        read = w.assigned("read").inputs[0]
        assert read.ref.holder == "edge-2"
        assert [other.agent for other in read.others] == ["edge-1"]

    def test_all_holders_silent_are_waited_for_and_then_it_is_made_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job = w.submit(waiting(reader="edge-3"))
        w.finish("make")
        w.hold()
        w.silence("edge-1")
        w.silence("edge-2")
        w.advance(limits.LEASE_SECONDS + 0.3)
        w.finish("wait")
        assert "which hold inputs" in w.coordinator.waits_for(job, "read")
        w.advance(LOST)
        assert [fact.lost for fact in facts_of(w, StageReopened)] == [True]

    def test_a_holder_without_the_value_is_no_longer_asked(self, world: Any) -> None:
        """The original lost it, though its process lives; its copy counts, and another one is made."""
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job = w.submit(waiting(reader="edge-3"))
        w.finish("make", "wait")
        w.hold()
        w.lose_input("read", "make", gone=True, missing=["edge-1"])
        assert [fact.agent for fact in facts_of(w, OutputsGone)] == ["edge-1"]
        assert holders(w, job) == ["edge-2"]
        assert w.assigned("read").inputs[0].ref.holder == "edge-2"
        assert w.asked("make") == ["edge-1"]
        w.finish("read")
        assert w.status(job) == "succeeded"
        assert not facts_of(w, StageReopened)
        assert w.stage(job, "read").failures == 0

    def test_a_value_that_no_holder_has_is_made_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job = w.submit(waiting(reader="edge-3"))
        w.finish("make")
        w.hold()
        w.finish("wait")
        w.lose_input("read", "make", gone=True, missing=["edge-1", "edge-2"])
        (fact,) = facts_of(w, StageReopened)
        assert (fact.stage, fact.lost) == ("make", True)
        w.finish("make", "read")
        assert w.status(job) == "succeeded"

    def test_a_source_without_the_value_is_no_holder(self, world: Any) -> None:
        """Whoever is to make a copy tells of it as well."""
        w = world(*(node(f"edge-{index}") for index in range(1, 5)))
        job = w.submit(waiting(2))
        w.finish("make")
        first, second = w.asked("make")
        (task,) = w.agents[first].asked
        w.agents[first].asked.clear()
        w.report(w.agents[first], Held(task=task))
        w.cannot_hold(second, "make", "edge-1")
        assert holders(w, job) == [first]
        assert len(w.asked("make")) == 0
        w.advance(1.0)
        assert len(w.asked("make")) == 2


class TestLosses:
    def test_a_copy_that_is_lost_is_made_again_elsewhere(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job = w.submit(waiting())
        w.finish("make")
        w.hold()
        w.goodbye("edge-2")
        assert w.asked("make") == ["edge-3"]
        w.hold()
        assert [member.name for member in w.coordinator._state.fleet.having(w.stage(job, "make").holders)] == [
            "edge-1",
            "edge-3",
        ]

    def test_a_lost_original_is_replaced_from_its_copy(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        w.submit(waiting())
        w.finish("make")
        w.hold()
        w.goodbye("edge-1")
        (command,) = w.agents["edge-3"].asked.values()
        assert [source.agent for source in command.sources] == ["edge-2"]

    def test_a_copy_that_was_being_made_is_asked_of_another(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        w.submit(waiting())
        w.finish("make")
        assert w.asked("make") == ["edge-2"]
        w.goodbye("edge-2")
        assert w.asked("make") == ["edge-2", "edge-3"]

    def test_what_no_reader_needs_any_more_is_not_replaced(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        graph = Graph("read")
        make = graph.stage("make", "t.blob", policy=Policy(replicate=1), require=on("edge-1"))
        read = graph.stage("read", "t.need", data=make["data"], require=on("edge-1"))
        graph.stage("last", "t.work", x=read["value"], require=on("edge-3"))
        w.submit(graph.build(KINDS))
        w.finish("make")
        w.hold()
        w.finish("read")
        w.goodbye("edge-2")
        assert w.asked("make") == []

    def test_a_reader_that_runs_again_needs_it_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"), node("edge-4"))
        graph = Graph("read")
        make = graph.stage("make", "t.blob", policy=Policy(replicate=1), require=on("edge-1"))
        read = graph.stage("read", "t.blob", x=make["data"], require=on("edge-4"))
        wait = graph.stage("wait", "t.work", require=on("edge-3"))
        graph.stage("last", "t.need", data=read["data"], require=on("edge-3"), after=wait)
        w.submit(graph.build(KINDS))
        w.finish("make")
        w.hold()
        w.finish("read")
        w.goodbye("edge-2")
        w.goodbye("edge-4")
        assert w.asked("make") == []
        w.finish("wait")
        assert [fact.stage for fact in facts_of(w, StageReopened)] == ["read"]
        assert w.asked("make") == ["edge-3"]

    def test_an_agent_that_comes_back_with_what_it_held_is_a_holder_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(waiting(reader="edge-2"))
        w.finish("make")
        w.hold()
        w.silence("edge-1")
        w.silence("edge-2")
        w.advance(LOST + 0.5)
        w.hello(w.agents["edge-2"])
        w.hello(w.agents["edge-1"])
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert w.stage(job, "make").tries == 1

    def test_a_new_process_of_the_name_holds_nothing(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(waiting())
        w.finish("make")
        w.hold()
        w.join(node("edge-2"))
        assert w.asked("make") == ["edge-2"]
        w.hold()
        assert w.stage(job, "make").holders == {"edge-1": "i1", "edge-2": "i3"}


class TestSessions:
    def test_what_was_asked_for_in_a_lost_session_is_asked_for_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job = w.submit(waiting())
        w.agents["edge-2"].connected = False
        w.finish("make")
        assert w.asked("make") == []
        w.hello(w.agents["edge-2"])
        assert w.asked("make") == ["edge-2"]
        w.hold()
        assert holders(w, job) == ["edge-1", "edge-2"]

    def test_copies_are_known_after_a_restart(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job = w.submit(waiting(reader="edge-3"))
        w.finish("make")
        w.hold()
        w.restart()
        assert holders(w, job) == ["edge-1", "edge-2"]
        w.goodbye("edge-1")
        w.finish("wait")
        assert w.assigned("read").inputs[0].ref.holder == "edge-2"

    def test_a_process_that_is_new_after_a_restart_has_no_copy(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        w.submit(waiting(reader="edge-3"))
        w.finish("make")
        w.hold()
        w.restart(hello=False)
        w.join(node("edge-2"))
        w.hello(w.agents["edge-1"])
        w.hello(w.agents["edge-3"])
        assert len(w.asked("make")) == 1

    def test_a_copy_that_was_made_while_the_orchestrator_was_away_counts(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(waiting())
        w.finish("make")
        w.restart()
        w.hold()
        assert holders(w, job) == ["edge-1", "edge-2"]

    def test_what_was_asked_for_before_a_restart_and_got_lost_is_asked_for_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.submit(waiting())
        w.finish("make")
        w.agents["edge-2"].asked.clear()
        w.restart()
        assert w.asked("make") == ["edge-2"]

    def test_a_report_may_come_twice_and_counts_once(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.submit(waiting())
        w.finish("make")
        task = next(iter(w.agents["edge-2"].asked))
        w.hold()
        w.report(w.agents["edge-2"], Held(task=task))
        assert len(facts_of(w, OutputsHeld)) == 1
        assert w.coordinator.stale_refused == 0

    def test_a_copy_of_what_never_counted_changes_nothing(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(waiting())
        w.finish("make")
        task = next(iter(w.agents["edge-2"].asked))
        stale = msgspec.structs.replace(task, token=FencingToken(task.token.epoch, Attempt(99)))
        other = msgspec.structs.replace(task, stage="nobody")
        w.report(w.agents["edge-2"], Held(task=stale), Held(task=other))
        assert holders(w, job) == ["edge-1"]


class TestRelease:
    def test_copies_are_released_with_the_job(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        w.submit(waiting(reader="edge-1"))
        w.finish("make")
        w.hold()
        w.finish_all()
        assert w.agents["edge-2"].log[-1] == Release(job=JobId("job-1"))
        assert not w.agents["edge-2"].held
        assert w.agents["edge-3"].log == []

    def test_one_that_is_still_being_made_is_released_as_well(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.submit(waiting(reader="edge-1"))
        w.finish("make")
        task = next(iter(w.agents["edge-2"].asked))
        w.finish_all()
        assert w.agents["edge-2"].log[-1] == Release(job=JobId("job-1"))
        w.report(w.agents["edge-2"], Held(task=task))
        assert w.agents["edge-2"].log[-2:] == [Release(job=JobId("job-1"))] * 2, "the report crossed with the release"

    def test_a_cancelled_job_asks_for_no_more(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job = w.submit(waiting())
        w.finish("make")
        w.cancel(job)
        w.goodbye("edge-2")
        assert "edge-3" not in w.asked("make")
        w.acknowledge_cancels()
        assert w.status(job) == "cancelled"

    def test_what_an_agent_got_before_a_restart_is_released_though_no_fact_says_so(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(waiting(reader="edge-1"))
        w.finish("make")
        agent = w.agents["edge-2"]
        agent.held |= {(job, ref.digest) for command in agent.asked.values() for ref in command.values}
        agent.asked.clear()
        w.restart()
        agent.asked.clear()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert not agent.held
