"""Streams in a constellation: what connects stages to groups, and every rule that holds for streams alone."""

from typing import Any

import msgspec
import pytest

from starloom import Graph
from starloom.dag.constellation import Comparison, Constellation, Dependency, Join, On, OnFailure, Policy, Straggler
from starloom.dag.document import dump, load
from starloom.dag.draft import apply
from starloom.dag.errors import InvalidConstellation, PatchRefused
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.patchdoc import load_patch
from starloom.dag.streams import groups_of, has_streams, is_stream
from starloom.dag.validate import problems, validate, warnings
from starloom.dag.values import Full, Port, PortType

SOUND, WORDS = Port(PortType.AUDIO, stream=True), Port(PortType.TEXT, stream=True)
TEXT = Port(PortType.TEXT)

KINDS = KindCatalog(
    [
        KindSpec(name="s.hear", inputs={"sound": SOUND}, outputs={"words": WORDS, "language": TEXT}),
        KindSpec(
            name="s.translate",
            inputs={"words": WORDS, "into": Port(PortType.TEXT, optional=True)},
            outputs={"words": WORDS, "last": TEXT},
        ),
        KindSpec(name="s.merge", variadic_input=WORDS, outputs={"words": WORDS}),
        KindSpec(name="s.count", inputs={"words": WORDS}, outputs={"text": TEXT}),
        KindSpec(name="s.say", inputs={"text": TEXT}, outputs={"words": WORDS}),
        KindSpec(name="t.guess", inputs={"text": Port(PortType.TEXT, optional=True)}, outputs={"text": TEXT}),
    ]
)


def sid(name: str) -> StageId:
    return StageId(name)


def captions(more: str = "") -> Constellation:
    """A stream through two stages into a third, with more stages."""
    return load(f"""
api_version: starloom/v1
name: captions
inputs:
  mic: {{type: audio, stream: true}}
stages:
  hear: {{kind: s.hear, in: {{sound: $mic}}}}
  translate: {{kind: s.translate, in: {{words: hear.words}}}}
  count: {{kind: s.count, in: {{words: translate.words}}}}
  {more}
outputs:
  answer: translate.words
  length: count.text
""")


def changed(stage: str, **fields: Any) -> Constellation:
    """The captions, one stage of which is not as it was."""
    made = captions()
    spec = msgspec.structs.replace(made.stages[sid(stage)], **fields)
    return msgspec.structs.replace(made, stages={**made.stages, sid(stage): spec})


def with_arc(**fields: Any) -> Constellation:
    """The captions, with other properties of the stream from `hear` to `translate`."""
    made = captions()
    arcs = tuple(
        msgspec.structs.replace(arc, **fields) if arc.downstream == "translate" else arc for arc in made.dependencies
    )
    return msgspec.structs.replace(made, dependencies=arcs)


def test_a_constellation_of_streams_is_valid_and_its_document_says_the_same() -> None:
    made = captions()
    validate(made, KINDS)
    assert warnings(made, KINDS) == []
    assert made.inputs["mic"] == SOUND
    assert load(dump(made)) == made
    assert "stream: true" in dump(made)


def test_the_builder_makes_the_same() -> None:
    graph = Graph("captions")
    hear = graph.stage("hear", "s.hear", sound=graph.input("mic", PortType.AUDIO, stream=True))
    translate = graph.stage("translate", "s.translate", words=hear["words"])
    count = graph.stage("count", "s.count", words=translate["words"])
    graph.output("answer", translate["words"])
    graph.output("length", count["text"])
    assert graph.build(KINDS) == captions()


def test_stages_that_stream_into_each_other_are_a_group() -> None:
    made = captions(more="two: {kind: s.hear, in: {sound: $mic}}\n  guess: {kind: t.guess, in: {text: count.text}}")
    streams = [arc for arc in made.dependencies if is_stream(arc, KINDS[made.stages[arc.upstream].kind])]
    groups = groups_of(streams)
    assert set(groups) == {"hear", "translate", "count"}
    assert set(groups[sid("count")]) == set(groups)
    assert groups_of([]) == {}


def test_two_ways_that_meet_are_one_group() -> None:
    arcs = [Dependency(upstream=sid(a), downstream=sid(b), output="x", input="y") for a, b in ("ab", "cd", "bd", "ef")]
    groups = groups_of(arcs)
    assert set(groups[sid("a")]) == set("abcd") == set(groups[sid("d")])
    assert set(groups[sid("e")]) == set("ef")


def test_a_kind_has_streams_by_any_of_its_ports() -> None:
    assert [has_streams(KINDS[name]) for name in sorted(KINDS)] == [True, True, True, True, True, False]
    assert not has_streams(None)


@pytest.mark.parametrize(
    ("constellation", "place", "words"),
    [
        (
            with_arc(on=On.COMPLETION),
            "stages.translate.in.words",
            "hear.words is a stream, which is read from its first",
        ),
        (
            with_arc(on=On.COMPARISON, comparison=Comparison(output="language", operator="==", value="en")),
            "stages.translate.in.words",
            "it can have no condition on how that ends",
        ),
        (changed("translate", join=Join.ANY), "stages.translate.in.words", "starts with the stream hear.words"),
        (
            changed("translate", policy=Policy(straggler=Straggler())),
            "stages.translate.straggler",
            "a stage with stream ports gets no copy",
        ),
        (
            changed("translate", policy=Policy(replicate=1)),
            "stages.translate.replicate",
            "kept only until they are read",
        ),
        (
            changed("hear", policy=Policy(on_failure=OnFailure.DEFAULT, defaults={"language": "en"})),
            "stages.hear.defaults.words",
            "can have no default; let on_failure be fail or skip",
        ),
        (
            captions(more="late: {kind: s.translate, in: {words: hear.words, into: hear.language}}"),
            "stages.late",
            "waits for the end of hear, but both belong to one group of streams",
        ),
        (
            captions(more="late: {kind: s.count, in: {words: hear.words}, after: [translate]}"),
            "stages.late",
            "waits for the end of translate",
        ),
        (
            captions(
                more="guess: {kind: t.guess, in: {text: hear.language}}\n"
                "  late: {kind: s.translate, in: {words: translate.words, into: guess.text}}"
            ),
            "stages.hear",
            "and they wait for each other's end: hear, translate, count, late -> guess -> hear, translate, count, late",
        ),
        (
            captions(more="join: {kind: t.guess, in: {text: hear.words}}"),
            "stages.join.in.text",
            "hear.words is a stream of text, but this input takes a text",
        ),
        (
            captions(more="join: {kind: s.count, in: {words: hear.language}}"),
            "stages.join.in.words",
            "hear.language is a text, but this input takes a stream of text",
        ),
        (
            captions(
                more="late: {kind: t.guess, in: {text: {from: hear.language, when: {output: words, is: '==', value: a}}}}"
            ),
            "stages.late.in.text.when.output",
            "'words' is a stream of text; only text and JSON can be compared",
        ),
    ],
)
def test_one_mistake_with_streams_is_one_problem_with_its_place(
    constellation: Constellation, place: str, words: str
) -> None:
    found = problems(constellation, KINDS)
    assert [problem.place for problem in found] == [place]
    assert words in found[0].what


def test_an_output_is_not_called_as_an_input_stream_is() -> None:
    graph = Graph("echo")
    mic = graph.input("mic", PortType.TEXT, stream=True)
    graph.output("mic", graph.stage("count", "s.translate", words=mic)["words"])
    with pytest.raises(InvalidConstellation) as caught:
        graph.build(KINDS)
    assert [str(problem).split(":")[0] for problem in caught.value.problems] == ["outputs.mic"]
    assert "call one differently" in str(caught.value)


def test_a_true_cycle_of_streams_is_told_once_as_a_cycle() -> None:
    made = captions(more="merge: {kind: s.merge, in: {a: translate.words}}")
    back = Dependency(upstream=sid("merge"), downstream=sid("merge2"), output="words", input="b")
    merge2 = msgspec.structs.replace(made.stages[sid("merge")], id=sid("merge2"))
    again = Dependency(upstream=sid("merge2"), downstream=sid("merge"), output="words", input="c")
    cyclic = msgspec.structs.replace(
        made, stages={**made.stages, sid("merge2"): merge2}, dependencies=(*made.dependencies, back, again)
    )
    found = problems(cyclic, KINDS)
    assert len(found) == 1
    assert "waits for itself" in found[0].what


@pytest.mark.parametrize(
    ("patch", "place", "words"),
    [
        (
            "- rewire: {stage: before, wait: [translate]}",
            "stages.translate",
            "wait for each other's end: before -> translate, count, other, hear -> before",
        ),
        (
            "- add: {late: {kind: s.merge, in: {a: hear.words}, after: [guess]}}",
            "stages.hear",
            "wait for each other's end: hear, late, translate, count, other -> guess -> hear, late, translate, count, other",
        ),
        (
            (
                "- replace: {stage: guess, kind: s.say}\n- replace: {stage: last, kind: s.merge}\n"
                "- rewire: {stage: last, in: {text: null, b: guess.words, c: translate.words}}"
            ),
            "stages.guess",
            "waits for the end of count, but both belong to one group of streams",
        ),
        (
            "- rewire: {stage: translate, wait: [hear]}",
            "stages.translate",
            "waits for the end of hear, but both belong to one group of streams",
        ),
    ],
)
def test_a_patch_makes_no_group_that_could_never_start(patch: str, place: str, words: str) -> None:
    """Each part is right by itself; together, what runs at the same time would wait for itself."""
    more = (
        "before: {kind: t.guess}\n  other: {kind: s.merge, in: {words: translate.words}, after: [before]}\n"
        "  guess: {kind: t.guess, in: {text: count.text}}\n  last: {kind: t.guess, in: {text: guess.text}}"
    )
    base = captions(more)
    assert problems(base, KINDS) == []
    with pytest.raises(PatchRefused) as caught:
        apply(base, load_patch(f"patch:\n{patch}"), KINDS)
    assert [problem.place for problem in caught.value.problems] == [place]
    assert words in caught.value.problems[0].what


def test_a_patch_lets_what_follows_streams_wait_for_them() -> None:
    base = captions("guess: {kind: t.guess, in: {text: count.text}}\n  before: {kind: t.guess}")
    for more in (
        "- rewire: {stage: guess, wait: [hear, before]}\n- rewire: {stage: translate, wait: [before]}",
        "- rewire: {stage: before, wait: [hear]}\n- rewire: {stage: guess, wait: [before]}",
        (
            "- add: {late: {kind: s.say, in: {text: before.text}}}\n- rewire: {stage: before, wait: [translate]}\n"
            "- rewire: {stage: count, in: {words: late.words}}"
        ),
    ):
        made, _ = apply(base, load_patch(f"patch:\n{more}"), KINDS)
        assert problems(made, KINDS) == []


def test_what_a_port_says_of_its_buffer_is_checked_and_kept() -> None:
    inputs = {"frames": Port(PortType.IMAGE, stream=True, chunks=8, full=Full.LATEST), "text": TEXT}
    given = msgspec.structs.replace(captions(), inputs={**captions().inputs, **inputs})
    assert load(dump(given)).inputs["frames"] == inputs["frames"]
    wrong = {"frames": Port(PortType.IMAGE, stream=True, chunks=5_000), "text": Port(PortType.TEXT, full=Full.OLDEST)}
    found = problems(msgspec.structs.replace(given, inputs={**given.inputs, **wrong}), KINDS)
    assert [problem.place for problem in found] == ["inputs.frames", "inputs.text"]
    assert "STREAM_BUFFER_CHUNKS_MAX = 4096" in found[0].what
    assert "is no stream" in found[1].what
