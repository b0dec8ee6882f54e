"""The builder: what it makes, what it refuses at once, and what it leaves to validation."""

import pytest

from starloom.dag.builder import Graph
from starloom.dag.constellation import (
    Comparison,
    Constellation,
    Dependency,
    InputBinding,
    Join,
    On,
    OutputBinding,
    Policy,
    Requirements,
    StageSpec,
    Tier,
)
from starloom.dag.errors import InvalidConstellation
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindCatalog, KindSpec, Param
from starloom.dag.values import Port, PortType

TEXT = Port(PortType.TEXT)
KINDS = KindCatalog(
    [
        KindSpec(name="audio.decode", inputs={"data": Port(PortType.BYTES)}, outputs={"audio": Port(PortType.AUDIO)}),
        KindSpec(
            name="speech.recognise",
            inputs={"audio": Port(PortType.AUDIO)},
            outputs={"text": TEXT, "score": Port(PortType.JSON)},
            params={"biases": Param(type="array")},
        ),
        KindSpec(name="text.say", inputs={"text": TEXT}, outputs={"text": TEXT}),
        KindSpec(name="text.join", variadic_input=TEXT, outputs={"text": TEXT}),
    ]
)


def sid(name: str) -> StageId:
    return StageId(name)


def problems_of(error: pytest.ExceptionInfo[InvalidConstellation]) -> list[str]:
    return [str(problem) for problem in error.value.problems]


def test_a_graph_builds_the_constellation_it_says() -> None:
    device = Requirements(tiers=(Tier.DEVICE,))
    policy = Policy(timeout_seconds=5.0)
    g = Graph("question", labels={"team": "demo"})
    audio = g.input("audio", PortType.BYTES)
    decode = g.stage("decode", "audio.decode", data=audio, require=device)
    hear = g.stage("hear", "speech.recognise", audio=decode["audio"], params={"biases": ("a", ["b"])}, policy=policy)
    sure = hear["text"].when(">=", 0.5, output="score", path="mean")
    g.stage(
        "say", "text.say", text=sure, join=Join.ANY, after=[decode, hear.on_completion(), hear.when("text", "!=", "")]
    )
    g.output("heard", hear["text"])
    score = Comparison(output="score", operator=">=", value=0.5, path="mean")
    some = Comparison(output="text", operator="!=", value="")
    assert g.build(KINDS) == Constellation(
        name="question",
        stages={
            sid("decode"): StageSpec(id=sid("decode"), kind="audio.decode", requires=device),
            sid("hear"): StageSpec(
                id=sid("hear"), kind="speech.recognise", params={"biases": ["a", ["b"]]}, policy=policy
            ),
            sid("say"): StageSpec(id=sid("say"), kind="text.say", join=Join.ANY),
        },
        dependencies=(
            Dependency(upstream=sid("decode"), downstream=sid("hear"), output="audio", input="audio"),
            Dependency(
                upstream=sid("hear"),
                downstream=sid("say"),
                output="text",
                input="text",
                on=On.COMPARISON,
                comparison=score,
            ),
            Dependency(upstream=sid("decode"), downstream=sid("say")),
            Dependency(upstream=sid("hear"), downstream=sid("say"), on=On.COMPLETION),
            Dependency(upstream=sid("hear"), downstream=sid("say"), on=On.COMPARISON, comparison=some),
        ),
        inputs={"audio": Port(PortType.BYTES)},
        bindings=(InputBinding(source="audio", downstream=sid("decode"), input="data"),),
        outputs={"heard": OutputBinding(upstream=sid("hear"), output="text")},
        labels={"team": "demo"},
    )


def test_a_built_constellation_does_not_change_with_its_graph() -> None:
    g = Graph("g")
    g.stage("one", "text.join")
    before = g.build(KINDS)
    g.stage("two", "text.join")
    assert list(before.stages) == ["one"]


def test_ports_with_other_names_are_fed_by_a_mapping() -> None:
    g = Graph("g")
    words = g.input("words", PortType.TEXT)
    g.stage("join", "text.join", inputs={"after": words, "2nd": words}, first=words)
    assert [binding.input for binding in g.build(KINDS).bindings] == ["first", "after", "2nd"]


def test_names_are_made_from_kinds() -> None:
    g = Graph("g")
    assert [g.stage("", "text.join").id for _ in range(3)] == ["join", "join-2", "join-3"]


def test_a_condition_replaces_the_one_before() -> None:
    ref = Graph("g").stage("a", "text.say")["text"]
    assert ref.when("==", "x").on_completion().comparison is None
    assert ref.on_completion().when("==", "x").on is On.COMPARISON


def test_build_reports_everything_that_needs_the_kinds() -> None:
    g = Graph("g")
    data = g.input("data", PortType.TEXT)
    decode = g.stage("decode", "audio.decode", data=data)
    g.stage("say", "text.sya", text=decode["sound"])
    g.output("x", decode["sound"])
    with pytest.raises(InvalidConstellation) as caught:
        g.build(KINDS)
    assert [problem.place for problem in caught.value.problems] == [
        "stages.say.kind",
        "stages.decode.in.data",
        "stages.say.in.text",
        "outputs.x",
    ]
    assert len(g.build().stages) == 2


def test_a_cycle_is_refused_and_named_and_changes_nothing() -> None:
    g = Graph("g")
    a = g.stage("a", "text.join")
    b = g.stage("b", "text.join", x=a["text"])
    c = g.stage("c", "text.join", x=b["text"])
    before = g.build(KINDS)
    with pytest.raises(InvalidConstellation) as caught:
        g.connect(c["text"], a, "x")
    assert problems_of(caught) == ["stages.a.in.x: closes a cycle: c -> a -> b -> c; leave it out"]
    with pytest.raises(InvalidConstellation, match="b -> b"):
        g.wait(b, b)
    assert g.build(KINDS) == before


def test_a_chain_wired_from_its_tail_is_accepted() -> None:
    g = Graph("g")
    stages = [g.stage(f"s{index}", "text.join") for index in range(1_000)]
    for upstream, downstream in zip(stages[1:], stages, strict=False):
        g.connect(upstream["text"], downstream, "x")
    assert len(g.build(KINDS).dependencies) == 999


def test_names_given_twice_are_refused_where_they_are_written() -> None:
    g = Graph("g")
    words = g.input("words", PortType.TEXT)
    a = g.stage("a", "text.say", text=words)
    g.output("o", a["text"])
    with pytest.raises(InvalidConstellation, match=r"stages\.a: there is already one called 'a'"):
        g.stage("a", "text.say", text=words)
    with pytest.raises(InvalidConstellation, match=r"inputs\.words"):
        g.input("words", PortType.TEXT)
    with pytest.raises(InvalidConstellation, match=r"outputs\.o"):
        g.output("o", a["text"])
    with pytest.raises(InvalidConstellation, match=r"stages\.b\.in\.text: is fed twice"):
        g.stage("b", "text.say", text=words, inputs={"text": words})


def test_parts_of_another_graph_are_refused() -> None:
    g, other = Graph("g"), Graph("other")
    foreign = other.stage("a", "text.join")
    message = "belongs to graph 'other', not to 'g'"
    with pytest.raises(InvalidConstellation, match=message):
        g.stage("b", "text.join", x=foreign["text"])
    with pytest.raises(InvalidConstellation, match=message):
        g.stage("b", "text.join", x=other.input("i", PortType.TEXT))
    with pytest.raises(InvalidConstellation, match=message):
        g.stage("b", "text.join", after=foreign.on_completion())
    with pytest.raises(InvalidConstellation, match=message):
        g.output("o", foreign["text"])
    assert not g.build().stages


def test_an_output_with_a_condition_is_refused() -> None:
    g = Graph("g")
    a = g.stage("a", "text.join")
    with pytest.raises(InvalidConstellation, match="takes no condition"):
        g.output("o", a["text"].on_completion())


def test_parameters_that_cannot_travel_are_refused() -> None:
    with pytest.raises(InvalidConstellation, match=r"stages\.a\.params: holds a set"):
        Graph("g").stage("a", "text.join", params={"x": {1}})


def test_a_graph_shows_its_size() -> None:
    g = Graph("g")
    g.stage("b", "text.join", after=g.stage("a", "text.join"))
    assert repr(g) == "<Graph 'g': 2 stages, 1 dependencies>"
