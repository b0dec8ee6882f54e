"""Patches of a constellation: every operation, every refusal with all its reasons, and the way back."""

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from starloom.dag import limits
from starloom.dag.constellation import Constellation, Dependency, On, OutputBinding, Requirements, StageSpec, Tier
from starloom.dag.document import load, to_json
from starloom.dag.draft import apply, difference_of
from starloom.dag.errors import InvalidInput, PatchRefused
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindCatalog, KindSpec, Param
from starloom.dag.patch import (
    Add,
    AnyOperation,
    CancelStage,
    Difference,
    Move,
    Patch,
    Redirect,
    Remove,
    Replace,
    ResumeStage,
    Rewire,
    between,
    inverse,
    operations_of,
)
from starloom.dag.patchdoc import load_patch, patch_to_json
from starloom.dag.patchtext import lines_of
from starloom.dag.shape import Shape, constellation_at
from starloom.dag.validate import problems
from starloom.dag.values import Port, PortType

TEXT, IMAGE, AUDIO = Port(PortType.TEXT), Port(PortType.IMAGE), Port(PortType.AUDIO)
WORDS = Port(PortType.TEXT, stream=True)
KINDS = KindCatalog(
    [
        KindSpec(
            name="hear",
            inputs={"audio": AUDIO},
            outputs={"text": TEXT},
            params={"beams": Param(type="integer"), "model": Param(type="string")},
        ),
        KindSpec(name="hear.better", inputs={"audio": AUDIO}, outputs={"text": TEXT}),
        KindSpec(name="look", inputs={"image": IMAGE}, outputs={"faces": Port(PortType.JSON)}),
        KindSpec(
            name="say", inputs={"text": TEXT, "more": Port(PortType.TEXT, optional=True)}, outputs={"audio": AUDIO}
        ),
        KindSpec(name="join", variadic_input=TEXT, outputs={"text": TEXT}),
        KindSpec(name="split", variadic_output=TEXT, params={"outputs": Param(type="object", default={})}),
        KindSpec(name="mix", variadic_input=WORDS, outputs={"text": TEXT, "words": WORDS}),
    ]
)
BASE = load(
    """
api_version: starloom/v1
name: spoken
inputs: {audio: audio, image: image}
stages:
  words: {kind: hear, in: {audio: $audio}, params: {beams: 1}, require: {tier: edge}}
  faces: {kind: look, in: {image: $image}}
  speak: {kind: say, in: {text: words.text}, after: [faces]}
outputs: {answer: speak.audio}
"""
)


def patch(text: str, **fields: Any) -> Patch:
    return msgspec.structs.replace(load_patch(f"patch:\n{text}"), **fields)


def done(text: str) -> tuple[dict[str, Any], list[str]]:
    """The patched constellation's document and the difference in words; undone, it is the first one again."""
    patched, difference = apply(BASE, patch(text), KINDS)
    assert problems(patched, KINDS) == []
    undone, back = apply(patched, inverse(difference), KINDS)
    assert same(undone, BASE)
    assert same(apply(undone, Patch(operations=operations_of(difference)), KINDS)[0], patched)
    assert between(BASE, patched) == difference or same_difference(between(BASE, patched), difference)
    assert load_patch(msgspec.json.encode(patch_to_json(inverse(difference)))) == inverse(difference)
    assert back
    return to_json(patched), lines_of(difference)


def same(one: Constellation, other: Constellation) -> bool:
    """Equal up to the order of dependencies and bindings."""

    def plain(constellation: Constellation) -> Any:
        return msgspec.structs.replace(
            constellation,
            dependencies=tuple(sorted(constellation.dependencies, key=repr)),
            bindings=tuple(sorted(constellation.bindings, key=repr)),
        )

    return bool(plain(one) == plain(other))


def same_difference(one: Difference, other: Difference) -> bool:
    return all(
        Counter(map(repr, getattr(one, f))) == Counter(map(repr, getattr(other, f))) for f in one.__struct_fields__
    )


def refused(text: str, base: Constellation = BASE) -> dict[str, str]:
    with pytest.raises(PatchRefused, match="nothing has changed") as found:
        apply(base, patch(text), KINDS)
    return {problem.place: problem.what for problem in found.value.problems}


class TestOperations:
    def test_add_with_what_leads_into_it(self) -> None:
        document, lines = done("- add: {short: {kind: join, in: {a: words.text}, after: [faces], join: any}}")
        assert document["stages"]["short"] == {
            "kind": "join",
            "in": {"a": "words.text"},
            "join": "any",
            "after": ["faces"],
        }
        assert lines == ["+ short (join)", "+ words.text -> short.a", "+ faces -> short"]

    def test_remove_with_what_needs_it(self) -> None:
        document, lines = done("- remove: faces\n- rewire: {stage: speak, after: []}")
        assert list(document["stages"]) == ["words", "speak"]
        assert lines == ["- faces (look)", "- faces -> speak", "- $image -> faces.image"]

    def test_replace_kind_and_parameters(self) -> None:
        document, lines = done("- replace: {stage: words, kind: hear.better, params: {}}")
        assert document["stages"]["words"]["kind"] == "hear.better"
        assert lines == ["~ words: kind hear -> hear.better", "~ words: beams 1 -> null"]

    def test_replace_the_model_and_keep_other_parameters(self) -> None:
        document, lines = done("- replace: {stage: words, model: small}")
        assert document["stages"]["words"]["params"] == {"beams": 1, "model": "small"}
        assert lines == ['~ words: model null -> "small"']

    def test_rewire_one_port_and_leave_the_others(self) -> None:
        document, lines = done(
            "- add: {short: {kind: join, in: {a: words.text}}}\n"
            "- rewire: {stage: speak, in: {text: {from: short.text, on: completion}, more: words.text}}"
        )
        assert document["stages"]["speak"]["in"] == {
            "text": {"from": "short.text", "on": "completion"},
            "more": "words.text",
        }
        assert document["stages"]["speak"]["after"] == ["faces"]
        assert "- words.text -> speak.text" in lines
        assert "+ short.text -> speak.text, on completion" in lines

    def test_rewire_takes_a_source_away_and_changes_what_is_waited_for(self) -> None:
        text = (
            "- rewire: {stage: speak, in: {more: words.text}, join: any}\n- rewire: {stage: speak, in: {more: null}}\n"
        )
        document, _ = done(f"{text}- rewire: {{stage: speak, wait: [{{stage: words, on: completion}}], free: [faces]}}")
        assert document["stages"]["speak"]["after"] == [{"stage": "words", "on": "completion"}]
        assert document["stages"]["speak"]["join"] == "any"

    def test_what_is_waited_for_already_is_waited_for_once(self) -> None:
        document, lines = done(
            "- rewire: {stage: speak, wait: [faces, words, words]}\n- rewire: {stage: speak, wait: [words]}"
        )
        assert document["stages"]["speak"]["after"] == ["faces", "words"]
        assert len(lines) == 1

    def test_redirect_all_that_reads_an_output(self) -> None:
        document, lines = done(
            "- add: {short: {kind: join, in: {a: words.text}}}\n"
            "- rewire: {stage: speak, in: {more: {from: words.text, when: {is: '!=', value: ''}}}}\n"
            "- outputs: {words: words.text}\n- redirect: {from: words.text, to: short.text}"
        )
        assert document["stages"]["short"]["in"] == {"a": "words.text"}
        assert document["stages"]["speak"]["in"] == {
            "text": "short.text",
            "more": {"from": "short.text", "when": {"is": "!=", "value": ""}},
        }
        assert document["outputs"]["words"] == "short.text"
        assert "- words.text -> speak.text" in lines

    def test_redirect_to_several_where_any_number_is_read(self) -> None:
        base = apply(BASE, patch("- add: {sum: {kind: join, in: {a: words.text}}}"), KINDS)[0]
        found = apply(
            base,
            patch(
                "- add: {x: {kind: join, in: {a: words.text}}, y: {kind: join}}\n"
                "- rewire: {stage: speak, in: {text: x.text}}\n"
                "- redirect: {from: words.text, to: [x.text, y.text, words.text]}"
            ),
            KINDS,
        )[0]
        assert to_json(found)["stages"]["sum"]["in"] == {
            "a-0": "x.text",
            "a-1": "y.text",
            "a-2": "words.text",
        }

    def test_move(self) -> None:
        document, lines = done("- move: {stage: words, require: {tier: cloud, labels: {rack: left}}}")
        assert document["stages"]["words"]["require"] == {"tier": "cloud", "labels": {"rack": "left"}}
        assert lines == ['~ words: require {"tier": "edge"} -> {"tier": "cloud", "labels": {"rack": "left"}}']

    def test_set_policy(self) -> None:
        document, _ = done("- set_policy: {stage: words, retry: 5, timeout: 2s, on_failure: skip, replicate: 2}")
        assert document["stages"]["words"]["retry"] == {"times": 5}
        assert document["stages"]["words"]["on_failure"] == "skip"
        assert document["stages"]["words"]["replicate"] == 2

    def test_cancel_a_stage_and_resume_it(self) -> None:
        document, lines = done("- cancel_stage: faces")
        assert document["stages"]["faces"]["cancelled"] is True
        assert lines == ["~ faces: cancelled false -> true"]
        assert load(msgspec.json.encode(document)).stages[StageId("faces")].cancelled
        patched, _ = apply(BASE, patch("- cancel_stage: faces"), KINDS)
        assert apply(patched, patch("- resume_stage: faces"), KINDS)[0] == BASE

    def test_splice_a_constellation(self) -> None:
        inner = """{api_version: starloom/v1, name: translate, inputs: {text: text, hint: {type: text, optional: true}},
          stages: {first: {kind: join, in: {a: $text, b: $hint}}, second: {kind: join, in: {a: first.text}, after: [first]}},
          outputs: {text: second.text}}"""
        document, lines = done(
            f"- splice: {{prefix: fr, constellation: {inner}, inputs: {{text: words.text}}, outputs: {{text: [speak.text]}}}}"
        )
        assert document["stages"]["fr-first"]["in"] == {"a": "words.text"}
        assert document["stages"]["fr-second"] == {"kind": "join", "in": {"a": "fr-first.text"}, "after": ["fr-first"]}
        assert document["stages"]["speak"]["in"]["text"] == "fr-second.text"
        assert "+ fr-second.text -> speak.text" in lines

    def test_outputs(self) -> None:
        document, lines = done("- outputs: {words: words.text, answer: null}")
        assert document["outputs"] == {"words": "words.text"}
        assert lines == ["+ output words: words.text", "- output answer: speak.audio"]

    def test_several_at_once_in_their_order(self) -> None:
        done(
            "- add: {one: {kind: join}, two: {kind: join, in: {a: one.text}}}\n- remove: one\n"
            "- rewire: {stage: two, in: {a: null, b: words.text}}\n- replace: {stage: faces, kind: look}"
        )

    def test_another_kind_of_stage_under_the_same_name(self) -> None:
        document, _ = done(
            "- remove: faces\n- add: {faces: {kind: join, in: {a: words.text}}}\n"
            "- rewire: {stage: speak, after: [faces]}"
        )
        assert document["stages"]["faces"] == {"kind": "join", "in": {"a": "words.text"}}


class TestRefusals:
    def test_every_reason_at_once_and_nothing_changes(self) -> None:
        before = msgspec.json.encode(to_json(BASE))
        found = refused(
            "- move: {stage: word, require: {tier: cloud}}\n"
            "- remove: faces\n"
            "- replace: {stage: words, kind: look, params: {}}\n"
            "- add: {speak: {kind: say}, fresh: {kind: nothing, in: {a: words.text}}}\n"
            "- rewire: {stage: speak, in: {more: null}}\n"
            "- outputs: {answers: null}"
        )
        assert "did you mean 'words'" in found["patch[0].move"]
        assert "still needs faces, which is removed" in found["stages.speak.after"]
        assert "look has no input 'audio'" in found["stages.words.in.audio"]
        assert "look needs an image here" in found["stages.words.in.image"]
        assert "has no output 'text'" in found["stages.speak.in.text"]
        assert "already one of that name" in found["patch[3].add.stages.speak"]
        assert "no kind is called 'nothing'" in found["stages.fresh.kind"]
        assert "no source that could go" in found["patch[4].rewire.in.more"]
        assert "did you mean 'answer'" in found["patch[5].outputs.answers"]
        assert msgspec.json.encode(to_json(BASE)) == before

    def test_a_consumer_without_a_producer(self) -> None:
        assert "still needs words" in refused("- remove: words")["stages.speak.in.text"]
        found = refused("- rewire: {stage: words, wait: [faces]}\n- rewire: {stage: speak, after: []}\n- remove: faces")
        assert "still needs faces" in found["stages.words.after"]
        assert "say needs a text here" in refused("- rewire: {stage: speak, in: {text: null}}")["stages.speak.in.text"]
        assert "no stage is called 'speak'" in refused("- remove: speak")["outputs.answer"]

    def test_a_cycle(self) -> None:
        found = refused("- rewire: {stage: words, wait: [speak]}")
        assert "would wait for itself: " in found["stages.speak"]
        found = refused("- add: {a: {kind: join, in: {x: b.text}}, b: {kind: join, in: {x: a.text}}}")
        assert any("would wait for itself" in what for what in found.values())
        assert "depends on itself" in refused("- rewire: {stage: words, wait: [words]}")["stages.words.after"]

    def test_a_way_through_new_dependencies_that_is_no_cycle(self) -> None:
        done(
            "- add: {a: {kind: join, in: {x: words.text}}, b: {kind: join, in: {x: a.text}}}\n- rewire: {stage: faces, wait: [b]}"
        )

    def test_a_mistyped_port(self) -> None:
        found = refused("- rewire: {stage: speak, in: {text: faces.faces}}")
        assert "but this input takes a text" in found["stages.speak.in.text"]

    def test_a_port_that_somebody_reads_and_new_parameters_no_longer_name(self) -> None:
        add = "- add: {parts: {kind: split, params: {outputs: {a: 1, b: 2}}}, all: {kind: join, in: {x: parts.a}}}"
        base, _ = apply(BASE, patch(add), KINDS)
        found = refused("- replace: {stage: parts, params: {outputs: {b: 2}}}", base)
        assert found["stages.all.in.x"].startswith("parts (split) has no output 'a'")

    def test_a_port_fed_twice(self) -> None:
        add = Rewire(
            stage=StageId("speak"),
            dependencies=(
                Dependency(upstream=StageId("words"), downstream=StageId("speak"), output="text", input="more"),
                Dependency(
                    upstream=StageId("words"),
                    downstream=StageId("speak"),
                    output="text",
                    input="more",
                    on=On.COMPLETION,
                ),
            ),
        )
        with pytest.raises(PatchRefused, match="is fed twice"):
            apply(BASE, Patch(operations=(add,)), KINDS)

    def test_a_redirection_that_leads_nowhere_or_to_too_many(self) -> None:
        found = refused(
            "- redirect: {from: nothing.text, to: words.text}\n- redirect: {from: words.text, to: none.text}"
        )
        assert "no stage is called 'nothing'" in found["patch[0].redirect.from"]
        assert "no stage is called 'none'" in found["patch[1].redirect.to"]
        found = refused("- outputs: {words: words.text}\n- redirect: {from: words.text, to: [speak.audio, words.text]}")
        assert "output words of the job has one source" in found["patch[1].redirect.to"]
        with pytest.raises(InvalidInput) as error:
            load_patch("patch: [redirect: {from: a, to: []}, redirect: {to: a.b}]")
        places = {problem.place for problem in error.value.problems}
        assert {"patch[0].redirect.from", "patch[0].redirect.to", "patch[1].redirect.from"} <= places

    def test_operations_on_nothing(self) -> None:
        texts = {
            "remove": "- remove: nobody",
            "replace": "- replace: {stage: nobody, kind: look}",
            "rewire": "- rewire: {stage: nobody, after: []}",
            "move": "- move: {stage: nobody, require: {}}",
            "set_policy": "- set_policy: {stage: nobody}",
            "cancel_stage": "- cancel_stage: nobody",
            "resume_stage": "- resume_stage: nobody",
        }
        for operation, text in texts.items():
            assert "no stage is called 'nobody'" in refused(text)[f"patch[0].{operation}"]

    def test_operations_that_lead_elsewhere(self) -> None:
        away = Dependency(upstream=StageId("words"), downstream=StageId("faces"))
        for operation in (Add(stages=(), dependencies=(away,)), Rewire(stage=StageId("speak"), waits=(away,))):
            with pytest.raises(PatchRefused, match="something leads into 'faces'"):
                apply(BASE, Patch(operations=(operation,)), KINDS)

    def test_what_is_not_waited_for(self) -> None:
        found = refused("- rewire: {stage: speak, free: [words]}")
        assert "does not wait for words" in found["patch[0].rewire.after"]

    def test_parameters_that_cannot_travel(self) -> None:
        operation = Replace(stage=StageId("words"), params={"beams": object()})
        with pytest.raises(PatchRefused, match=r"patch\[0\].replace.params"):
            apply(BASE, Patch(operations=(operation,)), KINDS)

    def test_a_patch_that_changes_nothing(self) -> None:
        assert "changes nothing" in refused("- move: {stage: words, require: {tier: edge}}")["patch"]

    def test_the_last_stage(self) -> None:
        found = refused("- remove: words\n- remove: faces\n- remove: speak\n- outputs: {answer: null}")
        assert "there would be none" in found["stages"]

    def test_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "STAGES_PER_JOB_MAX", 3)
        monkeypatch.setattr(limits, "DEPENDENCIES_PER_JOB_MAX", 2)
        found = refused("- add: {more: {kind: join, in: {a: words.text}}}")
        assert "4 would be over STAGES_PER_JOB_MAX = 3" in found["stages"]
        assert "3 would be over DEPENDENCIES_PER_JOB_MAX = 2" in found["dependencies"]

    def test_a_splice_that_is_badly_connected(self) -> None:
        inner = "{api_version: starloom/v1, name: in, inputs: {text: text}, stages: {s: {kind: join, in: {a: $text}}}}"
        found = refused(
            f"- splice: {{prefix: 'a.b', constellation: {inner}, inputs: {{tekst: words}}, outputs: {{out: [speak]}}}}"
        )
        assert "is not made of letters" in found["patch[0].splice.prefix"]
        assert "needs a source" in found["patch[0].splice.inputs.text"]
        assert "no such input" in found["patch[0].splice.inputs.tekst"]
        assert "name a port as stage.port" in found["patch[0].splice.outputs.out"]
        broken = inner.replace("{a: $text}", "{a: t.text}")
        found = refused(f"- splice: {{prefix: a, constellation: {broken}, inputs: {{text: words}}}}")
        assert "no stage is called 't'" in found["patch[0].splice.constellation.dependencies[0]"]
        found = refused(f"- splice: {{prefix: a, constellation: {inner}, inputs: {{text: words.tex}}}}")
        assert "has no output 'tex'" in found["stages.a-s.in.a"]


class TestDocument:
    def test_all_that_is_wrong_with_its_place(self) -> None:
        with pytest.raises(InvalidInput, match="is no patch") as error:
            load_patch(
                """
api_version: starloom/v0
if_revision: -1
restart: 1
whi: x
patch:
  - {add: {a: {kynd: join, in: {x: [1]}}}}
  - {}
  - {remove: a, move: b}
  - {drop: a}
  - {replace: {stage: a}}
  - {rewire: {in: {x: y}, after: 3}}
  - {move: {stage: a}}
  - {set_policy: {stage: a, retry: no, replicate: two}}
  - {splice: {prefix: 3, constellation: {name: x}, outputs: {o: 1}}}
  - {outputs: {}}
  - {outputs: {x: y}}
  - {add: {}}
  - remove
""",
                place="p.yaml",
            )
        places = [problem.place for problem in error.value.problems]
        assert places == [
            "whi",
            "api_version",
            "patch[0].add.a.kynd",
            "patch[0].add.a.kind",
            "patch[0].add.a.in.x",
            "patch[1]",
            "patch[2]",
            "patch[3].drop",
            "patch[4].replace",
            "patch[5].rewire.stage",
            "patch[5].rewire.in.x",
            "patch[5].rewire.after",
            "patch[6].move.require",
            "patch[7].set_policy.retry",
            "patch[7].set_policy.replicate",
            "patch[8].splice.constellation.api_version",
            "patch[8].splice.constellation.stages",
            "patch[8].splice.prefix",
            "patch[8].splice.outputs.o",
            "patch[9].outputs",
            "patch[10].outputs.x",
            "patch[11].add",
            "patch[12]",
            "if_revision",
            "restart",
        ]

    def test_text_that_is_none(self) -> None:
        for text in ("patch: [", "[]", "patch: 3", "patch: []", "{}"):
            with pytest.raises(InvalidInput, match="the document is no patch"):
                load_patch(text)

    def test_every_operation_goes_there_and_back(self) -> None:
        text = """
if_revision: 4
restart: true
why: because
id: mine
patch:
  - add: {a: {kind: join, in: {x: words.text, y: $z}, after: [words], retry: 0, cancelled: true}}
  - remove: a
  - replace: {stage: a, kind: k, params: {p: [1]}, model: m}
  - rewire: {stage: a, in: {x: {from: b.c, when: {is: "==", value: 1}}, y: $in, z: null}, after: [b, {stage: c, on: completion}]}
  - rewire: {stage: a, wait: [b], free: [c], join: any}
  - redirect: {from: a.b, to: [c.d, e.f], but: [g]}
  - move: {stage: a, require: {tier: cloud}}
  - set_policy: {stage: a, timeout: 3s}
  - cancel_stage: a
  - resume_stage: a
  - splice: {prefix: p, constellation: {api_version: starloom/v1, name: n, stages: {s: {kind: k}}}, inputs: {i: $x}, outputs: {o: a.b}}
  - outputs: {o: a.b, p: null}
"""
        found = load_patch(text)
        assert load_patch(msgspec.json.encode(patch_to_json(found))) == found
        assert (found.if_revision, found.restart, found.why, found.id) == (4, True, "because", "mine")
        assert [type(operation).__name__ for operation in found.operations] == [
            "Add", "Remove", "Replace", "Rewire", "Rewire", "Redirect", "Move",
            "SetPolicy", "CancelStage", "ResumeStage", "Splice", "SetOutputs",
        ]  # fmt: skip

    def test_a_difference_survives_the_journal(self) -> None:
        _, difference = apply(BASE, patch("- remove: faces\n- rewire: {stage: speak, after: []}"), KINDS)
        assert msgspec.json.decode(msgspec.json.encode(difference), type=Difference) == difference


# -- random constellations and patches

NAMES = [StageId(f"s{number}") for number in range(8)]


@st.composite
def graphs(draw: st.DrawFn) -> Constellation:
    """Stages in a line of names, each fed by some that come before it."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True))
    kinds = {name: draw(st.sampled_from(["join", "mix"])) for name in names}
    arcs = []
    for index, name in enumerate(names):
        for upstream in draw(st.lists(st.sampled_from(names[:index]), unique=True, max_size=3)) if index else ():
            output = "text" if kinds[name] == "join" else "words" if kinds[upstream] == "mix" else ""
            data = bool(output) and draw(st.booleans())
            streams = data and output == "words"
            arcs.append(
                Dependency(
                    upstream=upstream,
                    downstream=name,
                    output=output if data else "",
                    input=f"from-{upstream}" if data else "",
                    on=On.SUCCESS if streams else draw(st.sampled_from([On.SUCCESS, On.COMPLETION])),
                )
            )
    stages = {name: StageSpec(id=name, kind=kinds[name]) for name in names}
    found = Constellation(name="random", stages=stages, dependencies=tuple(arcs))
    assume(not problems(found, KINDS))
    return found


@st.composite
def operations(draw: st.DrawFn) -> AnyOperation:
    stage, other, third = (draw(st.sampled_from(NAMES)) for _ in range(3))
    output = draw(st.sampled_from(["text", "words"]))
    feed = Dependency(upstream=other, downstream=stage, output=output, input=f"from-{other}")
    order = Dependency(upstream=third, downstream=stage)
    choice = draw(st.integers(0, 10))
    if choice == 0:
        return Remove(stage=stage)
    if choice == 1:
        return Rewire(stage=stage, unfed=(f"from-{other}",))
    if choice == 2:
        return Rewire(stage=stage, dependencies=(feed,), after=(order,) if draw(st.booleans()) else None)
    if choice == 3:
        return Rewire(stage=stage, waits=(order,))
    if choice == 9:
        sources = [OutputBinding(upstream=name, output=output) for name in (stage, third)[: draw(st.integers(1, 2))]]
        return Redirect(stage=other, output=output, sources=tuple(sources))
    if choice == 10:
        return Replace(stage=stage, kind=draw(st.sampled_from(["join", "mix"])))
    if choice == 4:
        return Move(stage=stage, requires=Requirements(tiers=(draw(st.sampled_from(Tier)),)))
    if choice == 5:
        return CancelStage(stage=stage) if draw(st.booleans()) else ResumeStage(stage=stage)
    spec = StageSpec(id=stage, kind=draw(st.sampled_from(["join", "mix", "hear.better"])))
    return Add(stages=(spec,), dependencies=(feed, order) if draw(st.booleans()) else ())


@given(graphs(), st.lists(st.lists(operations(), min_size=1, max_size=4), max_size=6))
def test_random_patches_keep_what_holds_and_can_be_undone(base: Constellation, steps: list[list[AnyOperation]]) -> None:
    shape = Shape(base)
    history: list[Difference] = []
    for step in steps:
        before = shape.constellation
        attempt = Patch(operations=tuple(step))
        difference, found = difference_of(shape, attempt, KINDS)
        assert shape.constellation == before, "asking changed something"
        if found:
            continue
        shape.apply(difference)
        after = shape.constellation
        assert problems(after, KINDS) == [], "what was accepted is valid as a whole"
        assert shape.dependency_count == len(after.dependencies)
        assert same(apply(after, inverse(difference), KINDS)[0], before)
        assert same(apply(before, Patch(operations=operations_of(between(before, after))), KINDS)[0], after)
        history.append(difference)
    assert constellation_at(base, history) == shape.constellation


WAIT = Rewire(stage=StageId("s1"), waits=(Dependency(upstream=StageId("s0"), downstream=StageId("s1")),))
TWO = Constellation(name="random", stages={name: StageSpec(id=name, kind="join") for name in NAMES[:2]})


@example(TWO, [WAIT, WAIT])
@given(graphs(), st.lists(operations(), min_size=1, max_size=4))
def test_what_is_refused_would_not_be_valid(base: Constellation, step: list[AnyOperation]) -> None:
    """The check of what a patch touches says what the check of the whole would say."""
    shape = Shape(base)
    difference, found = difference_of(shape, Patch(operations=tuple(step)), KINDS)
    own = [problem for problem in found if problem.place.startswith("patch")]
    if not own:
        try:
            shape.apply(difference)
        except KeyError:
            assert found
            return
        whole = problems(shape.constellation, KINDS)
        assert bool(found) == bool(whole), (found, whole)
