"""Variants of a stage: what documents, builders and patches say of them, what a stage is with one, and what is wrong."""

import msgspec
import pytest

from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Requirements, StageSpec, Variant
from starloom.dag.document import dump, load, to_json
from starloom.dag.draft import apply
from starloom.dag.edit import Edit
from starloom.dag.expectation import run_seconds, told_seconds
from starloom.dag.ids import StageId
from starloom.dag.kinds import Cost, CostParams, KindCatalog, KindSpec, Param
from starloom.dag.patch import Difference, SetVariants, inverse
from starloom.dag.patchdoc import load_patch, patch_to_json
from starloom.dag.patchtext import lines_of
from starloom.dag.validate import problems
from starloom.dag.values import Port, PortType
from starloom.dag.variants import allowed, chosen

KIND = KindSpec(
    name="k",
    params={"model": Param(type="string", required=True), "seconds": Param(type="number", default=4.0)},
    cost=Cost(params=CostParams(run_seconds="seconds")),
    targets=("npu", "cpu"),
    variadic_output=Port(PortType.TEXT),
)
KIND = msgspec.structs.replace(KIND, params={**KIND.params, "outputs": Param(type="object", default={})})
KINDS = KindCatalog([KIND])
LARGE = Variant(name="large", quality=0.8, params={"model": "10m"}, requires=Requirements(memory_bytes=2**30))
SMALL = Variant(name="small", quality=0.5, params={"model": "1m"}, seconds=0.25)
SAME_PORTS = "names other outputs with outputs, and all variants have the same ports; leave it to the stage"
SAID = """
least_quality: 0.4
stages:
  a:
    kind: k
    params: {seconds: 2}
    require: {tier: edge, memory: 1MiB}
    variants:
      - {name: large, quality: 0.8, params: {model: 10m}, require: {memory: 1GiB}}
      - {name: small, quality: 0.5, params: {model: 1m}, seconds: 250ms}
    variant: small
    least_quality: 0.5
"""


def constellation(text: str) -> Constellation:
    return load(f"api_version: starloom/v1\nname: test\n{text}")


def stage(text: str = SAID) -> StageSpec:
    return constellation(text).stages[StageId("a")]


def faults(text: str) -> list[str]:
    return [str(problem) for problem in problems(constellation(text), KINDS)]


def test_documents_builders_and_the_binary_form_say_the_same() -> None:
    found = constellation(SAID)
    assert stage().variants == (LARGE, SMALL)
    assert problems(found, KINDS) == []
    assert load(dump(found)) == load(msgspec.json.encode(to_json(found))) == found
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Constellation) == found
    graph = Graph("test", least_quality=0.4)
    said = stage()
    graph.stage(
        "a",
        "k",
        params={"seconds": 2},
        require=said.requires,
        variants=[LARGE, SMALL],
        variant="small",
        least_quality=0.5,
    )
    assert graph.build(KINDS) == found
    assert to_json(constellation("stages: {a: {kind: k}}"))["stages"] == {"a": {"kind": "k"}}


def test_a_variant_takes_the_place_of_what_the_stage_says_name_by_name() -> None:
    large, small = (chosen(stage(), each) for each in (LARGE, SMALL))
    assert large.params == {"model": "10m", "seconds": 2}
    assert (large.requires.memory_bytes, large.requires.tiers) == (2**30, stage().requires.tiers)
    assert small.requires == stage().requires
    # What a variant says it takes is known better than what parameters say.
    assert (run_seconds(large, KIND), run_seconds(small, KIND), run_seconds(stage(), KIND)) == (2, 0.25, 2)
    assert told_seconds(small, msgspec.structs.replace(KIND, cost=Cost())) == 0.25
    assert chosen(large, large.variants[0]) == large


def test_the_named_one_comes_first_and_none_below_the_least_quality() -> None:
    assert [each.name for each in allowed(stage())] == ["small", "large"]
    assert [each.name for each in allowed(stage(), 0.6)] == ["large"]
    assert allowed(msgspec.structs.replace(stage(), variant="")) == (LARGE, SMALL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "variants: [{name: s, quality: 0.2, params: {model: a}}, {name: s, quality: 0.3, params: {model: b}}]",
            [
                "stages.a.variants: 2 are called 's'; give each a name of its own",
                "stages.a.variants[1].quality: is 0.3, more than the 0.2 of 's' before it; list the best first",
            ],
        ),
        (
            "variants: [{name: s, quality: 1.5, params: {modle: a}}]",
            [
                "stages.a.params.model: k needs this parameter, of type string; give a value",
                "stages.a.variants[0].quality: is 1.5; give a number from 0 to 1",
                "stages.a.variants[0].params.modle: k has no such parameter; did you mean 'model'?",
            ],
        ),
        (
            "variants: [{name: s, quality: 0.5, params: {model: a, outputs: {more: 1}}, require: {target: gpu}}]",
            [
                "stages.a.variants[0].params.outputs: " + SAME_PORTS,
                "stages.a.variants[0].require.target: k cannot compute on 'gpu'; it can on npu, cpu",
            ],
        ),
        (
            "variants: [{name: s, quality: 0.5, params: {model: a}}], variant: t, least_quality: 0.6",
            [
                "stages.a.variant: no variant is called 't'; known: s",
                "stages.a.least_quality: asks for 0.6, and the best variant of a has 0.5; ask for less",
            ],
        ),
        (
            "variants: [{name: s, quality: 0.5, params: {model: a}}, {name: t, quality: 0.4}]",
            ["stages.a.variants[1].params.model: k needs this parameter, of type string; give a value"],
        ),
        (
            "params: {model: 3}, variants: [{name: s, quality: 0.5, params: {model: a}}], variant: s",
            ["stages.a.params.model: is a whole number (3), but the parameter is of type string"],
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, expected: list[str]) -> None:
    assert faults(f"stages: {{a: {{kind: k, {text}}}}}") == expected


def test_a_job_may_ask_for_more_than_a_stage_has() -> None:
    text = "stages: {a: {kind: k, variants: [{name: s, quality: 0.5, params: {model: a}}]}}"
    assert faults(f"{text}\nleast_quality: 0.5") == []
    assert faults(f"{text}\nleast_quality: 0.7") == [
        "least_quality: asks for 0.7, and the best variant of a has 0.5; ask for less, or give a a better one"
    ]


def test_a_patch_changes_them_and_can_be_taken_back() -> None:
    base = constellation(SAID)
    text = "api_version: starloom/v1\npatch:\n  - set_variants: {stage: a, variants: [{name: s, quality: 0.5, params: {model: b}}]}"
    patch = load_patch(text)
    assert load_patch(msgspec.json.encode(patch_to_json(patch))) == patch
    after, difference = apply(base, patch, KINDS)
    assert after.stages[StageId("a")].variants == (Variant(name="s", quality=0.5, params={"model": "b"}),)
    assert after.stages[StageId("a")].least_quality == 0.0
    assert lines_of(difference)[0].startswith("~ a: variants {")
    assert msgspec.json.decode(msgspec.json.encode(difference), type=Difference) == difference
    assert apply(after, inverse(difference), KINDS)[0] == base
    edit = Edit()
    edit.set_variants("a", [SMALL], least_quality=0.1)
    assert edit.patch().operations == (SetVariants(stage=StageId("a"), variants=(SMALL,), least_quality=0.1),)
