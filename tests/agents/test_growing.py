"""What a stage that grows writes, and what its agent makes of it."""

from typing import Any

import msgspec
import pytest
from tests.agents.fakes import NoModels, Stages, assign, given, made, no_models

from starloom.agents.execution import Execution, Made, execute
from starloom.agents.growing import Growing
from starloom.agents.stage import Grown, Outputs, StageCall
from starloom.dag import limits
from starloom.dag.constellation import Join, Policy, Requirements, Retry, Tier
from starloom.dag.errors import InvalidInput
from starloom.dag.facts import ErrorInfo
from starloom.dag.kinds import KindSpec
from starloom.dag.patch import Patch
from starloom.dag.patchdoc import patch_to_json
from starloom.dag.values import Port, PortType

SPEC = KindSpec(
    name="t.grow", inputs={"value": Port(PortType.JSON)}, outputs={"value": Port(PortType.JSON)}, grows=True
)


def call(**inputs: Any) -> StageCall:
    return StageCall(inputs=inputs, params={}, models=NoModels())


def test_a_growth_is_a_patch_in_relative_names() -> None:
    grow = Growing(call(image=1, more=2))
    first = grow.stage("a.read", {"part": 1}, image=grow.fed("image"), boxes=grow.own("boxes"), after=["other"])
    second = grow.stage(
        "a.join",
        require=Requirements(tiers=(Tier.EDGE,)),
        policy=Policy(retry=Retry(times=0)),
        join=Join.ANY,
        inputs={"in": first["text"]},
        x="far.text",
    )
    again = grow.again({"n": 2}, more=second["text"])
    grow.redirect("text", second["text"], again["text"])
    grow.rewire("far", y=first["text"])
    grown = grow.result({"text": ""})
    assert isinstance(grown, Grown)
    assert grown.outputs == {"text": ""}
    assert patch_to_json(grown.patch)["patch"] == [
        {
            "add": {
                "@0": {
                    "kind": "a.read",
                    "in": {"image": "@in.image", "boxes": "@.boxes"},
                    "params": {"part": 1},
                    "after": ["other"],
                }
            }
        },
        {
            "add": {
                "@1": {
                    "kind": "a.join",
                    "in": {"x": "far.text", "in": "@0.text"},
                    "require": {"tier": "edge"},
                    "retry": {"times": 0},
                    "join": "any",
                }
            }
        },
        {"add": {"@again": {"kind": "@", "in": {"image": "@in.image", "more": "@1.text"}, "params": {"n": 2}}}},
        {"redirect": {"from": "@.text", "to": ["@1.text", "@again.text"]}},
        {"rewire": {"stage": "far", "in": {"y": "@0.text"}}},
    ]
    assert repr(grow) == "<Growing by 2 stages>"


def test_nothing_added_is_a_plain_result_and_what_cannot_be_read_is_told() -> None:
    assert Growing(call()).result({"value": 1}) == {"value": 1}
    grow = Growing(call())
    grow.stage("k", {"x": object()}, y="nothing")
    with pytest.raises(InvalidInput) as error:
        grow.result({})
    assert len(error.value.problems) == 2


def run(result: Any) -> Made | ErrorInfo:
    order = assign(kind="t.grow", inputs=(given("value", PortType.JSON, 1),))
    found = execute(Execution(order, {}), Stages(made(SPEC, lambda call: result)), no_models, "node")
    assert isinstance(found, Made | ErrorInfo)
    return found


def test_an_agent_hands_the_growth_on_with_the_outputs() -> None:
    def loop(call: StageCall) -> Outputs | Grown:
        grow = Growing(call)
        grow.redirect("value", grow.again(value=grow.own("value"))["value"])
        return grow.result({"value": call.inputs["value"] + 1})

    found = run(loop(call(value=1)))
    assert isinstance(found, Made)
    assert (found.data["value"], found.growth) == (b"2", loop(call(value=5)).patch)  # type: ignore[union-attr]


def test_growth_that_is_none_or_too_much_fails_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    grow = Growing(call())
    grow.stage("k")
    patch = grow.result({}).patch  # type: ignore[union-attr]
    document: Any = {"patch": []}
    for result, what in ((Grown({"value": 1}, document), "gave dict as its growth"), (Grown({}, patch), "out.value")):
        found = run(result)
        assert isinstance(found, ErrorInfo)
        assert what in found.message
        assert not found.transient
    monkeypatch.setattr(limits, "GROWTH_BYTES_MAX", len(msgspec.json.encode(patch)) - 1)
    found = run(Grown({"value": 1}, patch))
    assert isinstance(found, ErrorInfo)
    assert "over GROWTH_BYTES_MAX" in found.message
    assert isinstance(run(Grown({"value": 1}, Patch(operations=()))), Made)
