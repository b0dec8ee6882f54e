"""Stages that are spread: what documents, builders and patches say of them, and what is wrong with them."""

import msgspec
import pytest

from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Requirements, Spread
from starloom.dag.document import dump, load, to_json
from starloom.dag.draft import apply
from starloom.dag.edit import Edit
from starloom.dag.errors import InvalidConstellation, PatchRefused
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.patch import inverse
from starloom.dag.patchdoc import load_patch, patch_to_json
from starloom.dag.patchtext import lines_of
from starloom.dag.validate import problems

KINDS = KindCatalog([KindSpec(name="k")])
RACKS = Spread(group="r", over="rack", seconds=2.5)
THREE = """stages:
  a: {kind: k, spread: g}
  b: {kind: k, spread: g}
  c: {kind: k, spread: {group: r, over: rack, seconds: 2500ms}}
"""


def constellation(text: str) -> Constellation:
    return load(f"api_version: starloom/v1\nname: test\n{text}")


def faults(text: str) -> list[str]:
    return [str(problem) for problem in problems(constellation(text), KINDS)]


def test_documents_and_the_builder_say_the_same() -> None:
    graph = Graph("test")
    for name, spread in (("a", Spread(group="g")), ("b", Spread(group="g")), ("c", RACKS)):
        graph.stage(name, "k", spread=spread)
    found = constellation(THREE)
    assert graph.build(KINDS) == found == load(dump(found)) == load(msgspec.json.encode(to_json(found)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Constellation) == found
    assert to_json(found)["stages"]["a"] == {"kind": "k", "spread": "g"}


def test_what_cannot_be_read_is_told_with_its_place() -> None:
    with pytest.raises(InvalidConstellation) as caught:
        constellation("stages: {a: {kind: k, spread: {over: 7, second: 1}}, b: {kind: k, spread: 3}}")
    assert [problem.place for problem in caught.value.problems] == [
        "stages.a.spread.second",
        "stages.a.spread.group",
        "stages.a.spread.over",
        "stages.b.spread",
    ]


def test_each_stage_is_judged_by_itself() -> None:
    name = "the name 'a b' is not made of letters, digits, '_', '-', beginning with a letter, a digit or '_'"
    assert faults("stages: {a: {kind: k, spread: a b, colocate: x, straggler: 3}}") == [
        "stages.a.straggler: the stage shares a node with those of 'x', and a copy would be elsewhere; leave it out",
        f"stages.a.spread.group: {name}",
        "stages.a.spread: the stage stands where those of 'x' do, and cannot be spread by itself; leave one of both out",
        "stages.a.straggler: the stage stands apart from those of 'a b', and a copy might not; leave it out",
    ]
    assert faults("stages: {a: {kind: k, spread: {group: g, seconds: 1s}, straggler: 3}}") == []


def test_all_of_a_group_say_the_same() -> None:
    assert faults("stages: {a: {kind: k, spread: g}, b: {kind: k, spread: {group: g, over: rack}}}") == [
        "stages.b.spread: says of 'g' what a does not; let all of a group say the same over and seconds"
    ]


def test_a_group_has_an_end() -> None:
    many = "".join(f"  s{i}: {{kind: k, spread: g}}\n" for i in range(limits.SPREAD_STAGES_MAX + 1))
    assert faults(f"stages:\n{many}") == [
        f"stages.s0.spread: 65 stages of 'g' are over SPREAD_STAGES_MAX = {limits.SPREAD_STAGES_MAX}; make more groups"
    ]


class TestPatches:
    def test_they_move_stages_between_groups_and_undo_it(self) -> None:
        before = constellation(THREE)
        edit = Edit()
        edit.move("b", spread=Spread(group=""))
        edit.move("a", Requirements(node="x"), spread=RACKS)
        edit.add("d", "k", spread=RACKS)
        patch = edit.patch()
        assert load_patch(msgspec.json.encode(patch_to_json(patch))) == patch
        after, difference = apply(before, patch, KINDS)
        assert [spec.spread for spec in after.stages.values()] == [RACKS, None, RACKS, RACKS]
        assert '~ b: spread "g" -> ""' in lines_of(difference)
        assert apply(after, inverse(difference), KINDS)[0] == before

    def test_a_move_that_says_nothing_of_it_leaves_it(self) -> None:
        edit = Edit()
        edit.move("c", tier="edge")
        after, _ = apply(constellation(THREE), edit.patch(), KINDS)
        assert after.stages["c"].spread == RACKS  # type: ignore[index]

    def test_a_group_may_not_come_to_say_two_things(self) -> None:
        edit = Edit()
        edit.move("b", spread=Spread(group="r"))
        with pytest.raises(PatchRefused, match=r"stages.c.spread: says of 'r' what b does not"):
            apply(constellation(THREE), edit.patch(), KINDS)

    def test_a_spliced_group_is_one_of_its_own(self) -> None:
        inner = "{api_version: starloom/v1, name: inner, stages: {x: {kind: k, spread: g}}}"
        splice = load_patch(f"patch: [{{splice: {{prefix: in, constellation: {inner}}}}}]")
        found, _ = apply(constellation(THREE), splice, KINDS)
        assert found.stages["in-x"].spread == Spread(group="in-g")  # type: ignore[index]
