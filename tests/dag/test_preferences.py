"""Preferences of stages: what documents, builders and patches say of them, and what is wrong with them."""

import msgspec
import pytest

from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Preference, Preferences, Requirements, Tier
from starloom.dag.document import dump, load, to_json
from starloom.dag.draft import apply
from starloom.dag.edit import Edit
from starloom.dag.errors import InvalidConstellation, InvalidInput, PatchRefused
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.patch import Difference, SetPreferences, inverse
from starloom.dag.patchdoc import load_patch, patch_to_json
from starloom.dag.patchtext import lines_of
from starloom.dag.validate import problems

KINDS = KindCatalog([KindSpec(name="k", targets=("npu", "cpu"))])
NEAR = Preference(tiers=(Tier.DEVICE, Tier.EDGE), seconds=2.5)
CAM = Preference(node="cam-1")
HOT = Preference(labels={"power": "battery"}, target="npu", seconds=10.0)
SAID = """
stages:
  a:
    kind: k
    prefer: [{tier: [device, edge], seconds: 2500ms}, {node: cam-1}]
    avoid: {labels: {power: battery}, target: npu, seconds: 10}
"""


def constellation(text: str) -> Constellation:
    return load(f"api_version: starloom/v1\nname: test\n{text}")


def faults(*prefer: Preference, avoid: tuple[Preference, ...] = ()) -> list[str]:
    graph = Graph("test")
    graph.stage("a", "k", prefer=prefer, avoid=avoid)
    return [str(problem) for problem in problems(graph.build(), KINDS)]


class TestDocuments:
    def test_they_are_read_as_a_list_or_one_by_itself(self) -> None:
        found = constellation(SAID)
        assert found.stages[StageId("a")].prefers == Preferences(prefer=(NEAR, CAM), avoid=(HOT,))
        assert problems(found, KINDS) == []

    def test_yaml_json_and_the_binary_form_give_them_back(self) -> None:
        found = constellation(SAID)
        assert load(dump(found)) == load(msgspec.json.encode(to_json(found))) == found
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Constellation) == found

    def test_the_builder_makes_the_same(self) -> None:
        graph = Graph("test")
        graph.stage("a", "k", prefer=[NEAR, CAM], avoid=[HOT])
        assert graph.build(KINDS) == constellation(SAID)

    def test_without_any_a_document_says_nothing_of_them(self) -> None:
        assert to_json(constellation("stages: {a: {kind: k}}"))["stages"] == {"a": {"kind": "k"}}

    def test_all_that_cannot_be_read_is_told_with_its_place(self) -> None:
        text = "stages: {a: {kind: k, prefer: [{teir: edge}, cam-1, {tier: moon}], avoid: {node: 7, seconds: soon}}}"
        with pytest.raises(InvalidConstellation) as caught:
            constellation(text)
        assert [problem.place for problem in caught.value.problems] == [
            "stages.a.prefer[0].teir",
            "stages.a.prefer[1]",
            "stages.a.prefer[2].tier",
            "stages.a.avoid.node",
            "stages.a.avoid.seconds",
        ]
        with pytest.raises(InvalidConstellation, match=r"stages.a.prefer: is text; write a mapping such as"):
            constellation("stages: {a: {kind: k, prefer: edge}}")


class TestValidation:
    def test_a_kind_has_to_be_able_to_compute_on_the_target(self) -> None:
        assert faults(CAM, Preference(target="gpu")) == [
            "stages.a.prefer[1].target: k cannot compute on 'gpu'; it can on npu, cpu"
        ]

    def test_one_that_fits_every_place_says_nothing(self) -> None:
        assert faults(avoid=(Preference(seconds=3.0),)) == [
            "stages.a.avoid[0]: fits every place; name a tier, a target, labels, attributes or a node"
        ]

    @pytest.mark.parametrize("seconds", [-1.0, 0.0, float("inf"), float("nan"), limits.DURATION_SECONDS_MAX + 1, "1"])
    def test_seconds_are_more_than_none_and_bounded(self, seconds: float) -> None:
        (problem,) = faults(Preference(node="a", seconds=seconds))
        assert problem.startswith("stages.a.prefer[0].seconds: is ")

    def test_what_else_is_said_of_places_is_as_in_requirements(self) -> None:
        odd = Preference(tiers=("moon",), node="\ud800", labels={"a": "b" * 200})  # type: ignore[arg-type]
        assert [fault.partition(":")[0] for fault in faults(odd, avoid=(odd,))] == [
            f"stages.a.{key}[0].{part}" for key in ("prefer", "avoid") for part in ("tier", "node", "labels.a")
        ]

    def test_there_may_be_so_many(self) -> None:
        most = limits.PREFERENCES_PER_STAGE_MAX
        assert faults(*[CAM] * (most - 1), avoid=(HOT,)) == []
        (problem,) = faults(*[CAM] * most, avoid=(HOT,))
        assert problem.startswith(f"stages.a.prefer: {most + 1} preferences, with those to avoid, are over")


class TestPatches:
    def patched(self, text: str) -> tuple[Constellation, Difference]:
        return apply(constellation(SAID), load_patch(f"patch:\n{text}"), KINDS)

    def test_others_take_the_place_of_all_and_undo_gives_them_back(self) -> None:
        found, difference = self.patched("- set_preferences: {stage: a, avoid: {node: cam-1}}")
        assert found.stages[StageId("a")].prefers == Preferences(avoid=(CAM,))
        assert lines_of(difference)[0].startswith('~ a: preferences {"prefer": [{"tier": ["device", "edge"]')
        assert apply(found, inverse(difference), KINDS)[0] == constellation(SAID)

    def test_requirements_move_without_them(self) -> None:
        found, _ = self.patched("- move: {stage: a, require: {tier: cloud}}")
        stage = found.stages[StageId("a")]
        assert stage.requires == Requirements(tiers=(Tier.CLOUD,))
        assert stage.prefers == Preferences(prefer=(NEAR, CAM), avoid=(HOT,))

    def test_what_is_wrong_with_them_is_told(self) -> None:
        with pytest.raises(PatchRefused, match=r"stages.a.prefer\[0\].target: k cannot compute on 'gpu'"):
            self.patched("- set_preferences: {stage: a, prefer: {target: gpu}}")
        with pytest.raises(InvalidInput, match=r"patch\[0\].set_preferences.prefer.tier: is 'moon'"):
            self.patched("- set_preferences: {stage: a, prefer: {tier: moon}}")

    def test_python_and_documents_say_the_same(self) -> None:
        edit = Edit()
        edit.add("b", "k", prefer=[NEAR], avoid=[HOT, CAM])
        edit.set_preferences("a", prefer=[CAM])
        edit.set_preferences("a")
        patch = edit.patch()
        assert patch.operations[1:] == (
            SetPreferences(stage=StageId("a"), prefers=Preferences(prefer=(CAM,))),
            SetPreferences(stage=StageId("a")),
        )
        assert load_patch(msgspec.json.encode(patch_to_json(patch))) == patch
        assert apply(constellation(SAID), patch, KINDS)[0].stages[StageId("b")].prefers.avoid == (HOT, CAM)


class TestGroups:
    PAIR = "stages: {a: {kind: k, colocate: cam}, b: {kind: k, colocate: cam}, c: {kind: k}}"

    def test_documents_and_the_builder_name_them(self) -> None:
        graph = Graph("test")
        for name, group in (("a", "cam"), ("b", "cam"), ("c", "")):
            graph.stage(name, "k", colocate=group)
        found = constellation(self.PAIR)
        assert graph.build(KINDS) == found == load(dump(found)) == load(msgspec.json.encode(to_json(found)))

    def test_a_name_is_a_name_and_a_copy_elsewhere_is_none_of_the_group(self) -> None:
        wrong = constellation("stages: {a: {kind: k, colocate: a camera, straggler: 3}}")
        assert [problem.place for problem in problems(wrong, KINDS)] == ["stages.a.colocate", "stages.a.straggler"]

    @pytest.mark.parametrize(
        ("first", "second", "why"),
        [
            ("require: {node: x}", "require: {node: y}", "a requires node x; b requires node y"),
            (
                "require: {tier: [device, edge]}",
                "require: {tier: cloud}",
                "a requires the device or edge tier; b requires the cloud tier",
            ),
            (
                "private: device",
                "require: {tier: [edge, cloud]}",
                "a has data that is private to device; b requires the edge or cloud tier",
            ),
            (
                "require: {labels: {room: one}}",
                "require: {labels: {room: two, desk: one}}",
                "a requires the label room=one; b requires the label room=two",
            ),
        ],
    )
    def test_stages_that_no_node_could_run_together_are_told_without_a_node(
        self, first: str, second: str, why: str
    ) -> None:
        text = "stages: {{a: {{kind: k, {}}}, b: {{kind: k, {}}}, c: {{kind: k, colocate: cam}}}}"
        found = problems(constellation(text.format(f"{first}, colocate: cam", f"{second}, colocate: cam")), KINDS)
        assert [str(problem) for problem in found] == [f"stages.a.colocate: no node can run all of 'cam': {why}"]
        for apart in ("colocate: other", "colocate: cam, cancelled: true"):
            assert problems(constellation(text.format(f"{first}, colocate: cam", f"{second}, {apart}")), KINDS) == []

    def test_three_of_which_each_two_could_share_one(self) -> None:
        tiers = ("[device, edge]", "[edge, cloud]", "[cloud, device]")
        stages = ", ".join(
            f"s{n}: {{kind: k, colocate: cam, require: {{tier: {tier}}}}}" for n, tier in enumerate(tiers)
        )
        (problem,) = problems(constellation(f"stages: {{{stages}}}"), KINDS)
        assert problem.what.endswith(
            "s0 requires the device or edge tier; s1 requires the edge or cloud tier; s2 requires the cloud or device tier"
        )
        assert problems(constellation(f"stages: {{{stages.replace('[cloud, device]', 'edge')}}}"), KINDS) == []

    def test_patches_move_stages_between_them_and_undo_it(self) -> None:
        before = constellation(self.PAIR)
        edit = Edit()
        edit.move("b", colocate="")
        edit.move("c", Requirements(node="x"), colocate="cam")
        edit.move("a", tier="edge")
        patch = edit.patch()
        assert load_patch(msgspec.json.encode(patch_to_json(patch))) == patch
        after, difference = apply(before, patch, KINDS)
        assert [spec.colocate for spec in after.stages.values()] == ["cam", "", "cam"]
        assert '~ b: colocate "cam" -> ""' in lines_of(difference)
        assert apply(after, inverse(difference), KINDS)[0] == before

    def test_a_spliced_group_is_one_of_its_own(self) -> None:
        inner = f"{{api_version: starloom/v1, name: inner, {self.PAIR}}}"
        splice = load_patch(f"patch: [{{splice: {{prefix: in, constellation: {inner}}}}}]")
        found, _ = apply(constellation(self.PAIR), splice, KINDS)
        assert [spec.colocate for spec in found.stages.values()] == ["cam", "cam", "", "in-cam", "in-cam", ""]
