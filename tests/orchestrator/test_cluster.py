"""A whole cluster on Ray: what is there, and what it lives through."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.orchestrator.onray import CommandLine, sleeper, until

from starloom.dag.constellation import Tier
from starloom.dag.errors import Conflict, JobFailed
from starloom.dag.facts import StageStarted
from starloom.devices.links import SharedUplink
from starloom.orchestrator.clientsync import Client, Job
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import DEFAULT
from starloom.orchestrator.demo import constellation
from starloom.orchestrator.infos import NodeInfo
from starloom.orchestrator.statefolder import read_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def client(embedded: EmbeddedCluster) -> Iterator[Client]:
    with Client(embedded.address, embedded.token) as client:
        yield client


def node(client: Client, name: str) -> NodeInfo:
    return next(node for node in client.nodes() if node.name == name)


def await_start(job: Job) -> None:
    for event in job.events():
        if isinstance(event.fact, StageStarted):
            return


def test_five_nodes_are_online_on_three_tiers_each_in_a_process_of_its_own(embedded: EmbeddedCluster) -> None:
    assert embedded.info is not None
    nodes = {str(node.name): node for node in embedded.info.nodes}
    assert set(nodes) == {node.name for node in DEFAULT.nodes}
    assert {node.state for node in nodes.values()} == {"online"}
    assert {node.profile.tier for node in nodes.values()} == set(Tier)
    assert len({node.profile.pid for node in nodes.values()} | {embedded.info.pid, os.getpid()}) == 7
    assert [target.name for target in nodes["camera"].profile.targets if target.emulated] == ["npu"]
    assert nodes["mic-speaker"].profile.labels == {"sensor": "microphone", "actuator": "speaker"}
    assert all(node.profile.cores > 0 and node.profile.memory_bytes > 0 for node in nodes.values())


def test_its_agents_have_the_priority_of_who_started_them(embedded: EmbeddedCluster) -> None:
    assert embedded.info is not None
    assert {os.getpriority(os.PRIO_PROCESS, node.profile.pid) for node in embedded.info.nodes} == {
        os.getpriority(os.PRIO_PROCESS, 0)
    }


def test_its_start_up_is_split(embedded: EmbeddedCluster) -> None:
    start_up = embedded.start_up
    assert min(start_up.orchestrator, start_up.ray, start_up.agents) > 0
    assert start_up.ray + start_up.agents == pytest.approx(start_up.total)


def test_it_listens_on_loopback_only(embedded: EmbeddedCluster) -> None:
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_clients_find_it_and_a_second_one_is_refused(embedded: EmbeddedCluster) -> None:
    record = read_cluster(embedded.folder)
    assert record is not None
    assert (record.address, record.token(), record.pid) == (embedded.address, embedded.token, os.getpid())
    assert record.nodes == tuple(node.name for node in DEFAULT.nodes)
    with pytest.raises(Conflict, match="starloom down"):
        EmbeddedCluster(DEFAULT, embedded.folder).start()
    assert read_cluster(embedded.folder) == record


def test_ray_brings_a_killed_agent_back_and_its_job_ends(client: Client) -> None:
    before = node(client, "edge-2")
    job = client.submit(sleeper(2.0, node="edge-2"), {"value": 7})
    await_start(job)
    os.kill(before.profile.pid, signal.SIGKILL)
    assert job.result(timeout=120) == {"value": 7}
    after = node(client, "edge-2")
    assert (after.state, after.profile.labels) == ("online", before.profile.labels)
    assert after.incarnation != before.incarnation
    [stage] = job.status().stages
    assert stage.attempts == 2


def test_a_killed_orchestrator_comes_back_and_its_jobs_end(embedded: EmbeddedCluster, client: Client) -> None:
    before = client.cluster()
    job = client.submit(sleeper(1.0, node="cloud"), {"value": 8})
    await_start(job)
    os.kill(before.pid, signal.SIGKILL)
    assert job.result(timeout=120) == {"value": 8}
    after = client.cluster()
    assert after.epoch > before.epoch
    record = read_cluster(embedded.folder)
    assert record is not None
    assert (record.address, record.orchestrator_pid) == (embedded.address, after.pid)
    until(lambda: all(node.state == "online" for node in client.nodes()))
    assert {node.incarnation for node in client.nodes()} >= {node.incarnation for node in before.nodes}


def test_a_node_outside_ray_joins_runs_what_is_pinned_to_it_and_leaves(
    embedded: EmbeddedCluster, client: Client, command_line: CommandLine
) -> None:
    said = ("--label", "room=hall", "--uplink", "hall,mbit=40,duplex=half")
    arguments = ("--join", embedded.address, "--tier", "device", "--name", "kiosk", *said)
    with command_line.start("agent", *arguments, "--json", STARLOOM_TOKEN=embedded.token) as agent:
        until(lambda: any(node.name == "kiosk" and node.state == "online" for node in client.nodes()))
        assert node(client, "kiosk").profile.uplinks == (SharedUplink(name="hall", up=5e6, down=5e6, half=True),)
        job = client.submit(sleeper(0.01, labels={"room": "hall"}), {"value": 9})
        assert job.result(timeout=60) == {"value": 9}
        assert [(stage.node, stage.tier) for stage in job.status().stages] == [("kiosk", "device")]
        agent.terminate()
        out, _ = agent.communicate()
    assert agent.returncode == 0
    assert out.startswith('{"name":"kiosk","tier":"device"')
    assert node(client, "kiosk").state == "lost"


@pytest.mark.models
def test_a_file_that_is_no_picture_fails_its_job_and_nothing_else(
    client: Client, example_folder: Path, model_store: object, tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_text("no picture")
    (tmp_path / "empty.wav").touch()
    bad = client.submit(constellation(), {"audio": tmp_path / "empty.wav", "image": tmp_path / "photo.jpg"})
    with pytest.raises(JobFailed, match=r"stages\.(see|hear)"):
        bad.result(timeout=60)
    assert client.submit(sleeper(0.01), {"value": 1}).result(timeout=60) == {"value": 1}
