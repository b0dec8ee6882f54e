"""The command line's frame: exit codes, what goes to which stream, and what a command costs to start."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from starloom.dag.errors import (
    Cancelled,
    Conflict,
    DigestMismatch,
    Infeasible,
    InvalidInput,
    JobFailed,
    NotFound,
    Overloaded,
    Problem,
    StarloomError,
    Unauthenticated,
    Unavailable,
)
from starloom.orchestrator.cli import check, main, output
from starloom.orchestrator.cli.output import Exit, Output

EXTRAS = (
    "ray",
    "psutil",
    "onnxruntime",
    "onnx",
    "cv2",
    "soundfile",
    "soxr",
    "tokenizers",
    "hibari",
    "pyclipper",
    "sympy",
)
HEAVY = ("ray", "onnxruntime", "psutil", "cv2", "soundfile", "onnx", "tokenizers", "networkx")


def loaded_after(code: str) -> list[str]:
    """The heavy modules that are loaded once `code` ran in a fresh interpreter."""
    script = (
        f"{code}\nimport sys, json\nsys.stderr.write(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stderr)
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import starloom, starloom.orchestrator.client, starloom.orchestrator.clientsync",
        "from starloom import AsyncClient, Client, Graph",
        "import starloom.orchestrator.cli.jobs, starloom.orchestrator.cli.files, starloom.orchestrator.cli.views",
        "from starloom.orchestrator.cli.main import parser; parser()",
    ],
)
def test_a_client_loads_nothing_that_only_nodes_need(code: str) -> None:
    assert loaded_after(code) == []


def test_the_help_loads_neither_grpc_nor_numpy_nor_rich() -> None:
    code = "import sys; from starloom.orchestrator.cli.main import main; assert main(['--help']) == 0"
    code += "; assert not {'grpc', 'numpy', 'rich'} & set(sys.modules), set(sys.modules) & {'grpc', 'numpy', 'rich'}"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["validate", "CONSTELLATION"], Exit.DONE),
        (["models", "list"], Exit.DONE),
        (["nodes"], Exit.UNREACHABLE),
        (
            ["submit", "CONSTELLATION", "--input", "audio=CONSTELLATION", "--input", "image=CONSTELLATION"],
            Exit.UNREACHABLE,
        ),
    ],
)
def test_a_client_does_without_the_extras(tmp_path: Path, example_folder: Path, argv: list[str], code: Exit) -> None:
    argv = [argument.replace("CONSTELLATION", str(example_folder / "constellation.yaml")) for argument in argv]
    script = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r})); "
    script += f"from starloom.orchestrator.cli.main import main; sys.exit(main({argv!r}))"
    environment = {"STARLOOM_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_the_package_names_what_it_has() -> None:
    import starloom

    assert {"AsyncClient", "Client", "Graph"} <= set(dir(starloom))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = starloom.Nothing


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("no"), 2),
        (Infeasible("no"), 2),
        (NotFound("no"), 2),
        (Conflict("no"), 2),
        (Unauthenticated("no"), 2),
        (Unavailable("no"), 3),
        (JobFailed("no"), 1),
        (Cancelled("no"), 1),
        (Overloaded("no"), 1),
        (DigestMismatch("no"), 1),
        (StarloomError("no"), 1),
    ],
)
def test_each_error_has_its_exit_code(error: StarloomError, code: int) -> None:
    assert output.exit_code(error) == code


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["validate"], "the following arguments are required: FILE"),
        (["models"], "the following arguments are required: COMMAND"),
        (["submit", "f", "--prio", "1"], "unrecognized arguments: --prio"),
        (["submit", "f", "--priority", "high"], "invalid int value: 'high'"),
        (["submit", "f", "--output-dir", "d"], "--output-dir needs --watch"),
        (["get", "j", "-o", "f"], "-o needs --output NAME"),
        (["jobs", "--limit=-1"], "'-1' is no whole number of at least 0"),
        (["watch", "j", "--after", "9" * 20], "is no whole number"),
    ],
)
def test_a_wrong_command_line_is_told_on_both_streams(
    capsys: pytest.CaptureFixture[str], argv: list[str], what: str
) -> None:
    assert main.main([*argv, "--json"]) == Exit.BAD_INPUT
    said = capsys.readouterr()
    assert what in said.err
    error = json.loads(said.out)["error"]
    assert error["type"] == "UsageError"
    assert what in error["message"]
    assert what in error["problems"][0]["what"]
    assert main.main(argv) == Exit.BAD_INPUT
    assert capsys.readouterr().out == ""


def test_help_and_version_are_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("starloom 0.")
    assert main.main(["submit", "--help"]) == 0
    assert "--watch" in capsys.readouterr().out


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `validate FILE` do something else."""

    def set_to(run: Any) -> None:
        monkeypatch.setattr(check, "run_validate", run)

    return set_to


def raising(error: BaseException) -> Any:
    def run(_args: Any, _out: Output) -> int:
        raise error

    return run


def test_every_problem_is_told_with_its_place(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    command(raising(InvalidInput([Problem("stages.a", "is odd"), Problem("stages.b", "is even")], "two things")))
    assert main.main(["validate", "f", "--json"]) == 2
    said = capsys.readouterr()
    assert said.err == "starloom: two things:\n  stages.a: is odd\n  stages.b: is even\n"
    assert json.loads(said.out) == {
        "error": {
            "type": "InvalidInput",
            "message": "two things:\n  stages.a: is odd\n  stages.b: is even",
            "problems": [{"place": "stages.a", "what": "is odd"}, {"place": "stages.b", "what": "is even"}],
        }
    }


def test_a_failed_jobs_stages_are_problems_as_well(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    command(raising(JobFailed("job-1 failed", [Problem("stages.a", "no face")])))
    assert main.main(["validate", "f", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["problems"] == [{"place": "stages.a", "what": "no face"}]


def test_an_interrupt_ends_quietly(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    command(raising(KeyboardInterrupt()))
    assert main.main(["validate", "f"]) == 130
    assert capsys.readouterr() == ("", "")


def test_an_error_of_the_system_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    command(raising(PermissionError(13, "Permission denied", "/store")))
    assert main.main(["validate", "f", "--json"]) == 1
    said = capsys.readouterr()
    assert "Permission denied: '/store'" in said.err
    assert json.loads(said.out)["error"]["type"] == "PermissionError"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    script = "import sys; from starloom.orchestrator.cli.main import main; sys.stdin.read(); sys.exit(main(['models', 'list']))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert process.wait() == Exit.BROKEN_PIPE
    assert process.stderr.read() == b""
    process.stderr.close()


def test_what_is_for_people_stays_out_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=True)
    out.text("for people")
    out.table(("a",), [("b",)])
    out.note("progress")
    out.json({"path": Path("/x"), "text": "Grüße"})
    said = capsys.readouterr()
    assert said.out == '{"path":"/x","text":"Grüße"}\n'
    assert said.err == "progress\n"


def test_json_stays_out_of_what_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.json({"a": 1})
    out.table(("name", "labels"), [("[bold]", "a=b"), ("two", "")], title="nodes")
    said = capsys.readouterr().out
    assert "{" not in said
    assert "[bold]" in said
    assert said.splitlines()[0].strip() == "nodes"


def test_what_a_stream_cannot_say_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", stream)
    Output(as_json=True).json({"text": "é中", "file": "bad\udcff"})
    assert stream.buffer.getvalue() == b'{"text":"\xe9\\u4e2d","file":"bad\\udcff"}\n'


def test_a_file_name_that_is_no_text_can_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["validate", "no-\udcff.yaml", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["problems"][0]["place"] == "no-\udcff.yaml"
