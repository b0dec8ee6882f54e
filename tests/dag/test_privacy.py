"""Labels on data: how they go along dependencies, what contradicts them, and that patches and growth cannot lose them."""

from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starloom.dag import growth
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Dependency, InputBinding, Private, Requirements, StageSpec, Tier
from starloom.dag.document import dump, load
from starloom.dag.draft import apply
from starloom.dag.edit import Edit
from starloom.dag.errors import InvalidConstellation, PatchRefused
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.patch import Patch, SetPrivacy, between, inverse
from starloom.dag.patchdoc import load_patch, patch_to_json
from starloom.dag.patchtext import lines_of
from starloom.dag.privacy import Labels, labels_in, labels_of
from starloom.dag.shape import Shape
from starloom.dag.validate import problems, warnings
from starloom.dag.values import Port, PortType

TEXT = Port(PortType.TEXT)
ANY = Port(PortType.TEXT, optional=True)
KINDS = KindCatalog(
    [
        KindSpec(name="k", variadic_input=ANY, outputs={"out": TEXT, "more": TEXT}),
        KindSpec(name="blur", variadic_input=ANY, outputs={"out": TEXT, "more": TEXT}, declassifies=True),
        KindSpec(name="grow", variadic_input=ANY, outputs={"out": TEXT}, grows=True),
    ]
)
DEVICE, EDGE = Private.DEVICE, Private.EDGE
SAY = "say so of what gives it"
DO = "; let it run where its data may stand, or declassify that before"
HEAD = "api_version: starloom/v1\nname: test\n"


def constellation(text: str) -> Constellation:
    return load(HEAD + text)


def labels(text: str) -> Labels:
    found = constellation(text)
    assert problems(found, KINDS) == []
    return labels_of(found, KINDS)[0]


def levels(text: str) -> dict[str, str]:
    return {str(stage): str(level) for stage, level in labels(text).levels.items()}


def told(text: str) -> list[str]:
    return [str(problem) for problem in problems(constellation(text), KINDS)]


LINE = """
inputs: {photo: {type: text, private: device}, words: text}
stages:
  see: {kind: k, in: {image: $photo}}
  read: {kind: k, in: {regions: see.out, words: $words}}
  say: {kind: k, in: {text: read.out}}
  hear: {kind: k, in: {words: $words}}
"""


class TestHowLabelsGo:
    def test_they_go_with_the_data_and_tell_the_way(self) -> None:
        found = labels(LINE)
        assert found.levels == {"see": DEVICE, "read": DEVICE, "say": DEVICE}
        assert [str(found.of(StageId(name))) for name in ("see", "read", "say", "hear")] == [
            "image is private to device: photo",
            "regions is private to device: photo -> see",
            "text is private to device: photo -> see -> read",
            "None",
        ]

    def test_order_and_conditions_pass_none_on(self) -> None:
        assert levels("""
inputs: {photo: {type: text, private: device}}
stages:
  see: {kind: k, in: {x: $photo}}
  after: {kind: k, after: [see]}
  when: {kind: k, after: [{stage: see, when: {output: out, is: ==, value: a}}]}
  completed: {kind: k, in: {x: {from: see.out, on: completion}}}
""") == {"see": "device", "completed": "device"}

    def test_a_stage_that_declassifies_reads_there_and_gives_freely(self) -> None:
        assert levels("""
inputs: {photo: {type: text, private: device}}
stages:
  blur: {kind: k, in: {x: $photo}, declassify: true}
  free: {kind: k, in: {x: blur.out}}
""") == {"blur": "device"}

    def test_a_kind_declassifies_unless_the_stage_says_otherwise(self) -> None:
        assert levels("""
inputs: {photo: {type: text, private: device}}
stages:
  blur: {kind: blur, in: {x: $photo}}
  free: {kind: k, in: {x: blur.out}}
  not: {kind: blur, in: {x: $photo}, declassify: false}
  bound: {kind: k, in: {x: not.out}}
""") == {"blur": "device", "not": "device", "bound": "device"}

    def test_of_a_kind_that_is_not_known_nothing_is_free(self) -> None:
        unknown = constellation("""
inputs: {photo: {type: text, private: device}}
stages: {blur: {kind: blur, in: {x: $photo}}, free: {kind: k, in: {x: blur.out}}}
""")
        assert labels_of(unknown, {})[0].levels == {"blur": DEVICE, "free": DEVICE}

    def test_a_stage_and_all_that_it_gives(self) -> None:
        found = labels("""
stages:
  camera: {kind: k, private: edge}
  see: {kind: k, in: {x: camera.more}}
  blur: {kind: blur, private: device}
  bound: {kind: k, in: {x: blur.out}}
  there: {kind: k, private: device, declassify: true}
  free: {kind: k, in: {x: there.out}}
""")
        assert found.levels == {"camera": EDGE, "see": EDGE, "blur": DEVICE, "bound": DEVICE, "there": DEVICE}
        assert str(found.of(StageId("camera"))) == "the stage is private to edge"
        assert str(found.of(StageId("see"))) == "x is private to edge: camera"

    def test_one_output_of_several(self) -> None:
        found = labels("""
inputs: {photo: {type: text, private: edge}}
stages:
  faces: {kind: k, in: {x: $photo}, declassify: true, private: {more: device}}
  count: {kind: k, in: {x: faces.out}}
  show: {kind: k, in: {x: faces.more}}
""")
        assert found.levels == {"faces": DEVICE, "show": DEVICE}
        assert str(found.of(StageId("faces"))) == "its output more is private to device"
        assert found.of_output(StageId("faces"), "out") is None
        given = found.given(StageId("faces"))
        assert given is not None
        assert given.level is DEVICE

    def test_the_strictest_counts_and_edge_is_edge_or_device(self) -> None:
        assert levels("""
inputs: {photo: {type: text, private: device}, page: {type: text, private: edge}}
stages:
  a: {kind: k, in: {x: $page}, require: {tier: edge}}
  b: {kind: k, in: {x: a.out, y: $photo}}
  c: {kind: k, in: {x: $page}, require: {tier: [cloud, device]}}
""") == {"a": "edge", "b": "device", "c": "edge"}

    def test_without_labels_there_is_nothing_to_find(self) -> None:
        plain = constellation("stages: {a: {kind: k}}")
        assert labels_of(plain, KINDS)[0] is labels_in(Shape(plain), KINDS)[0]
        assert not labels_of(plain, KINDS)[0].levels


class TestDocuments:
    TEXT = """
inputs: {photo: {type: image, private: device}, frames: {type: image, stream: true, private: edge}}
stages:
  a: {kind: k, private: device, declassify: true}
  b: {kind: k, private: {out: edge, more: device}, declassify: false}
  c: {kind: k}
"""

    def test_they_come_back_as_they_were(self) -> None:
        first = constellation(self.TEXT)
        assert first.private == {"photo": DEVICE, "frames": EDGE}
        assert [(spec.private, spec.declassify) for spec in first.stages.values()] == [
            (DEVICE, True),
            ({"out": EDGE, "more": DEVICE}, False),
            (None, None),
        ]
        assert load(dump(first)) == first
        assert msgspec.json.decode(msgspec.json.encode(first), type=Constellation) == first

    def test_everything_that_cannot_be_read(self) -> None:
        with pytest.raises(InvalidConstellation) as raised:
            constellation("""
inputs: {photo: {type: text, private: cloud}}
stages:
  a: {kind: k, private: [device], declassify: "yes"}
  b: {kind: k, private: {out: site}}
""")
        assert [str(problem) for problem in raised.value.problems] == [
            "stages.a.declassify: is text ('yes'); write true or false",
            "stages.a.private: is ['device']; use device or edge",
            "stages.b.private.out: is 'site'; use device or edge",
            "inputs.photo.private: is 'cloud'; use device or edge",
        ]

    def test_the_builder_says_the_same(self) -> None:
        graph = Graph("test")
        photo = graph.input("photo", PortType.IMAGE, private=DEVICE)
        graph.input("frames", PortType.IMAGE, stream=True, private=EDGE)
        graph.stage("a", "k", private=DEVICE, declassify=True)
        graph.stage("b", "k", private={"out": EDGE, "more": DEVICE}, declassify=False)
        graph.stage("c", "k")
        assert graph.build() == constellation(self.TEXT)
        assert photo.name == "photo"


class TestContradictions:
    def test_each_is_named_with_the_way_that_the_label_came(self) -> None:
        found = told("""
inputs: {photo: {type: text, private: device}, page: {type: text, private: edge}}
stages:
  see: {kind: k, in: {image: $photo, page: $page}, require: {tier: edge}}
  read: {kind: k, in: {regions: see.out, image: $photo, page: $page}, require: {tier: cloud}}
  camera: {kind: k, private: device, require: {tier: [edge, cloud]}}
  cut: {kind: k, private: {more: edge}, require: {tier: cloud}}
""")
        assert all(problem.endswith(DO) for problem in found)
        assert [problem.removesuffix(DO) for problem in found] == [
            "stages.see.in.image: is private to device (photo -> see), but the stage requires the edge tier",
            "stages.read.in.image: is private to device (photo -> read), but the stage requires the cloud tier",
            "stages.read.in.page: is private to edge (page -> read), but the stage requires the cloud tier",
            "stages.read.in.regions: is private to device (photo -> see -> read), but the stage requires the cloud tier",
            "stages.camera.private: is private to device (camera), but the stage requires the edge or cloud tier",
            "stages.cut.private.more: is private to edge (cut), but the stage requires the cloud tier",
        ]

    def test_what_is_wrong_in_itself(self) -> None:
        stage = StageSpec(id=StageId("a"), kind="k", private={"oat": DEVICE, "out": Tier.CLOUD})  # type: ignore[dict-item]
        empty = StageSpec(id=StageId("b"), kind="k", private={})
        wrong = Constellation(
            name="test", stages={stage.id: stage, empty.id: empty}, inputs={"photo": TEXT}, private={"foto": DEVICE}
        )
        assert [str(problem) for problem in problems(wrong, KINDS)] == [
            "inputs.foto: is private, but there is no such input; did you mean 'photo'?",
            "stages.a.private.oat: k has no such output; did you mean 'out'?",
            "stages.a.private.out: is <Tier.CLOUD: 'cloud'>; use device, or edge for the device and the edge tier",
            "stages.b.private: is empty; say device or edge, for the whole stage or for outputs by name",
        ]

    def test_a_cycle_is_a_cycle_and_no_endless_search(self) -> None:
        found = told("""
inputs: {photo: {type: text, private: device}}
stages: {a: {kind: k, in: {x: $photo, y: b.out}}, b: {kind: k, in: {x: a.out}}}
""")
        assert found == ["stages.b: waits for itself: a -> b -> a; remove one of these dependencies"]

    def test_what_is_seldom_meant(self) -> None:
        doubts = warnings(
            constellation("""
inputs: {photo: {type: text, private: device}}
stages: {see: {kind: k, in: {x: $photo}}, free: {kind: k, declassify: true}}
outputs: {seen: see.out}
"""),
            KINDS,
        )
        assert [str(doubt) for doubt in doubts] == [
            "outputs.seen: see.out is private to device, and goes to the client through the orchestrator all the same",
            "stages.free.declassify: nothing that the stage reads is private, nor the stage itself",
        ]


class TestPatches:
    def refusals(self, text: str, *, line: str = LINE) -> list[str]:
        with pytest.raises(PatchRefused) as raised:
            apply(constellation(line), load_patch(f"patch:\n{text}"), KINDS)
        return [f"{problem.place}: {problem.what.partition(', but')[0]}" for problem in raised.value.problems]

    def test_one_that_would_let_private_data_leave_is_refused_with_every_reason(self) -> None:
        assert self.refusals("- move: {stage: say, require: {tier: cloud}}") == [
            "stages.say.in.text: is private to device (photo -> see -> read -> say)"
        ]
        assert self.refusals("""
- add: {copy: {kind: k, in: {x: see.out, y: $photo}, require: {tier: cloud}}}
- move: {stage: read, require: {tier: [edge, cloud]}}
""") == [
            "stages.copy.in.y: is private to device (photo -> copy)",
            "stages.read.in.regions: is private to device (photo -> see -> read)",
            "stages.copy.in.x: is private to device (photo -> see -> copy)",
        ]

    def test_what_it_does_not_touch_is_looked_at_as_well(self) -> None:
        line = """
inputs: {photo: {type: text, private: device}, words: text}
stages:
  hear: {kind: k, in: {x: $words}}
  think: {kind: k, in: {x: hear.out}}
  say: {kind: k, in: {x: think.out}, require: {tier: cloud}}
"""
        assert self.refusals("- rewire: {stage: hear, in: {x: $photo}}", line=line) == [
            "stages.say.in.x: is private to device (photo -> hear -> think -> say)"
        ]
        assert self.refusals("- set_privacy: {stage: hear, private: edge}", line=line) == [
            "stages.say.in.x: is private to edge (hear -> think -> say)"
        ]

    def test_what_it_sets_free_is_free(self) -> None:
        line = constellation(LINE)
        moved = "- set_privacy: {stage: see, declassify: true}\n- move: {stage: say, require: {tier: cloud}}"
        patched, difference = apply(line, load_patch(f"patch:\n{moved}"), KINDS)
        assert labels_of(patched, KINDS)[0].levels == {"see": DEVICE}
        assert '~ see: privacy {} -> {"declassify": true}' in lines_of(difference)
        assert apply(patched, inverse(difference), KINDS)[0] == line

    def test_a_spliced_input_is_as_private_as_in_there(self) -> None:
        splice = (
            "- splice: {{prefix: in, inputs: {{x: {source}}}, constellation: {{api_version: starloom/v1, name: inner, "
            "inputs: {{x: {{type: text, private: {level}}}}}, stages: {{a: {{kind: k, in: {{x: $x}}}}}}}}}}"
        )
        for source, level in (("$photo", "device"), ("see.out", "edge")):
            apply(constellation(LINE), load_patch(f"patch:\n{splice.format(source=source, level=level)}"), KINDS)
        for source in ("$words", "hear.out"):
            with pytest.raises(PatchRefused) as raised:
                apply(constellation(LINE), load_patch(f"patch:\n{splice.format(source=source, level='device')}"), KINDS)
            assert [str(problem) for problem in raised.value.problems] == [
                f"patch[0].splice.inputs.x: is private to device in there, but {source} is not private; {SAY}"
            ]

    def test_they_are_written_and_read(self) -> None:
        edit = Edit()
        edit.add("a", "k", private={"out": EDGE}, declassify=False)
        edit.set_privacy("see", private=DEVICE, declassify=True)
        edit.set_privacy("read")
        patch = edit.patch()
        assert patch.operations[1:] == (
            SetPrivacy(stage=StageId("see"), private=DEVICE, declassify=True),
            SetPrivacy(stage=StageId("read")),
        )
        assert load_patch(msgspec.json.encode(patch_to_json(patch))) == patch


class TestGrowth:
    def grown(self, text: str, specs: dict[str, Any]) -> tuple[Patch, list[str]]:
        """What a stage `grow` of a constellation adds, as its job has it."""
        shape = Shape(constellation(text))
        asked = load_patch(msgspec.json.encode({"patch": [{"add": specs}]}))
        patch, wrong = growth.resolved(asked, shape, StageId("grow"), (), KINDS)
        return patch, [str(problem) for problem in wrong]

    PRIVATE = "inputs: {photo: {type: text, private: edge}}\nstages: {grow: {kind: grow, in: {x: $photo}}}"

    def specs(self, patch: Patch) -> list[tuple[Any, bool | None]]:
        add: Any = patch.operations[0]
        return [(spec.private, spec.declassify) for spec in add.stages]

    def test_what_is_added_is_as_private_as_what_the_stage_gives(self) -> None:
        patch, wrong = self.grown(
            self.PRIVATE,
            {"@0": {"kind": "k"}, "@1": {"kind": "k", "private": {"out": "device"}}, "@2": {"kind": "blur"}},
        )
        assert wrong == []
        assert self.specs(patch) == [(EDGE, None), (DEVICE, None), (EDGE, True)]
        again, _ = self.grown(self.PRIVATE, {"@again": {"kind": "@", "in": {"x": "@in.x"}}})
        assert self.specs(again) == [(EDGE, None)]

    def test_what_is_said_of_an_output_stands_though_the_stage_declassifies(self) -> None:
        """One that declassifies, by its kind's word or its own, and keeps an output all the same, is not freed of that."""
        patch, wrong = self.grown(
            self.PRIVATE,
            {
                "@0": {"kind": "blur", "private": {"out": "device"}},
                "@1": {"kind": "blur", "private": "device"},
            },
        )
        assert wrong == []
        assert self.specs(patch) == [({"out": DEVICE}, None), (DEVICE, None)]
        add: Any = patch.operations[0]
        stages = {spec.id: spec for spec in add.stages}
        told, _ = labels_of(msgspec.structs.replace(constellation(self.PRIVATE), stages=stages), KINDS)
        assert [str(told.of_output(name, "out")) for name in stages] == [
            "its output out is private to device",
            "the stage is private to device",
        ]
        text = self.PRIVATE.replace("$photo}", "$photo}, declassify: true, private: {out: device}")
        again, wrong = self.grown(text, {"@again": {"kind": "@", "in": {"x": "@in.x"}}})
        assert (wrong, self.specs(again)) == ([], [({"out": DEVICE}, True)])

    def test_a_stage_does_not_declassify_what_it_adds(self) -> None:
        _, wrong = self.grown(self.PRIVATE, {"@0": {"kind": "k", "declassify": True}})
        assert wrong == [
            "patch[0].add.@0.declassify: a stage may not declassify what it adds; its kind may, and people"
        ]

    def test_one_that_declassifies_adds_what_is_free(self) -> None:
        text = self.PRIVATE.replace("$photo}", "$photo}, declassify: true")
        patch, _ = self.grown(text, {"@0": {"kind": "k"}})
        assert self.specs(patch) == [(None, None)]


NAMES = [StageId(f"s{number}") for number in range(7)]


@st.composite
def drawn(draw: st.DrawFn) -> Constellation:
    level = st.sampled_from((None, None, None, DEVICE, EDGE))
    specs = {}
    for name in NAMES:
        said = draw(level)
        port = draw(st.sampled_from(("", "out", "more")))
        specs[name] = StageSpec(
            id=name,
            kind=draw(st.sampled_from(("k", "k", "blur"))),
            private={port: said} if said and port else said,
            declassify=draw(st.sampled_from((None, None, True, False))),
            requires=Requirements(tiers=draw(st.sampled_from(((), (), (Tier.CLOUD,), (Tier.EDGE, Tier.CLOUD))))),
        )
    pairs = draw(st.lists(st.sampled_from(list(combinations(NAMES, 2))), max_size=12, unique=True))
    arcs = [
        Dependency(upstream=up, downstream=down, output=port, input=f"from-{up}" if port else "")
        for up, down in pairs
        for port in (draw(st.sampled_from(("out", "more", ""))),)
    ]
    fed = draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
    private = draw(level)
    return Constellation(
        name="drawn",
        stages=specs,
        dependencies=tuple(arcs),
        inputs={"photo": TEXT},
        private={"photo": private} if private else {},
        bindings=tuple(InputBinding(source="photo", downstream=name, input="photo") for name in fed),
    )


def by_definition(c: Constellation) -> dict[StageId, frozenset[Tier]]:
    """Where each stage may run, stage by stage in their order: what it reads, and what it gives, may stand there."""
    everywhere = frozenset(Tier)
    of = {None: everywhere, DEVICE: frozenset((Tier.DEVICE,)), EDGE: frozenset((Tier.DEVICE, Tier.EDGE))}
    outputs: dict[tuple[StageId, str], frozenset[Tier]] = {}
    found = {}
    for name, spec in c.stages.items():
        reads = everywhere
        for binding in c.bindings:
            if binding.downstream == name:
                reads &= of[c.private.get(binding.source)]
        for arc in c.dependencies:
            if arc.downstream == name and arc.output:
                reads &= outputs[arc.upstream, arc.output]
        whole = of[spec.private] if not isinstance(spec.private, dict) else everywhere
        found[name] = reads & whole
        frees = KINDS[spec.kind].declassifies if spec.declassify is None else spec.declassify
        for port in ("out", "more"):
            own = of[spec.private.get(port)] if isinstance(spec.private, dict) else everywhere
            outputs[name, port] = own & (everywhere if frees else reads) & (everywhere if spec.declassify else whole)
            found[name] &= own
    return found


@given(drawn())
def test_labels_are_what_their_definition_says(c: Constellation) -> None:
    found = labels_of(c, KINDS)[0]
    allowed = {DEVICE: {Tier.DEVICE}, EDGE: {Tier.DEVICE, Tier.EDGE}}
    wanted = by_definition(c)
    assert {name: allowed[found.levels[name]] if name in found.levels else set(Tier) for name in c.stages} == wanted
    closed = {
        name for name, spec in c.stages.items() if spec.requires.tiers and not wanted[name] & {*spec.requires.tiers}
    }
    assert {problem.place.split(".")[1] for problem in problems(c, KINDS)} == closed


@given(drawn(), drawn())
def test_a_difference_gives_the_labels_of_what_it_makes(before: Constellation, after: Constellation) -> None:
    after = msgspec.structs.replace(after, private=before.private)
    found = labels_in(Shape(before), KINDS, between(before, after))[0]
    assert found.levels == labels_of(after, KINDS)[0].levels
    shape = Shape(before)
    shape.apply(between(before, after))
    assert labels_in(shape, KINDS)[0].levels == found.levels
