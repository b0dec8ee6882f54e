"""Every rule of a plan: one that keeps it passes, one that breaks it is named."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from starloom.dag.errors import InvalidInput
from starloom.orchestrator.planner.check import faults, penalty
from starloom.orchestrator.planner.problem import Place, Plan, Problem, problem

PHONE, EDGE, NPU, CLOUD = range(4)
PLACES = (Place("phone"), Place("edge"), Place("edge", "npu"), Place("cloud", slots=2))
LINKS = [[0, 1, 2], [1, 0, 1], [2, 1, 0]]


def asked(stages: int, seconds: Any = 2.0, dependencies: Sequence[tuple[int, int, float]] = (), **more: Any) -> Problem:
    """`stages` stages named a, b, ... on four places of three nodes; a byte takes LINKS seconds."""
    return problem("abcdefgh"[:stages], PLACES, seconds, dependencies, seconds_per_byte=LINKS, **more)


def planned(
    what: Problem, place: Sequence[int], start: Sequence[float], loads: Sequence[int] = (), **other: Any
) -> Plan:
    """A plan whose finishes, makespan and penalty are right, but for what is given in `other`."""
    arrays, n = what.arrays, len(place)
    loading = np.isin(np.arange(n), loads)
    places, starts = np.array(place, dtype=np.int32), np.array(start, dtype=np.float64)
    finish = starts + arrays.seconds[np.arange(n), places]
    for stage in loads:
        finish[stage] += arrays.load_seconds[arrays.model[stage], places[stage]] if arrays.model[stage] >= 0 else 0.0
    plan = Plan(places, starts, finish, loading, float(finish.max(initial=0.0)), 0.0, "hand")
    return plan._replace(penalty=penalty(what, plan))._replace(**other)


def assert_named(what: Problem, plan: Plan, *words: str) -> None:
    found = faults(what, plan)
    assert len(found) == 1, found
    assert all(word in found[0] for word in words), found[0]


def test_nothing_to_plan_is_a_plan() -> None:
    what = problem([], PLACES, np.zeros((0, 4)))
    assert faults(what, planned(what, [], [])) == []


def test_a_plan_has_every_stage_and_a_place_for_each() -> None:
    what = asked(2)
    plan = planned(what, [PHONE, EDGE], [0, 0])
    assert faults(what, plan) == []
    assert_named(what, plan._replace(start=plan.start[:1]), "2 stages")
    assert_named(what, plan._replace(place=np.array([PHONE, 4], dtype=np.int32)), "b has no place")
    assert_named(what, plan._replace(place=np.array([PHONE, -1], dtype=np.int32)), "b has no place")
    assert_named(what, plan._replace(start=np.array([0, np.nan])), "no number")


def test_a_stage_runs_where_it_may_and_as_long_as_it_takes() -> None:
    what = asked(1, [[1, 2, np.inf, 4]])
    assert faults(what, planned(what, [EDGE], [0])) == []
    assert_named(what, planned(what, [NPU], [0], finish=np.array([1.0]), makespan=1.0), "a may not run on edge/npu")
    assert_named(what, planned(what, [EDGE], [0], finish=np.array([1.0]), makespan=1.0), "a takes 1.0 s, not 2.0")


def test_a_stage_waits_for_its_release_and_its_place() -> None:
    what = asked(1, release=3.0, available=[0, 5, 0, 0])
    assert faults(what, planned(what, [PHONE], [3])) == []
    assert faults(what, planned(what, [EDGE], [5])) == []
    assert_named(what, planned(what, [PHONE], [2]), "a starts at 2.0, before 3.0")
    assert_named(what, planned(what, [EDGE], [4]), "a starts at 4.0, before 5.0")


def test_what_takes_no_time_waits_for_no_place() -> None:
    what = asked(1, [[0, 0, 0, 0]], available=9.0)
    assert faults(what, planned(what, [PHONE], [0])) == []


def test_nothing_starts_in_the_past() -> None:
    what = asked(1)
    assert_named(what, planned(what, [PHONE], [-1]), "a starts at -1.0, before 0.0")


def test_what_runs_goes_on_at_once_whatever_its_place_and_release_say() -> None:
    what = asked(1, started=True, release=3.0, available=5.0)
    assert faults(what, planned(what, [PHONE], [0])) == []
    assert_named(what, planned(what, [PHONE], [3]), "a runs already")
    assert_named(what, planned(what, [PHONE], [-1]), "a starts at -1.0")


@pytest.mark.parametrize(("sink", "comes"), [(EDGE, 5.0), (CLOUD, 8.0)])
def test_a_stage_waits_for_its_inputs(sink: int, comes: float) -> None:
    what = asked(2, dependencies=[(0, 1, 3.0)])
    assert faults(what, planned(what, [PHONE, sink], [0, comes])) == []
    assert_named(what, planned(what, [PHONE, sink], [0, comes - 0.1]), "b starts at", f"input from a comes at {comes}")


def test_a_link_has_a_latency_beside_its_bytes() -> None:
    what = asked(2, dependencies=[(0, 1, 3.0)], latency=0.5)
    assert faults(what, planned(what, [PHONE, PHONE], [0, 2])) == []
    assert faults(what, planned(what, [EDGE, NPU], [0, 2])) == []
    assert faults(what, planned(what, [PHONE, EDGE], [0, 5.5])) == []
    assert_named(what, planned(what, [PHONE, EDGE], [0, 5]), "comes at 5.5")


def test_a_place_runs_as_many_as_it_has_slots() -> None:
    what = asked(3)
    assert faults(what, planned(what, [PHONE, PHONE, PHONE], [0, 4, 2])) == []
    assert faults(what, planned(what, [CLOUD, CLOUD, CLOUD], [0, 1, 2])) == []
    assert faults(what, planned(what, [EDGE, NPU, PHONE], [0, 0, 0])) == []
    assert_named(what, planned(what, [PHONE, PHONE, EDGE], [0, 1.9, 0]), "2 stages run on phone", "1 slots")
    assert_named(what, planned(what, [CLOUD, CLOUD, CLOUD], [0, 1, 1.5]), "3 stages run on cloud", "2 slots")


def test_what_takes_no_time_takes_no_slot() -> None:
    what = asked(2, [[2] * 4, [0] * 4])
    assert faults(what, planned(what, [PHONE, PHONE], [0, 1])) == []


def modelled(**more: Any) -> Problem:
    given: dict[str, Any] = {"models": ["m"], "model": [0, 0, -1], "load_seconds": 3.0, "weight_bytes": [10]} | more
    return asked(3, **given)


def test_a_model_is_loaded_before_it_is_used_on_its_node() -> None:
    what = modelled()
    assert faults(what, planned(what, [EDGE, EDGE, PHONE], [0, 5, 0], loads=[0])) == []
    assert faults(what, planned(what, [EDGE, NPU, PHONE], [0, 3, 0], loads=[0])) == []
    assert faults(what, planned(what, [EDGE, NPU, PHONE], [0, 0, 0], loads=[0, 1])) == []
    assert_named(what, planned(what, [EDGE, NPU, PHONE], [0, 2, 0], loads=[0]), "b starts on edge before m is loaded")
    assert_named(what, planned(what, [EDGE, CLOUD, PHONE], [0, 9, 0], loads=[0]), "b starts on cloud before m")


def test_loading_takes_its_time() -> None:
    what = modelled()
    plan = planned(what, [EDGE, NPU, PHONE], [0, 3, 0], loads=[0])
    short = np.array([2.0, 5.0, 2.0])
    assert_named(what, plan._replace(finish=short, makespan=5.0), "a takes 2.0 s, not 5.0")


def test_a_resident_model_and_one_that_is_in_use_need_no_load() -> None:
    what = modelled(resident=[[0, 1, 0]])
    assert faults(what, planned(what, [EDGE, NPU, PHONE], [0, 0, 0])) == []
    what = modelled(started=[True, True, False])
    assert faults(what, planned(what, [EDGE, NPU, PHONE], [0, 0, 0])) == []
    what = modelled(started=[True, False, False])
    assert_named(what, planned(what, [EDGE, NPU, PHONE], [0, 0, 0]), "b starts on edge before m is loaded")


def test_only_a_stage_that_runs_a_model_loads_one() -> None:
    what = modelled()
    assert_named(what, planned(what, [EDGE, NPU, PHONE], [0, 3, 0], loads=[0, 2]), "c loads a model", "none to load")
    what = modelled(seconds=[[0] * 4, [2] * 4, [2] * 4])
    assert_named(what, planned(what, [EDGE, NPU, PHONE], [0, 0, 0], loads=[0, 1]), "a loads a model")


def test_a_node_holds_what_runs_there_at_one_time() -> None:
    what = asked(3, working_bytes=[6, 5, 5], memory_bytes=[np.inf, 10, 10])
    assert faults(what, planned(what, [EDGE, EDGE, PHONE], [0, 2, 0])) == []
    assert faults(what, planned(what, [CLOUD, EDGE, NPU], [0, 0, 0])) == []
    assert faults(what, planned(what, [PHONE, PHONE, PHONE], [0, 2, 4])) == []
    assert_named(what, planned(what, [EDGE, NPU, PHONE], [0, 1, 0]), "edge would hold 11 bytes at 1.0, and has 10")


def test_a_node_holds_every_model_from_its_first_use_on() -> None:
    more: dict[str, Any] = {"models": ["m", "o"], "model": [0, 1, -1], "weight_bytes": [6, 5]}
    more |= {"load_seconds": 1.0, "working_bytes": [1, 1, 4]}
    roomy = modelled(memory_bytes=[10, 12, 10], **more)
    assert faults(roomy, planned(roomy, [EDGE, EDGE, PHONE], [0, 3, 0], loads=[0, 1])) == []
    tight = modelled(memory_bytes=[10, 11, 10], **more)
    assert_named(tight, planned(tight, [EDGE, EDGE, PHONE], [0, 3, 0], loads=[0, 1]), "edge would hold 12 bytes at 3.0")
    assert faults(tight, planned(tight, [EDGE, PHONE, EDGE], [0, 0, 3], loads=[0, 1])) == []


def test_a_node_where_nothing_runs_may_hold_more_than_it_has() -> None:
    what = modelled(resident=[[0, 0, 1]], memory_bytes=[20, 20, 9])
    assert faults(what, planned(what, [EDGE, NPU, PHONE], [0, 3, 0], loads=[0])) == []
    assert_named(what, planned(what, [EDGE, NPU, CLOUD], [0, 3, 0], loads=[0]), "cloud would hold 10 bytes")


def test_a_resident_model_is_held_from_the_beginning_used_or_not() -> None:
    what = modelled(resident=[[1, 0, 0]], memory_bytes=[12, 20, 20], working_bytes=[1, 1, 3])
    assert_named(what, planned(what, [EDGE, NPU, PHONE], [0, 3, 0], loads=[0]), "phone would hold 13 bytes at 0.0")
    assert faults(what, planned(what, [EDGE, NPU, EDGE], [0, 3, 5], loads=[0])) == []


def test_stages_share_a_node_or_do_not() -> None:
    what = asked(3, together=[0, 0, -1], apart=[-1, 1, 1])
    assert faults(what, planned(what, [EDGE, NPU, PHONE], [0, 0, 0])) == []
    assert_named(what, planned(what, [EDGE, PHONE, CLOUD], [0, 0, 0]), "a, b are to share a node")
    assert_named(what, planned(what, [EDGE, NPU, EDGE], [0, 0, 2]), "b, c are to stand on different nodes")


def test_a_node_gives_no_more_than_it_has() -> None:
    what = asked(2, charge=4.0, store=[7.0, 8.0, 3.0])
    assert faults(what, planned(what, [EDGE, NPU], [0, 0])) == []
    assert_named(what, planned(what, [PHONE, PHONE], [0, 2]), "phone would take 8.0 J, and has 7.0 J")
    assert_named(what, planned(what, [PHONE, CLOUD], [0, 0]), "cloud would take 4.0 J, and has 3.0 J")


def test_all_has_ended_by_the_deadline() -> None:
    what = asked(1)
    assert faults(what, planned(what, [EDGE], [1]), 3.0) == []
    assert faults(what, planned(what, [EDGE], [1]), 2.9) == ["the last stage ends at 3.0, after the deadline of 2.9"]


def test_the_sums_are_right() -> None:
    what = asked(
        2,
        dependencies=[(0, 1, 3.0)],
        penalty=[[0, 1, 2, 3], [4, 5, 6, 7]],
        byte_penalty=[[9, 1, 2], [1, 9, 1], [2, 1, 9]],
    )
    plan = planned(what, [PHONE, CLOUD], [0, 8])
    assert plan.penalty == 0 + 7 + 3 * 2
    assert plan.objective == 10 + 13
    assert faults(what, plan) == []
    assert planned(what, [EDGE, NPU], [0, 2]).penalty == 1 + 6
    assert_named(what, plan._replace(makespan=9.0), "the makespan is 9.0", "ends at 10.0")
    assert_named(what, plan._replace(penalty=12.0), "the penalty is 12.0", "13.0")


def test_every_fault_is_named_at_once() -> None:
    what = asked(3, dependencies=[(0, 1, 3.0)], apart=[0, -1, 0])
    found = faults(what, planned(what, [PHONE, EDGE, PHONE], [0, 0, 1], penalty=1.0))
    assert len(found) == 4, found


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"seconds": [[1, 2, -1, 4]]}, "seconds"),
        ({"seconds": [[1, 2, np.nan, 4]]}, "seconds"),
        ({"seconds": [[1, 2]]}, "does not fit"),
        ({"dependencies": [(0, 1, 1.0)]}, "beyond the 1"),
        ({"dependencies": [(0, 0, 1.0)]}, "cycle"),
        ({"model": [0]}, "beyond the 0"),
        ({"release": -1.0}, "release"),
    ],
)
def test_a_problem_that_says_nothing_sensible_is_refused(more: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        asked(1, **more)


def test_a_problem_with_several_faults_names_them_all() -> None:
    with pytest.raises(InvalidInput) as raised:
        problem("ab", [Place("x", slots=0)], 1.0, [(0, 1, -1.0), (1, 0, 1.0)])
    assert {trouble.place for trouble in raised.value.problems} == {"size_bytes", "places", "dependencies"}


def test_zones_of_several_nodes_are_shared_or_not() -> None:
    what = asked(2, apart=[0, 0], zone=[[4, 4, -1]])
    assert faults(what, planned(what, [PHONE, CLOUD], [0, 0])) == []
    assert_named(what, planned(what, [PHONE, EDGE], [0, 0]), "a, b are to stand in different zones")


def test_sharing_a_zone_costs_what_it_is_said_to() -> None:
    what = asked(4, apart=[0, 0, 0, 1], zone=[[4, 4, 2], [1, 1, 1]], crowding=[1.5, 9.0])
    for places, expected in (
        ([PHONE, EDGE, CLOUD, PHONE], 1.5),
        ([PHONE, EDGE, NPU, EDGE], 3.0),
        ([CLOUD, PHONE, CLOUD, EDGE], 1.5),
    ):
        plan = planned(what, places, [0, 0, 0, 2])
        assert plan.penalty == expected
        assert faults(what, plan) == []
        assert_named(what, plan._replace(penalty=0.0), f"adds up to {expected}")
