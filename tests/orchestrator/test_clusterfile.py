"""Cluster files: what they describe, and every problem of a bad one."""

from pathlib import Path

import pytest

from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput
from starloom.devices.links import SharedUplink
from starloom.orchestrator.cli.views import uplink_row
from starloom.orchestrator.clusterfile import DEFAULT, ClusterSpec, NodeSpec, parse, read_file, read_node


def problems(text: str) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        parse(text.encode())
    return {problem.place: problem.what for problem in caught.value.problems}


def test_a_file_gives_its_nodes(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "nodes:\n"
        "  - {name: cam, tier: device, targets: [cpu, npu], labels: {sensor: camera}, slots: 2}\n"
        "  - {name: far.away, tier: cloud, targets: cpu}\n"
    )
    assert read_file(path) == ClusterSpec(
        nodes=(
            NodeSpec(name="cam", tier=Tier.DEVICE, targets=("cpu", "npu"), labels={"sensor": "camera"}, slots=2),
            NodeSpec(name="far.away", tier=Tier.CLOUD),
        )
    )


def test_the_default_has_five_nodes_on_three_tiers() -> None:
    assert len({node.name for node in DEFAULT.nodes}) == 5
    assert {node.tier for node in DEFAULT.nodes} == set(Tier)
    assert {target for node in DEFAULT.nodes for target in node.targets} == {"cpu", "npu"}


def test_all_problems_are_reported_with_their_place() -> None:
    found = problems(
        "nodes:\n"
        "  - {name: a, tier: devise, targets: [cpu, npuu], slots: -1}\n"
        "  - {name: a, tier: edge, labels: {rack: 7}, colour: red}\n"
        "  - {name: -x, tier: edge, targets: 3}\n"
        "  - {tier: cloud, labels: [x]}\n"
        "  - just text\n"
        "  - {name: orchestrator, tier: edge}\n"
        "size: 3\n"
    )
    assert found["nodes.0.tier"] == "is 'devise'; give one of device, edge, cloud"
    assert found["nodes.0.targets"] == "there is no target 'npuu'; did you mean 'npu'?"
    assert "-1" in found["nodes.0.slots"]
    assert "write it as text, '7'" in found["nodes.1.labels.rack"]
    assert found["nodes.1.colour"].startswith("is no known key")
    assert "'-x'" in found["nodes.2.name"]
    assert "list targets" in found["nodes.2.targets"]
    assert "nothing" in found["nodes.3.name"]
    assert found["nodes.3.labels"] == "is a list, not a mapping"
    assert "take another" in found["nodes.5.name"]
    assert found["nodes.4"] == "is text, not a mapping"
    assert found["nodes"] == "the name 'a' is given 2 times; give each node its own"
    assert found["size"].startswith("is no known key")


@pytest.mark.parametrize("text", ["", "nodes: []", "nodes: {a: 1}", "{}"])
def test_a_cluster_without_nodes_is_refused(text: str) -> None:
    assert "list at least one node" in problems(text)["nodes"]


def test_too_many_nodes_are_refused() -> None:
    lines = "".join(f"  - {{name: n{n}, tier: edge}}\n" for n in range(limits.CLUSTER_NODES_MAX + 1))
    assert "CLUSTER_NODES_MAX = 64" in problems(f"nodes:\n{lines}")["nodes"]


def test_text_that_cannot_be_read_is_refused_with_its_place(tmp_path: Path) -> None:
    assert problems("nodes: [\n").keys() == {"line 2, column 1"}
    with pytest.raises(InvalidInput, match="no UTF-8"):
        parse(b"\xff\xfe")
    with pytest.raises(InvalidInput, match=r"gone\.yaml: cannot be read: No such file"):
        read_file(tmp_path / "gone.yaml")


def test_nodes_name_the_uplinks_that_they_share() -> None:
    text = (
        "nodes: [{name: a, tier: device, uplink: hall}, {name: b, tier: device, uplink: [hall, dsl]}, {name: c, tier: cloud}]\n"
        "uplinks: [{name: hall, mbit: 40, duplex: half}, {name: dsl, mbit: 50, up_mbit: 10}]\n"
    )
    spec = parse(text.encode())
    hall = SharedUplink(name="hall", up=5e6, down=5e6, half=True)
    assert [spec.uplinks_of(node) for node in spec.nodes] == [
        (hall,),
        (hall, SharedUplink(name="dsl", up=1.25e6, down=6.25e6)),
        (),
    ]
    wrong = problems("nodes: [{name: a, tier: edge, uplink: hal}]\nuplinks: [{name: hall, mbit: 0}]\n")
    assert set(wrong) == {"nodes.0.uplink", "uplinks.0", "uplinks.0.mbit"}
    assert "hall" in wrong["nodes.0.uplink"]


def test_one_node_is_read_from_its_plain_form() -> None:
    form = {"name": "kiosk", "tier": "device", "targets": ["cpu"], "labels": {"room": "hall"}}
    assert read_node(form) == (NodeSpec(name="kiosk", tier=Tier.DEVICE, labels={"room": "hall"}), ())
    with pytest.raises(InvalidInput) as caught:
        read_node({"name": "", "tier": "moon"}, [{"name": "dsl"}])
    assert [problem.place for problem in caught.value.problems] == ["name", "tier", "uplinks.0.mbit"]


@pytest.mark.parametrize(("up", "half"), [(5e6, True), (5e6, False), (1e6, False)])
def test_nodes_tell_of_uplinks_as_files_list_them(up: float, half: bool) -> None:
    uplink = SharedUplink(name="hall", up=up, down=5e6, half=half)
    assert read_node({"name": "a", "tier": "edge"}, [uplink_row(uplink)])[1] == (uplink,)
