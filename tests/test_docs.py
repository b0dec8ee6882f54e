"""The documents say what is there: tests that they name exist, commands that they show are commands, links lead somewhere."""

import re
from pathlib import Path

import pytest

from starloom.dag import limits
from starloom.orchestrator.cli.main import main

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def in_documents(pattern: str) -> set[str]:
    return {found for path in DOCUMENTS for found in re.findall(pattern, path.read_text("utf-8"))}


def test_every_test_that_is_named_exists() -> None:
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)", code)) | {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    named = in_documents(r"`(test_\w+)`")
    assert len(named) > 20
    assert named - there == set()


def test_every_limit_that_is_named_exists() -> None:
    named = in_documents(r"`([A-Z]+(?:_[A-Z]+)+)`")
    known = {name for name in named if hasattr(limits, name)}
    assert "LEASE_SECONDS" in known
    assert named - known <= {
        "STARLOOM_CRASH_POINTS",
        "STARLOOM_ENDPOINTS",
        "STARLOOM_FAULTS_ALLOWED",
        "STARLOOM_HOME",
        "STARLOOM_ADDRESS",
        "STARLOOM_TOKEN",
        "XDG_STATE_HOME",
    }


def test_every_file_that_is_linked_exists() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_every_decision_has_a_number_of_its_own() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [path.name[:4] for path in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for number, path in enumerate(records, 1):
        assert path.read_text("utf-8").startswith(f"# {number}. "), path.name


SHOWN = in_documents(r"(?m)(?:^ *|`|; |bin/)starloom ((?:models |bench )?[a-z]+)")


@pytest.mark.parametrize("command", sorted(SHOWN))
def test_every_command_that_is_shown_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert f"starloom {command}" in capsys.readouterr().out
