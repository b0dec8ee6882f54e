"""Fleet files: what they describe, and every problem of a bad one."""

import math
from pathlib import Path

import pytest

from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput
from starloom.devices.links import BY_TIERS, Link, SharedUplink
from starloom.orchestrator.fleetfile import parse, read_file


def problems(text: str) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        parse(text.encode())
    return {problem.place: problem.what for problem in caught.value.problems}


def test_a_file_gives_nodes_with_what_plans_need_and_links(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(
        "nodes:\n"
        "  - {name: cam, tier: device, targets: [cpu, npu], speed: {npu: 3}, memory: 2GiB, resident: [centerface]}\n"
        "  - {name: far, tier: cloud, slots: 8, speed: 2.5}\n"
        "links:\n"
        "  - {between: [cloud, device], mbit: 8, latency: 30ms}\n"
        "  - {between: [edge, edge], latency: 2}\n"
    )
    fleet = read_file(path)
    camera, far = fleet.nodes
    assert (camera.speed, camera.memory_bytes, camera.resident) == ({"npu": 3}, 2 << 30, ("centerface",))
    assert (camera.profile.slots, camera.profile.tier, camera.profile.memory_bytes) == (1, Tier.DEVICE, 2 << 30)
    assert (far.speed, far.profile.slots) == ({"cpu": 2.5}, 8)
    between = frozenset({Tier.DEVICE, Tier.CLOUD})
    assert fleet.links[between] == Link(bytes_per_second=1e6, latency_seconds=0.03)
    edges = frozenset({Tier.EDGE})
    assert fleet.links[edges] == Link(bytes_per_second=BY_TIERS[edges].bytes_per_second, latency_seconds=2.0)
    assert fleet.links[frozenset({Tier.CLOUD})] == BY_TIERS[frozenset({Tier.CLOUD})]


def test_a_cluster_file_is_a_fleet() -> None:
    fleet = parse(b"nodes:\n  - {name: edge-1, tier: edge}\n")
    assert fleet.nodes[0].speed == {"cpu": 1.0}
    assert fleet.nodes[0].memory_bytes == 0


def test_what_seconds_and_bytes_take_is_read_for_all_targets_or_each() -> None:
    fleet = parse(
        b"nodes:\n"
        b"  - {name: cam, tier: device, targets: [cpu, npu], watts: {npu: 2}, battery_joules: 500}\n"
        b"  - {name: edge, tier: edge, watts: 40, price_per_hour: 0.5}\n"
        b"links:\n"
        b"  - {between: [device, edge], joules_per_mb: 3, price_per_gb: 2}\n"
    )
    camera, edge = fleet.nodes
    assert (camera.watts, camera.price_per_hour, camera.battery_joules) == ({"npu": 2}, 0.0, 500)
    assert (edge.watts, edge.price_per_hour, edge.battery_joules) == ({"cpu": 40}, 0.5, math.inf)
    link = fleet.links[frozenset({Tier.DEVICE, Tier.EDGE})]
    assert (link.joules_per_byte, link.price_per_byte) == (3e-6, 2e-9)


def test_all_that_is_wrong_with_them_is_told() -> None:
    found = problems(
        "nodes:\n"
        "  - {name: a, tier: edge, watts: -1, price_per_hour: free, battery_joules: full}\n"
        "  - {name: b, tier: edge, watts: {npu: 2}}\n"
        "links:\n"
        "  - {between: [edge, cloud], joules_per_mb: -1, price_per_gb: much}\n"
    )
    assert list(found) == [
        "nodes.0.watts",
        "nodes.0.price_per_hour",
        "nodes.0.battery_joules",
        "nodes.1.watts.npu",
        "links.0.joules_per_mb",
        "links.0.price_per_gb",
    ]


def test_of_a_link_all_that_is_wrong_is_told_at_once() -> None:
    found = problems(
        "nodes: [{name: a, tier: edge}]\n"
        "links:\n"
        "  - {between: [edge, moon], mbit: 0, latency: soon, joules_per_mb: -1, price_per_gb: much}\n"
        "  - {between: [edge, cloud], mbit: x, latency: -1s, joules_per_mb: 1e10, price_per_gb: 1e13}\n"
    )
    keys = ("between", "mbit", "latency", "joules_per_mb", "price_per_gb")
    assert list(found) == [*(f"links.0.{key}" for key in keys), *(f"links.1.{key}" for key in keys[1:])]
    assert found["links.1.joules_per_mb"] == "is 10000000000.0; give a number from 0 to 1e+09"


def test_prices_that_do_not_add_up_are_refused() -> None:
    found = problems("nodes: [{name: a, tier: edge, price_per_hour: 1e300}]")
    assert found == {"nodes.0.price_per_hour": "is 1e+300; give a number from 0 to 1e+12"}


def test_all_problems_are_reported_with_their_place() -> None:
    found = problems(
        "nodes:\n"
        "  - {name: a, tier: edge, speed: 0, memory: lots, resident: x}\n"
        "  - {name: b, tier: edge, speed: {npu: 2, cpu: -1}}\n"
        "  - {name: c, tier: ege, colour: red}\n"
        "links:\n"
        "  - {between: [edge, moon]}\n"
        "  - {between: [edge, cloud], mbit: 0}\n"
        "  - {between: [edge, cloud], latency: soon, width: 2}\n"
    )
    assert found["nodes.0.speed"] == "is 0; give a number above 0" or "above 0" in found["nodes.0.speed.cpu"]
    assert "lots" in found["nodes.0.memory"]
    assert "list names of models" in found["nodes.0.resident"]
    assert found["nodes.1.speed.npu"] == "is no target of the node, which has cpu"
    assert "-1" in found["nodes.1.speed.cpu"]
    assert "give one of device, edge, cloud" in found["nodes.2.tier"]
    assert found["nodes.2.colour"].startswith("is no known key")
    assert "moon" in found["links.0.between"]
    assert found["links.1.mbit"] == "is 0; give a number from 0.0001 to 1e+09"
    assert "soon" in found["links.2.latency"]
    assert found["links.2.width"].startswith("is no known key")


def test_more_nodes_than_a_fleet_may_have_are_refused() -> None:
    lines = "".join(f"  - {{name: n{n}, tier: edge}}\n" for n in range(limits.FLEET_NODES_MAX + 1))
    assert f"FLEET_NODES_MAX = {limits.FLEET_NODES_MAX}" in problems(f"nodes:\n{lines}")["nodes"]


@pytest.mark.parametrize("nodes", ["5", "cam", "{cam: device}", "null", "[]"])
def test_nodes_that_are_no_list_are_refused(nodes: str) -> None:
    found = problems(f"nodes: {nodes}\nlinks: 5")
    assert found.keys() == {"nodes", "links"}
    assert found["nodes"] == "list at least one node, such as {name: edge-1, tier: edge}"


def test_a_link_that_is_given_twice_is_refused() -> None:
    links = (
        b"links: [{between: [device, edge], mbit: 3}, {between: [edge, device], mbit: 300}, {between: [edge, edge]}]"
    )
    with pytest.raises(InvalidInput) as caught:
        parse(b"nodes: [{name: a, tier: edge}]\n" + links)
    assert [(each.place, each.what) for each in caught.value.problems] == [
        ("links.1.between", "links.0 is of these two already; keep one of them")
    ]


def test_links_that_are_no_list_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    assert "list links" in problems("nodes: [{name: a, tier: edge}]\nlinks: {a: 1}\n")["links"]
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_file(tmp_path / "none.yaml")


def test_uplinks_are_shared_by_the_nodes_that_name_them() -> None:
    fleet = parse(
        b"nodes:\n"
        b"  - {name: r1, tier: device, uplink: hall}\n"
        b"  - {name: r2, tier: device, uplink: [hall, dsl]}\n"
        b"  - {name: far, tier: cloud}\n"
        b"uplinks:\n"
        b"  - {name: hall, mbit: 40, duplex: half}\n"
        b"  - {name: dsl, mbit: 50, up_mbit: 10}\n"
    )
    assert [node.node.uplinks for node in fleet.nodes] == [("hall",), ("hall", "dsl"), ()]
    assert fleet.uplinks == (
        SharedUplink(name="hall", up=5e6, down=5e6, half=True),
        SharedUplink(name="dsl", up=1.25e6, down=6.25e6),
    )


def test_all_that_is_wrong_with_uplinks_is_told() -> None:
    found = problems(
        "nodes:\n"
        "  - {name: a, tier: edge, uplink: hal}\n"
        "  - {name: b, tier: edge, uplink: 5}\n"
        "  - {name: c, tier: edge, uplink: [hall, hall]}\n"
        "uplinks:\n"
        "  - {name: hall, mbit: 0}\n"
        "  - {name: hall, mbit: 5, duplex: both}\n"
        "  - {name: wifi, mbit: 5, up_mbit: 1, duplex: half, latency: 3}\n"
        "  - {mbit: fast}\n"
    )
    assert found["nodes.0.uplink"] == "there is no up-link 'hal'; did you mean 'hall'?"
    assert "list those on the way" in found["nodes.1.uplink"]
    assert found["uplinks.0.mbit"] == "is 0; give a number from 0.0001 to 1e+09"
    assert found["uplinks.1.name"] == "uplinks.0 has this name already; give each up-link its own"
    assert found["uplinks.1.duplex"] == "is 'both'; give one of full, half"
    assert "leave it out" in found["uplinks.2.up_mbit"]
    assert found["uplinks.2.latency"].startswith("is no known key")
    assert found["uplinks.2"].startswith("no node shares it; say `uplink: wifi`")
    assert {"uplinks.3.name", "uplinks.3.mbit"} < found.keys()
    assert "list up-links" in problems("nodes: [{name: a, tier: edge}]\nuplinks: {hall: 5}\n")["uplinks"]
    many = "".join(f"  - {{name: u{n}, mbit: 1}}\n" for n in range(limits.FLEET_UPLINKS_MAX + 1))
    assert "FLEET_UPLINKS_MAX" in problems(f"nodes: [{{name: a, tier: edge}}]\nuplinks:\n{many}")["uplinks"]


@pytest.mark.parametrize("mbit", ["1.0e+308", "1.0e-300", ".inf", ".nan", "-5", "true"])
def test_rates_with_which_seconds_do_not_add_up_are_refused(mbit: str) -> None:
    found = problems(
        "nodes: [{name: a, tier: edge, uplink: hall}]\n"
        f"links: [{{between: [edge, edge], mbit: {mbit}}}]\n"
        f"uplinks: [{{name: hall, mbit: {mbit}, up_mbit: {mbit}}}]\n"
    )
    assert found.keys() == {"links.0.mbit", "uplinks.0.mbit", "uplinks.0.up_mbit"}
    assert all(told.endswith("give a number from 0.0001 to 1e+09") for told in found.values())


def test_an_uplink_with_a_bad_name_is_not_proposed() -> None:
    found = problems(
        "nodes: [{name: a, tier: edge, uplink: v}]\nuplinks: [{name: [], mbit: 1}, {name: dsl, mbit: 1}]\n"
    )
    assert found["nodes.0.uplink"] == "there is no up-link 'v'; known: dsl"
