"""The instances, the best plans known, the peers beside schedulers in plain loops, and the report of the placement benchmark."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tests.bench.schedulers import SCHEDULERS, among

from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput
from starloom.orchestrator.bench import placement
from starloom.orchestrator.bench.placement import Measured, PlanRow, Shot, Timed
from starloom.orchestrator.bench.placing import best, instances, judging, losses, periods, proofs, traces
from starloom.orchestrator.bench.placing.best import Best
from starloom.orchestrator.bench.placing.draws import Draws
from starloom.orchestrator.bench.placing.instances import Instance, Spec, digest, instance
from starloom.orchestrator.bench.placing.jobs import SHAPES, STAGES_MIN, job
from starloom.orchestrator.bench.placing.networks import NETWORKS, network
from starloom.orchestrator.bench.placing.peers import PEERS, plans
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.planning import Budget
from starloom.orchestrator.planner.planning import plan as find
from starloom.orchestrator.planner.problem import Place, problem

TRACES = traces.folder()
SAME = 1e-9
ORACLE = ["layered", "fork", "tree", "montage", "epigenomics", "seismology", "blast", "cameras"]


def test_draws_are_the_same_for_ever() -> None:
    draws = Draws(1, 2, 3)
    assert draws.uniform(0.0, 1.0, 3).tolist() == [0.6704722626516632, 0.1110146366693816, 0.5115090823948739]
    assert draws.heavy(2).tolist() == [0.7510923310019109, 1.5212484587000834]
    assert [draws.below(10) for _ in range(6)] == [4, 7, 3, 0, 3, 1]
    assert draws.some(range(100), 4) == [19, 21, 23, 66]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stages", [STAGES_MIN, 13, 14, 15, 16, 17, 31, 100, 257])
def test_a_job_has_as_many_stages_as_it_is_to_have_and_hangs_together(shape: str, stages: int) -> None:
    made = job(shape, stages, Draws(stages))
    assert len(made.work) == stages
    assert len(made.edges) == len(set(made.edges)) == len(made.size)
    assert all(0 <= up < down < stages for up, down in made.edges)
    assert len({end for edge in made.edges for end in edge}) > stages * 3 / 4
    assert (made.work > 0).all()
    assert (made.size > 0).all()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("nodes", [3, 4, 12, 100])
def test_a_network_has_its_nodes_and_links(kind: str, nodes: int) -> None:
    made = network(kind, nodes, Draws(nodes))
    assert len(dict.fromkeys(place.node for place in made.places)) == nodes
    assert made.per_byte.shape == made.latency.shape == (nodes, nodes)
    assert ((made.per_byte > 0) == ~np.eye(nodes, dtype=bool)).all()
    assert not made.tiers or set(made.tiers) == set(Tier)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 5.0])
def test_transfers_take_their_ratio_of_what_stages_take(ratio: float) -> None:
    arrays = instance(Spec("layered", "uneven", 400, 20, ratio)).problem.arrays
    links = arrays.seconds_per_byte[arrays.seconds_per_byte > 0]
    assert arrays.size_bytes.mean() * links.mean() / arrays.seconds.mean() == pytest.approx(ratio, rel=0.1)


def test_requirements_are_of_all_kinds_and_private_data_stays_below_the_clouds() -> None:
    made = instance(Spec("cameras", "tiered", 100, 12, 1.0, constrained=True))
    arrays = made.problem.arrays
    allowed = np.isfinite(arrays.seconds)
    assert (allowed.sum(axis=1) == 1).any()
    assert (allowed.sum(axis=1) > 1).any()
    assert np.isfinite(arrays.memory_bytes).any()
    assert (arrays.model >= 0).any()
    assert (arrays.together >= 0).any()
    assert (arrays.apart >= 0).any()
    cloud = np.array([tier is Tier.CLOUD for tier in made.tiers])[arrays.node]
    assert (allowed.any(axis=1) & ~allowed[:, cloud].any(axis=1) & (allowed.sum(axis=1) > 1)).any()


def test_sets_have_the_sizes_that_they_say() -> None:
    sizes = {size: instances.specs(size) for size in ("small", "100", "1000", "10000")}
    assert {size: {spec.stages for spec in specs} for size, specs in sizes.items()} == {
        "small": {13},
        "100": {100},
        "1000": {1_000},
        "10000": {10_000},
    }
    every = list(instances.every())
    assert len({spec.name for spec in every}) == len(every) == sum(map(len, sizes.values()))
    assert {spec.ratio for spec in every} >= {0.1, 5.0}
    assert min(spec.nodes for spec in every) <= 4
    assert max(spec.nodes for spec in every) == 500


def test_instances_are_those_of_the_best_plans_known() -> None:
    known = best.load().known
    names = {spec.name for spec in instances.every()}
    assert {each.name for each in known.values()} >= names
    for spec in instances.every():
        if spec.stages <= 1_000:
            assert known[digest(instance(spec).problem)].name == spec.name


@pytest.mark.parametrize("spec", [spec for spec in instances.every() if spec.stages <= 100], ids=lambda spec: spec.name)
def test_a_best_plan_known_is_valid_and_as_good_as_it_says(spec: Spec) -> None:
    made, known = instance(spec), best.load()
    plan = known.plan(made)
    assert plan is not None
    assert faults(made.problem, plan) == []
    assert plan.objective == pytest.approx(known.known[digest(made.problem)].objective, rel=SAME)


@pytest.mark.slow
def test_the_best_plans_known_of_large_jobs_are_valid() -> None:
    for spec in (*instances.specs("1000")[:4], instances.specs("10000")[0]):
        assert best.load().plan(instance(spec)) is not None


@pytest.mark.skipif(not TRACES.is_dir(), reason="the executions are not beside the project")
def test_the_executions_are_planned_as_well() -> None:
    known = best.load()
    found = list(traces.instances(TRACES))
    assert len(found) == 16
    assert all(known.plan(made) is not None for made in found)


def test_without_executions_there_are_none(tmp_path: Path) -> None:
    assert list(traces.instances(tmp_path / "nowhere")) == []


def test_a_digest_is_of_the_numbers_and_not_of_the_names() -> None:
    one = problem(["a", "b"], [Place("x"), Place("y")], [[1.0, 2.0], [3.0, 4.0]], [(0, 1, 5.0)])
    other = problem(["c", "d"], [Place("u"), Place("v")], [[1.0, 2.0], [3.0, 4.0]], [(0, 1, 5.0)])
    third = problem(["a", "b"], [Place("x"), Place("y")], [[1.0, 2.0], [3.0, 4.0 + 1e-15]], [(0, 1, 5.0)])
    limited = one._replace(arrays=one.arrays._replace(memory_bytes=np.array([1.0, np.inf])))
    assert digest(one) == digest(other)
    assert len({digest(each) for each in (one, third, limited)}) == 3


@pytest.mark.parametrize("constrained", [False, True])
def test_plans_are_the_same_once_they_are_unpacked(constrained: bool, tmp_path: Path) -> None:
    made = instance(Spec("montage", "tiered", 60, 9, 1.0, constrained))
    kept = Best({})
    found = [plan for _, plan in plans(made) if plan is not None]
    assert found
    for plan in found:
        kept.offer(made, plan)
    best.save(kept, tmp_path / "best.json")
    again = best.load(tmp_path / "best.json").plan(made)
    assert again is not None
    assert again.objective <= min(plan.objective for plan in found) * (1 + SAME)
    assert faults(made.problem, again) == []


def test_only_a_better_plan_is_kept_and_a_spoilt_one_is_noticed() -> None:
    made = instance(Spec("tree", "uneven", 30, 4, 1.0))
    found = {name: plan for name, plan in plans(made) if plan is not None}
    kept = Best({})
    assert kept.offer(made, found["random"])
    assert kept.offer(made, found["heft"])
    assert not kept.offer(made, found["random"])
    assert not kept.offer(made, found["heft"], proven=True)
    [(key, known)] = kept.known.items()
    assert known.proven
    with pytest.raises(InvalidInput, match="objective"):
        Best({key: known._replace(objective=known.objective * 0.9)}).plan(made)
    with pytest.raises(InvalidInput, match=r"may not run|objective|starts"):
        Best({key: kept.known[key]._replace(packed=best.pack(made.problem, found["random"]))}).plan(made)


@pytest.mark.parametrize("shape", ORACLE)
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("ratio", [0.3, 5.0])
def test_the_compiled_peers_plan_as_plain_loops_do(shape: str, kind: str, ratio: float) -> None:
    made = instance(Spec(shape, kind, 30, 8, ratio))
    compiled = dict(plans(made))
    for name, scheduler in SCHEDULERS.items():
        plain, found = scheduler(made.problem), compiled[name]
        assert faults(made.problem, plain) == []
        assert found is not None
        assert found.makespan == pytest.approx(plain.makespan, rel=SAME), name


@pytest.mark.parametrize("shape", ORACLE)
def test_the_compiled_peers_of_tiers_plan_as_plain_loops_do(shape: str) -> None:
    made = instance(Spec(shape, "tiered", 30, 8, 1.0))
    compiled = dict(plans(made))
    for tier in Tier:
        here = [index for index, node in enumerate(made.problem.arrays.node) if made.tiers[node] is tier]
        found = compiled[f"all-{tier.value}"]
        assert found is not None
        assert found.makespan == pytest.approx(among(made.problem, here, "").makespan, rel=SAME)
        assert set(found.place.tolist()) <= set(here)


def test_the_two_hefts_differ_in_who_comes_first_of_equals() -> None:
    twins = problem(["a", "b"], [Place("x"), Place("y")], np.ones((2, 2)), [])
    made = Instance("twins", twins, ())
    compiled = dict(plans(made))
    for name, places in (("heft", [0, 1]), ("heft-last", [0, 1])):
        found = compiled[name]
        assert found is not None
        assert found.place.tolist() == SCHEDULERS[name](twins).place.tolist() == places


@pytest.mark.parametrize("size", ["small", "100"])
def test_every_peers_plan_is_valid_or_a_dead_end_under_requirements(size: str) -> None:
    for spec in instances.specs(size)[:: 1 if size == "small" else 5]:
        made = instance(spec)
        found = dict(plans(made))
        assert set(found) == {name for name in PEERS if made.tiers or not name.startswith("all-")}
        for plan in found.values():
            assert plan is not None or spec.constrained
            assert plan is None or faults(made.problem, plan) == []


def measured(name: str, ours: dict[str, list[Shot]], peers: dict[str, float], known: float = 2.0) -> Measured:
    return Measured(name, known, True, ours, peers)


def test_rows_have_their_names_and_figures_by_hand() -> None:
    found = placement.rows(
        [
            measured("a", {"1000": [Shot(2.0, 0.1), Shot(3.0, 0.3)]}, {"heft": 4.0, "peft": 2.0}),
            measured("b", {"1000": [Shot(4.0, 0.2), Shot(math.inf, 9.0)]}, {"heft": 6.0}),
        ]
    )
    assert [(row.what, row.peer_name) for row in found] == [("1000", "best-known"), ("1000", "heft"), ("1000", "peft")]
    ours, heft, peft = found
    assert isinstance(ours, PlanRow)
    assert (ours.mean, ours.p95, ours.worst, ours.n) == (1.5, 2.0, 2.0, 3)
    assert (ours.planner_ms, ours.planner_worst_ms) == (200.0, 300.0)
    assert not isinstance(heft, PlanRow)
    assert [heft.ours, heft.peer, heft.ratio] == pytest.approx([1.5, 2.5, 2.5 / 1.5])
    assert [peft.ours, peft.peer, peft.ratio] == pytest.approx([1.25, 1.0, 0.8])


def test_a_plan_worse_than_the_best_classic_is_told() -> None:
    better = measured("better", {"1000": [Shot(4.0, 0.1)]}, {"heft": 4.0, "peft": 5.0, "all-cloud": 3.0})
    worse = measured("worse", {"1000": [Shot(4.0, 0.1), Shot(4.5, 0.1)]}, {"heft": 4.0})
    assert placement.worse_than_classics([better, worse]) == ["worse"]


def test_all_rows_come_of_a_run_with_one_row_each_beside_the_best_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = {
        size: [Spec("layered", "tiered", 20, 6, 1.0), Spec("fork", "uneven", 20, 4, 5.0)]
        for size in ("100", "1000", "10000", "small")
    }
    monkeypatch.setattr(instances, "specs", few.__getitem__)
    monkeypatch.setattr(
        placement, "ROWS", {name: Timed(each.size, 0.01, each.seldom) for name, each in placement.ROWS.items()}
    )
    monkeypatch.setattr(placement, "CHECKS", ())
    path = tmp_path / "best.json"
    command = ["bench", "placement", "--json", "--repeat", "1", "--traces", str(tmp_path), "--best", str(path)]
    assert main([*command, "--write-best"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = ["100-at-10ms", "100-at-100ms", "1000", "10000"]
    own = [row for row in told["rows"] if "mean" in row]
    assert [row["what"] for row in own] == names
    for row in own:
        assert 1.0 <= row["mean"] <= row["p95"] <= row["worst"]
        assert row["planner_ms"] > 0
    assert {row["peer_name"] for row in told["rows"]} == {"best-known", *PEERS}
    assert {"what", "ours", "peer", "peer_name", "ratio", "unit"} <= told["rows"][1].keys()
    assert told["figures"]["worse_than_a_classic"] == told["figures"]["unplanned"] == []
    assert len(json.loads(path.read_text())) == 2
    assert {each["known"] for each in told["figures"]["instances"]} <= {True, False}
    assert main([*command, "--rows", "1000"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in again["rows"] if "mean" in row] == ["1000"]
    assert all(each["known"] for each in again["figures"]["instances"])


def test_proofs_losses_and_random_cases_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {
        "small": [Spec("fork", "tiered", 10, 4, 1.0, constrained=True), Spec("fork", "uneven", 10, 4, 5.0)],
        "100": [Spec("layered", "tiered", 20, 6, 1.0)],
    }
    monkeypatch.setattr(instances, "specs", few.__getitem__)
    monkeypatch.setattr(losses, "LONG_SECONDS", 0.1)
    monkeypatch.setattr(proofs, "DRAWN", 2)
    monkeypatch.setattr(judging, "CASES", 4)
    monkeypatch.setattr(periods, "CASES", 2)
    assert main(["bench", "placement", "--json", "--repeat", "1", "--rows", "proofs,loss,random,periods"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == []
    checks = told["figures"]["checks"]
    assert {kind: figures["plans"] for kind, figures in checks["proofs"].items()} == {
        "constrained": 1,
        "free": 1,
        "drawn": 2,
    }
    assert checks["loss"]["renewed"] + len(checks["loss"]["hopeless"]) == 1
    for name, cases in (("random", 4), ("periods", 2)):
        assert checks[name]["planned"] + checks[name]["explained"] == checks[name]["cases"] == cases


def test_the_busiest_node_is_the_one_that_works_longest() -> None:
    asked = problem(["a", "b", "c"], [Place("x"), Place("y"), Place("y", "npu")], [[4, 9, 9], [9, 3, 9], [9, 9, 3]])
    assert losses.busiest(asked, find(asked, Budget(10))) == "y"


@pytest.mark.parametrize("wrong", [{"rows": "1000,20"}, {"scale": 0.0}, {"scale": 1.5}])
def test_rows_and_scales_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    given = {"rows": "", "scale": 1.0, "repeat": 1, "traces": None, "best": None, "write_best": False} | wrong
    with pytest.raises(InvalidInput):
        placement.run(argparse.Namespace(**given), lambda _: None)
