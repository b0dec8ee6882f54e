"""The commands that talk to a cluster, on a real orchestrator and a real agent."""

import asyncio
import json
import os
import signal
import sys
import threading
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.orchestrator.live import KINDS, TOKEN, Cluster, copying, failing, gated, gates

from starloom.agents.values import Audio
from starloom.dag import document, facts, limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Private, Requirements, Tier
from starloom.dag.ids import AgentId
from starloom.dag.values import PortType
from starloom.devices.node import NodeProfile, Target
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientlink import ADDRESS_VARIABLE, TOKEN_VARIABLE
from starloom.orchestrator.inputs import AgentGoodbye, AgentHello


class Said(NamedTuple):
    code: int
    lines: list[Any]
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        [found] = self.lines
        return found


Run = Callable[..., Any]


@pytest.fixture
def starloom(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`await starloom("jobs")` runs a command with `--json` in a thread; `people=True` without."""
    monkeypatch.setenv(ADDRESS_VARIABLE, cluster.address)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)

    async def run(*argv: object, people: bool = False) -> Said:
        capfd.readouterr()
        code = await asyncio.to_thread(main, [*map(str, argv), *([] if people else ["--json"])])
        said = capfd.readouterr()
        return Said(code, [] if people else [json.loads(line) for line in said.out.splitlines()], said.out, said.err)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Constellation], Path]:
    def to_file(constellation: Constellation) -> Path:
        file = tmp_path / f"{constellation.name}.yaml"
        file.write_text(document.dump(constellation), "utf-8")
        return file

    return to_file


async def test_a_watched_job_tells_its_outputs(starloom: Run, write: Any, tmp_path: Path) -> None:
    file = write(copying(PortType.TEXT, PortType.JSON, PortType.BYTES))
    (tmp_path / "data").write_bytes(b"1234")
    (tmp_path / "value").write_text('{"n": 1}')
    inputs = (
        "--input",
        "text=Grüße",
        "--input",
        f"json=@{tmp_path / 'value'}",
        "--input",
        f"bytes={tmp_path / 'data'}",
    )
    said = await starloom("submit", file, *inputs, "--watch")
    assert said.code == 0
    assert said.json["status"] == "succeeded"
    assert said.json["revision"] == 1
    assert said.json["outputs"]["text"] == "Grüße"
    assert said.json["outputs"]["json"] == {"n": 1}
    described = said.json["outputs"]["bytes"]
    assert (described["type"], described["bytes"], len(described["digest"])) == ("bytes", 4, 64)
    assert f"job {said.json['job']}" in said.err
    assert "placed on node (cpu), attempt 1" in said.err
    assert "succeeded" in said.err.splitlines()[-1]


async def test_outputs_are_saved_as_files(starloom: Run, write: Any, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "in.wav"), "wb") as stream:
        stream.setparams((1, 2, 8_000, 0, "NONE", ""))
        stream.writeframes(b"\x00\x40" * limits.INLINE_VALUE_BYTES_MAX)
    file = write(copying(PortType.AUDIO, PortType.TEXT))
    inputs = ("--input", f"audio={tmp_path / 'in.wav'}", "--input", "text=x")
    said = await starloom("submit", file, *inputs, "--watch", "--output-dir", tmp_path / "out")
    assert said.code == 0
    path = tmp_path / "out" / "audio.wav"
    assert said.json["outputs"]["audio"]["path"] == str(path)
    assert path.read_bytes() == (tmp_path / "in.wav").read_bytes()
    assert (tmp_path / "out" / "text.txt").read_text() == "x"
    said = await starloom("submit", file, *inputs, "--watch", "--output-dir", tmp_path / "out", people=True)
    assert f"audio: {path}" in said.out


async def test_a_job_that_nobody_watches_runs_on(starloom: Run, write: Any) -> None:
    said = await starloom("submit", write(gated("a")), "--input", "text=x", "--key", "mine", "--priority", "3")
    assert (said.code, said.json["status"], said.json["outputs"]) == (0, "running", {})
    job = said.json["job"]
    [row] = (await starloom("jobs")).json["jobs"]
    assert (row["job"], row["key"], row["name"], row["status"], row["ended"]) == (job, "mine", "gated", "running", None)
    again = await starloom("submit", write(gated_as_before()), "--input", "text=x", "--key", "mine", "--priority", "3")
    assert (again.json["job"], again.json["existing"]) == (job, True)
    other = await starloom("submit", write(gated_as_before()), "--input", "text=y", "--key", "mine")
    assert (other.code, other.json["error"]["type"]) == (2, "Conflict")
    gates["a"].set()
    said = await starloom("watch", "mine")
    assert said.code == 0
    assert (said.lines[0]["fact"], said.lines[-1]["fact"]) == ("job-submitted", "job-ended")
    offsets = [line["offset"] for line in said.lines]
    assert offsets == sorted(set(offsets))
    rest = await starloom("watch", job, "--after", offsets[1])
    assert [line["offset"] for line in rest.lines] == offsets[2:]


async def test_a_job_with_a_deadline_fails_in_time(starloom: Run, write: Any) -> None:
    said = await starloom("submit", write(gated("a")), "--input", "text=x", "--deadline", "200ms", "--watch")
    assert (said.code, said.json["status"]) == (1, "failed")
    assert (said.json["error"]["type"], said.json["error"]["cause"]) == ("JobFailed", "DeadlineExceeded")
    assert "stopped: deadline exceeded: 0.2 s from its acceptance" in said.err
    said = await starloom("submit", write(gated_as_before()), "--input", "text=x", "--deadline", "soon")
    assert said.code == 2
    assert "--deadline" in said.err


def gated_as_before() -> Constellation:
    """The constellation `gated("a")` without a new gate."""
    gate = gates["a"]
    made = gated("a")
    gates["a"] = gate
    return made


async def test_events_are_readable_for_people(starloom: Run, write: Any) -> None:
    job = (await starloom("submit", write(copying(PortType.TEXT)), "--input", "text=x", "--watch")).json["job"]
    said = await starloom("watch", job, people=True)
    assert said.code == 0
    happened = [line.split(maxsplit=2)[1:] for line in said.out.splitlines()]
    assert happened[0] == ["job", "submitted: copying, 1 stages"]
    assert ["text", "placed on node (cpu), attempt 1"] in happened
    assert happened[-2][:1] == ["text"]
    assert happened[-2][1].startswith("succeeded in ")
    assert happened[-1] == ["job", "succeeded"]


async def test_one_output_is_printed_as_soon_as_it_is_there(starloom: Run, write: Any) -> None:
    job = (await starloom("submit", write(gated("a", "b")), "--input", "text=x")).json["job"]
    gates["b"].set()
    assert (await starloom("watch", job, "--port", "b")).json == {"job": job, "port": "b", "value": "x"}
    assert (await starloom("get", job)).json["status"] == "running"
    said = await starloom("watch", job, "--port", "c")
    assert said.code == 2
    assert "its outputs: a, b" in said.err
    gates["a"].set()
    assert (await starloom("watch", job, "--port", "a", people=True)).out == "x\n"


async def test_a_failed_job_is_told_with_its_stages(starloom: Run, write: Any) -> None:
    file = write(failing("a"))
    said = await starloom("submit", file, "--input", "text=no face", "--watch")
    assert said.code == 1
    assert said.json["status"] == "failed"
    assert said.json["outputs"] == {}
    error = said.json["error"]
    assert error["type"] == "JobFailed"
    assert [problem["place"] for problem in error["problems"]] == ["stages.a"]
    assert "no face" in error["problems"][0]["what"]
    assert "Traceback" not in said.err
    job = said.json["job"]
    watched = await starloom("watch", job)
    assert watched.code == 1
    assert watched.lines[-1] == {"error": error}
    got = await starloom("get", job)
    assert (got.code, got.json["error"]) == (0, error)
    ported = await starloom("watch", job, "--port", "a")
    assert (ported.code, ported.json["error"]["type"]) == (1, "JobFailed")


async def test_get_tells_of_stages_and_outputs(starloom: Run, write: Any, tmp_path: Path) -> None:
    file = write(copying(PortType.TEXT, PortType.TENSOR))
    array = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "in.npy", array)
    inputs = ("--input", "text=x", "--input", f"tensor={tmp_path / 'in.npy'}")
    job = (await starloom("submit", file, *inputs, "--watch")).json["job"]
    said = await starloom("get", job)
    assert (said.code, said.json["job"], said.json["status"], said.json["error"]) == (0, job, "succeeded", None)
    assert said.json["outputs"]["text"] == "x"
    assert said.json["outputs"]["tensor"]["meta"] == {"dtype": "float64", "shape": [2, 3]}
    stage = {stage["name"]: stage for stage in said.json["stages"]}["text"]
    assert set(stage) >= {"name", "kind", "status", "node", "tier", "target", "model", "attempts", "seconds"}
    assert set(stage["seconds"]) == {"queue", "transfer", "load", "run"}
    assert (stage["node"], stage["tier"], stage["target"], stage["attempts"]) == ("node", "edge", "cpu", 1)
    assert stage["figures"] == {"inputs": 1.0}
    said = await starloom("get", job, "--output", "tensor", "-o", tmp_path / "out.npy")
    assert said.json["value"]["path"] == str(tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), array)
    assert (await starloom("get", job, "--output", "text", people=True)).out == "x\n"
    said = await starloom("get", job, "--output", "none")
    assert said.code == 2
    assert "there so far: text, tensor" in said.err
    shown = (await starloom("get", job, people=True)).out
    assert "test.tensor" in shown
    assert "text measured inputs 1" in shown
    assert "; inputs 1\n" in (await starloom("watch", job, people=True)).out


async def test_cancel_says_what_the_job_ended_as(starloom: Run, write: Any) -> None:
    job = (await starloom("submit", write(gated("a")), "--input", "text=x")).json["job"]
    said = await starloom("cancel", job, "--reason", "enough")
    assert (said.code, said.json["job"], said.json["status"]) == (0, job, "cancelled")
    assert said.json["seconds"] >= 0
    watched = await starloom("watch", job)
    assert (watched.code, watched.lines[-1]["error"]["type"]) == (1, "Cancelled")
    done = (await starloom("submit", write(copying(PortType.TEXT)), "--input", "text=x", "--watch")).json["job"]
    said = await starloom("cancel", done)
    assert (said.code, said.json["status"]) == (1, "succeeded")


async def test_explain_says_what_each_stage_waits_for(starloom: Run, write: Any) -> None:
    job = (await starloom("submit", write(gated("a")), "--input", "text=x")).json["job"]
    said = await starloom("explain", job)
    assert (said.code, said.json["job"], said.json["status"]) == (0, job, "running")
    [row] = said.json["stages"]
    assert row["stage"] == "a"
    assert row["waits_for"]
    gates["a"].set()
    await starloom("watch", job)
    assert (await starloom("explain", job)).json["stages"] == []
    assert "0 of 1 stages have not ended" in (await starloom("explain", job, people=True)).out


async def test_explain_says_why_private_data_is_not_elsewhere(starloom: Run, write: Any, cluster: Cluster) -> None:
    assert cluster.orchestrator is not None
    far = NodeProfile(name=AgentId("far"), tier=Tier.CLOUD, address="far:1")
    hello = AgentHello(agent=far.name, incarnation="i", profile=far, kinds=(KINDS["test.gate"], KINDS["test.text"]))
    cluster.orchestrator.engine.post(hello)
    graph = Graph("kept")
    text = graph.input("secret", PortType.TEXT, private=Private.EDGE)
    gate = graph.stage("gate", "test.gate", text=text, params={"gate": "kept"})
    graph.stage("next", "test.text", value=gate["text"])
    gates["kept"] = threading.Event()
    job = (await starloom("submit", write(graph.build(KINDS)), "--input", "secret=x")).json["job"]
    why = {
        "gate": "text is private to edge: secret; not on far (cloud)",
        "next": "value is private to edge: secret -> gate; not on far (cloud)",
    }
    assert {row["stage"]: row["why"] for row in (await starloom("explain", job)).json["private"]} == why
    gates["kept"].set()
    assert (await starloom("watch", job)).code == 0
    ended = (await starloom("explain", job)).json
    assert ended["stages"] == []
    assert {row["stage"]: (row["node"], row["tier"], row["why"]) for row in ended["private"]} == {
        name: ("node", "edge", told) for name, told in why.items()
    }
    shown = (await starloom("explain", job, people=True)).out
    assert why["next"] in shown
    stages = (await starloom("get", job)).json["stages"]
    assert {stage["name"]: stage["private"] for stage in stages} == why


async def test_a_job_that_cannot_go_on_is_explained(starloom: Run, write: Any, cluster: Cluster) -> None:
    assert cluster.orchestrator is not None
    engine = cluster.orchestrator.engine
    ghost = NodeProfile(
        name=AgentId("ghost"), tier=Tier.EDGE, labels={"rack": "left"}, targets=(Target(name="cpu"),), address="ghost:1"
    )
    hello = AgentHello(agent=ghost.name, incarnation="i", profile=ghost, kinds=(KINDS["test.text"],))
    engine.post(hello)
    engine.post(AgentGoodbye(agent=ghost.name, incarnation="i"))
    graph = Graph("left")
    require = Requirements(labels={"rack": "left"})
    graph.stage("a", "test.text", value=graph.input("text", PortType.TEXT), require=require)
    job = (await starloom("submit", write(graph.build(KINDS)), "--input", "text=x")).json["job"]
    said = await starloom("explain", job)
    assert said.code == 0
    assert "a waits for a node that may run it: ghost is lost; node has no label rack" in said.json["stuck"]
    assert "it fails in" in said.json["stuck"]
    assert "it cannot go on: each of the 1 stages" in (await starloom("explain", job, people=True)).out
    assert (await starloom("cancel", job)).code == 0
    assert (await starloom("explain", job)).json["stuck"] == ""


async def test_nodes_has_the_nodes_and_the_orchestrator(starloom: Run, cluster: Cluster) -> None:
    said = await starloom("nodes")
    assert said.code == 0
    [node] = said.json["nodes"]
    assert set(node) >= {"name", "tier", "targets", "state", "labels", "pid", "address"}
    assert (node["name"], node["tier"], node["targets"], node["state"]) == ("node", "edge", ["cpu"], "online")
    assert said.json["orchestrator"]["address"] == cluster.address
    assert said.json["orchestrator"]["pid"] > 0
    assert cluster.address in (await starloom("nodes", people=True)).out


async def test_bad_input_is_refused_whole_and_the_cluster_goes_on(starloom: Run, write: Any, tmp_path: Path) -> None:
    text = write(copying(PortType.TEXT))
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        "api_version: starloom/v1\nname: x\ninputs: {a: bytes}\nstages:\n  s: {kind: no.such}\n  t: {kind: test.text, in: {value: $a}}\n"
    )
    cycle = tmp_path / "cycle.yaml"
    cycle.write_text(
        "api_version: starloom/v1\nname: x\nstages:\n  s: {kind: test.text, after: [t]}\n  t: {kind: test.text, after: [s]}\n"
    )
    nowhere = tmp_path / "nowhere.yaml"
    nowhere.write_text(
        "api_version: starloom/v1\nname: x\ninputs: {a: text}\nstages: {s: {kind: test.text, in: {value: $a}, require: {tier: cloud}}}\n"
    )
    (tmp_path / "file").write_bytes(b"1")
    cases = [
        (("submit", tmp_path / "none.yaml"), {str(tmp_path / "none.yaml")}),
        (("submit", text), {"inputs.text"}),
        (("submit", text, "--input", "txt=x"), {"inputs.text", "inputs.txt"}),
        (("submit", text, "--input", "text=x", "--priority", "9" * 12), {"priority"}),
        (("submit", text, "--input", "text=x", "--key", "job-1"), {"key"}),
        (("submit", broken, "--input", f"a={tmp_path / 'file'}"), {"stages.s.kind", "stages.t.in.value"}),
        (("submit", nowhere, "--input", "a=x"), {"stages.s.require"}),
        (("submit", broken, "--input", "b=x"), {"stages.s.kind", "stages.t.in.value", "inputs.a", "inputs.b"}),
    ]
    for argv, places in cases:
        said = await starloom(*argv)
        assert said.code == 2, argv
        assert {problem["place"] for problem in said.json["error"]["problems"]} == places, argv
        assert "Traceback" not in said.err
    said = await starloom("submit", cycle)
    assert said.code == 2
    assert any("s -> t -> s" in problem["what"] for problem in said.json["error"]["problems"])
    for command in ("get", "watch", "cancel", "explain"):
        said = await starloom(command, "nobody")
        assert (said.code, said.lines[-1]["error"]["type"]) == (2, "NotFound"), command
    assert (await starloom("jobs")).json == {"jobs": []}
    assert (await starloom("submit", text, "--input", "text=x", "--watch")).code == 0


async def test_a_wrong_token_and_nobody_there(
    starloom: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unused_tcp_port: int
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "wrong")
    said = await starloom("jobs")
    assert (said.code, said.json["error"]["type"]) == (2, "Unauthenticated")
    monkeypatch.setattr(limits, "CONNECT_SECONDS", 0.01)
    monkeypatch.setenv(ADDRESS_VARIABLE, f"127.0.0.1:{unused_tcp_port}")
    for command in ("jobs", "nodes"):
        said = await starloom(command)
        assert (said.code, said.json["error"]["type"]) == (3, "Unavailable")
    monkeypatch.delenv(ADDRESS_VARIABLE)
    monkeypatch.setenv("STARLOOM_HOME", str(tmp_path))
    said = await starloom("jobs")
    assert said.code == 3
    assert "starloom up" in said.err


async def started(*argv: object, cluster: Cluster) -> asyncio.subprocess.Process:
    """The command as a process of its own."""
    environment = {**os.environ, ADDRESS_VARIABLE: cluster.address, TOKEN_VARIABLE: TOKEN}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "starloom.orchestrator.cli.main",
        *map(str, argv),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        # A shell starts what runs in the background with SIGINT ignored, and a child would inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


async def test_ctrl_c_ends_the_watching_and_not_the_job(cluster: Cluster, write: Any) -> None:
    process = await started("submit", write(gated("a")), "--input", "text=x", "--key", "k", "--watch", cluster=cluster)
    assert process.stderr is not None
    while b"started" not in await process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert b"goes on; `starloom watch" in err
    assert b"Traceback" not in err
    async with AsyncClient(cluster.address, TOKEN) as client:
        job = await client.job("k")
        gates["a"].set()
        assert await job.result(timeout=60) == {"a": "x"}


async def test_a_reader_that_goes_away_ends_the_watching(cluster: Cluster, write: Any) -> None:
    async with AsyncClient(cluster.address, TOKEN) as client:
        job = await client.submit(gated("a"), {"text": "x"})
        process = await started("watch", job.id, "--json", cluster=cluster)
        assert process.stdout is not None
        assert b"job-submitted" in await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        gates["a"].set()
        _, err = await process.communicate()
        assert (process.returncode, err) == (141, b"")


async def test_a_live_table_follows_on_a_terminal(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from starloom.orchestrator.cli.follow import Progress, follow
    from starloom.orchestrator.cli.output import Output

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    async with AsyncClient(cluster.address, TOKEN) as client:
        job = await client.submit(copying(PortType.AUDIO), {"audio": Audio(np.zeros(1, np.float32), 8_000)})
        progress = Progress(Output())
        await follow(job, progress)
        events = [event async for event in job.events()]
    assert isinstance(events[-1].fact, facts.JobEnded)
    shown = capfd.readouterr().err
    assert f"{job.id}  succeeded  1 succeeded" in shown
    assert "test.audio" not in shown
    assert "node" in shown


async def test_a_job_is_patched_and_shown_as_it_was(starloom: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    original = gated("a", "b")
    job = (await starloom("submit", write(original), "--input", "text=x")).json["job"]
    patch = tmp_path / "patch.yaml"
    patch.write_text("patch:\n- add: {c: {kind: test.text, in: {value: a.text}}}\n- outputs: {b: null, c: c.value}\n")
    said = await starloom("patch", job, patch, "--if-revision", 1, "--why", "more")
    assert (said.code, said.json["revision"], said.json["existing"]) == (0, 2, False)
    assert said.json["changes"] == [
        "+ c (test.text)",
        "+ a.text -> c.value",
        "- output b: b.text",
        "+ output c: c.value",
    ]
    was = (await starloom("get", job, "--revision", 1)).json
    assert (was["revision"], was["shown"], was["patch"]) == (2, 1, None)
    assert document.from_json(was["constellation"]) == original
    now = (await starloom("get", job, "--revision", 2)).json
    assert (now["patch"]["why"], now["patch"]["operations"]) == ("more", ["add c", "outputs b, c"])
    said = await starloom("get", job, "--revision", 2, people=True)
    assert "    kind: test.text\n    in: {value: a.text}" in said.out
    assert "revision 2 by local (more): add c" in said.err
    assert (await starloom("get", job)).json["patches"][0]["revision"] == 2
    said = await starloom("patch", job, patch, people=True)
    assert (said.code, "already one of that name" in said.err) == (2, True)


async def test_a_patch_that_is_refused_says_every_reason(
    starloom: Run, write: Callable[..., Path], tmp_path: Path
) -> None:
    job = (await starloom("submit", write(gated("a")), "--input", "text=x")).json["job"]
    patch = tmp_path / "patch.yaml"
    patch.write_text("patch:\n- rewire: {stage: a, wait: [a]}\n- remove: b\n")
    said = await starloom("patch", job, patch, "--if-revision", 9)
    assert (said.code, said.json["error"]["type"]) == (2, "PatchRefused")
    assert {"if_revision", "patch[1].remove", "stages.a.after"} <= {p["place"] for p in said.json["error"]["problems"]}
    patch.write_text("patch: 3")
    assert (await starloom("patch", job, patch)).code == 2
    assert (await starloom("patch", job, tmp_path / "none.yaml")).code == 2
    assert (await starloom("get", job, "--revision", 7)).code == 2
    assert (await starloom("get", job, "--revision", 1, "--output", "a")).code == 2
    patch.write_text("patch: [cancel_stage: a]")
    assert (await starloom("patch", job, patch, "--restart", people=True)).code == 0
    watched = await starloom("watch", job, people=True)
    assert "changed to revision 2 by local: cancel_stage a" in watched.out + watched.err
