"""`starloom plan`: a valid plan as JSON and for people, why a stage stands where it does, and what a loss would change."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from starloom.dag.document import load
from starloom.orchestrator.cli.main import main

#: what is compiled at its first use takes a while on a busy machine
pytestmark = pytest.mark.timeout(600)

CHAIN = """
api_version: starloom/v1
name: chain
stages:
  a: {kind: basic.sleep, params: {seconds: 2}, require: {tier: device}}
  b: {kind: basic.sleep, params: {seconds: 4}, after: [a]}
"""
FLEET = """
nodes:
  - {name: cam, tier: device}
  - {name: edge, tier: edge, speed: 2}
  - {name: far, tier: cloud, speed: 2}
links:
  - {between: [device, edge], latency: 100ms}
  - {between: [device, cloud], latency: 500ms}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "chain.yaml").write_text(CHAIN)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    return str(tmp_path / "chain.yaml"), str(tmp_path / "fleet.yaml")


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_each_stage_gets_a_place_and_times_that_follow_from_hints_speeds_and_links(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(capsys, files[0], "--fleet", files[1])
    assert code == 0
    placement = found["placement"]
    assert (placement["a"]["node"], placement["b"]["node"]) == ("cam", "edge")
    assert placement["b"]["start"] == pytest.approx(2.1)
    assert found["makespan"] == pytest.approx(4.1)
    assert 0 < found["lower_bound"] <= found["makespan"]
    assert found["gap"] == pytest.approx((found["makespan"] + found["penalty"]) / found["lower_bound"] - 1)
    assert found["planner_seconds"] > 0


def test_explain_tells_what_each_other_place_would_cost_and_why_one_is_excluded(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "b")
    others = {each["place"]: each["objective"] for each in found["explain"]["alternatives"]}
    assert others == {"edge": pytest.approx(4.1), "far": pytest.approx(4.5), "cam": pytest.approx(6.0)}
    _, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "a")
    assert found["explain"]["excluded"] == {"edge": "is on the edge tier", "far": "is on the cloud tier"}


def test_explain_tells_all_that_keeps_a_stage_from_a_place(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[0]).write_text(CHAIN.replace("tier: device}", "tier: device, memory: 1GiB, labels: {rack: r1}}"))
    Path(files[1]).write_text("""
nodes:
  - {name: cam, tier: device, labels: {rack: r1}}
  - {name: edge, tier: edge, memory: 512MiB}
""")
    _, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "a")
    told = "is on the edge tier; has no label rack; has 536870912 bytes of memory"
    assert found["explain"]["excluded"] == {"edge": told}


def test_explain_tells_the_way_by_which_a_stage_came_to_be_private(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[0]).write_text("""
api_version: starloom/v1
name: private
inputs: {words: {type: json, private: device}}
stages:
  a: {kind: basic.noop, in: {value: $words}}
  b: {kind: basic.noop, in: {value: a.value}}
  c: {kind: basic.noop}
""")
    _, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "b")
    assert found["explain"]["private"] == "value is private to device: words -> a"
    assert set(found["explain"]["excluded"]) == {"edge", "far"}
    _, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "c")
    assert found["explain"]["private"] == ""
    assert main(["plan", files[0], "--fleet", files[1], "--explain", "b"]) == 0
    assert "b: value is private to device: words -> a" in capsys.readouterr().out


def test_a_preference_is_kept_while_it_is_worth_its_seconds_and_explained(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, node, penalty in ((0.3, "edge", 0.3), (0.5, "far", 0.0)):
        prefer = f"prefer: {{tier: cloud, seconds: {seconds}}}, after: [a]"
        Path(files[0]).write_text(CHAIN.replace("after: [a]", prefer))
        _, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "b")
        assert found["placement"]["b"]["node"] == node
        assert found["penalty"] == pytest.approx(penalty)
    said = {each["place"]: each["disliked"] for each in found["explain"]["alternatives"]}
    against = ["is not on the cloud tier, which is preferred by 0.5 s"]
    assert said == {"far": [], "edge": against, "cam": against}
    assert main(["plan", files[0], "--fleet", files[1], "--explain", "b"]) == 0
    assert "is not on the cloud tier, which is preferred by 0.5 s" in capsys.readouterr().out


def test_losses_tell_what_would_change_without_each_node_that_is_used(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = plan(capsys, files[0], "--fleet", files[1], "--losses")
    first, second = found["losses"]
    assert (first["node"], first["stages"], first["objective"]) == ("cam", ["a"], None)
    assert "stages.a" in first["excluded"]
    assert (second["node"], second["stages"]) == ("edge", ["b"])
    assert second["objective"] == pytest.approx(4.5)


def test_a_node_whose_stages_take_no_time_is_lost_as_well(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[0]).write_text(CHAIN.replace("basic.sleep, params: {seconds: 2}", "basic.noop"))
    _, found = plan(capsys, files[0], "--fleet", files[1], "--losses")
    assert (found["losses"][0]["node"], found["losses"][0]["stages"]) == ("cam", ["a"])
    assert found["losses"][0]["objective"] is None


def test_what_takes_weeks_is_planned_and_explained_as_what_takes_seconds(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    long = CHAIN.replace("seconds: 2", "seconds: 2000000").replace("seconds: 4", "seconds: 1000000")
    Path(files[0]).write_text(long)
    code, found = plan(capsys, files[0], "--fleet", files[1])
    assert code == 0
    assert "proven" in found["method"]
    Path(files[0]).write_text(f"{long}deadline: 600h\n")
    code, found = plan(capsys, files[0], "--fleet", files[1])
    assert code == 2
    assert "all ends within 2.16e+06 s" in found["error"]["message"]
    assert "2.5e+06 s instead of 2.16e+06 s" in found["error"]["message"]


def test_a_place_where_a_stage_takes_for_ever_is_told_as_none(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[1]).write_text(FLEET.replace("tier: cloud, speed: 2", "tier: cloud, speed: 1e-300"))
    _, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "b")
    assert found["explain"]["excluded"] == {"far": "would take over PLAN_SECONDS_MAX = 1e+08 s"}


def test_people_get_a_table_a_picture_and_a_file(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plan.svg"
    assert main(["plan", files[0], "--fleet", files[1], "--picture", str(picture), "--explain", "a", "--losses"]) == 0
    said = capsys.readouterr().out
    assert "the job ends after 4.100 s" in said
    assert any(line.startswith("cam ") and "[" in line and "-a-" in line for line in said.splitlines())
    assert "edge is on the edge tier" in said
    assert picture.read_text().startswith("<svg")


def test_the_constellation_can_be_written_bound_to_its_places(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = tmp_path / "bound.yaml"
    _, found = plan(capsys, files[0], "--fleet", files[1], "--out", str(bound))
    stages = load(bound.read_bytes()).stages
    assert {name: spec.requires.node for name, spec in stages.items()} == {"a": "cam", "b": "edge"}
    assert {spec.requires.target for spec in stages.values()} == {"cpu"}
    _, again = plan(capsys, str(bound), "--fleet", files[1])
    assert again["placement"] == found["placement"]


def test_or_with_each_stage_preferring_its_place(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = tmp_path / "bound.yaml"
    _, found = plan(capsys, files[0], "--fleet", files[1], "--out", str(bound), "--soft")
    before, stages = load(Path(files[0]).read_bytes()).stages, load(bound.read_bytes()).stages
    assert {name: spec.requires for name, spec in stages.items()} == {
        name: spec.requires for name, spec in before.items()
    }
    assert {name: [said.node for said in spec.prefers.prefer] for name, spec in stages.items()} == {
        "a": ["cam"],
        "b": ["edge"],
    }
    _, again = plan(capsys, str(bound), "--fleet", files[1])
    assert again["placement"] == found["placement"]
    code, found = plan(capsys, files[0], "--fleet", files[1], "--soft")
    assert (code, [problem["place"] for problem in found["error"]["problems"]]) == (2, ["--soft"])


@pytest.mark.parametrize(
    ("name", "value"), [("--seed", "-1"), ("--seed", "9" * 30), ("--budget", "nan"), ("--budget", "-1")]
)
def test_a_seed_or_a_budget_that_is_none_is_bad_usage(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    code, found = plan(capsys, files[0], "--fleet", files[1], name, value)
    assert (code, found["error"]["type"]) == (2, "UsageError")


def test_what_cannot_be_planned_says_why(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fleet.yaml").write_text("nodes: [{name: edge, tier: edge}]\n")
    code, found = plan(capsys, files[0], "--fleet", files[1])
    assert code == 2
    assert [problem["place"] for problem in found["error"]["problems"]] == ["stages.a"]


def test_bad_arguments_are_refused_with_all_problems(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "c")
    assert code == 2
    assert "it has a, b" in found["error"]["message"]
    code, found = plan(capsys, files[0], "--fleet", files[1], "--input-bytes", "photo=2MB", "--input-bytes", "x=lots")
    assert code == 2
    assert len(found["error"]["problems"]) == 2


def test_the_example_has_a_plan_for_its_fleet(example_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(example_folder / name) for name in ("constellation.yaml", "fleet.yaml")]
    code, found = plan(capsys, files[0], "--fleet", files[1], "--input-bytes", "image=2MB")
    assert code == 0
    placement = found["placement"]
    assert placement["see"]["node"] == placement["faces"]["node"] == "camera"
    assert placement["faces"]["target"] == "npu"


@pytest.mark.parametrize("example", ["model-sizes", "replicas", "spoken-question"])
def test_what_is_proven_best_has_no_gap_and_no_job_ends_before_its_bound(
    example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).parents[2] / "examples" / example
    files = [str(folder / name) for name in ("constellation.yaml", "fleet.yaml")]
    _, found = plan(capsys, files[0], "--fleet", files[1], "--budget", "2000")
    assert found["method"].endswith("proven best")
    assert found["gap"] == 0.0
    assert found["objective_lower_bound"] == found["makespan"] + found["penalty"]
    assert found["makespan"] * 0.999 <= found["lower_bound"] <= found["makespan"]


def test_a_plan_with_what_is_disliked_is_told_beside_a_bound_of_both(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[0]).write_text(CHAIN.replace("after: [a]", "prefer: {tier: cloud, seconds: 0.3}, after: [a]"))
    _, found = plan(capsys, files[0], "--fleet", files[1])
    assert found["makespan"] == pytest.approx(4.1)
    assert found["lower_bound"] == pytest.approx(4.1)
    assert found["lower_bound"] <= found["makespan"]
    assert (found["objective_lower_bound"], found["gap"]) == (pytest.approx(4.4), 0.0)
    assert main(["plan", files[0], "--fleet", files[1]]) == 0
    said = capsys.readouterr().out
    assert (
        "ends after 4.100 s, and what is disliked counts 0.300 s: together 0.0% above a lower bound of 4.400 s" in said
    )


def test_replicas_stand_on_different_nodes_and_logs_in_different_racks(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[2] / "examples" / "replicas"
    files = [str(folder / name) for name in ("constellation.yaml", "fleet.yaml")]
    code, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "first")
    assert code == 0
    placement = found["placement"]
    assert {placement[name]["node"] for name in ("first", "second", "third")} == {"kiosk", "edge-1", "cloud"}
    racks = {"kiosk": "1", "edge-1": "1", "edge-2": "2"}
    assert {racks[placement[name]["node"]] for name in ("log_here", "log_there")} == {"1", "2"}
    assert found["explain"]["excluded"] == {"edge-2": "has driver=11.8, where >= v12.2 is required"}


PAID = """
nodes:
  - {name: cam, tier: device, watts: 2}
  - {name: edge, tier: edge, speed: 2, watts: 10, price_per_hour: 3.6}
  - {name: far, tier: cloud, speed: 4, watts: 80, price_per_hour: 36}
links:
  - {between: [device, edge], latency: 100ms}
  - {between: [device, cloud], latency: 100ms}
"""


def test_an_objective_chooses_the_place_and_what_it_takes_is_told(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "paid.yaml"
    fleet.write_text(PAID)
    takes = {
        "latency": ("far", 3.1, 84.0, 0.01),
        "energy": ("cam", 6.0, 12.0, 0.0),
        "latency,price": ("far", 3.1, 84.0, 0.01),
    }
    for said, (node, seconds, joules, price) in takes.items():
        code, found = plan(capsys, files[0], "--fleet", str(fleet), "--objective", said)
        assert code == 0
        assert found["placement"]["b"]["node"] == node
        assert [goal["by"] for goal in found["objective"]] == said.split(",")
        assert found["makespan"] == pytest.approx(seconds)
        assert (found["energy_joules"], found["price"]) == (pytest.approx(joules), pytest.approx(price))
    _, found = plan(capsys, files[0], "--fleet", str(fleet), "--objective", "energy", "--explain", "b", "--losses")
    others = {
        each["place"]: (each["objective"], each["energy_joules"], each["price"])
        for each in found["explain"]["alternatives"]
    }
    assert others["edge"] == (pytest.approx(4.1), pytest.approx(24.0), pytest.approx(0.002))
    assert list(others) == ["cam", "edge", "far"]
    assert main(["plan", files[0], "--fleet", str(fleet), "--objective", "energy", "--explain", "b"]) == 0
    said = capsys.readouterr().out
    assert "it takes 12 J and costs 0, links included; any plan takes 12 J and costs 0 at the least" in said
    assert "where any plan takes 3.100 s at the least; the best by energy; found by" in said
    assert "JOULES  PRICE" in said


def test_a_deadline_bounds_what_is_saved_and_one_that_no_plan_meets_is_refused(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "paid.yaml"
    fleet.write_text(PAID)
    document = CHAIN.replace("name: chain", "name: chain\nobjective: energy\ndeadline: 5s")
    Path(files[0]).write_text(document)
    code, found = plan(capsys, files[0], "--fleet", str(fleet))
    assert (code, found["placement"]["b"]["node"], found["deadline"]) == (0, "edge", {"seconds": 5.0, "met": True})
    Path(files[0]).write_text(document.replace("5s", "3s"))
    code, found = plan(capsys, files[0], "--fleet", str(fleet))
    assert code == 2
    assert "all ends within 3 s" in str(found["error"]["problems"])


def test_a_battery_is_not_drawn_beyond_what_it_has(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "paid.yaml"
    for joules, node in ((12, "cam"), (11, "edge")):
        fleet.write_text(PAID.replace("watts: 2}", f"watts: 2, battery_joules: {joules}}}"))
        _, found = plan(capsys, files[0], "--fleet", str(fleet), "--objective", "energy")
        assert found["placement"]["b"]["node"] == node
    fleet.write_text(PAID.replace("watts: 2}", "watts: 2, battery_joules: 3}"))
    code, found = plan(capsys, files[0], "--fleet", str(fleet))
    assert code == 2


def test_what_conflicts_is_told_of_jobs_with_inputs_and_outputs_too(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "paid.yaml"
    fleet.write_text(PAID.replace("watts: 2}", "watts: 2, battery_joules: 3}"))
    Path(files[0]).write_text(CHAIN.replace("stages:", "inputs: {x: json}\nstages:") + "outputs: {value: b.value}\n")
    code, found = plan(capsys, files[0], "--fleet", str(fleet))
    assert code == 2
    told = {problem["what"] for problem in found["error"]["problems"] if problem["place"] == "enough would be"}
    assert "cam with 4 J" in told


@pytest.mark.parametrize("deadline", ["", "deadline: 0.1s", "deadline: 60s"])
def test_each_stage_that_no_place_may_have_is_told_whatever_the_deadline(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], deadline: str
) -> None:
    """With a deadline it was told of one of them, a line for each node, or that all had to end too soon and nothing else."""
    text = CHAIN.replace("tier: device", "tier: cloud").replace("after: [a]", "after: [a], require: {tier: cloud}")
    Path(files[0]).write_text(f"{deadline}\n{text}")
    Path(files[1]).write_text(FLEET.replace("tier: cloud", "tier: edge"))
    code, found = plan(capsys, files[0], "--fleet", files[1])
    assert code == 2
    assert [problem["place"] for problem in found["error"]["problems"]] == ["stages.a", "stages.b"]


def test_what_would_be_enough_is_enough_for_the_deadline_as_well(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A battery of 4 J was told to be enough, and with it the deadline was missed wherever the job stood."""
    fleet = tmp_path / "paid.yaml"
    fleet.write_text(PAID.replace("watts: 2}", "watts: 2, battery_joules: 3}"))
    for deadline, enough in (("0.5s", set()), ("60s", {"cam with 4 J"})):
        Path(files[0]).write_text(
            f"deadline: {deadline}\n{CHAIN.replace('stages:', 'inputs: {x: json}' + chr(10) + 'stages:')}"
        )
        code, found = plan(capsys, files[0], "--fleet", str(fleet))
        assert code == 2
        told = {problem["what"] for problem in found["error"]["problems"] if problem["place"] == "enough would be"}
        assert {each for each in told if each.startswith("cam")} == enough


def test_however_little_time_there_is_what_takes_least_is_found(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "paid.yaml"
    fleet.write_text(PAID)
    for said, joules in (("energy", 12.0), ("energy,price", 12.0), ("latency=1,energy=9", 12.0)):
        code, found = plan(capsys, files[0], "--fleet", str(fleet), "--objective", said, "--budget", "0.000001")
        assert (code, found["energy_joules"]) == (0, pytest.approx(joules))


def test_an_alternative_that_misses_the_deadline_says_so(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "paid.yaml"
    fleet.write_text(PAID)
    Path(files[0]).write_text(CHAIN.replace("name: chain", "name: chain\nobjective: energy\ndeadline: 5s"))
    assert main(["plan", files[0], "--fleet", str(fleet), "--explain", "b"]) == 0
    said = capsys.readouterr().out
    assert "after the deadline of 5 s" in said
    assert said.index("the deadline of 5 s is met") < said.index("b, elsewhere")
    _, found = plan(capsys, files[0], "--fleet", str(fleet), "--explain", "b")
    # What ends in time comes first, and of that what takes least.
    assert [each["place"] for each in found["explain"]["alternatives"]] == ["edge", "far", "cam"]


def test_all_that_is_wrong_with_the_command_line_is_told(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--objective", "speed,energy+much,energy", "--soft", "--input-bytes", "none=3"]
    code, found = plan(capsys, files[0], "--fleet", files[1], *more)
    assert code == 2
    places = ["--objective[0]", "--objective[1].within", "--objective", "--input-bytes", "--soft"]
    assert [problem["place"] for problem in found["error"]["problems"]] == places


def test_a_promise_of_no_time_is_bad_usage(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, found = plan(capsys, files[0], "--fleet", files[1], "--every", "3s", "--slo", "p95=0s,p50=-0ms,p99=6s")
    assert code == 2
    assert [problem["place"] for problem in found["error"]["problems"]] == ["--slo.p95", "--slo.p50"]
    code, found = plan(capsys, files[0], "--fleet", files[1], "--every", "3s", "--slo", "p95=9s,p50=8s,p95=3s")
    assert found["error"]["problems"] == [{"place": "--slo.p95", "what": "is said twice"}]


@pytest.mark.parametrize("said", [("--every", "0"), ("--every", "0s"), ("--every", "0.0"), ("--rate", "0")])
def test_a_period_of_no_time_is_bad_usage_and_not_taken_for_none(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], said: tuple[str, str]
) -> None:
    code, found = plan(capsys, files[0], "--fleet", files[1], *said)
    assert code == 2
    assert [problem["place"] for problem in found["error"]["problems"]] == [said[0]]


def test_on_battery_the_camera_gives_no_more_than_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[2] / "examples" / "on-battery"
    files = [str(folder / name) for name in ("constellation.yaml", "fleet.yaml")]
    code, found = plan(capsys, files[0], "--fleet", files[1])
    assert code == 0
    assert found["deadline"] == {"seconds": 6.0, "met": True}
    drawn = sum(each["energy_joules"] for each in found["placement"].values() if each["node"] == "camera")
    assert drawn <= 12
    _, fast = plan(capsys, files[0], "--fleet", files[1], "--objective", "latency")
    assert found["energy_joules"] < fast["energy_joules"]
    assert found["makespan"] > fast["makespan"]


def test_a_job_that_comes_again_and_again_is_planned_for_its_period(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(capsys, files[0], "--fleet", files[1], "--every", "3s", "--slo", "p95=6s,p50=3s")
    assert code == 1
    rounds = found["rounds"]
    assert rounds["holds"]
    assert rounds["least_period"] == pytest.approx(2.0 / 0.9)
    assert {each["what"]: each["seconds"] for each in rounds["loads"]} == {"cam": 2.0, "edge": 2.0}
    (job,) = rounds["jobs"]
    assert job["p50"] <= job["p95"] <= job["p99"]
    assert {each["what"]: each["met"] for each in job["slo"]} == {"p95": True, "p50": False}
    code, found = plan(capsys, files[0], "--fleet", files[1], "--every", "2s")
    assert code == 1
    assert not found["rounds"]["holds"]
    assert found["rounds"]["why"][-1] == "enough would be: a period of 2.222 s"
    assert found["rounds"]["why"][0].startswith("conflict: ")
    assert main(["plan", files[0], "--fleet", files[1], "--objective", "period", "--explain", "b", "--losses"]) == 0
    assert "a round may come every 2.222 s: cam is busy for 2 s then, 90% of it" in capsys.readouterr().out


def test_what_is_compiled_at_its_first_use_is_no_part_of_the_time_that_is_told(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0

    def compiled() -> None:
        nonlocal seconds
        seconds += 1_000.0

    monkeypatch.setattr("starloom.orchestrator.planner.planning.warm_up", compiled)
    monkeypatch.setattr("starloom.orchestrator.planner.pacing.warm_up", compiled)
    monkeypatch.setattr("starloom.orchestrator.cli.plan.time", SimpleNamespace(perf_counter=lambda: seconds))
    _, found = plan(capsys, files[0], "--fleet", files[1], "--every", "3s")
    assert found["planner_seconds"] == 0.0
    assert seconds == 2_000.0


def test_what_else_there_is_for_a_period_is_planned_for_it_too(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[0]).write_text(CHAIN.replace("require: {tier: device}", "").replace("seconds: 4", "seconds: 2"))
    Path(files[1]).write_text("""
nodes: [{name: one, tier: edge}, {name: two, tier: edge}, {name: slow, tier: edge, speed: 0.5}]
links: [{between: [edge, edge], latency: 100ms}]
""")
    asked = (files[0], "--fleet", files[1], "--every", "2.5s", "--explain", "b", "--losses")
    code, found = plan(capsys, *asked)
    assert code == 0
    others = {each["place"]: (each["objective"], each["holds"]) for each in found["explain"]["alternatives"]}
    # Both on one node would take 4 s, and keep it busy for longer than a period.
    assert others["one"] == others["two"] == (pytest.approx(4.1), True)
    assert others["slow"][1] is False
    assert [each["holds"] for each in found["losses"]] == [False, False]
    assert main(["plan", *asked]) == 0
    assert "does not hold the period of 2.5 s" in capsys.readouterr().out


def test_jobs_that_share_nodes_are_planned_together_each_with_its_period(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "often.yaml").write_text(CHAIN.replace("name: chain", "name: often\nevery: 3s"))
    (tmp_path / "seldom.yaml").write_text(
        CHAIN.replace("name: chain", "name: seldom\nevery: 12s").replace("{tier: device}", "{tier: edge}")
    )
    both = [str(tmp_path / name) for name in ("often.yaml", "seldom.yaml")]
    code, found = plan(capsys, *both, "--fleet", files[1])
    assert code == 0
    assert [(each["name"], each["every"]) for each in found["rounds"]["jobs"]] == [("often", 3.0), ("seldom", 12.0)]
    assert set(found["placement"]) == {"often.a", "often.b", "seldom.a", "seldom.b"}
    loads = {each["what"]: each["seconds"] for each in found["rounds"]["loads"]}
    assert loads["cam"] == pytest.approx(2.0)
    # A quarter of what the other job takes comes with each round of the first.
    assert sum(loads.values()) == pytest.approx(2.0 + 2.0 + (1.0 + 2.0) / 4)
    code, found = plan(capsys, both[0], files[0], "--fleet", files[1])
    assert code == 2
    assert "does not say how often it comes" in json.dumps(found)


def test_a_stream_is_planned_for_the_rate_of_its_chunks(
    capsys: pytest.CaptureFixture[str], files: tuple[str, str]
) -> None:
    video = str(Path(__file__).parents[2] / "examples" / "video" / "constellation.yaml")
    code, found = plan(capsys, video, "--fleet", files[1], "--rate", "20")
    assert code == 0
    assert found["placement"]["watch"]["node"] in ("edge", "far")
    # A frame takes 0.08 s on the reference machine, and these are twice as fast; it is one frame after the other.
    loads = {each["what"]: each["seconds"] for each in found["rounds"]["loads"] if each["kind"] == "stage"}
    assert loads["watch"] == pytest.approx(0.04)
    code, found = plan(capsys, video, "--fleet", files[1], "--rate", "30")
    assert code == 1
    assert not found["rounds"]["holds"]
    # Frames do not fit the link to another node, so the camera's 2.5 ms are on the same slot.
    assert found["rounds"]["least_period_bound"] == pytest.approx(0.0425 / 0.9, rel=1e-4)
    assert found["rounds"]["why"][0].startswith("conflict: watch (0.04 s at the least, on cam, edge, far)")
    code, found = plan(capsys, files[0], "--fleet", files[1], "--rate", "30")
    assert code == 2
    assert "there are none" in json.dumps(found)


def test_for_a_rate_or_a_promise_of_chunks_that_is_not_kept_else_a_smaller_variant_is_taken(
    capsys: pytest.CaptureFixture[str], files: tuple[str, str]
) -> None:
    video = (Path(__file__).parents[2] / "examples" / "video" / "constellation.yaml").read_text()
    # A run of the kind takes 3 s and a frame 0.08 s, so that a frame takes 0.04 s in the small one.
    sizes = "[{name: large, quality: 0.9}, {name: small, quality: 0.6, seconds: 1500ms}]"
    varied = video.replace("    kind: vision.watch\n", f"    kind: vision.watch\n    variants: {sizes}\n")
    for text, more, variant, frame in (
        (varied, ["--rate", "20"], "large", 0.04),
        (varied, ["--rate", "30"], "small", 0.02),
        (varied, ["--rate", "2", "--slo", "p95=40ms"], "small", 0.02),
        (f"{varied}least_quality: 0.8\n", ["--rate", "30"], "large", 0.04),
    ):
        Path(files[0]).write_text(text)
        code, found = plan(capsys, files[0], "--fleet", files[1], *more)
        assert (code == 0, found["placement"]["watch"]["variant"]) == (text == varied, variant), more
        loads = {each["what"]: each["seconds"] for each in found["rounds"]["loads"] if each["kind"] == "stage"}
        assert loads["watch"] == pytest.approx(frame), more


ANSWER = """
api_version: starloom/v1
name: ask
every: 2s
slo: {first_token: 1s, token: 1ms}
inputs: {question: text}
stages:
  wait: {kind: basic.sleep, params: {seconds: 0.4}}
  answer: {kind: language.answer, in: {question: $question}, after: [wait], require: {tier: cloud}}
outputs: {answer: answer.answer}
"""


def test_an_answer_is_promised_by_its_first_token_and_each_further_one(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[0]).write_text(ANSWER)
    code, found = plan(capsys, files[0], "--fleet", files[1])
    assert code == 1
    kept = {each["what"]: each for each in found["rounds"]["jobs"][0]["slo"]}
    # It waits for 0.4 s or half as long, and 0.05 s after the run's start the answer begins; a token takes 4 ms.
    assert kept["first_token"]["met"]
    assert 0.25 < kept["first_token"]["took"] < 1.0
    assert not kept["token"]["met"]
    assert kept["token"]["took"] == pytest.approx(0.004 * 1.35, rel=0.2)
    Path(files[0]).write_text(CHAIN.replace("name: chain", "name: chain\nevery: 9s\nslo: {token: 1s}"))
    code, found = plan(capsys, files[0], "--fleet", files[1])
    assert code == 2
    assert "no kind here tells when it does" in json.dumps(found)


VARIED = """
  b:
    kind: basic.sleep
    after: [a]
    variants:
      - {name: large, quality: 0.9, params: {seconds: 4}}
      - {name: small, quality: 0.6, params: {seconds: 1}}
"""


def test_a_variant_is_chosen_with_its_place_shown_explained_and_written(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CHAIN[: CHAIN.index("  b:")].rstrip() + VARIED
    Path(files[0]).write_text(text)
    _, found = plan(capsys, files[0], "--fleet", files[1], "--explain", "b")
    b = found["placement"]["b"]
    assert (b["node"], b["variant"], b["quality"]) == ("edge", "large", 0.9)
    assert (found["makespan"], found["quality_lost"]) == (pytest.approx(4.1), pytest.approx(0.1))
    assert "variant" not in found["placement"]["a"]
    others = [(each["place"], each["objective"]) for each in found["explain"]["alternatives"][:4]]
    # Without a word of quality, what is worse comes after all that is as good.
    assert [place for place, _ in others] == ["edge as large", "far as large", "cam as large", "edge as small"]
    assert others[3][1] == pytest.approx(2.6)
    Path(files[0]).write_text(f"{text}deadline: 3s\n")
    bound = tmp_path / "bound.yaml"
    _, found = plan(capsys, files[0], "--fleet", files[1], "--out", str(bound))
    assert found["placement"]["b"]["variant"] == "small"
    assert load(bound.read_bytes()).stages["b"].variant == "small"  # type: ignore[index]
    assert main(["plan", files[0], "--fleet", files[1], "--explain", "b"]) == 0
    said = capsys.readouterr().out
    assert "small (0.6)" in said
    assert "its variants lack 0.4 of a quality of 1, added up; any plan's lack 0.1 at the least" in said
    assert any("far as large" in line and "after the deadline of 3 s" in line for line in said.splitlines())
    Path(files[0]).write_text(f"{text}deadline: 3s\nleast_quality: 0.8\n")
    code, found = plan(capsys, files[0], "--fleet", files[1])
    assert code != 0
    told = " ".join(str(problem) for problem in found["error"]["problems"])
    assert "its variant small has a quality of 0.6, under the 0.8 asked for" in told


def test_the_best_model_that_is_ready_in_time_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[2] / "examples" / "model-sizes"
    job, fleet = (str(folder / name) for name in ("constellation.yaml", "fleet.yaml"))
    code, found = plan(capsys, job, "--fleet", fleet)
    assert code == 0
    assert (found["placement"]["answer"]["node"], found["placement"]["answer"]["variant"]) == ("board", "small")
    later = tmp_path / "later.yaml"
    later.write_text(Path(job).read_text().replace("deadline: 4s", "deadline: 5s"))
    _, found = plan(capsys, str(later), "--fleet", fleet)
    assert found["placement"]["answer"]["variant"] == "middle"


def test_for_a_period_each_stage_has_the_first_variant_that_may_be_taken_and_what_is_written_keeps_the_others(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[0]).write_text(CHAIN[: CHAIN.index("  b:")].rstrip() + VARIED + "    variant: small\n")
    bound = tmp_path / "bound.yaml"
    code, found = plan(capsys, files[0], "--fleet", files[1], "--every", "3s", "--out", str(bound), "--soft")
    assert code == 0
    assert found["placement"]["b"]["variant"] == "small"
    written = load(bound.read_bytes()).stages["b"]  # type: ignore[index]
    assert (written.variant, [each.name for each in written.variants]) == ("small", ["large", "small"])
    assert {each["what"]: each["seconds"] for each in found["rounds"]["loads"]}["edge"] == 0.5


def test_for_a_period_or_a_promise_that_is_not_kept_else_a_smaller_variant_is_taken(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    head = CHAIN[: CHAIN.index("  b:")].rstrip().replace("seconds: 2", "seconds: 0.5")
    Path(files[0]).write_text(head + VARIED)
    for more, variant in (
        (["--every", "3s"], "large"),
        (["--every", "1s"], "small"),
        (["--every", "3s", "--slo", "p95=2s"], "small"),
        (["--every", "1s", "--objective", "quality"], "small"),
    ):
        code, found = plan(capsys, files[0], "--fleet", files[1], *more)
        assert (code, found["placement"]["b"]["variant"]) == (0, variant), more
        assert found["rounds"]["holds"]
    Path(files[0]).write_text(head + VARIED + "least_quality: 0.8\n")
    code, found = plan(capsys, files[0], "--fleet", files[1], "--every", "1s")
    assert (code, found["rounds"]["holds"], found["placement"]["b"]["variant"]) == (1, False, "large")


KIOSKS = """
api_version: starloom/v1
name: kiosks
stages:
  film-1: {kind: synthetic.work, params: {seconds: 1, outputs: {data: 10000000}}, require: {node: kiosk-1}}
  film-2: {kind: synthetic.work, params: {seconds: 1, outputs: {data: 10000000}}, require: {node: kiosk-2}}
  see-1: {kind: synthetic.work, params: {seconds: 1}, in: {data: film-1.data}, require: {tier: cloud}}
  see-2: {kind: synthetic.work, params: {seconds: 1}, in: {data: film-2.data}, require: {tier: cloud}}
"""
BEHIND_ONE_LINE = """
nodes:
  - {name: kiosk-1, tier: device, uplink: dsl}
  - {name: kiosk-2, tier: device, uplink: dsl}
  - {name: far, tier: cloud, slots: 2}
links:
  - {between: [device, cloud], mbit: 80, latency: 100ms}
uplinks:
  - {name: dsl, mbit: 50, up_mbit: 20}
"""


@pytest.fixture
def kiosks(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "kiosks.yaml").write_text(KIOSKS)
    (tmp_path / "fleet.yaml").write_text(BEHIND_ONE_LINE)
    return str(tmp_path / "kiosks.yaml"), str(tmp_path / "fleet.yaml")


def test_values_share_the_uplink_that_nodes_name(kiosks: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, found = plan(capsys, kiosks[0], "--fleet", kiosks[1])
    assert code == 0
    # 10 MB at 20 Mbit/s are 4 s, and both at one time 8 s.
    assert found["makespan"] == pytest.approx(1 + 8 + 0.1 + 1)
    assert found["lower_bound"] == pytest.approx(1 + 4 + 0.1 + 1)
    assert not found["method"].endswith("proven best")
    assert found["uplinks"] == [
        {"name": "dsl up", "bytes": 2e7, "seconds": pytest.approx(8.0), "stages": ["film-1", "film-2"]}
    ]
    assert main(["plan", kiosks[0], "--fleet", kiosks[1]]) == 0
    told = capsys.readouterr().out
    assert "the up-link dsl up carries 2e+07 bytes, for 8.000 s at its full rate" in told
    assert found["period"] == pytest.approx(8.0)
    assert "such jobs can follow each other every 8.000 s, which the up-link dsl up is busy for each" in told
    assert "with each value alone on its way the job would end after 6.100 s on the same places" in told
    assert "8.100" in next(line for line in told.splitlines() if line.startswith("see-1"))


def test_a_period_fills_a_shared_uplink_no_more_than_anything_else(
    kiosks: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(capsys, kiosks[0], "--fleet", kiosks[1], "--every", "9s")
    assert (code, found["rounds"]["holds"]) == (0, True)
    code, found = plan(capsys, kiosks[0], "--fleet", kiosks[1], "--every", "8.5s")
    assert (code, found["rounds"]["holds"]) == (1, False)
    assert found["rounds"]["least_period"] == pytest.approx(8 / 0.9)
    assert found["rounds"]["loads"][0]["what"] == "the up-link dsl up"
