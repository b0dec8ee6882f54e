"""Stages that are spread stand apart wherever they come to stand, through losses, restarts and patches."""

from typing import Any

import pytest
from tests.orchestrator.harness import World, node
from tests.orchestrator.test_coordinator_colocate import lose
from tests.orchestrator.test_coordinator_patch import constellation
from tests.orchestrator.test_coordinator_privacy import places, three

from starloom.dag.constellation import Tier
from starloom.dag.errors import Infeasible

TWO = "stages: {one: {kind: t.work, spread: SAID}, two: {kind: t.work, spread: SAID}}"
LINE = "stages: {one: {kind: t.work, spread: g}, two: {kind: t.work, in: {x: one.value}, spread: g}}"


def racks(**of: str) -> list[Any]:
    return [node(name, labels={"rack": rack} if rack else {}) for name, rack in of.items()]


def used(w: World, job: Any) -> list[str]:
    return sorted(node for nodes in places(w, job).values() for node in nodes)


class TestPlaces:
    @pytest.mark.parametrize("delegate", [False, True])
    def test_each_is_on_a_node_of_its_own_whatever_it_prefers(self, world: Any, delegate: bool) -> None:
        w = world(*three(), delegate=delegate)
        text = "stages:\n" + "".join(
            f"  s{n}: {{kind: t.work, spread: g, prefer: {{node: b-edge, seconds: 1h}}}}\n" for n in range(3)
        )
        job = w.submit(constellation(text))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert used(w, job) == ["a-cloud", "b-edge", "z-pi"]

    @pytest.mark.parametrize("delegate", [False, True])
    def test_where_another_has_ended_is_taken_as_well(self, world: Any, delegate: bool) -> None:
        w = world(node("a"), node("b"), delegate=delegate)
        job = w.submit(constellation(LINE))
        w.finish_all()
        assert used(w, job) == ["a", "b"]

    def test_over_an_attribute_no_two_have_the_same_value(self, world: Any) -> None:
        w = world(*racks(a="1", b="1", c="2", d=""))
        job = w.submit(constellation(TWO.replace("SAID", "{group: g, over: rack}")))
        w.finish_all()
        found = used(w, job)
        assert found[0] in ("a", "b")
        assert found[1] == "c"

    def test_the_first_leaves_the_only_place_of_another(self, world: Any) -> None:
        w = world(node("a"), node("b", labels={"sensor": "lidar"}))
        text = (
            "stages: {one: {kind: t.work, spread: g, prefer: {node: b, seconds: 1h}}, "
            "two: {kind: t.work, spread: g, in: {x: one.value}, require: {labels: {sensor: lidar}}}}"
        )
        job = w.submit(constellation(text))
        w.finish_all()
        assert places(w, job) == {"one": {"a"}, "two": {"b"}}

    def test_by_weight_a_taken_place_counts_as_later(self, world: Any) -> None:
        said = "{kind: t.work, spread: {group: g, seconds: SECONDS}, prefer: {node: a, seconds: 2s}}"
        for seconds, expected in (("1s", ["a", "a"]), ("3s", ["a", "b"])):
            w = world(node("a"), node("b"))
            job = w.submit(constellation(f"stages: {{one: {said}, two: {said}}}".replace("SECONDS", seconds)))
            w.finish_all()
            assert used(w, job) == expected

    def test_by_weight_it_goes_together_rather_than_nowhere(self, world: Any) -> None:
        w = world(node("a"))
        job = w.submit(constellation(TWO.replace("SAID", "{group: g, seconds: 1h}")))
        w.finish_all()
        assert used(w, job) == ["a", "a"]

    def test_groups_of_one_name_in_two_jobs_are_two(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        jobs = [w.submit(constellation(TWO.replace("SAID", "g"))) for _ in range(2)]
        w.finish_all()
        assert [used(w, job) for job in jobs] == [["a", "b"]] * 2


class TestFaults:
    def test_the_place_of_one_that_was_lost_is_free(self, world: Any) -> None:
        w = world(node("a"), node("b"), node("c"))
        job = w.submit(constellation(TWO.replace("SAID", "g")))
        first, second = (w.where(name).name for name in ("one", "two"))
        lose(w, first)
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert places(w, job)["one"] - {first} == {"abc".replace(first, "").replace(second, "")}

    def test_without_a_node_of_its_own_it_waits_and_explain_says_so(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(LINE))
        taken = w.where("one").name
        lose(w, "ab".replace(taken, ""))
        w.finish("one")
        w.advance(1)
        assert w.active() == []
        assert w.coordinator.waits_for(job, "two") == f"a node on which no other of g is: one on {taken}"
        w.join(node("c"))
        w.finish_all()
        assert places(w, job)["two"] == {"c"}

    def test_a_restart_keeps_them_apart(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(LINE))
        w.finish("one")
        w.restart()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert used(w, job) == ["a", "b"]


class TestRefusals:
    def test_a_group_of_more_than_there_are_nodes_is_refused(self, world: Any) -> None:
        w = world(node("a"), node("b", labels={"sensor": "lidar"}))
        text = "{kind: t.work, spread: g, require: {labels: {sensor: lidar}}}"
        with pytest.raises(Infeasible) as caught:
            w.submit(constellation(f"stages: {{one: {text}, two: {text}}}"))
        assert [str(problem) for problem in caught.value.problems] == [
            "stages.one.spread: all 2 of 'g' need nodes of their own, and 1 can have none: one on b; two on b"
        ]

    def test_so_is_one_over_fewer_values_of_an_attribute(self, world: Any) -> None:
        w = world(*racks(a="1", b="1", c=""))
        with pytest.raises(
            Infeasible, match="need values of rack of their own, and 1 can have none: one on 1; two on 1"
        ):
            w.submit(constellation(TWO.replace("SAID", "{group: g, over: rack}")))

    def test_so_is_a_patch_that_would_make_one(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(LINE))
        refused = w.refused(w.patch(job, "- add: {more: {kind: t.work, spread: g, after: [two]}}"))
        assert "stages.one.spread: all 3 of 'g' need nodes of their own, and 1 can have none" in refused


class TestPatches:
    def test_a_stage_leaves_its_group(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(LINE))
        taken = w.where("one").name
        w.patched(w.patch(job, f"- move: {{stage: two, require: {{node: {taken}}}, spread: ''}}"))
        w.finish_all()
        assert places(w, job) == {"one": {taken}, "two": {taken}}

    def test_what_waits_goes_on_where_a_patch_takes_away_what_kept_it(self, world: Any) -> None:
        w = world(node("a"), node("b"))
        job = w.submit(constellation(LINE))
        lose(w, "ab".replace(w.where("one").name, ""))
        w.finish("one")
        assert w.active() == []
        w.patched(w.patch(job, "- move: {stage: two, require: {}, spread: ''}"))
        w.finish_all()
        assert w.status(job) == "succeeded"

    @pytest.mark.parametrize("kind", ["t.work", "t.ticks"])
    def test_what_waits_takes_the_place_of_one_that_is_skipped(self, world: Any, kind: str) -> None:
        """No node has more room than before, and nothing came to the fleet."""
        w = world(node("n1"), node("n2"), node("n3"), node("far", Tier.CLOUD))
        job = w.submit(
            constellation(
                f"""
stages:
  judge: {{kind: t.judge, params: {{score: 1}}, require: {{tier: cloud}}}}
  gate: {{kind: t.work, require: {{tier: cloud}}}}
  one: {{kind: t.work, spread: g, require: {{node: n1}}, in: {{x: {{from: judge.value, when: {{path: score, is: ">", value: 0}}}}}}}}
  two: {{kind: t.work, spread: g, require: {{node: n2}}}}
  late: {{kind: {kind}, spread: g, require: {{tier: edge}}, after: [gate]}}
"""
            )
        )
        w.finish("judge", "one", "two")
        lose(w, "n3")
        w.finish("gate")
        w.patched(w.patch(job, "- replace: {stage: judge, params: {score: 0}}", restart=True))
        assert w.active() == ["judge"]
        w.finish("judge")
        assert w.where("late").name == "n1"
        w.finish_all()
        assert w.status(job) == "succeeded"


class TestAttributes:
    def test_what_is_asked_of_a_node_holds_where_the_stage_runs(self, world: Any) -> None:
        w = world(node("a", labels={"driver": "12.9"}), node("b", labels={"driver": "12.10"}), node("c"))
        job = w.submit(constellation('stages: {one: {kind: t.work, require: {attributes: {driver: ">= v12.10"}}}}'))
        w.finish_all()
        assert places(w, job) == {"one": {"b"}}

    def test_where_no_node_has_it_each_is_told_of(self, world: Any) -> None:
        w = world(node("a", labels={"driver": "12.9"}), node("c"))
        with pytest.raises(Infeasible) as caught:
            w.submit(constellation('stages: {one: {kind: t.work, require: {attributes: {driver: ">= v12.10"}}}}'))
        what = "a has driver=12.9, where >= v12.10 is required; c has no attribute driver, where >= v12.10 is required"
        assert what in str(caught.value)

    def test_a_preference_weighs_it(self, world: Any) -> None:
        w = world(node("a", labels={"gpus": "1"}), node("b", labels={"gpus": "4"}))
        job = w.submit(
            constellation('stages: {one: {kind: t.work, prefer: {attributes: {gpus: ">= 2"}, seconds: 1h}}}')
        )
        w.finish_all()
        assert places(w, job) == {"one": {"b"}}
