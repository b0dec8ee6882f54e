"""`starloom plan`: a valid plan as JSON and for people, why a stage stands where it does, and what a loss would change."""

import json
from pathlib import Path
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
