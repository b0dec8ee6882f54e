"""What plans are to make small: what documents and the builder say of it, and what is wrong with it."""

from typing import Any

import msgspec
import pytest

from starloom.dag import objective
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Goal, Measure
from starloom.dag.document import dump, load, to_json
from starloom.dag.errors import InvalidConstellation
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.validate import problems

KINDS = KindCatalog([KindSpec(name="k")])
LATENCY, ENERGY, PRICE, *_ = (Goal(by=measure) for measure in Measure)


def constellation(said: str) -> Constellation:
    return load(f"api_version: starloom/v1\nname: test\nobjective: {said}\nstages: {{a: {{kind: k}}}}\n")


@pytest.mark.parametrize(
    ("said", "expected", "written"),
    [
        ("energy", (ENERGY,), "energy"),
        ("[energy]", (ENERGY,), "energy"),
        ("[price, latency]", (PRICE, LATENCY), ["price", "latency"]),
        (
            "[{by: latency, within: 10%}, energy]",
            (Goal(by=Measure.LATENCY, within=0.1), ENERGY),
            [{"by": "latency", "within": 0.1}, "energy"],
        ),
        (
            "{latency: 1, energy: 0.2}",
            (Goal(by=Measure.LATENCY, weight=1.0), Goal(by=Measure.ENERGY, weight=0.2)),
            {"latency": 1.0, "energy": 0.2},
        ),
    ],
)
def test_documents_say_it_in_three_ways(said: str, expected: tuple[Goal, ...], written: Any) -> None:
    found = constellation(said)
    assert found.objective == expected
    assert to_json(found)["objective"] == written
    assert load(dump(found)) == load(msgspec.json.encode(to_json(found))) == found
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Constellation) == found
    graph = Graph("test", objective=expected)
    graph.stage("a", "k")
    assert graph.build(KINDS) == found


def test_without_any_a_document_says_nothing_of_it() -> None:
    assert "objective" not in to_json(msgspec.structs.replace(constellation("energy"), objective=()))


@pytest.mark.parametrize(
    ("said", "places"),
    [
        ("speed", ["objective"]),
        ("[energy, 7]", ["objective[1]"]),
        ("[{by: energy, within: much, so: 1}]", ["objective[0].so", "objective[0].within"]),
        ("{energy: -1, sped: 2}", ["objective.energy", "objective.sped"]),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(said: str, places: list[str]) -> None:
    with pytest.raises(InvalidConstellation) as caught:
        constellation(said)
    assert [problem.place for problem in caught.value.problems] == places


@pytest.mark.parametrize(
    ("goals", "what"),
    [
        ((ENERGY, ENERGY), "objective: energy is given 2 times; say it once"),
        ((Goal(by=Measure.ENERGY, weight=1.0), PRICE), "objective: has weights for some and none for others"),
        ((Goal(by=Measure.ENERGY, within=-1.0),), "objective.energy.within: is -1.0"),
        ((Goal(by=Measure.ENERGY, weight=1e10),), "objective.energy: is 10000000000.0"),
        (
            (Goal(by=Measure.LATENCY, weight=1e-300), Goal(by=Measure.ENERGY, weight=1.0)),
            "objective.latency: is 1e-300; give a number from 1e-09 to 1e+09",
        ),
    ],
)
def test_what_is_wrong_with_it_is_told(goals: tuple[Goal, ...], what: str) -> None:
    found = problems(msgspec.structs.replace(constellation("energy"), objective=goals), KINDS)
    assert len(found) == 1
    assert what in str(found[0])
    assert [*objective.objective_problems(goals)] == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("energy", (ENERGY,)),
        ("latency + 10%, price", (Goal(by=Measure.LATENCY, within=0.1), PRICE)),
        ("latency=1, energy=0.2", (Goal(by=Measure.LATENCY, weight=1.0), Goal(by=Measure.ENERGY, weight=0.2))),
    ],
)
def test_a_command_line_says_it_shorter(text: str, expected: tuple[Goal, ...]) -> None:
    assert objective.read(objective.shorthand(text)) == (expected, [])


@pytest.mark.parametrize(
    "text",
    ["", ",", "=", "+", "energy=", "energy=nan", "energy=1,price", "energy=1,energy=1", "energy+nan%", "energy+-1"],
)
def test_nonsense_on_a_command_line_is_told(text: str) -> None:
    goals, problems = objective.read(objective.shorthand(text), "--objective")
    problems += objective.objective_problems(goals, "--objective")
    assert problems
    assert all(problem.place.startswith("--objective") for problem in problems)
