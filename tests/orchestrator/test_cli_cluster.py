"""`starloom up`, `down` and `agent` from the command line."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from tests.orchestrator.onray import CommandLine, alive, until

from starloom.orchestrator.cli.main import main
from starloom.orchestrator.statefolder import ClusterRecord, holder, prepare, read_cluster

TWO_NODES = """
nodes:
  - {name: near, tier: device, targets: [cpu, npu], labels: {sensor: camera}}
  - {name: far, tier: cloud, slots: 3}
"""
HELLO = """
api_version: starloom/v1
name: hello
inputs: {value: json}
stages: {pass: {kind: basic.noop, in: {value: $value}, require: {tier: cloud}}}
outputs: {value: pass.value}
"""


PLANNER = "starloom.orchestrator.planningprocess"


@pytest.fixture
def cluster_file(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(TWO_NODES)
    return str(path)


def planners(command_line: CommandLine) -> list[psutil.Process]:
    """The planners' processes."""
    return [process for process in command_line.processes if PLANNER in process.cmdline()]


class TestWithoutCluster:
    """What needs no cluster: bad input, and nothing to do."""

    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STARLOOM_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("STARLOOM_TOKEN", raising=False)

    def test_down_says_that_nothing_runs(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert main(["down"]) == 0
        assert f"no cluster runs in {tmp_path / 'home' / 'cluster'}" in capsys.readouterr().out
        assert main(["down", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"stopped": False, "pid": None}

    def test_down_clears_what_a_killed_cluster_left(self, tmp_path: Path) -> None:
        folder = tmp_path / "home" / "cluster"
        prepare(folder)
        for name in ("cluster.json", "token", "cluster.lock"):
            (folder / name).touch()
        assert main(["down"]) == 0
        assert {path.name for path in folder.iterdir()} == {"cluster.lock", "logs"}

    def test_up_tells_all_that_is_wrong_with_a_file(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("nodes: [{name: a, tier: moon}, {name: a, tier: edge, slots: -1}]")
        assert main(["up", "--json", str(tmp_path / "bad.yaml")]) == 2
        found = json.loads(capsys.readouterr().out)["error"]["problems"]
        assert {problem["place"] for problem in found} == {"nodes.0.tier", "nodes.1.slots", "nodes"}

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--tier", "edge"], "there is no token for 127.0.0.1:1; give it with STARLOOM_TOKEN"),
            (["--tier", "edge", "--token", "t", "--join", "nowhere"], "'nowhere' is no host:port"),
            (["--tier", "moon", "--token", "t"], "tier: is 'moon'"),
            (["--tier", "edge", "--token", "t", "--label", "room"], "'room' is not KEY=VALUE"),
            (["--tier", "edge", "--token", "t", "--uplink", "hall,half"], "'half' of 'hall,half' is not KEY=VALUE"),
            (["--tier", "edge", "--token", "t", "--uplink", "hall,mbit=fast"], "uplinks.0.mbit"),
            (["--tier", "edge", "--token", "t", "--uplink", "hall,mbit=40,mbit=4"], "says mbit more than once"),
            (["--tier", "edge", "--token", "t", "--uplink", "hall,name=dsl,mbit=40"], "says name more than once"),
            (["--tier", "edge", "--token", "t", "--target", "abacus"], "there is no target 'abacus'"),
            (["--tier", "edge", "--token", "t", "--name", "-"], "name"),
            ([], "--tier"),
        ],
    )
    def test_an_agent_is_refused_bad_usage(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        assert main(["agent", "--join", "127.0.0.1:1", *arguments]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(180)
class TestOnRay:
    """A cluster in the background, in a state folder of its own."""

    def test_up_runs_jobs_until_down(self, command_line: CommandLine, cluster_file: str, tmp_path: Path) -> None:
        up = command_line.run("up", cluster_file, "--json")
        assert up.returncode == 0, up.stderr
        told = json.loads(up.stdout)
        assert {node["name"]: (node["tier"], node["state"], node["targets"]) for node in told["nodes"]} == {
            "near": ("device", "online", ["cpu", "npu"]),
            "far": ("cloud", "online", ["cpu"]),
        }
        record = read_cluster(command_line.folder)
        assert record is not None
        assert told["orchestrator"]["address"] == record.address
        assert told["orchestrator"]["pid"] == record.orchestrator_pid
        assert not planners(command_line)

        again = command_line.run("up", cluster_file)
        assert again.returncode == 2
        assert "starloom down" in again.stderr

        (tmp_path / "hello.yaml").write_text(HELLO)
        job = command_line.run("submit", str(tmp_path / "hello.yaml"), "--input", "value=5", "--watch", "--json")
        assert job.returncode == 0, job.stderr
        assert json.loads(job.stdout)["outputs"] == {"value": 5}

        down = command_line.run("down", "--json")
        assert down.returncode == 0, down.stderr
        assert json.loads(down.stdout) == {"stopped": True, "pid": record.pid}
        assert command_line.processes == []
        assert command_line.run("nodes").returncode == 3

    def test_a_node_that_this_machine_cannot_have_is_told_and_nothing_is_left(
        self, command_line: CommandLine, tmp_path: Path
    ) -> None:
        path = tmp_path / "cluster.yaml"
        path.write_text(TWO_NODES.replace("npu", "fpga"))
        up = command_line.run("up", str(path), "--json")
        assert up.returncode == 2, up.stderr
        [problem] = json.loads(up.stdout)["error"]["problems"]
        assert problem["place"] == "nodes.near.targets"
        assert "'fpga'" in problem["what"]
        assert "Traceback" not in up.stderr
        assert command_line.processes == []

    @pytest.mark.timeout(300)
    @pytest.mark.parametrize("host", ["process", "actor"])
    def test_a_cluster_whose_holder_is_killed_leaves_nothing_and_starts_again(
        self, command_line: CommandLine, cluster_file: str, host: str
    ) -> None:
        with command_line.start("up", "--foreground", "--orchestrator", host, cluster_file) as first:
            record = until(lambda: read_cluster(command_line.folder))
            os.kill(record.pid, signal.SIGKILL)
        assert first.pid == record.pid
        # Ray's own agent for its dashboard notices late that Ray is gone where it was killed as it started: after 30 s and more.
        until(lambda: command_line.processes == [], seconds=150)
        assert holder(command_line.folder) is None

        with command_line.start("up", "--foreground", "--json", "--orchestrator", host, cluster_file) as second:
            assert second.stdout is not None
            assert len(json.loads(second.stdout.readline())["nodes"]) == 2
            second.terminate()
        assert second.returncode == 0
        assert command_line.processes == []

    def test_an_orchestrator_in_an_actor_is_started_again_by_ray_on_its_address(
        self, command_line: CommandLine, cluster_file: str
    ) -> None:
        up = command_line.run("up", cluster_file, "--orchestrator", "actor", "--json")
        assert up.returncode == 0, up.stderr
        before = read_cluster(command_line.folder)
        assert before is not None
        [actor] = [process for process in command_line.processes if process.pid == before.orchestrator_pid]
        assert actor.ppid() != before.pid
        actor.kill()

        def other() -> ClusterRecord | None:
            found = read_cluster(command_line.folder)
            return found if found and found.orchestrator_pid != before.orchestrator_pid else None

        after = until(other)
        assert (after.address, after.pid) == (before.address, before.pid)
        told = json.loads(command_line.run("nodes", "--json").stdout)
        assert told["orchestrator"] == {"pid": after.orchestrator_pid, "address": before.address, "epoch": 2}
        down = command_line.run("down")
        assert down.returncode == 0, down.stderr
        assert command_line.processes == []

    @pytest.mark.parametrize("host", ["process", "actor"])
    def test_the_planner_dies_with_a_killed_orchestrator_and_comes_again_with_the_next(
        self, command_line: CommandLine, cluster_file: str, host: str
    ) -> None:
        up = command_line.run("up", cluster_file, "--orchestrator", host, "--planner", "live", "--json")
        assert up.returncode == 0, up.stderr
        [first] = until(lambda: planners(command_line))
        record = read_cluster(command_line.folder)
        assert record is not None
        os.kill(record.orchestrator_pid, signal.SIGKILL)
        until(lambda: not alive(first))
        [second] = until(lambda: planners(command_line))
        assert second.pid != first.pid
        down = command_line.run("down")
        assert down.returncode == 0, down.stderr
        assert command_line.processes == []

    def test_where_ray_itself_dies_the_cluster_ends_and_says_so(
        self, command_line: CommandLine, cluster_file: str
    ) -> None:
        up = command_line.run("up", cluster_file)
        assert up.returncode == 0, up.stderr
        [raylet] = [process for process in command_line.processes if process.name() == "raylet"]
        raylet.kill()
        until(lambda: command_line.processes == [])
        assert "Ray's process raylet has died" in (command_line.folder / "logs" / "cluster.log").read_text()
        assert holder(command_line.folder) is None
