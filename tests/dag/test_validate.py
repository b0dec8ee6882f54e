"""Every rule of validation, by the place and the words of what it reports."""

from typing import Any

import msgspec
import pytest

from starloom.dag import limits
from starloom.dag.constellation import (
    Comparison,
    Constellation,
    Dependency,
    InputBinding,
    Join,
    On,
    OnFailure,
    OutputBinding,
    Policy,
    Requirements,
    Retry,
    StageSpec,
)
from starloom.dag.draft import apply
from starloom.dag.errors import InvalidConstellation, PatchRefused
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindCatalog, KindSpec, Param
from starloom.dag.patch import Patch, Remove
from starloom.dag.validate import problems, validate, warnings
from starloom.dag.values import Port, PortType

TEXT, JSON, IMAGE = Port(PortType.TEXT), Port(PortType.JSON), Port(PortType.IMAGE)

KINDS = KindCatalog(
    [
        KindSpec(name="image.read", inputs={"image": IMAGE}, outputs={"text": TEXT, "score": JSON, "crop": IMAGE}),
        KindSpec(
            name="text.trim",
            inputs={"text": TEXT, "more": Port(PortType.TEXT, optional=True)},
            outputs={"text": TEXT, "report": JSON},
            params={
                "length": Param(type="integer", required=True),
                "mode": Param(type="string", default="end", choices=("start", "end")),
                "ratio": Param(type="number"),
                "extra": Param(type="object"),
            },
            targets=("cpu", "npu"),
        ),
        KindSpec(name="text.join", variadic_input=TEXT, outputs={"text": TEXT}),
        KindSpec(
            name="text.parts",
            inputs={"text": TEXT},
            outputs={"rest": TEXT},
            variadic_output=TEXT,
            params={"outputs": Param(type="object", default={})},
        ),
        KindSpec(name="text.chunks", outputs={"words": Port(PortType.TEXT, stream=True)}),
    ]
)


def sid(name: str) -> StageId:
    return StageId(name)


def stage(name: str, kind: str, **rest: Any) -> StageSpec:
    return StageSpec(id=sid(name), kind=kind, **rest)


def arc(upstream: str, downstream: str, output: str = "", port: str = "", **rest: Any) -> Dependency:
    return Dependency(upstream=sid(upstream), downstream=sid(downstream), output=output, input=port, **rest)


def good(**changes: Any) -> Constellation:
    """photo -> read -> trim -> answer, with fields replaced."""
    usual: dict[str, Any] = {
        "name": "read-and-trim",
        "stages": {
            sid("read"): stage("read", "image.read"),
            sid("trim"): stage("trim", "text.trim", params={"length": 3}),
        },
        "dependencies": (arc("read", "trim", "text", "text"),),
        "inputs": {"photo": IMAGE},
        "bindings": (InputBinding(source="photo", downstream=sid("read"), input="image"),),
        "outputs": {"answer": OutputBinding(upstream=sid("trim"), output="text")},
    }
    return Constellation(**{**usual, **changes})


def with_trim(**changes: Any) -> Constellation:
    """The good one, with `trim`'s fields replaced."""
    base = good()
    trim = msgspec.structs.replace(base.stages[sid("trim")], **changes)
    return good(stages={**base.stages, sid("trim"): trim})


def with_stages(*stages: StageSpec) -> dict[StageId, StageSpec]:
    return {**good().stages, **{spec.id: spec for spec in stages}}


def with_arcs(*arcs: Dependency) -> Constellation:
    return good(dependencies=(*good().dependencies, *arcs))


def compared(output: str, operator: str, value: Any, path: str = "") -> Constellation:
    comparison = Comparison(output=output, operator=operator, value=value, path=path)  # type: ignore[arg-type]
    return with_arcs(arc("read", "trim", on=On.COMPARISON, comparison=comparison))


def failing(**defaults: Any) -> Constellation:
    return with_trim(policy=Policy(on_failure=OnFailure.DEFAULT, defaults=defaults))


def retrying(**retry: Any) -> Constellation:
    return with_trim(policy=Policy(retry=Retry(**retry)))


def with_parts(outputs: Any, *, read: str = "head", **rest: Any) -> Constellation:
    """The good one, and `parts` with these outputs, one of which `join` reads."""
    return good(
        stages=with_stages(
            stage("parts", "text.parts", params={"outputs": outputs}, **rest), stage("join", "text.join")
        ),
        dependencies=(
            *good().dependencies,
            arc("read", "parts", "text", "text"),
            arc("parts", "join", read, "a"),
        ),
    )


def test_a_good_constellation_has_no_problems() -> None:
    assert problems(good(), KINDS) == []
    validate(good(), KINDS)
    assert warnings(good(), KINDS) == []


@pytest.mark.parametrize(
    "constellation",
    [
        failing(text="", report={"why": None}),
        compared("text", "contains", "yes"),
        compared("score", ">=", 0.5, path="faces.0.score"),
        compared("score", "==", {"a": [1]}),
        with_trim(params={"length": 3, "mode": "start", "ratio": 2}),
        with_trim(params={"length": 3, "ratio": None}),
        with_trim(requires=Requirements(target="npu", memory_bytes=2**40)),
        with_arcs(arc("read", "trim"), arc("read", "trim", on=On.COMPLETION)),
        with_parts({"head": 1, "tail": None}),
        with_parts({}, read="rest"),
        with_parts({"head": 1}, policy=Policy(on_failure=OnFailure.DEFAULT, defaults={"head": "", "rest": ""})),
        good(
            stages=with_stages(stage("join", "text.join")),
            dependencies=(*good().dependencies, arc("read", "join", "text", "a"), arc("trim", "join", "text", "b")),
        ),
    ],
)
def test_what_is_allowed(constellation: Constellation) -> None:
    assert problems(constellation, KINDS) == []


@pytest.mark.parametrize(
    ("constellation", "place", "words"),
    [
        (with_parts({"tail": 1}), "stages.join.in.a", "parts (text.parts) has no output 'head'"),
        (with_parts({}), "stages.join.in.a", "parts (text.parts) has no output 'head'"),
        (with_parts(["head"], read="rest"), "stages.parts.params.outputs", "the parameter is of type object"),
        (with_parts({"head": 1, "a.b": 2}), "stages.parts.params.outputs.a.b", "is not made of letters"),
        (with_parts({"head": 1, "rest": 2}), "stages.parts.params.outputs.rest", "take another name"),
        (
            with_parts({"head": 1, **{f"p{number}": 1 for number in range(10_000)}}),
            "stages.parts.params.outputs",
            "10001 ports are over OUTPUTS_PER_STAGE_MAX = 10000",
        ),
        (
            with_parts({"head": 1}, policy=Policy(on_failure=OnFailure.DEFAULT, defaults={"rest": ""})),
            "stages.parts.defaults.head",
            "this text output needs a value",
        ),
        (good(api_version="starloom/v9"), "api_version", "'starloom/v9' is not known here"),
        (good(name=""), "name", "is not made of letters"),
        (good(name="x" * 129), "name", "NAME_CHARACTERS_MAX = 128"),
        (good(labels={"team": 3}), "labels.team", "the value is a whole number"),
        (good(labels={"team": "x" * 129}), "labels.team", "129 characters"),
        (good(labels={"team": "\ud800"}), "labels.team", "the value holds '\\ud800', half of a pair"),
        (good(inputs={"photo": IMAGE, "a.b": TEXT}), "inputs.a.b", "is not made of letters"),
        (good(stages=with_stages(stage("a.b", "text.chunks"))), "stages.a.b", "is not made of letters"),
        (good(stages={**good().stages, sid("x"): stage("y", "text.chunks")}), "stages.x", "calls itself 'y'"),
        (with_trim(kind="text.trin"), "stages.trim.kind", "did you mean 'text.trim'?"),
        (
            with_trim(kind="quite.else"),
            "stages.trim.kind",
            "known: image.read, text.chunks, text.join, text.parts, text.trim",
        ),
        (with_trim(params={}), "stages.trim.params.length", "needs this parameter, of type integer"),
        (with_trim(params={"length": 3, "lenght": 3}), "stages.trim.params.lenght", "did you mean 'length'?"),
        (
            with_trim(params={"length": "3"}),
            "stages.trim.params.length",
            "is text ('3'), but the parameter is of type integer",
        ),
        (with_trim(params={"length": True}), "stages.trim.params.length", "is true or false"),
        (with_trim(params={"length": 3.0}), "stages.trim.params.length", "is a number (3.0)"),
        (with_trim(params={"length": None}), "stages.trim.params.length", "is nothing"),
        (with_trim(params={"length": 3, "mode": "left"}), "stages.trim.params.mode", "choose one of 'start', 'end'"),
        (with_trim(params={"length": 3, "ratio": float("nan")}), "stages.trim.params", "holds nan"),
        (with_trim(params={"length": 3, "extra": {"a": [b"x"]}}), "stages.trim.params", "holds a bytes"),
        (with_trim(params={"length": 2**70}), "stages.trim.params", "does not fit 64 bits"),
        (with_trim(params={"length": 10**400}), "stages.trim.params", "a whole number of 1329 bits"),
        (with_trim(params={"length": 3, "extra": {"a": {"\ud800": 1}}}), "stages.trim.params", "half of a pair"),
        (
            with_trim(params={"length": 3, "extra": {"a": "x" * limits.PARAMS_BYTES_MAX}}),
            "stages.trim.params",
            "PARAMS_BYTES_MAX",
        ),
        (with_trim(requires=Requirements(target="gpu")), "stages.trim.require.target", "it can on cpu, npu"),
        (with_trim(requires=Requirements(tiers=("moon",))), "stages.trim.require.tier", "'moon'"),  # type: ignore[arg-type]
        (with_trim(requires=Requirements(memory_bytes=-1)), "stages.trim.require.memory", "is -1"),
        (
            with_trim(requires=Requirements(memory_bytes=10**400)),
            "stages.trim.require.memory",
            "a whole number from 0 to",
        ),
        (with_trim(requires=Requirements(node="\udfff")), "stages.trim.require.node", "half of a pair"),
        (
            with_trim(requires=Requirements(labels={"\ud800": "b"})),
            "stages.trim.require.labels.\ud800",
            "the key holds",
        ),
        (with_trim(requires=Requirements(labels={"a": 1})), "stages.trim.require.labels.a", "as text, '1'"),  # type: ignore[dict-item]
        (with_trim(policy=Policy(timeout_seconds=float("nan"))), "stages.trim.timeout", "is nan"),
        (with_trim(policy=Policy(timeout_seconds=-1.0)), "stages.trim.timeout", "is -1.0"),
        (with_trim(policy=Policy(deadline_seconds=-1.0)), "stages.trim.deadline", "is -1.0"),
        (with_trim(policy=Policy(replicate=-1)), "stages.trim.replicate", "0 or more copies beside the original"),
        (with_trim(policy=Policy(replicate=True)), "stages.trim.replicate", "give a whole number"),
        (with_trim(policy=Policy(replicate=9)), "stages.trim.replicate", "is 9, over REPLICAS_MAX = 8"),
        (retrying(times=-1), "stages.trim.retry.times", "is -1"),
        (retrying(times=1.5), "stages.trim.retry.times", "give a whole number"),
        (retrying(times=limits.RETRIES_MAX + 1), "stages.trim.retry.times", "from 0 to 1000"),
        (retrying(first_seconds=float("inf")), "stages.trim.retry.first", "is inf"),
        (retrying(factor=0.5), "stages.trim.retry.factor", "from 1 to"),
        (retrying(first_seconds=2.0, last_seconds=1.0), "stages.trim.retry", "let first be at most last"),
        (failing(text=""), "stages.trim.defaults.report", "needs a value"),
        (failing(text=3, report=1), "stages.trim.defaults.text", "is a whole number (3), but the output is text"),
        (failing(text="", report=float("nan")), "stages.trim.defaults.report", "holds nan"),
        (failing(text="", report=1, reprot=1), "stages.trim.defaults.reprot", "did you mean 'report'?"),
        (with_trim(policy=Policy(defaults={"text": ""})), "stages.trim.defaults", "on_failure is fail; say default"),
        (good(bindings=()), "stages.read.in.image", "image.read needs an image here"),
        (good(inputs={}), "stages.read.in.image", "the job has no input 'photo'"),
        (good(inputs={"photos": IMAGE}), "stages.read.in.image", "did you mean 'photos'?"),
        (good(inputs={"photo": TEXT}), "stages.read.in.image", "$photo is a text, but this input takes an image"),
        (
            good(inputs={"photo": Port(PortType.IMAGE, stream=True)}),
            "stages.read.in.image",
            "$photo is a stream of image, but this input takes an image",
        ),
        (good(inputs={"photo": Port(PortType.IMAGE, optional=True)}), "stages.read.in.image", "$photo is optional"),
        (
            good(bindings=(*good().bindings, InputBinding(source="photo", downstream=sid("raed"), input="image"))),
            "inputs.photo",
            "no stage is called 'raed'; did you mean 'read'?",
        ),
        (
            good(bindings=(*good().bindings, InputBinding(source="photo", downstream=sid("read"), input="imgae"))),
            "stages.read.in.imgae",
            "did you mean 'image'?",
        ),
        (
            with_arcs(arc("raed", "trim", "text", "more")),
            "stages.trim.in.more",
            "no stage is called 'raed'; did you mean",
        ),
        (with_arcs(arc("read", "trin")), "dependencies[1]", "no stage is called 'trin'"),
        (
            with_arcs(arc("read", "trim", "txet", "more")),
            "stages.trim.in.more",
            "read (image.read) has no output 'txet'",
        ),
        (
            with_arcs(arc("read", "trim", "text", "moer")),
            "stages.trim.in.moer",
            "text.trim has no input 'moer'; did you mean",
        ),
        (
            with_arcs(arc("read", "trim", "crop", "more")),
            "stages.trim.in.more",
            "read.crop is an image, but this input takes a text",
        ),
        (
            with_arcs(arc("read", "trim", "text", "text")),
            "stages.trim.in.text",
            "is fed twice, by read.text and read.text",
        ),
        (with_arcs(arc("read", "trim", "text")), "stages.trim.after", "names an output but no input"),
        (with_arcs(arc("read", "trim", "", "more")), "stages.trim.in.more", "names an input but no output"),
        (with_arcs(arc("read", "trim"), arc("read", "trim")), "stages.trim.after", "is given twice"),
        (with_arcs(arc("trim", "trim")), "stages.trim.after", "trim depends on itself"),
        (with_arcs(arc("trim", "read")), "stages.trim", "waits for itself: read -> trim -> read"),
        (
            good(
                stages=with_stages(stage("words", "text.chunks")),
                dependencies=(*good().dependencies, arc("words", "trim", "words", "more")),
            ),
            "stages.trim.in.more",
            "words.words is a stream of text, but this input takes a text",
        ),
        (
            good(
                stages=with_stages(stage("join", "text.join")),
                dependencies=(*good().dependencies, arc("read", "join", "text", "a b")),
            ),
            "stages.join.in.a b",
            "is not made of letters",
        ),
        (with_arcs(arc("read", "trim", on=On.COMPARISON)), "stages.trim.after", "no comparison is given"),
        (compared("crop", "==", 1), "stages.trim.after.when.output", "only text and JSON can be compared"),
        (compared("scroe", "==", 1), "stages.trim.after.when.output", "did you mean 'score'?"),
        (compared("score", "~", 1), "stages.trim.after.when.is", "no operator '~'"),
        (compared("score", "<", [1]), "stages.trim.after.when.value", "which has no order"),
        (compared("score", ">=", True), "stages.trim.after.when.value", "which has no order"),
        (compared("score", "contains", {"a": 1}), "stages.trim.after.when.value", "contains looks for one"),
        (compared("score", "==", float("nan")), "stages.trim.after.when.value", "holds nan"),
        (compared("text", "==", 1), "stages.trim.after.when.value", "compare it with text"),
        (compared("text", "==", "a", path="b"), "stages.trim.after.when.path", "text, which has no parts"),
        (compared("score", "==", {"\ud800": 1}), "stages.trim.after.when.value", "half of a pair"),
        (compared("score", "==", 1, path="a.\ud800"), "stages.trim.after.when.path", "half of a pair"),
        (compared("score", "==", 1, path="a..b"), "stages.trim.after.when.path", "has an empty part"),
        (
            good(outputs={"answer": OutputBinding(upstream=sid("tirm"), output="text")}),
            "outputs.answer",
            "did you mean 'trim'?",
        ),
        (
            good(outputs={"answer": OutputBinding(upstream=sid("trim"), output="txt")}),
            "outputs.answer",
            "did you mean 'text'?",
        ),
        (
            good(outputs={"a b": OutputBinding(upstream=sid("trim"), output="text")}),
            "outputs.a b",
            "is not made of letters",
        ),
    ],
)
def test_one_mistake_is_one_problem_with_its_place(constellation: Constellation, place: str, words: str) -> None:
    found = problems(constellation, KINDS)
    assert [problem.place for problem in found] == [place]
    assert words in found[0].what


def test_defaults_cannot_stand_for_images() -> None:
    read = stage("read", "image.read", policy=Policy(on_failure=OnFailure.DEFAULT, defaults={"text": "", "score": 0}))
    found = problems(good(stages={**good().stages, sid("read"): read}), KINDS)
    assert [str(problem) for problem in found] == [
        "stages.read.defaults.crop: an image output can have no default; let on_failure be fail or skip"
    ]


def test_an_empty_constellation_is_a_problem() -> None:
    assert [str(problem) for problem in problems(Constellation(name="none", stages={}), KINDS)] == [
        "stages: there are none; a constellation needs at least one stage"
    ]


def test_all_problems_are_reported_together() -> None:
    bad = good(
        name="",
        stages={sid("read"): stage("read", "image.raed"), sid("trim"): stage("trim", "text.trim")},
        dependencies=(arc("read", "trim", "x", "txt"), arc("trim", "read"), arc("read", "gone")),
        outputs={"answer": OutputBinding(upstream=sid("trim"), output="none")},
    )
    with pytest.raises(InvalidConstellation) as caught:
        validate(bad, KINDS)
    assert [problem.place for problem in caught.value.problems] == [
        "name",
        "stages.read.kind",
        "stages.trim.params.length",
        "stages.trim.in.txt",
        "dependencies[2]",
        "stages.trim.in.text",
        "stages.trim",
        "outputs.answer",
    ]


def test_sizes_are_limited() -> None:
    stages = {sid(f"s{i}"): stage(f"s{i}", "text.chunks") for i in range(limits.STAGES_PER_JOB_MAX + 1)}
    found = problems(Constellation(name="wide", stages=stages), KINDS)
    assert [problem.place for problem in found] == ["stages"]
    assert "STAGES_PER_JOB_MAX = 20000" in found[0].what


def test_what_was_meant_is_looked_up_for_the_first_of_very_many_unknown_names() -> None:
    """Each look takes time in all names that are known: for all of them it would take minutes."""
    names = [f"stage-{number}" for number in range(limits.SUGGESTIONS_MAX + 50)]
    orders = tuple(Dependency(upstream=sid(f"{name}-x"), downstream=sid(name)) for name in names)
    wide = Constellation(
        name="w", stages={sid(name): stage(name, "text.chunks") for name in names}, dependencies=orders
    )
    found = problems(wide, KINDS)
    assert [problem.place for problem in found] == [f"stages.{name}.after" for name in names]
    assert sum("did you mean 'stage-" in problem.what for problem in found) == limits.SUGGESTIONS_MAX
    removes = Patch(operations=tuple(Remove(stage=sid(f"{name}-x")) for name in names))
    with pytest.raises(PatchRefused) as refused:
        apply(msgspec.structs.replace(wide, dependencies=()), removes, KINDS)
    assert len(refused.value.problems) == len(names)
    assert sum("did you mean 'stage-" in problem.what for problem in refused.value.problems) == limits.SUGGESTIONS_MAX


def test_a_job_with_many_inputs_is_not_said_to_have_none() -> None:
    inputs = {f"input-{number}": TEXT for number in range(limits.SUGGESTION_NAMES_SHOWN + 1)}
    found = problems(
        msgspec.structs.replace(
            good(inputs=inputs), bindings=(InputBinding(source="zzz", downstream=sid("trim"), input="text"),)
        ),
        KINDS,
    )
    told = [problem.what for problem in found if "zzz" in problem.what]
    assert told
    assert all("has no inputs" not in what for what in told)


def test_warnings_name_unused_inputs_and_inputs_that_may_stay_empty() -> None:
    base = good(
        inputs={"photo": IMAGE, "spare": TEXT}, dependencies=(arc("read", "trim", "text", "text", on=On.COMPLETION),)
    )
    assert problems(base, KINDS) == []
    assert [warning.place for warning in warnings(base, KINDS)] == ["inputs.spare", "stages.trim.in.text"]
    assert [warning.place for warning in warnings(with_trim(join=Join.ANY), KINDS)] == ["stages.trim.in.text"]
    optional = with_arcs(arc("read", "trim", "text", "more", on=On.COMPLETION))
    assert warnings(optional, KINDS) == []
