"""The demonstration: its parts, and the whole of it on Ray, from the command line."""

import json
import math
import signal
import statistics
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from tests.orchestrator.onray import CommandLine, running_children, until

from starloom.agents.catalog import shipped_kinds
from starloom.agents.language import family
from starloom.dag import facts
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.dag.errors import InvalidInput, StarloomError
from starloom.dag.facts import ErrorInfo, Fact
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.dag.stagestate import StageStatus
from starloom.dag.validate import problems, warnings
from starloom.orchestrator.cli import demo as command
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.clientsync import Client
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.demo import (
    ANSWER,
    EXTRACTIVE,
    PHOTO,
    QUESTION,
    Measured,
    Silent,
    constellation,
    example,
    language_row,
    languages,
    measure,
    parallel_width,
)
from starloom.orchestrator.infos import JobInfo, StageInfo

WARM_UP_JOBS = 3
JOBS_IN_A_ROW = 10
TENS_MAX = 3
#: what every job leaves behind would be left ten times, and in most processes
MEDIAN_GROWTH_BYTES_MAX = 8 * 1024 * 1024
#: ONNX Runtime's arena grows by a step now and then, when calls meet in a new way
GROWTH_BYTES_MAX = 32 * 1024 * 1024
HANDLES_MAX = 2
DECODING = {"audio.decode", "image.decode", "text.merge"}


def fact(kind: type[facts.StageFact], stage: str, attempt: int = 1, **fields: Any) -> Fact:
    return kind(job=JobId("j"), stage=StageId(stage), token=FencingToken(Epoch(1), Attempt(attempt)), **fields)


def on_edge(chosen: Constellation, node: str) -> Constellation:
    """The constellation with all stages that an edge node can run on that node."""

    def pinned(requires: Requirements) -> Requirements:
        elsewhere = requires.labels or requires.target or (requires.tiers and Tier.EDGE not in requires.tiers)
        return requires if elsewhere else msgspec.structs.replace(requires, tiers=(), node=node)

    stages = {
        name: msgspec.structs.replace(stage, requires=pinned(stage.requires)) for name, stage in chosen.stages.items()
    }
    return msgspec.structs.replace(chosen, stages=stages)


def test_the_width_is_the_most_that_ran_at_one_time() -> None:
    started, committed = facts.StageStarted, facts.StageCommitted
    chain = [fact(started, "a"), fact(committed, "a"), fact(started, "b"), fact(committed, "b")]
    assert parallel_width(chain) == 1
    assert parallel_width([fact(started, "a"), fact(started, "b"), fact(committed, "a"), fact(started, "c")]) == 2
    assert parallel_width([]) == 0


def test_attempts_that_ended_otherwise_do_not_run_any_more() -> None:
    failed = fact(facts.StageFailed, "a", error=ErrorInfo(message="no"))
    superseded = fact(facts.StageSuperseded, "a", 2, reason="lost")
    cancelled = facts.StageCancelled(job=JobId("j"), stage=StageId("a"))
    seen = [
        fact(facts.StageStarted, "a"),
        failed,
        fact(facts.StagePlaced, "a", 2, agent=AgentId("n")),
        fact(facts.StageStarted, "a", 2),
        superseded,
        fact(facts.StageStarted, "a", 3),
        cancelled,
        fact(facts.StageStarted, "b"),
    ]
    assert parallel_width(seen) == 1


@pytest.mark.parametrize("language", languages())
def test_its_constellation_ships_with_its_inputs_and_fits_the_kinds_that_ship(language: str) -> None:
    kinds = {kind.name: kind for kind in shipped_kinds()}
    made = constellation(language)
    assert problems(made, kinds) == []
    assert warnings(made, kinds) == []
    assert {(example() / name).is_file() for name in (QUESTION, PHOTO)} == {True}
    spoken = [arc for arc in made.dependencies if arc.downstream == "speak"]
    assert [(arc.upstream, arc.output) for arc in spoken] == [(ANSWER, "answer")]


def test_the_largest_size_answers_unless_another_is_named() -> None:
    assert languages() == [family.LARGEST, *family.sizes(), EXTRACTIVE]
    default, smallest = (constellation(*name).stages[ANSWER] for name in ((), (family.sizes()[0],)))
    assert (default.kind, default.params) == ("language.answer", {})
    assert (smallest.kind, smallest.params) == ("language.answer", {"model": family.sizes()[0]})
    extractive = constellation(EXTRACTIVE).stages[ANSWER]
    assert (extractive.kind, extractive.params, extractive.requires) == ("text.answer", {}, default.requires)


def details(**changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"by": "model", "model": "starloom-1m", "source": "corpus", "title": "Unix", "span": "1969"}
    made |= {"doubt": None, "certainty": math.log(0.96), "prompt_tokens": 200, "tokens": 3}
    return made | changed


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, 'starloom-1m, which found "1969" under Unix (96% sure of a token)'),
        ({"source": "read"}, 'starloom-1m, which found "1969" in the picture (96% sure of a token)'),
        ({"source": "none"}, "starloom-1m, by saying that no passage holds it (96% sure of a token)"),
        ({"doubt": "late", "certainty": None}, "the best sentences; starloom-1m was not believed: late"),
        ({"model": None}, "the best sentences"),
    ],
)
def test_who_answered_is_told_in_a_line(changed: dict[str, Any], line: str) -> None:
    assert command.answered_by(details(**changed)) == line


def test_the_speed_of_the_language_model_is_the_median_of_runs() -> None:
    def run(told: dict[str, Any], **figures: float) -> Measured:
        stage = StageInfo(name=ANSWER, kind="language.answer", status=StageStatus.SUCCEEDED, figures=figures)
        info = JobInfo(id=JobId("j"), status=facts.JobStatus.SUCCEEDED, stages=(stage,))
        return Measured(outputs={"details": told}, info=info, seconds=1.0, width=1)

    runs = [
        run(details(), first_token_seconds=first, token_seconds=each)
        for first, each in ((0.02, 0.004), (0.03, 0.002), (0.09, 0.02))
    ]
    row = language_row(runs)
    assert row is not None
    assert (row["by"], row["first_token_ms"], row["tokens_per_second"]) == ("model", 30.0, 250.0)
    assert "first token after 30 ms, 200 tokens read, then 250 tokens a second" in command.speed_line(row)
    assert command.speed_line(language_row([run(details(model=None))])) == ""
    assert language_row([run({"source": "read"})]) is None
    assert command.speed_line(None) == ""


def test_faces_are_told_in_a_line() -> None:
    assert command.faces_text([]) == "none"
    assert command.faces_text([{"score": 0.914}]) == "one face, score 0.91"
    assert command.faces_text([{"score": 0.9}, {"score": 0.5}]) == "2 faces, score 0.90, 0.50"


def test_missing_input_files_are_all_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["demo", "--json", "--audio", str(tmp_path / "a.wav"), "--image", str(tmp_path)]
    assert main(arguments) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert [problem["place"] for problem in error["problems"]] == ["--audio", "--image"]


def test_an_unknown_language_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--language", "klingon"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in languages())


def test_a_folder_that_cannot_be_made_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--keep", str(tmp_path / "file" / "folder")]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_without_the_extras_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "NEEDED", ("json", "no_such_module"))
    with pytest.raises(StarloomError, match=r"needs no_such_module.*starloom\[server,agent\]"):
        command.require_extras()


def test_bad_input_is_an_error_of_the_input() -> None:
    with pytest.raises(InvalidInput):
        command._inputs(Path("gone"), None)


@pytest.mark.ray
@pytest.mark.models
@pytest.mark.slow
@pytest.mark.timeout(240)
class TestOnRay:
    """With every model, on real input."""

    @pytest.fixture
    def client(self, embedded: EmbeddedCluster, model_store: object) -> Iterator[Client]:
        with Client(embedded.address, embedded.token) as client:
            yield client

    @staticmethod
    def ask(client: Client, max_parallel: int = 0, what: Constellation | None = None) -> Measured:
        inputs = {"audio": example() / QUESTION, "image": example() / PHOTO}
        run = measure(client, what or constellation(), inputs, Silent(), max_parallel=max_parallel)
        assert run.outputs["answer"]
        return run

    def test_the_command_answers_and_leaves_nothing_behind(
        self, command_line: CommandLine, model_store: object, tmp_path: Path
    ) -> None:
        done = command_line.run("demo", "--json", "--keep", str(tmp_path / "kept"))
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)

        assert report["status"] == "succeeded"
        outputs = report["outputs"]
        assert outputs["transcript"].strip(" .?").lower() == "which pixels does this page call markers"
        assert "unambiguously" in outputs["answer"]
        assert outputs["details"]["model"] == family.sizes()[-1]
        language = report["language"]
        assert (language["by"], language["model"]) == (outputs["details"]["by"], family.sizes()[-1])
        assert language["first_token_ms"] > 0
        assert language["tokens_per_second"] > 0
        assert "Region-based segmentation" in outputs["text"]
        assert len(outputs["faces"]) == 1
        assert outputs["passages"][0]["title"] == "pixel"
        with wave.open(outputs["speech"]["path"]) as spoken:
            assert spoken.getnframes() / spoken.getframerate() == pytest.approx(outputs["speech"]["seconds"])
            assert outputs["speech"]["seconds"] > 3

        assert len(report["nodes"]) == 5
        assert {node["tier"] for node in report["nodes"]} == {"device", "edge", "cloud"}
        assert {target for node in report["nodes"] for target in node["targets"]} == {"cpu", "npu"}
        stages = report["stages"]
        assert {stage["kind"] for stage in stages} == {stage.kind for stage in constellation().stages.values()}
        assert all(stage["node"] and stage["attempts"] >= 1 for stage in stages)
        assert {stage["kind"] for stage in stages if not stage["model"]} <= DECODING
        assert {(stage["name"], stage["emulated"]) for stage in stages if stage["target"] == "npu"} == {("faces", True)}
        assert {stage["tier"] for stage in stages} == {"device", "edge", "cloud"}
        [figures] = [stage["figures"] for stage in stages if stage["name"] == "answer"]
        assert set(figures) == {"prompt_tokens", "tokens", "first_token_seconds", "token_seconds"}
        assert all(set(stage["seconds"]) == {"queue", "transfer", "load", "run"} for stage in stages)

        assert report["parallel_width"] >= 2
        assert report["ratio"] == pytest.approx(report["sequential_seconds"] / report["wall_seconds"])
        assert report["wall_seconds"] == min(report["runs"]["wall"])
        assert report["sequential_seconds"] == min(report["runs"]["sequential"])
        split = report["cold_start"]
        assert set(split) >= {"models", "orchestrator", "ray", "agents", "job", "load", "total"}
        assert split["models"] + split["ray"] + split["agents"] + split["job"] <= report["cold_seconds"]
        assert command_line.processes == []
        assert not command_line.folder.exists()

    def test_the_best_sentences_answer_as_well(self, client: Client) -> None:
        inputs = {"audio": example() / QUESTION, "image": example() / PHOTO}
        run = measure(client, constellation(EXTRACTIVE), inputs, Silent())
        assert run.outputs["answer"].startswith("The picture says: These markers are pixels")
        assert "by" not in run.outputs["details"]

    def test_stages_run_side_by_side_unless_the_client_asks_for_one_after_another(self, client: Client) -> None:
        together = self.ask(client)
        alone = self.ask(client, max_parallel=1)
        assert together.width >= 2
        assert alone.width == 1
        assert together.outputs["answer"] == alone.outputs["answer"]

    def test_sigterm_ends_the_command_and_all_that_it_started(self, command_line: CommandLine) -> None:
        with command_line.start("demo") as demo:
            assert demo.stderr is not None
            for line in demo.stderr:
                if line.startswith("the cluster is there"):
                    break
            demo.terminate()
            demo.communicate()
        assert demo.returncode == 128 + signal.SIGTERM
        assert command_line.processes == []

    def test_a_file_that_is_no_sound_fails_the_command_in_order(
        self, command_line: CommandLine, model_store: object, tmp_path: Path
    ) -> None:
        (tmp_path / "question.wav").write_text("no sound")
        done = command_line.run("demo", "--json", "--audio", str(tmp_path / "question.wav"))
        assert done.returncode == 1, done.stderr
        report = json.loads(done.stdout)
        assert report["status"] == "failed"
        assert [problem["place"] for problem in report["error"]["problems"]] == ["stages.hear"]
        assert len(report["nodes"]) == 5
        assert command_line.processes == []

    def test_ten_in_a_row_leave_no_process_handle_or_memory_behind(self, client: Client) -> None:
        # A first few runs load models, and fill caches and thread pools. Left to the planner, an edge node may be given
        # its first stage of a kind, and load the model, only after tens of jobs.
        for node in ("edge-1", "edge-2"):
            self.ask(client, what=on_edge(constellation(), node))
        for _ in range(WARM_UP_JOBS):
            self.ask(client)
        processes = running_children()
        tens: list[dict[int, tuple[int, int]]] = []
        for _ in range(TENS_MAX):
            tens.append(self.growth(client))
            assert running_children() == processes
            # What is left behind is left in every ten; an arena of ONNX Runtime's reaches its size and stays.
            handles = {pid: min(ten[pid][0] for ten in tens) for pid in tens[0]}
            sizes = {pid: min(ten[pid][1] for ten in tens) for pid in tens[0]}
            if max(sizes.values()) <= GROWTH_BYTES_MAX and max(handles.values()) <= HANDLES_MAX:
                break
        assert max(handles.values()) <= HANDLES_MAX, tens
        assert statistics.median_low(sizes.values()) <= MEDIAN_GROWTH_BYTES_MAX, tens
        assert max(sizes.values()) <= GROWTH_BYTES_MAX, tens
        until(lambda: all(node.load.held_bytes == node.load.running == 0 for node in client.nodes()))

    def growth(self, client: Client) -> dict[int, tuple[int, int]]:
        """What ten jobs add to each process's open file handles and resident bytes."""
        before = self.footprint(client)
        for _ in range(JOBS_IN_A_ROW):
            self.ask(client)
        after = self.footprint(client)
        return {pid: (handles - before[pid][0], size - before[pid][1]) for pid, (handles, size) in after.items()}

    @staticmethod
    def footprint(client: Client) -> dict[int, tuple[int, int]]:
        """Open file handles and resident bytes of the orchestrator's and each agent's process."""
        info = client.cluster()
        pids = [info.pid, *(node.profile.pid for node in info.nodes if node.state == "online")]
        found = {}
        for pid in pids:
            process = psutil.Process(pid)
            with process.oneshot():
                found[pid] = (process.num_fds(), process.memory_info().rss)
        return found
