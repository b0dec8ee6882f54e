"""`starloom faults` on a whole cluster: by hand, and under a plan with processes that die and hang; and the examples."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.conftest import REPOSITORY
from tests.orchestrator.onray import CommandLine, until

from starloom.agents.catalog import Catalog
from starloom.dag.constellation import Tier
from starloom.dag.document import load
from starloom.dag.ids import AgentId
from starloom.devices.faultdoc import read_plan
from starloom.devices.faults import LIVE
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.clusterfile import DEFAULT
from starloom.orchestrator.demo import constellation
from starloom.orchestrator.simulate import runs
from starloom.orchestrator.simulate.world import Setup
from starloom.orchestrator.trials.planning import NodeFacts, check_fit, plan_faults

EXAMPLES = REPOSITORY / "examples" / "faults"
KINDS = tuple(Catalog().kinds)
NODES = [NodeFacts(AgentId(node.name), Tier(node.tier), node.labels, KINDS) for node in DEFAULT.nodes]
CLUSTER = "nodes: [{name: near, tier: device}, {name: far, tier: cloud}, {name: further, tier: cloud}]"
RELAY = """
api_version: starloom/v1
name: relay
stages:
  made:  {kind: basic.make_bytes, params: {size: 200000, seed: 1}, require: {tier: device}}
  there: {kind: basic.echo, in: {data: made.data}, require: {tier: cloud}}
  wait:  {kind: basic.sleep, params: {seconds: 0.7}, after: [there], require: {tier: cloud}}
  back:  {kind: basic.echo, in: {data: there.data}, after: [wait], require: {tier: device}}
outputs: {data: back.data, value: wait.value}
"""
# Its wait goes on while the orchestrator comes back, so that there is something to kill once its start is told.
LONG_RELAY = RELAY.replace("seconds: 0.7", "seconds: 2.5")
PROCESSES = """
name: processes
seed: 5
faults:
  - {what: agent-crash, stage: wait}
  - {what: orchestrator-crash, at_seconds: 0.3}
  - {what: agent-hang, node: near, at_seconds: 0.2, lasts_seconds: 1}
"""
UNHEALED = "faults: [{what: partition, tier: device, at_seconds: 0, heals: false}]"


def told(command_line: CommandLine, *arguments: str, code: int = 0) -> Any:
    done = command_line.run("faults", *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_faults_by_hand_and_under_a_plan_on_a_running_cluster(command_line: CommandLine, tmp_path: Path) -> None:
    texts = {"c": CLUSTER, "relay": RELAY, "long": LONG_RELAY, "processes": PROCESSES, "unhealed": UNHEALED}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    up = command_line.run("up", str(tmp_path / "c.yaml"), "--faults-allowed", "--json")
    assert up.returncode == 0, up.stderr
    pids = {node["name"]: node["pid"] for node in json.loads(up.stdout)["nodes"]}
    relay = str(tmp_path / "relay.yaml")
    try:
        slow = told(command_line, "inject", "slow", "--node", "near", "--add", "100ms", "--kind", "basic.echo")
        hang = told(command_line, "inject", "hang", "--node", "far")
        assert hang["id"] == "agent-hang@far"
        # A process that computes stops, or ends, at its next turn.
        until(lambda: psutil.Process(pids["far"]).status() == psutil.STATUS_STOPPED)
        listed = told(command_line, "list")
        assert {each["id"] for each in listed["armed"]} == {slow["id"], hang["id"]}
        assert {each["what"] for each in listed["kinds"]} == set(LIVE)
        assert told(command_line, "heal", hang["id"])["healed"] == ["agent-hang@far"]
        assert psutil.Process(pids["far"]).status() != psutil.STATUS_STOPPED
        assert told(command_line, "heal", "--all")["healed"] == [slow["id"]]
        assert told(command_line, "heal", slow["id"], code=2)["error"]["type"] == "NotFound"

        told(command_line, "inject", "hang", "--node", "near", "--for", "100ms")
        until(lambda: psutil.Process(pids["near"]).status() != psutil.STATUS_STOPPED)
        told(command_line, "inject", "kill", "--node", "further")
        until(lambda: not psutil.pid_exists(pids["further"]) or psutil.Process(pids["further"]).status() == "zombie")

        plan, long = str(tmp_path / "processes.yaml"), str(tmp_path / "long.yaml")
        held = told(command_line, "run", plan, long, "--cluster", "--within", "60s")
        assert (held["verdict"], held["what"], held["seed"]) == ("held", [], 5)
        assert (held["planned"], held["injected"], held["recovered"]) == (3, 3, 3)
        assert (held["lost"], held["duplicated"], held["status"]) == (0, 0, "succeeded")
        assert held["detect_seconds"] > 0
        assert held["recover_seconds"] > 0

        broken = told(
            command_line, "run", str(tmp_path / "unhealed.yaml"), relay, "--cluster", "--within", "2s", code=1
        )
        assert (broken["verdict"], broken["injected"], broken["recovered"], broken["lost"]) == ("broken", 1, 0, 1)
        assert told(command_line, "list")["armed"] == []
    finally:
        assert command_line.run("down").returncode == 0


def test_without_a_cluster_faults_are_listed_and_nothing_can_be_injected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STARLOOM_HOME", str(tmp_path))
    for name in ("STARLOOM_ADDRESS", "STARLOOM_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert main(["faults", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["armed"] is None
    assert main(["faults", "inject", "kill", "--node", "a"]) == 3
    assert "starloom up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inject", "explode", "--node", "a"], "there is no 'explode' on a live cluster"),
        (["inject", "kill"], "--node: is missing"),
        (["inject", "kill", "--node", "a", "--for", "1s"], "--for: agent-crash is over at once"),
        (["inject", "slow", "--node", "a"], "--factor: say by how much"),
        (["inject", "delay", "--node", "a"], "--delay: say by how much"),
        (["inject", "disk-full", "--node", "a"], "happens to the orchestrator"),
        (["inject", "partition", "--node", "orchestrator"], "happens to nodes"),
        (["inject", "partition", "--node", "a", "--peer", "a"], "--peer: is a, the node itself"),
        (["inject", "stage-fails", "--chance", "2"], "--chance: is 2.0"),
        (["heal"], "say which fault to heal"),
        (["heal", "x", "--all"], "say which fault to heal"),
        (["run", "no-such-plan"], "there is no plan and no file 'no-such-plan'"),
        (["run", "kills", "--seed", "3"], "has a job and a cluster of its own"),
        (["run", str(EXAMPLES / "network.yaml"), "--quick"], "--quick, --victim and --stage are for"),
    ],
)
def test_wrong_usage_is_refused_before_anything_happens(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["faults", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_demo_under_a_plan_that_is_wrong_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("faults: [{what: agent-flap, per_minute: 1}]")
    assert main(["demo", "--faults", str(plan)]) == 2
    assert "can only be simulated" in capsys.readouterr().err
    assert main(["demo", "--seed", "3"]) == 2
    assert "give one with --faults" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("afternoon", constellation()),
        ("network", load((EXAMPLES / "relay.yaml").read_text())),
        ("processes", load((EXAMPLES / "relay.yaml").read_text())),
        ("both", constellation()),
    ],
)
def test_the_example_plans_fit_the_default_cluster_and_their_jobs(name: str, what: Any) -> None:
    plan = read_plan((EXAMPLES / f"{name}.yaml").read_bytes(), name)
    check_fit(plan, NODES, what)
    assert plan.seed is not None
    assert plan_faults(plan, plan.seed, NODES)


def test_one_plan_serves_the_simulator_and_a_live_cluster() -> None:
    from starloom.orchestrator.cli.simulate import read_plan as simulated

    plan = simulated(str(EXAMPLES / "both.yaml"))
    check_fit(plan, NODES, constellation())
    assert plan.seed is not None
    result = runs.run(plan.seed, Setup(nodes=6, stages=60, jobs=2, plan=plan))
    assert result.violations == ()
    assert set(result.faults) == {fault.what for fault in plan.faults}
