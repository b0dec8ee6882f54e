"""What is asked of attributes: how it is read, when it holds, and what documents, builders and patches say of it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starloom.dag import attributes, limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Preference, Requirements
from starloom.dag.document import dump, load, to_json
from starloom.dag.errors import InvalidConstellation
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.validate import problems

KINDS = KindCatalog([KindSpec(name="k")])


@pytest.mark.parametrize(
    ("asked", "value", "expected"),
    [
        ("arm64", "arm64", True),
        ("arm64", "amd64", False),
        ("== arm64", "arm64", True),
        ("arm64 | armv7", "armv7", True),
        ("arm64", None, False),
        ("!= arm64", "amd64", True),
        ("!= arm64", None, True),
        ("!= 4", "many", True),
        ("4", "4.0", True),
        ("4", 4.0, True),
        (">= 4", "10", True),
        (">= 4", "many", False),
        (">= 4", None, False),
        ("> 4, <= 8", 8.0, True),
        ("> 4, <= 8", 4.0, False),
        ("< 2 | > 8", "9", True),
        (">= 4GiB", float(2**32), True),
        (">= 4GiB", float(2**32 - 1), False),
        (">= 4GB", "4 GiB", True),
        ("> -5", "-4.5", True),
        (">= v12.2", "12.10", True),
        (">= v12.2", "v12.1.9", False),
        (">= 12.2", "12.10", False),
        ("v12.2", "12.2.0", True),
        ("v12", 12.0, True),
        (">= 535.104.05", "535.104.5", True),
        (">= v5.15", "5.15.0-91-generic", True),
        ("< v5.15", "soon", False),
        ("!= v5.15", "soon", True),
        ("two words", "two words", True),
        ("via", "via", True),
    ],
)
def test_it_holds(asked: str, value: str | float | None, expected: bool) -> None:
    assert attributes.fault(asked) == ""
    assert attributes.holds(asked, value) is expected


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("", "'' cannot be read"),
        (">=", "'>=' cannot be read"),
        ("4 |", "'' cannot be read"),
        ("=> 4", "'=> 4' cannot be read"),
        (">= arm64", "'arm64' is neither a number nor a version, and cannot come after >="),
        ("> vNext", "'vNext' is neither a number nor a version"),
        (7, "is a whole number (7)"),
        ("x" * 257, f"has 257 characters, over ATTRIBUTE_CHARACTERS_MAX = {limits.ATTRIBUTE_CHARACTERS_MAX}"),
        ("\ud800", "holds '\\ud800', half of a pair"),
    ],
)
def test_what_cannot_be_read_is_told(asked: object, what: str) -> None:
    assert what in attributes.fault(asked)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=5), st.lists(st.integers(0, 99), min_size=1, max_size=5))
def test_versions_are_ordered_by_their_parts(one: list[int], other: list[int]) -> None:
    asked, value = (".".join(map(str, parts)) for parts in (one, other))
    longest = max(len(one), len(other))
    padded = [[*parts, *[0] * (longest - len(parts))] for parts in (one, other)]
    assert attributes.holds(f">= v{asked}", value) == (padded[1] >= padded[0])
    assert attributes.holds(f"v{asked}", value) == (padded[1] == padded[0])


@given(st.text())
def test_any_text_is_read_or_told_of(text: str) -> None:
    if not attributes.fault(text):
        assert attributes.holds(text, "x") in (True, False)


SAID = """
api_version: starloom/v1
name: test
stages:
  a:
    kind: k
    require: {attributes: {cores: 4, gpu: true, driver: ">= v12.2"}}
    prefer: {attributes: {arch: arm64}}
"""


def test_documents_and_the_builder_say_the_same() -> None:
    found = load(SAID)
    graph = Graph("test")
    requires = Requirements(attributes={"cores": "4", "gpu": "true", "driver": ">= v12.2"})
    graph.stage("a", "k", require=requires, prefer=[Preference(attributes={"arch": "arm64"})])
    assert graph.build(KINDS) == found == load(dump(found)) == load(msgspec.json.encode(to_json(found)))
    assert problems(found, KINDS) == []


def test_all_that_is_wrong_is_told_with_its_place() -> None:
    text = SAID.replace('">= v12.2"', "=> 3").replace("arm64", "'>= arm64'")
    assert [problem.place for problem in problems(load(text), KINDS)] == [
        "stages.a.require.attributes.driver",
        "stages.a.prefer[0].attributes.arch",
    ]
    with pytest.raises(InvalidConstellation, match=r"stages.a.require.attributes.cores: is a list"):
        load(SAID.replace("cores: 4", "cores: [4]"))
