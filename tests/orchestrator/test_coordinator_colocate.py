"""Stages that share a node do so wherever they come to stand, through losses, restarts and patches."""

from typing import Any

import pytest
from tests.orchestrator.harness import World, facts_of, node
from tests.orchestrator.test_coordinator_patch import constellation
from tests.orchestrator.test_coordinator_privacy import places, three

from starloom.dag.constellation import Tier
from starloom.dag.errors import Infeasible
from starloom.dag.facts import JobPatched

LINE = constellation(
    """
stages:
  see: {kind: t.work, colocate: cam, prefer: {node: b-edge}}
  other: {kind: t.work, prefer: {node: a-cloud}}
  read: {kind: t.work, colocate: cam, in: {x: see.value}, prefer: {node: a-cloud, seconds: 1h}}
  say: {kind: t.work, colocate: cam, in: {x: read.value, y: other.value}}
"""
)


def lose(w: World, name: str) -> None:
    w.goodbye(name)
    w.agents[name].tasks.clear()
    w.advance(5)


class TestPlaces:
    @pytest.mark.parametrize("delegate", [False, True])
    def test_the_others_follow_the_first_whatever_they_prefer(self, world: Any, delegate: bool) -> None:
        w = world(*three(), delegate=delegate)
        job = w.submit(LINE)
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert places(w, job) == {"see": {"b-edge"}, "other": {"a-cloud"}, "read": {"b-edge"}, "say": {"b-edge"}}

    def test_the_first_goes_where_all_may_run(self, world: Any) -> None:
        w = world(node("a"), node("b", labels={"sensor": "lidar"}))
        text = "stages: {one: {kind: t.work, colocate: g}, two: {kind: t.work, colocate: g, require: {labels: {sensor: lidar}}}}"
        job = w.submit(constellation(text))
        w.finish_all()
        assert places(w, job) == {"one": {"b"}, "two": {"b"}}

    def test_those_that_are_ready_at_once_share_a_node_though_it_is_full(self, world: Any) -> None:
        w = world(node("a", slots=1), node("b", slots=1))
        text = "stages:\n" + "".join(f"  s{n}: {{kind: t.work, colocate: g}}\n" for n in range(100))
        job = w.submit(constellation(text))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert set().union(*places(w, job).values()) == {"a"}

    def test_groups_of_one_name_in_two_jobs_are_two(self, world: Any) -> None:
        w = world(*three())
        text = "stages: {one: {kind: t.work, colocate: g, prefer: {node: NODE}}, two: {kind: t.work, colocate: g}}"
        jobs = {name: w.submit(constellation(text.replace("NODE", name))) for name in ("a-cloud", "z-pi")}
        w.finish_all()
        for name, job in jobs.items():
            assert places(w, job) == {"one": {name}, "two": {name}}


class TestFaults:
    def test_once_its_node_is_lost_the_group_shares_another(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(LINE)
        w.finish("see")
        assert w.where("read").name == "b-edge"
        lose(w, "b-edge")
        w.finish_all()
        assert w.status(job) == "succeeded"
        found = places(w, job)
        assert (found["read"], found["say"]) == ({"b-edge", "a-cloud"}, {"a-cloud"})

    def test_a_retry_stays_with_the_others(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(LINE)
        w.finish("see")
        w.fail("read", transient=True)
        w.advance(5)
        w.finish_all()
        assert places(w, job)["read"] == {"b-edge"}

    def test_a_restart_keeps_to_the_node(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(LINE)
        w.finish("see")
        w.restart()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert places(w, job)["say"] == {"b-edge"}

    def test_without_a_node_for_all_it_waits_and_explain_says_so(self, world: Any) -> None:
        w = world(node("a"), node("b", labels={"sensor": "lidar"}))
        text = (
            "stages: {gate: {kind: t.work, require: {node: a}}, one: {kind: t.work, after: [gate], colocate: g}, "
            "two: {kind: t.work, after: [gate], colocate: g, require: {labels: {sensor: lidar}}}}"
        )
        job = w.submit(constellation(text))
        lose(w, "b")
        w.finish("gate")
        w.advance(1)
        assert w.active() == []
        assert w.coordinator.waits_for(job, "one") == "a node that may run all of g: one, two"
        w.join(node("c", labels={"sensor": "lidar"}))
        w.finish_all()
        assert places(w, job) == {"gate": {"a"}, "one": {"c"}, "two": {"c"}}


class TestRefusals:
    APART = "stages: {one: {kind: t.work, colocate: g, require: {tier: cloud}}, two: {kind: t.work, colocate: g, require: {node: b-edge}}}"

    def test_a_group_without_a_node_for_all_is_refused(self, world: Any) -> None:
        w = world(*three())
        with pytest.raises(Infeasible) as caught:
            w.submit(constellation(self.APART))
        assert [str(problem) for problem in caught.value.problems] == [
            "stages.one.colocate: no node may run all of 'g': one on a-cloud; two on b-edge"
        ]

    def test_so_is_a_patch_that_would_make_one(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(LINE)
        refused = w.refused(
            w.patch(
                job,
                "- move: {stage: read, require: {tier: edge}}\n- move: {stage: say, require: {tier: cloud}}",
            )
        )
        assert (
            "stages.see.colocate: no node may run all of 'cam': see on a-cloud, b-edge, z-pi; read on b-edge" in refused
        )
        assert facts_of(w, JobPatched) == []


class TestPatches:
    def test_a_stage_leaves_its_group_and_joins_it(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(LINE)
        w.patched(
            w.patch(
                job,
                "- move: {stage: read, require: {}, colocate: ''}\n- add: {more: {kind: t.work, in: {x: say.value}, colocate: cam}}",
            )
        )
        w.finish_all()
        found = places(w, job)
        assert (found["read"], found["say"], found["more"]) == ({"a-cloud"}, {"b-edge"}, {"b-edge"})

    @pytest.mark.parametrize("kind", ["t.work", "t.ticks"])
    def test_what_waits_goes_on_where_a_patch_takes_away_what_kept_it(self, world: Any, kind: str) -> None:
        w = world(node("a"), node("b", labels={"sensor": "lidar"}))
        text = (
            "stages: {gate: {kind: t.work, require: {node: a}}, one: {kind: KIND, after: [gate], colocate: g}, "
            "two: {kind: t.work, after: [one], colocate: g, require: {labels: {sensor: lidar}}}}"
        )
        job = w.submit(constellation(text.replace("KIND", kind)))
        lose(w, "b")
        w.finish("gate")
        assert w.active() == []
        w.patched(w.patch(job, "- cancel_stage: two"))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert places(w, job) == {"gate": {"a"}, "one": {"a"}}


def test_stages_that_stream_share_a_node_too(world: Any) -> None:
    w = world(node("a", Tier.EDGE), node("b", labels={"sensor": "lidar"}))
    text = """
stages:
  tick: {kind: t.ticks, colocate: g}
  sum: {kind: t.sum, in: {a: tick.ticks}, colocate: g, require: {labels: {sensor: lidar}}}
"""
    job = w.submit(constellation(text))
    assert places(w, job) == {"tick": {"b"}, "sum": {"b"}}
