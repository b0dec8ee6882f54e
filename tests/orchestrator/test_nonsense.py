"""Files that people write, with nonsense in every place: an error that says what is wrong, never a traceback."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from starloom.agents.catalog import Catalog
from starloom.dag.document import load
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.patchdoc import load_patch
from starloom.dag.validate import problems
from starloom.dag.yamltext import read_yaml
from starloom.devices.faultdoc import read_plan
from starloom.orchestrator import clusterfile, fleetfile
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.imports import ufo, wfformat
from starloom.orchestrator.imports.reading import Scale

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
KINDS: Final = Catalog(points=()).kinds
NONSENSE: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    2**63,
    10**39,
    "",
    " ",
    "$",
    "a.",
    ".a",
    "@0",
    "on",
    "1e400s",
    "999999999999TiB",
    "x" * 5000,
    "\u0000",
    "\u202e\U0001f4a5",
    [],
    {},
    [None],
    [[]],
    ["a", "a"],
    {"": ""},
    {"a": {"b": {"c": []}}},
)


def _constellation(data: bytes) -> None:
    problems(load(data), KINDS)


READERS: Final[dict[str, tuple[str, Callable[[bytes], object]]]] = {
    "page": ("read-a-page/constellation.yaml", _constellation),
    "private": ("private-photo/constellation.yaml", _constellation),
    "video": ("video/constellation.yaml", _constellation),
    "patch": ("spoken-question/patch.yaml", load_patch),
    "fleet": ("spoken-question/fleet.yaml", fleetfile.parse),
    "cluster": ("imports/cluster.yaml", clusterfile.parse),
    "processes": ("faults/processes.yaml", read_plan),
    "network": ("faults/network.yaml", read_plan),
    "ufo": ("imports/team.json", lambda data: ufo.read(data, Scale(1.0, 1.0, False), place="team")),
    "wfformat": ("imports/survey.json", lambda data: wfformat.read(data, Scale(1.0, 1.0, False), place="survey")),
}


def _read(name: str) -> Any:
    return read_yaml((EXAMPLES / READERS[name][0]).read_text("utf-8"))


def _ways(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, itself included."""
    yield way
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _ways(value[key], (*way, key))


def _changed(document: Any, way: tuple[Any, ...], to: Any) -> Any:
    """The document with something else in one place."""
    if not way:
        return to
    document = copy.deepcopy(document)
    place = document
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = to
    return document


def _told(read: Callable[[bytes], object], data: bytes) -> Sequence[Problem] | None:
    """What is said to be wrong with a file; None if nothing is."""
    try:
        read(data)
    except InvalidInput as error:
        return error.problems
    return None


@pytest.mark.parametrize("name", READERS)
def test_nonsense_in_every_place_is_an_error_that_names_it(name: str) -> None:
    document, read = _read(name), READERS[name][1]
    refused = 0
    for way in _ways(document):
        for nonsense in NONSENSE:
            data = json.dumps(_changed(document, way, nonsense)).encode()
            told = _told(read, data)
            assert told is None or (told and all(problem.what for problem in told)), (way, nonsense)
            refused += told is not None
    assert refused


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (text, arguments)
        for text in (
            "",
            "5",
            "[]",
            "nodes: 5",
            "stages: 5",
            "patch: 5",
            "faults: 5",
            "{",
            "a: &a [*a]",
            "\u0000",
            "--- a\n--- b",
        )
        for arguments in (
            ("validate", "FILE"),
            ("submit", "FILE"),
            ("patch", "job", "FILE"),
            ("plan", "FILE", "--fleet", "FILE"),
            ("plan", str(EXAMPLES / "read-a-page" / "constellation.yaml"), "--fleet", "FILE"),
            ("import", "ufo", "FILE"),
            ("import", "wfformat", "FILE"),
            ("simulate", "--faults", "FILE"),
            ("faults", "run", "FILE"),
            ("up", "FILE"),
        )
    ],
)
def test_each_command_refuses_a_file_that_is_none_of_its_own(
    text: str, arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nonsense"
    path.write_text(text, "utf-8")
    assert main([*(str(path) if each == "FILE" else each for each in arguments), "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["error"]["problems"]
