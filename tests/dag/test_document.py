"""Documents: the round trip, the forms a document may take, and everything that reading refuses."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Straggler,
    Tier,
)
from starloom.dag.document import canonical, dump, from_json, load, to_json
from starloom.dag.errors import InvalidConstellation
from starloom.dag.ids import StageId
from starloom.dag.quantities import read_bytes, read_seconds
from starloom.dag.values import Full, Port, PortType
from starloom.dag.yamltext import read_yaml, write_yaml

HEAD = "api_version: starloom/v1\nname: n\n"

EXAMPLE = """
api_version: starloom/v1
name: spoken-question
labels: {team: demo}
deadline: 5m
inputs:
  audio: bytes
  words: {type: text, stream: true, optional: true}
stages:
  hear:
    kind: audio.decode
    in: {data: $audio}
    params: {sample_rate_hz: 16000}
    require: {tier: [device, edge], target: npu, labels: {sensor: microphone}, memory: 512MiB, node: cam-1}
    retry: {times: 3, first: 200ms, factor: 3, last: 1m}
    timeout: 30s
    deadline: 2m
    straggler: {factor: 2.5, after: 200ms}
    on_failure: default
    defaults: {text: ""}
    replicate: 2
    join: any
    after: [pick]
  pick:
    kind: x
    in:
      text: {from: hear.text, on: completion}
      more: {from: hear.more, when: {output: score, is: ">=", value: 0.5, path: faces.0.score}}
    after: {stage: hear, when: {output: text, is: contains, value: no}}
outputs:
  answer: pick.text
"""


def sid(name: str) -> StageId:
    return StageId(name)


def example() -> Constellation:
    """What EXAMPLE says, spelt out."""
    hear, pick = sid("hear"), sid("pick")
    requires = Requirements(
        tiers=(Tier.DEVICE, Tier.EDGE),
        target="npu",
        labels={"sensor": "microphone"},
        memory_bytes=512 * 2**20,
        node="cam-1",
    )
    policy = Policy(
        retry=Retry(times=3, first_seconds=0.2, factor=3.0, last_seconds=60.0),
        timeout_seconds=30.0,
        deadline_seconds=120.0,
        straggler=Straggler(factor=2.5, after_seconds=0.2),
        on_failure=OnFailure.DEFAULT,
        defaults={"text": ""},
        replicate=2,
    )
    score = Comparison(output="score", operator=">=", value=0.5, path="faces.0.score")
    no = Comparison(output="text", operator="contains", value="no")
    return Constellation(
        name="spoken-question",
        stages={
            hear: StageSpec(
                id=hear,
                kind="audio.decode",
                params={"sample_rate_hz": 16000},
                requires=requires,
                policy=policy,
                join=Join.ANY,
            ),
            pick: StageSpec(id=pick, kind="x"),
        },
        dependencies=(
            Dependency(upstream=pick, downstream=hear),
            Dependency(upstream=hear, downstream=pick, output="text", input="text", on=On.COMPLETION),
            Dependency(upstream=hear, downstream=pick, output="more", input="more", on=On.COMPARISON, comparison=score),
            Dependency(upstream=hear, downstream=pick, on=On.COMPARISON, comparison=no),
        ),
        inputs={"audio": Port(PortType.BYTES), "words": Port(PortType.TEXT, stream=True, optional=True)},
        bindings=(InputBinding(source="audio", downstream=hear, input="data"),),
        outputs={"answer": OutputBinding(upstream=pick, output="text")},
        labels={"team": "demo"},
        deadline_seconds=300.0,
    )


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,8}", fullmatch=True) | st.sampled_from(
    ["on", "yes", "no", "1", "1e3", "null"]
)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.text(), PLAIN, max_size=3)
LABELS = st.dictionaries(st.text(), st.text(), max_size=2)
SECONDS = st.floats(0, limits.DURATION_SECONDS_MAX) | st.sampled_from([0.1, 0.25, 30.0, 120.0])
COMPARISONS = st.builds(
    Comparison,
    output=st.text(min_size=1),
    operator=st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "contains"]),
    value=PLAIN,
    path=st.text(),
)
PORTS = st.builds(
    Port,
    type=st.sampled_from(PortType),
    stream=st.booleans(),
    optional=st.booleans(),
    chunks=st.integers(0, 9),
    full=st.none() | st.sampled_from(Full),
)
REQUIREMENTS = st.builds(
    Requirements,
    tiers=st.lists(st.sampled_from(Tier), unique=True).map(tuple),
    target=st.text(),
    labels=LABELS,
    memory_bytes=st.integers(0, 2**50) | st.sampled_from([2**20, 3 * 2**30, 10**9]),
    node=st.text(),
)
POLICIES = st.builds(
    Policy,
    retry=st.builds(
        Retry, times=st.integers(0, 1000), first_seconds=SECONDS, factor=st.floats(1.0, 10.0), last_seconds=SECONDS
    ),
    timeout_seconds=SECONDS,
    deadline_seconds=SECONDS,
    straggler=st.none() | st.builds(Straggler, factor=st.floats(1.0, 10.0), after_seconds=SECONDS),
    on_failure=st.sampled_from(OnFailure),
    defaults=MAPPINGS,
    replicate=st.integers(0, limits.REPLICAS_MAX),
)


@st.composite
def constellations(draw: st.DrawFn) -> Constellation:
    """Any constellation that a document can say; most are not valid in the sense of `dag.validate`."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    stages = {
        sid(name): StageSpec(
            id=sid(name),
            kind=draw(st.text()),
            params=draw(MAPPINGS),
            requires=draw(REQUIREMENTS),
            policy=draw(POLICIES),
            join=draw(st.sampled_from(Join)),
        )
        for name in names
    }
    inputs: dict[str, Port] = draw(st.dictionaries(st.text(), PORTS, max_size=3))
    dependencies: list[Dependency] = []
    bindings: list[InputBinding] = []
    for downstream, port in draw(st.sets(st.tuples(st.sampled_from(names), st.text(min_size=1)), max_size=6)):
        from_the_job: bool = draw(st.booleans())
        if inputs and from_the_job:
            source = draw(st.sampled_from(sorted(inputs)))
            bindings.append(InputBinding(source=source, downstream=sid(downstream), input=port))
        else:
            dependencies.append(draw(arcs(names, downstream, draw(st.text(min_size=1)), port)))
    dependencies += [draw(arcs(names, draw(st.sampled_from(names)), "", "")) for _ in range(draw(st.integers(0, 3)))]
    return Constellation(
        name=draw(st.text()),
        stages=stages,
        dependencies=tuple(draw(st.permutations(dependencies))),
        inputs=inputs,
        bindings=tuple(bindings),
        outputs={
            name: OutputBinding(upstream=sid(draw(st.sampled_from(names))), output=draw(st.text(min_size=1)))
            for name in draw(st.sets(st.text(), max_size=2))
        },
        labels=draw(LABELS),
    )


@st.composite
def arcs(draw: st.DrawFn, names: list[str], downstream: str, output: str, port: str) -> Dependency:
    on = draw(st.sampled_from(On))
    return Dependency(
        upstream=sid(draw(st.sampled_from(names))),
        downstream=sid(downstream),
        output=output,
        input=port,
        on=on,
        comparison=draw(COMPARISONS) if on == On.COMPARISON else None,
    )


@settings(max_examples=150, deadline=None)
@given(constellations())
def test_what_is_dumped_loads_as_the_same(constellation: Constellation) -> None:
    wanted = canonical(constellation)
    assert canonical(wanted) == wanted
    assert load(dump(constellation)) == wanted
    assert load(json.dumps(to_json(constellation))) == wanted


@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_plain_values_survive_yaml(value: Any) -> None:
    assert read_yaml(write_yaml({"value": value})) == {"value": value}


def test_the_example_means_what_it_says() -> None:
    assert load(EXAMPLE) == example()
    assert load(dump(example())) == example()
    assert load(EXAMPLE.encode()) == from_json(to_json(example()))


def test_short_forms() -> None:
    long = (
        HEAD + "stages: {a: {kind: k}, b: {kind: k, retry: {times: 5}, require: {tier: [edge]}, after: [{stage: a}]}}"
    )
    short = HEAD + "stages: {a: {kind: k}, b: {kind: k, retry: 5, require: {tier: edge}, after: a}}"
    assert load(short) == load(long)


def test_anchors_may_be_used() -> None:
    text = HEAD + "stages: {a: {kind: k, require: &here {tier: edge}}, b: {kind: k, require: *here}}"
    found = load(text)
    assert found.stages[sid("b")].requires == Requirements(tiers=(Tier.EDGE,))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("1e3", 1000.0),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", 10),
        ("+1", 1),
        ("1_000", "1_000"),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("~", None),
        ("", None),
        ("12:30:45", "12:30:45"),
        ("2001-01-01", "2001-01-01"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    assert read_yaml(f"key: {text}") == {"key": value}


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("5s", 5.0), ("2m", 120.0), ("1.5h", 5400.0), (3, 3.0), ("1e-3 s", 0.001)]
)
def test_durations(text: Any, seconds: float) -> None:
    assert read_seconds(text) == seconds


@pytest.mark.parametrize("text", ["5", "s", "-5s", "5 days", "1e99s", -1, True, None, float("nan"), [1], "٣s"])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match="write a number of seconds"):
        read_seconds(text)


@pytest.mark.parametrize(
    ("text", "count"), [("512MiB", 2**29), ("2GB", 2 * 10**9), ("1.5KiB", 1536), (7, 7), ("0B", 0)]
)
def test_sizes(text: Any, count: int) -> None:
    assert read_bytes(text) == count


@pytest.mark.parametrize("text", ["512", "1.3B", "1e999GB", "5mib", -1, 1.5, True, None, 1 << 63, "9999999TB"])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(ValueError, match="bytes"):
        read_bytes(text)


def found_in(text: str | bytes) -> list[str]:
    with pytest.raises(InvalidConstellation) as caught:
        load(text, place="job.yaml")
    assert str(caught.value).startswith("job.yaml is no constellation:\n")
    return [str(problem) for problem in caught.value.problems]


def test_all_structural_problems_are_reported_together() -> None:
    text = """
api_version: starloom/v9
nmae: x
labels: {rack: 3}
inputs: {a: {type: film, steam: true}, b: {optional: maybe}}
stages:
  one: {in: {x: 5, y: nowhere, z: {form: a.b}, j: {from: $a, on: completion}}, timeout: 3 weeks, require: {tier: [moon], memory: lots}}
  two: {kind: k, params: [1], retry: {times: -1, factor: 0.5}, on_failure: maybe, join: some, after: [{stage: one, on: comparison}, 7]}
  three: {kind: k, in: {x: {from: one.y, on: success, when: {is: like, value: .nan}}}, after: 7}
  four: 4
outputs: {o: one}
"""
    assert [problem.split(": ", 1)[0] for problem in found_in(text)] == [
        "nmae",
        "name",
        "api_version",
        "stages.one.kind",
        "stages.one.in.x",
        "stages.one.in.y",
        "stages.one.in.z.form",
        "stages.one.in.z.from",
        "stages.one.in.j",
        "stages.one.require.tier",
        "stages.one.require.memory",
        "stages.one.timeout",
        "stages.two.after[0].on",
        "stages.two.after[1]",
        "stages.two.params",
        "stages.two.retry.times",
        "stages.two.retry.factor",
        "stages.two.on_failure",
        "stages.two.join",
        "stages.three.in.x.on",
        "stages.three.in.x.when.is",
        "stages.three.in.x.when.value",
        "stages.three.after",
        "stages.four",
        "inputs.a.steam",
        "inputs.a.type",
        "inputs.b.type",
        "inputs.b.optional",
        "outputs.o",
        "labels.rack",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nmae: x", "did you mean 'name'?"),
        ("name: 3", "write text, with quotes: '3'"),
        ("stages: {a: {kind: k}", "correct the syntax"),
        ("a: 1\na: 2\nb: {c: 1, c: 2}", "line 2, column 1: the key 'a' is given twice"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ("a: 1\n---\nb: 2", "a second document begins here"),
        ("", "is nothing; write a mapping"),
        ("- a", "is a list; write a mapping"),
        ("{a: !!python/object/apply:os.system [ls]}", "is not supported"),
        ("a: !!str 3", "is not supported"),
        ("a: &x {b: *x}", "no complete anchor &x"),
        ("<<: {a: 1}", "merge keys"),
        ("? [a]\n: b", "a key must be plain text"),
        ("a: \x00", "control characters"),
        (b"a: \xff", "byte 3 is not UTF-8"),
        ("a: \ud800", "is not UTF-8"),
        ("a: " + "9" * 5_000, "has 5000 digits"),
        ('{"stages": {"a": {"retry": {"factor": 1' + "0" * 400 + "}}}}", "a whole number of 1329 bits"),
        ('{"stages": {"a": {"params": {"b": 1' + "0" * 400 + "}}}}", "a whole number of 1329 bits"),
        ("a: " + "[" * 50 + "]" * 50, "DOCUMENT_DEPTH_MAX = 32"),
        ("[" * 100_000, "DOCUMENT_DEPTH_MAX = 32"),
        ('{"a":' * 100_000, "DOCUMENT_DEPTH_MAX = 32"),
        (b" " * (limits.DOCUMENT_BYTES_MAX + 1), "DOCUMENT_BYTES_MAX = 16777216"),
    ],
)
def test_what_reading_refuses(text: str | bytes, words: str) -> None:
    assert any(words in problem for problem in found_in(text))


def test_both_keys_given_twice_are_reported() -> None:
    assert found_in("a: 1\na: 2\nb: {c: 1, c: 2}") == [
        "line 2, column 1: the key 'a' is given twice; keep one",
        "line 3, column 11: the key 'c' is given twice; keep one",
    ]


def test_an_alias_bomb_is_refused_before_it_goes_off() -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "DOCUMENT_VALUES_MAX" in found_in("\n".join(lines))[0]


def test_aliases_cannot_hide_depth() -> None:
    lines = ["l0: &l0 [x]"] + [f"l{i}: &l{i} [*l{i - 1}]" for i in range(1, 50)]
    assert "DOCUMENT_DEPTH_MAX" in found_in("\n".join(lines))[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dependencies": (Dependency(upstream=sid("a"), downstream=sid("b")),)}, "no stage is called 'b'"),
        (
            {"dependencies": (Dependency(upstream=sid("a"), downstream=sid("a"), output="x"),)},
            "only one of output and input",
        ),
        ({"dependencies": (Dependency(upstream=sid("a"), downstream=sid("a"), on=On.COMPARISON),)}, "comparison"),
        ({"dependencies": (Dependency(upstream=sid("$"), downstream=sid("a"), output="x", input="y"),)}, "not made of"),
        (
            {"dependencies": (Dependency(upstream=sid("a"), downstream=sid("a"), output="x", input="y"),) * 2},
            "fed twice",
        ),
        ({"bindings": (InputBinding(source="i", downstream=sid("b"), input="x"),)}, "no stage is called 'b'"),
        ({"outputs": {"o": OutputBinding(upstream=sid("a"), output="")}}, "cannot be written as stage.port"),
        ({"stages": {sid("a.b"): StageSpec(id=sid("a.b"), kind="k")}}, "not made of"),
        ({"stages": {sid("a"): StageSpec(id=sid("b"), kind="k")}}, "its id is not the name"),
    ],
)
def test_what_a_document_cannot_say_is_refused(changes: dict[str, Any], words: str) -> None:
    usual: dict[str, Any] = {"name": "n", "stages": {sid("a"): StageSpec(id=sid("a"), kind="k")}}
    with pytest.raises(InvalidConstellation, match=words):
        dump(Constellation(**{**usual, **changes}))
