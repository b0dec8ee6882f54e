"""A plan as a picture: every stage in its row, none over another."""

import xml.etree.ElementTree as ET

import numpy as np

from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.picture import lanes, svg, text
from starloom.orchestrator.planner.problem import Place, Plan, Problem, problem


def planned() -> tuple[Problem, Plan]:
    made = problem(
        ["look", "hear", "speak", "<mark>"],
        [Place("edge", slots=2), Place("cam", "npu")],
        [[4, 9], [2, 9], [2, 1], [0, 0]],
        [(0, 2, 0.0), (1, 2, 0.0)],
        models=["voice"],
        model=[-1, -1, 0, -1],
        load_seconds=[[3, 3]],
        weight_bytes=[0],
    )
    plan = Plan(
        place=np.array([0, 0, 1, 0], np.int32),
        start=np.array([0.0, 0.0, 4.0, 0.0]),
        finish=np.array([4.0, 2.0, 8.0, 0.0]),
        loads=np.array([False, False, True, False]),
        makespan=8.0,
        penalty=0.0,
        method="by hand",
    )
    assert faults(made, plan) == []
    return made, plan


def test_what_overlaps_stands_in_rows_of_its_own() -> None:
    made, plan = planned()
    assert lanes(made, plan, 0) == [[0], [1]]
    assert lanes(made, plan, 1) == [[2]]


def test_the_text_draws_bars_to_scale() -> None:
    made, plan = planned()
    first, second, third, scale = text(made, plan, 62).splitlines()
    assert first == "edge" + " " * 18 + "[-------look-------]"
    assert second == " " * 22 + "[--hear--]"
    assert third == "cam/npu" + " " * 35 + "[------speak-------]"
    assert scale.split() == ["0", "8", "s"]


def test_the_svg_is_well_formed_and_has_a_box_for_each_stage_that_takes_time() -> None:
    made, plan = planned()
    root = ET.fromstring(svg(made, plan, "a & b"))
    titles = [each.text or "" for each in root.iter() if each.tag.endswith("title")]
    assert [title.split(":")[0] for title in titles] == ["look", "hear", "speak"]
    boxes = [each for each in root.iter() if each.get("rx")]
    wide = [float(each.get("width", "0")) for each in boxes]
    assert wide[0] == 2 * wide[1] == wide[2]
    assert sum(each.get("fill") == "url(#load)" for each in root.iter()) == 1


def test_long_names_of_places_leave_the_bars_free_and_stay_apart() -> None:
    made, plan = planned()
    names = [f"a-{'very-' * 9}long-name-{number}" for number in (1, 2)]
    made = made._replace(places=tuple(Place(name) for name in names))
    root = ET.fromstring(svg(made, plan, "long"))
    labels = [each for each in root.iter() if each.get("x") == "8"][1:]
    assert ["".join(each.itertext()) for each in labels] == [f"{name}a-very-very..g-name-{name[-1]}" for name in names]
    assert [line.split()[0] for line in text(made, plan, 62).splitlines() if "a-" in line] == [
        "a-very-very..g-name-1",
        "a-very-very..g-name-2",
    ]
