"""The simulator's own promises: properties hold over many seeds, and a seed says all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, get_args

import psutil
import pytest
from tests.sim import planted

from starloom.dag.constellation import OutputBinding
from starloom.dag.draft import REFUSED
from starloom.dag.errors import InvalidInput, StarloomError
from starloom.dag.facts import JobPatched, StageCommitted, StageFailed, decode_fact
from starloom.dag.ids import AgentId, Epoch, Revision, StageId
from starloom.dag.patch import AnyOperation, Difference, OutputChange
from starloom.dag.stagestate import StageStatus
from starloom.dag.validate import problems
from starloom.devices.faults import ALL_FAULTS, NO_FAULTS, Fault, FaultKind, FaultPlan, check_plan
from starloom.orchestrator.cli import main as cli
from starloom.orchestrator.cli import simulate
from starloom.orchestrator.effects import Answer, Decision
from starloom.orchestrator.simulate import runs, workload
from starloom.orchestrator.simulate.daemon import Orchestrator
from starloom.orchestrator.simulate.loop import SECOND, START, Chance
from starloom.orchestrator.simulate.model import KINDS, expected
from starloom.orchestrator.simulate.patched import same
from starloom.orchestrator.simulate.undisturbed import undisturbed
from starloom.orchestrator.simulate.world import Parts, Setup, World

SMALL = Setup(nodes=5, stages=15, jobs=2, plan=ALL_FAULTS)
MIDDLE = Setup(nodes=12, stages=60, jobs=1, plan=ALL_FAULTS)
SECONDS = 30


@pytest.mark.parametrize("first", [1, 101])
def test_every_property_holds_whatever_breaks(first: int) -> None:
    """70 small runs, in which each fault happens, and others; `make sim` does 10,000."""
    happened: set[str] = set()
    for seed in range(first, first + 70):
        result = runs.run(seed, SMALL)
        assert result.violations == (), f"seed {seed}"
        happened |= result.faults.keys()
    assert happened == set(FaultKind)


def test_every_property_holds_in_larger_runs() -> None:
    for seed in range(1, 13):
        assert runs.run(seed, MIDDLE).violations == (), f"seed {seed}"


@pytest.mark.parametrize("seed", [5841])
def test_seeds_that_once_broke_a_property(seed: int) -> None:
    """5841: two patches, each right by itself, kept a group of streams from starting."""
    assert runs.run(seed, Setup(nodes=5, stages=15, jobs=3, plan=ALL_FAULTS)).violations == ()


def test_a_seed_gives_the_same_run_in_any_process() -> None:
    """Neither hashes nor what ran before in the process make a difference."""
    setup = Setup(nodes=5, stages=15, jobs=2, plan=ALL_FAULTS)
    here = [runs.run(seed, setup).digest for seed in (3, 4)]
    program = (
        "from starloom.devices.faults import ALL_FAULTS\n"
        "from starloom.orchestrator.simulate import runs\n"
        "from starloom.orchestrator.simulate.world import Setup\n"
        "setup = Setup(nodes=5, stages=15, jobs=2, plan=ALL_FAULTS)\n"
        "print(*[runs.run(seed, setup).digest for seed in (4, 3)])\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    there = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.split() == here[::-1]
    assert here[0] != here[1]


def test_no_order_of_a_set_counts() -> None:
    """Hashes differ from process to process, those of tokens by where their class lies: no seed would say all."""
    seeds = range(1, 6)
    setups = [Setup(nodes=5, stages=15, jobs=2, plan=ALL_FAULTS, advised=advised) for advised in (False, True)]
    program = (sys.executable, "-m", "tests.sim.shuffled", *map(str, seeds))
    there = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    assert there["digests"] == [runs.run(seed, setup).digest for setup in setups for seed in seeds]
    assert there["orders"] > 100


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one processor it starts no other process")
def test_none_of_its_processes_outlives_it() -> None:
    """They hold each other's pipes open, so that none of them would hear that their input has ended."""
    command = (sys.executable, "-m", "starloom.orchestrator.cli.main", "simulate", "--seeds", "100000")
    ran = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while len(workers := [each for each in ran.children() if "spawn_main" in " ".join(each.cmdline())]) < 2:
            assert ran.poll() is None
            time.sleep(0.01)
    finally:
        ran.terminate()
        ran.wait()
    _, left = psutil.wait_procs(workers, SECONDS)
    for each in left:
        each.kill()
    assert left == []


def test_an_undisturbed_run_is_what_the_model_says() -> None:
    """The model, which never ran anything, and the coordinator agree on every stage of every job that kept its deadlines."""
    compared = grown = 0
    for seed in range(1, 31):
        world = World(seed, Setup(nodes=5, stages=25, jobs=2, plan=NO_FAULTS))
        world.run()
        assert world.judge.violations == []
        for job in world.judge.jobs.values():
            if job.status != "succeeded" or job.tainted:
                continue
            compared += 1
            whole = undisturbed(job.submitted.constellation, job.submitted.inputs)
            if whole is not None:
                grown += len(whole.stages) > len(job.submitted.constellation.stages)
                assert same(whole, job.constellation)
            for name, wanted in expected(whole or job.constellation, job.submitted.inputs).items():
                if wanted is not None:
                    stage = job.stages[name]
                    assert (stage.status, stage.outputs) == (wanted.status, wanted.digests)
    assert compared >= 30
    assert grown >= 5


def test_random_jobs_are_valid_and_have_everything() -> None:
    seen: set[Any] = set()
    grow: set[str] = set()
    for seed in range(60):
        constellation = workload.work(Chance(str(seed)), 40, "job").constellation
        assert not problems(constellation, KINDS)
        for stage in constellation.stages.values():
            seen |= {stage.kind, stage.join, stage.policy.on_failure, stage.params["fails"]}
            grow |= {name for name in ("adds", "rounds", "feeds") if stage.params.get(name)}
        seen |= {arc.on for arc in constellation.dependencies}
    assert {"sim.work", "sim.blob", "sim.judge", "sim.read", "all", "any", "fail", "skip", "default"} <= seen
    assert {"success", "completion", "comparison", True, False} <= seen
    assert {"sim.find", "sim.grow", "sim.loop"} <= seen
    assert grow == {"adds", "rounds", "feeds"}


def test_random_patches_have_everything() -> None:
    """Over some runs: each operation is taken, with and without what it may have, and refused for each reason."""
    taken: set[Any] = set()
    refused: set[str] = set()
    plan = FaultPlan(quiet_after_seconds=20, faults=(Fault(what=FaultKind.CLIENT_PATCHES, chance=1),))
    for seed in range(1, 31):
        world = World(seed, Setup(nodes=5, stages=15, jobs=2, plan=plan))
        plain = world.judge.answered

        def answered(orchestrator: Orchestrator, answer: Answer, plain: Any = plain) -> None:
            if isinstance(answer.result, StarloomError):
                refused.add(f"{type(answer.result).__name__} {answer.result}")
            plain(orchestrator, answer)

        world.judge.answered = answered  # type: ignore[method-assign]
        world.run()
        assert world.judge.violations == [], f"seed {seed}"
        for job in world.judge.jobs.values():
            for fact in job.patches:
                drawn = world.judge.patches[fact.why]
                taken |= {type(operation) for operation in drawn.patch.operations}
                taken |= {
                    fact.restart,
                    bool(drawn.undoes),
                    "id" if fact.patch else "no id",
                    drawn.patch.if_revision > 0,
                }
    assert taken == {*get_args(AnyOperation), True, False, "id", "no id"}
    for reason in ("if_revision", "no stage is called", "would wait for itself", "say restart", "changes nothing"):
        assert any(f"PatchRefused {REFUSED}" in each and reason in each for each in refused)
    for other in ("Conflict the id", "only a job that runs can be changed"):
        assert any(other in each for each in refused)


def test_growth_has_everything() -> None:
    """Over some runs stages grow in each way, again or otherwise when they run again, and are refused for each reason."""
    seen: set[str] = set()
    refused = ""
    plan = FaultPlan(
        quiet_after_seconds=20,
        faults=(
            Fault(what=FaultKind.GROWTH_LOST, chance=0.3),
            Fault(what=FaultKind.LIE_GROWTH, chance=0.15),
            Fault(what=FaultKind.CLIENT_PATCHES, chance=0.5),
            Fault(what=FaultKind.ORCHESTRATOR_CRASH, per_minute=20),
        ),
    )
    for seed in range(1, 81):
        world = World(seed, Setup(nodes=5, stages=15, jobs=3, plan=plan))
        world.run()
        assert world.judge.violations == [], f"seed {seed}"
        for job in world.judge.jobs.values():
            for fact in (decode_fact(line) for _, line in job.events):
                if isinstance(fact, StageFailed) and fact.error.cause == "PatchRefused":
                    refused += fact.error.message
                elif isinstance(fact, StageCommitted) and fact.growth is not None:
                    growth = fact.growth
                    seen |= {each.split()[0] for each in growth.operations}
                    seen |= {"a round" for change in growth.difference.stages if "-r" in change.stage}
                    seen |= {"by what was grown"} if "-" in fact.stage else set()
                    seen |= {"otherwise"} if growth.whole is not None else set()
    assert seen >= {"add", "redirect", "rewire", "a round", "by what was grown", "otherwise"}
    for reason in (
        "whose bound is",
        "a stage may only add stages",
        "no kind is called",
        "has no source for its input",
        "is not downstream",
        "named after the stage that adds it",
        "only redirect its own",
    ):
        assert reason in refused


def test_the_model_leaves_open_what_rests_on_which_came_first() -> None:
    statuses: set[StageStatus | None] = set()
    for seed in range(60):
        work = workload.work(Chance(str(seed)), 40, "job")
        statuses |= {wanted and wanted.status for wanted in expected(work.constellation, work.inputs).values()}
    assert statuses == {None, StageStatus.SUCCEEDED, StageStatus.SKIPPED, StageStatus.FAILED}


class TestPlans:
    def test_a_plan_is_read_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "plan.yaml"
        path.write_text("quiet_after_seconds: 9\nfaults:\n  - {what: agent-crash, per_minute: 30}\n")
        plan = simulate.read_plan(str(path))
        assert plan == FaultPlan(quiet_after_seconds=9, faults=(Fault(what=FaultKind.AGENT_CRASH, per_minute=30),))
        result = runs.run(1, Setup(nodes=3, stages=5, plan=plan))
        assert set(result.faults) == {"agent-crash"}

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("faults: [{what: earthquake}]", "earthquake"),
            ("faults: [{what: agent-crash, chance: 2}]", "faults.0.chance: is 2"),
            ("faults: [{what: agent-crash, lasts_seconds: [3, 1]}]", "faults.0.lasts_seconds"),
            ("faults: {", "line"),
            ("fault: []", "fault"),
        ],
    )
    def test_a_plan_that_is_wrong_is_refused(self, tmp_path: Path, text: str, what: str) -> None:
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        with pytest.raises(InvalidInput, match=what):
            simulate.read_plan(str(path))

    def test_a_fault_comes_when_and_to_whom_its_plan_says(self, tmp_path: Path) -> None:
        path = tmp_path / "plan.yaml"
        path.write_text(
            "seed: 9\nquiet_after_seconds: 20\nfaults:\n"
            "  - {what: agent-crash, tier: edge, per_minute: 60, most: 3}\n"
            "  - {what: agent-slow, node: cloud-2, at_seconds: 1, lasts_seconds: 5, factor: 4}\n"
        )

        class Watched(World):
            crashed: ClassVar[list[str]] = []

            def agent_dies(self, name: AgentId, back_after: float, noticed: bool) -> None:
                self.crashed.append(name)
                super().agent_dies(name, back_after, noticed)

        world = Watched(1, Setup(nodes=6, stages=60, plan=simulate.read_plan(str(path))))
        slow: list[dict[AgentId, float]] = []
        world.loop.at(START + 3 * SECOND, lambda: slow.append(dict(world.slowness)))
        world.run()
        assert world.trouble.counts == {"agent-crash": 3, "agent-slow": 1}
        assert len(world.crashed) == 3
        assert {name.partition("-")[0] for name in world.crashed} == {"edge"}
        assert slow == [{"cloud-2": 4.0}]

    def test_a_plan_that_meets_nobody_or_needs_a_live_cluster_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "plan.yaml"
        path.write_text("faults: [{what: agent-crash, node: edge-9, at_seconds: 1}]")
        assert cli.main(["simulate", "--nodes", "4", "--faults", str(path)]) == 2
        assert "faults.0: meets no node; there are device-0, edge-1" in capsys.readouterr().err
        path.write_text(
            "faults: [{what: agent-crash, stage: s}, {what: partition, peer: a, at_seconds: 1, heals: false}]"
        )
        assert cli.main(["simulate", "--faults", str(path)]) == 2
        said = capsys.readouterr().err
        assert all(place in said for place in ("faults.0.stage", "faults.1.peer", "faults.1.heals"))

    def test_the_seed_of_a_plan_is_used_unless_another_is_given(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "plan.yaml"
        path.write_text("seed: 9\nfaults: []")
        arguments = ["simulate", "--nodes", "3", "--stages", "5", "--faults", str(path), "--json"]
        assert cli.main(arguments) == 0
        assert json.loads(capsys.readouterr().out)["seed"] == 9
        assert cli.main([*arguments, "--seed", "4"]) == 0
        assert json.loads(capsys.readouterr().out)["seed"] == 4

    def test_built_in_plans_are_right(self) -> None:
        assert check_plan(ALL_FAULTS) is ALL_FAULTS
        assert {fault.what for fault in ALL_FAULTS.faults} == set(FaultKind)


class TestCommand:
    def test_it_says_what_happened_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["simulate", "--seed", "5", "--nodes", "4", "--stages", "10", "--faults", "none", "--json"]
        assert cli.main(arguments) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["seed"] == 5
        assert (said["jobs"], said["violations"]) == (1, [])
        assert said.keys() >= {"succeeded", "events", "virtual_seconds", "wall_seconds", "digest"}

    def test_a_failing_seed_tells_how_to_see_it_again(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(seed: int, setup: Setup) -> World:
            return World(seed, setup, Parts(coordinator=planted.TellsTwice))

        monkeypatch.setattr(runs, "World", broken)
        assert (
            cli.main(["simulate", "--seed", "2", "--nodes", "4", "--stages", "10", "--faults", "none", "--json"]) == 1
        )
        said = capsys.readouterr()
        found = json.loads(said.out)["violations"][0]
        again = "starloom simulate --seed 2 --nodes 4 --stages 10 --jobs 1 --faults none"
        assert found["replay"] == again
        assert again in said.err
        assert any("StagePlaced" in line for line in found["story"])

    def test_what_a_part_raises_is_a_violation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Raises(World):
            def run(self) -> None:
                raise KeyError("lost")

        monkeypatch.setattr(runs, "World", Raises)
        assert [found.property for found in runs.run(1, SMALL).violations] == ["nothing is raised"]

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            (["--nodes", "0"], "--nodes: is 0"),
            (["--stages", "20001"], "--stages: is 20001"),
            (["--seeds", "0"], "--seeds: is 0"),
            (["--faults", "no/such"], "no/such: No such file"),
        ],
    )
    def test_wrong_usage_is_refused(self, wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["simulate", *wrong]) == 2
        assert said in capsys.readouterr().err

    def test_many_seeds_have_one_digest(self) -> None:
        one, two = (runs.run_all(1, 6, Setup(nodes=3, stages=5, plan=ALL_FAULTS)) for _ in range(2))
        assert one.digest == two.digest
        assert one.seeds == 6
        assert not one.failed


def test_what_a_replaced_orchestrator_decides_is_not_compared_with_what_others_have_written() -> None:
    world = World(1, Setup(nodes=2, stages=4, plan=NO_FAULTS))
    world.run()
    view = next(iter(world.judge.jobs.values()))
    # That of a job as the replaced one has it: the job that is journaled has no such output any more.
    gone = Difference(outputs={"gone": OutputChange(OutputBinding(upstream=StageId("s0"), output="value"), None)})
    fact = JobPatched(job=view.submitted.job, revision=Revision(2), difference=gone)
    world.judge.decided(Orchestrator(world, Epoch(99)), Decision(facts=[fact]))
    assert world.judge.violations == []
