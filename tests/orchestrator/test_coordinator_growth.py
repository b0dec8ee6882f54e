"""Growth: what results add to their jobs, what is refused, what runs again, and that a result and its growth are one."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import KINDS, SECOND, facts_of, growth_of, inline, node
from tests.orchestrator.test_coordinator_patch import STREAMS, constellation

from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.document import dump, load
from starloom.dag.facts import JobPatched, StageCommitted, StageReopened, StageSkipped, StageSuperseded
from starloom.dag.growth import name_of
from starloom.dag.ids import Epoch, StageId
from starloom.dag.patch import Patch, inverse
from starloom.dag.patchdoc import load_patch
from starloom.dag.validate import problems
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.inputs import PatchJob

FIND = constellation(
    """
stages:
  see: {kind: t.work}
  find: {kind: t.grow, in: {x: see.value}, params: {adds: 2}}
  tell: {kind: t.work, in: {x: find.value}}
  aside: {kind: t.work, in: {x: see.value}}
outputs: {found: find.value, told: tell.value}
"""
)
LOOP = constellation(
    """
stages:
  round: {kind: t.grow, params: {rounds: 3}}
  tell: {kind: t.work, in: {x: round.value}}
outputs: {told: tell.value}
"""
)
FEED = constellation(
    """
stages:
  find: {kind: t.grow}
  tell: {kind: t.work, in: {x: find.value}}
  aside: {kind: t.work}
outputs: {told: tell.value}
"""
)
MORE = "- rewire: {stage: tell, in: {y: '@.value'}}"


def growth(text: str) -> Patch:
    return load_patch(f"patch:\n{text}")


def sources(w: Any, job: str, stage: str) -> list[str]:
    return sorted(f"{arc.upstream}.{arc.output}->{arc.input}" for arc in w.job(job).upstreams[StageId(stage)])


class TestTaken:
    def test_what_a_result_adds_runs_before_what_reads_it(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(FIND)
        w.finish("see", "aside")
        assert w.status(job, "find", "tell") == ["placed", "pending"]
        w.finish("find")
        assert w.active() == ["find-0", "find-1"]
        assert w.job(job).revision == 2
        assert sources(w, job, "tell") == ["find-2.value->x"]
        assert "its upstreams: find-0, find-1" in w.coordinator.waits_for(job, StageId("find-2"))
        w.finish("find-0", "find-1")
        w.finish("find-2", "tell")
        assert w.status(job) == "succeeded"
        outputs = w.job(job).outputs
        assert outputs["found"].digest == w.stage(job, "find-2").outputs["value"].digest
        assert problems(w.job(job).constellation, KINDS) == []

    def test_it_is_one_fact_and_a_revision_of_the_stage(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see")
        w.finish("find")
        assert facts_of(w, JobPatched) == []
        (fact,) = facts_of(w, StageCommitted, "find")
        assert fact.growth.revision == 2
        [patch] = w.job(job).patches
        assert (patch.principal, patch.revision) == ("stage find", 2)
        assert patch.operations == ("add find-0", "add find-1", "add find-2", "redirect find")
        assert w.job(job).constellation_at(1) == FIND
        assert set(w.job(job).constellation_at(2).stages) - set(FIND.stages) == {"find-0", "find-1", "find-2"}
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_loop_grows_round_by_round(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LOOP)
        w.finish("round")
        assert w.active() == ["round-r2"]
        assert w.assigned("round-r2").params["rounds"] == 2
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert list(w.job(job).stages) == ["round", "tell", "round-r2", "round-r3", "round-r4"]
        assert sources(w, job, "tell") == ["round-r4.value->x"]
        assert w.job(job).origin(StageId("round-r4")) == ("round-r3", "round", 3)

    def test_several_take_the_place_of_one_where_any_number_is_read(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(constellation("stages: {a: {kind: t.grow}, b: {kind: t.work, in: {x: a.value}, after: [a]}}"))
        w.finish(
            "a",
            growth=growth(
                "- add: {'@0': {kind: t.work}, '@1': {kind: '@', params: {label: l}, after: ['@']}}\n"
                "- redirect: {from: '@.value', to: ['@0.value', '@1.value']}"
            ),
        )
        assert sources(w, job, "b") == ["a-0.value->x-0", "a-1.value->x-1", "a.->"]
        assert w.assigned("a-1").params["label"] == "l"
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_what_is_added_reads_what_the_stage_reads(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(
            constellation(
                "inputs: {q: json}\nstages: {up: {kind: t.work}, a: {kind: t.grow, in: {x: up.value, y: $q}, "
                "require: {tier: edge}}, tell: {kind: t.work, in: {x: a.value}}}"
            ),
            {"q": inline(1)},
        )
        w.finish("up")
        add = "{'@0': {kind: t.work, in: {p: '@in.x', q: '@in.y', r: up.value, s: $q, t: '@.value'}}}"
        w.finish("a", growth=growth(f"- add: {add}\n- rewire: {{stage: tell, in: {{more: '@0.value'}}, wait: ['@0']}}"))
        assert sorted(w.assigned("a-0").inputs, key=lambda item: item.port)[0].consumed.upstream == "up"
        assert sorted(item.port for item in w.assigned("a-0").inputs) == ["p", "q", "r", "s", "t"]
        assert w.stage(job, "a-0").spec.requires.tiers == (Tier.EDGE,)
        w.finish_all()
        assert sorted(w.stage(job, "tell").consumed) == ["more", "x"]

    def test_descendants_are_not_given_out_before_the_result(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.submit(FIND)
        w.finish("see")
        w.start("find")
        w.finish("aside")
        w.advance(1)
        assert w.active() == ["find"]

    def test_a_consumer_that_was_cancelled_stays_so_and_is_led_along(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see")
        w.patched(w.patch(job, "- cancel_stage: tell"))
        w.finish("find")
        assert w.status(job, "tell") == ["skipped"]
        assert sources(w, job, "tell") == ["find-2.value->x"]
        w.finish_all()
        assert w.status(job) == "succeeded"


ADD = "- add: {'@0': {kind: t.work}}\n"


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "reasons"),
        [
            ("- remove: tell", ["a stage may only add stages"]),
            ("- move: {stage: tell, require: {tier: edge}}\n- outputs: {found: null}", ["move", "outputs", "may only"]),
            ("- add: {mine: {kind: t.work}}", ["mine: call it @0, @1"]),
            ("- add: {'@x': {kind: t.work}}", ["'@x' means nothing"]),
            (ADD + "- rewire: {stage: aside, in: {y: '@0.value'}}", ["aside: is not downstream of find"]),
            (ADD + "- rewire: {stage: see, in: {y: '@0.value'}}", ["see: is not downstream", "see: has succeeded"]),
            (ADD + "- rewire: {stage: tell, in: {x: null}, join: any}", ["nothing less", "what they wait for"]),
            (ADD + "- redirect: {from: see.value, to: '@0.value'}", ["only redirect its own outputs"]),
            (ADD + "- redirect: {from: '@.value', to: ['@0.value', '@.value']}", ["output found of the job"]),
            ("- add: {'@0': {kind: t.none, in: {x: '@.text'}}}", ["no kind is called", "no output 'text'"]),
            ("- add: {'@0': {kind: t.work, in: {x: '@in.y'}}}", ["find has no source for its input 'y'"]),
            (ADD + "- rewire: {stage: '@0', in: {x: '@.value'}}", ["is fed where it is added"]),
            (
                "- add: {'@0': {kind: t.work, in: {x: tell.value}}}\n- redirect: {from: '@.value', to: '@0.value'}",
                ["would wait for itself"],
            ),
            (
                "- add: {'@0': {kind: t.work, in: {x: {from: '@.value', when: {is: '==', value: 1}}}}}",
                ["compares an output of find, which has ended"],
            ),
            ("- add: {'@0': {kind: t.work, require: {tier: cloud}}}", ["edge-1 is on the edge tier"]),
            ("- add: {'@0': {kind: t.stream}}", ["stream ports"]),
        ],
    )
    def test_whatever_it_may_not_do_fails_the_stage_with_every_reason(
        self, world: Any, text: str, reasons: list[str]
    ) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "aside")
        w.finish("find", growth=growth(text))
        assert w.status(job) == "failed"
        error = w.stage(job, "find").error
        assert error.cause == "PatchRefused"
        for reason in ["find may not grow like that", *reasons]:
            assert reason in error.message
        assert w.job(job).constellation is w.job(job).submitted
        assert w.job(job).revision == 1

    def test_what_would_keep_streams_from_starting(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(STREAMS)
        w.finish(
            "early",
            growth=growth("- add: {'@0': {kind: t.work, after: [tick]}}\n- rewire: {stage: late, in: {y: '@0.value'}}"),
        )
        assert w.status(job) == "failed"
        message = w.stage(job, "early").error.message
        assert "early may not grow like that" in message
        assert "wait for each other's end: " in message
        assert w.job(job).constellation is w.job(job).submitted

    def test_a_kind_that_does_not_say_that_it_grows(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", growth=growth(ADD))
        assert "t.work does not declare that it grows" in w.stage(job, "see").error.message

    def test_a_name_that_is_taken(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(constellation("stages: {a: {kind: t.grow, params: {adds: 1}}, a-0: {kind: t.work}}"))
        w.finish("a")
        assert "a-0: there is already one of that name" in w.stage(job, "a").error.message

    def test_a_consumer_that_did_not_wait_is_not_fed_differently(self, world: Any) -> None:
        w = world(node("edge-1"))
        stages = (
            "stages: {a: {kind: t.grow, params: {adds: 1}}, b: {kind: t.work}, d: {kind: t.work, in: {x: a.value}}, "
            "c: {kind: t.work, join: any, in: {x: a.value, y: b.value}}}"
        )
        job = w.submit(constellation(stages))
        w.finish("b")
        w.finish("a")
        assert sources(w, job, "c") == ["a.value->x", "b.value->y"]
        assert sources(w, job, "d") == ["a-1.value->x"]
        w.finish_all()
        assert w.status(job) == "succeeded"
        job = w.submit(constellation(stages))
        w.finish("b")
        w.finish("a", growth=growth(ADD + "- rewire: {stage: c, in: {z: '@0.value'}}"))
        assert "c: was given to edge-1, and the growth feeds it differently" in w.stage(job, "a").error.message

    def test_the_failure_goes_by_the_policy(self, world: Any) -> None:
        w = world(node("edge-1"))
        text = "{a: {kind: t.grow, on_failure: skip}, b: {kind: t.work, in: {x: a.value}}, c: {kind: t.work}}"
        job = w.submit(constellation(f"stages: {text}"))
        w.finish("a", growth=growth("- remove: c"))
        assert w.status(job, "a", "b") == ["skipped", "skipped"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_over_the_bounds_of_its_policy(self, world: Any) -> None:
        w = world(node("edge-1"))
        loop = "{round: {kind: t.grow, params: {rounds: 9}, grow: {generations: 2}}}"
        job = w.submit(constellation(f"stages: {loop}"))
        w.finish_all()
        assert w.status(job) == "failed"
        assert "it is generation 2 of round, whose bound is 2" in w.stage(job, "round-r3").error.message
        job = w.submit(constellation("stages: {a: {kind: t.grow, params: {adds: 3}, grow: {stages: 3}}}"))
        w.finish("a")
        assert "4 stages would come of a, whose bound is 3" in w.stage(job, "a").error.message

    def test_over_the_limits_of_jobs(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("edge-1"))
        monkeypatch.setattr(limits, "STAGES_PER_JOB_MAX", 6)
        job = w.submit(FIND)
        w.finish("see")
        w.finish("find")
        assert "7 would be over STAGES_PER_JOB_MAX = 6" in w.stage(job, "find").error.message
        monkeypatch.setattr(limits, "PATCHES_PER_JOB_MAX", 1)
        job = w.submit(constellation("stages: {a: {kind: t.grow, params: {rounds: 9}}}"))
        w.finish_all()
        assert "PATCHES_PER_JOB_MAX = 1" in w.stage(job, "a-r2").error.message

    def test_too_many_open_stages_are_a_failure_that_passes(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "aside")
        monkeypatch.setattr(limits, "OPEN_STAGES_MAX", 4)
        w.finish("find")
        assert w.status(job, "find") == ["pending"]
        monkeypatch.setattr(limits, "OPEN_STAGES_MAX", 400)
        w.advance(1)
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_bounds_of_kinds_that_do_not_grow_and_too_large_ones(self) -> None:
        text = "api_version: starloom/v1\nname: n\nstages: {a: {kind: t.%s, grow: {stages: %d}}}"
        assert "does not grow" in str(problems(load(text % ("work", 5)), KINDS)[0])
        assert "from 0 to 10000" in str(problems(load(text % ("grow", 10_001)), KINDS)[0])
        assert load(dump(load(text % ("grow", 5)))) == load(text % ("grow", 5))
        assert problems(load(text % ("grow", 5)), KINDS) == []


class TestAgain:
    def test_a_recompute_grows_nothing_twice(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see")
        w.finish("find")
        before = w.job(job).constellation
        w.finish("find-1")
        w.lose_input("find-0", "find", gone=True)
        assert w.status(job, "find", "find-0", "find-1") == ["placed", "pending", "succeeded"]
        w.finish("find")
        assert [fact.growth is None for fact in facts_of(w, StageCommitted, "find")] == [False, True]
        assert w.job(job).revision == 2
        assert w.job(job).constellation == before
        assert len(facts_of(w, StageReopened)) == 1
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert len(facts_of(w, StageCommitted, "find-1")) == 1

    def test_one_that_grows_otherwise_takes_back_what_it_had_added(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see")
        w.finish("find")
        w.finish("find-1")
        w.start("find-0")
        w.lose_input("find-0", "find", gone=True)
        w.finish("find", salt="other")
        assert w.job(job).revision == 3
        assert sorted(set(w.job(job).stages) - set(FIND.stages)) == [f"find-{n}" for n in range(4)]
        assert sources(w, job, "tell") == ["find-3.value->x"]
        assert w.stage(job, "find-2").spec.params == {"seed": 2}
        w.finish_all(salt="")
        assert w.status(job) == "succeeded"
        assert w.job(job).grown == {"find": 4}
        w.restart()
        assert w.job(job).constellation_at(1) == FIND

    def test_taken_back_with_all_that_came_of_it(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LOOP)
        w.finish("round", "round-r2", "round-r3")
        assert "round-r4" in w.job(job).stages
        w.lose_input("round-r4", "round-r3", gone=True)
        w.lose_input("round-r3", "round-r2", gone=True)
        w.lose_input("round-r2", "round", gone=True)
        w.finish("round", salt="other")
        assert sorted(w.job(job).stages) == ["round", "round-0", "round-1", "tell"]
        assert sources(w, job, "tell") == ["round-1.value->x"]
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert w.job(job).growths.keys() == {"round"}

    def test_what_stays_and_had_grown_itself_grows_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(constellation("stages: {a: {kind: t.grow}, z: {kind: t.work, in: {x: a.value}}}"))
        first = "- add: {'@0': {kind: t.grow, params: {adds: 1}, in: {x: '@.value'}}%s}\n"
        to = "- redirect: {from: '@.value', to: '@0.value'}"
        w.finish("a", growth=growth(first % "" + to))
        w.finish("a-0")
        assert sources(w, job, "z") == ["a-0-1.value->x"]
        w.lose_input("a-0-0", "a-0", gone=True)
        w.lose_input("a-0", "a", gone=True)
        w.finish("a", growth=growth(first % ", '@1': {kind: t.work}" + to))
        assert sorted(w.job(job).stages) == ["a", "a-0", "a-1", "z"]
        w.finish_all()
        assert sorted(w.job(job).stages) == ["a", "a-0", "a-0-0", "a-0-1", "a-1", "z"]
        assert sources(w, job, "z") == ["a-0-1.value->x"]
        assert w.status(job) == "succeeded"

    def test_what_stays_has_its_result_but_grew_runs_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(
            constellation("stages: {a: {kind: t.grow}, b: {kind: t.blob}, z: {kind: t.work, in: {x: a.value}}}")
        )
        add = "- add: {'@0': {kind: t.grow, params: {adds: 1}}, '@1': {kind: t.work, in: {x: '@.value'}}%s}\n"
        to = "- rewire: {stage: z, in: {y: '@0.value'}}"
        w.finish("a", growth=growth(add % "" + to))
        w.finish("a-0")
        assert sources(w, job, "z") == ["a-0-1.value->y", "a.value->x"]
        w.lose_input("a-1", "a", gone=True)
        w.finish("a", growth=growth(add % ", '@2': {kind: t.work}" + to))
        assert [fact.stage for fact in facts_of(w, StageReopened)] == ["a", "a-0"]
        w.acknowledge_cancels()
        w.finish_all()
        assert sorted(set(w.job(job).stages) - {"a", "b", "z"}) == ["a-0", "a-0-0", "a-0-1", "a-1", "a-2"]
        assert sources(w, job, "z") == ["a-0-1.value->y", "a.value->x"]
        assert w.status(job) == "succeeded"

    def test_one_that_grows_no_more(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see")
        w.finish("find")
        agent, assign = w.where("find-0"), w.assigned("find-0")
        w.lose_input("find-1", "find", gone=True)
        report = w.where("find").result(w.assigned("find"))
        w.report(w.where("find"), msgspec.structs.replace(report, growth=None))
        assert w.job(job).constellation == FIND
        assert w.job(job).patches[-1].operations == ("take back",)
        assert [fact.stage for fact in facts_of(w, StageSuperseded, "find-0")] == ["find-0"]
        w.report(agent, agent.result(assign))
        assert w.coordinator.stale_refused == 1
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert "found" in w.job(job).outputs

    def test_what_takes_back_that_others_compare_it_is_asked_for_that(self, world: Any) -> None:
        """While it had grown nobody compared its output, so that no attempt given out then tells whether that holds."""
        w = world(node("edge-1"))
        job = w.submit(
            constellation(
                """
stages:
  round: {kind: t.grow, params: {rounds: 1}}
  tell: {kind: t.work, in: {x: {from: round.value, when: {is: '==', value: '', path: salt}}}}
"""
            )
        )
        w.finish("round")
        w.lose_input("round-r2", "round", gone=True)
        assert w.assigned("round").comparisons == ()
        report = w.where("round").result(w.assigned("round"))
        w.report(w.where("round"), msgspec.structs.replace(report, growth=None))
        assert len(w.assigned("round").comparisons) == 1
        report = w.where("round").result(w.assigned("round"))
        w.report(w.where("round"), msgspec.structs.replace(report, growth=None))
        w.finish("tell")
        assert w.status(job, "round", "tell") == ["succeeded", "succeeded"]
        assert facts_of(w, StageSkipped) == []
        assert len(facts_of(w, StageCommitted, "round")) == 3
        w.restart()
        assert w.status(job) == "succeeded"

    def test_a_patch_that_runs_it_again_with_other_parameters(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "find")
        w.finish("find-0", "find-1", "find-2")
        w.patched(w.patch(job, "- replace: {stage: find, params: {adds: 1}}", restart=True))
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert sorted(set(w.job(job).stages) - set(FIND.stages)) == ["find-0", "find-1"]
        assert w.stage(job, "tell").consumed["x"].token == w.stage(job, "find-1").committed

    def test_a_patch_that_gives_it_a_kind_that_does_not_grow(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "find")
        w.patched(w.patch(job, "- replace: {stage: find, kind: t.work, params: {}}", restart=True))
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert list(w.job(job).stages) == list(FIND.stages)

    def test_what_people_have_removed_is_not_taken_back_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "find")
        back = "- redirect: {from: find-2.value, to: find-1.value}\n- remove: find-2\n"
        w.patched(w.patch(job, back, restart=True))
        w.patched(w.patch(job, "- replace: {stage: find, params: {adds: 1}}", restart=True))
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert sorted(set(w.job(job).stages) - set(FIND.stages)) == ["find-0", "find-1"]
        assert sources(w, job, "tell") == ["find-1.value->x"]

    def test_taken_back_by_undo_and_not_grown_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "find")
        w.request += 1
        back = inverse(w.job(job).patches[0].difference, restart=True)
        w.handle(PatchJob(request=w.request, job=job, patch=back))
        w.patched(w.request)
        assert w.job(job).constellation == FIND
        assert (w.job(job).grown, w.job(job).origins) == ({"find": 0}, {})
        w.acknowledge_cancels()
        w.lose_input("tell", "find", gone=True)
        w.finish("find")
        assert w.job(job).constellation == FIND
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_one_that_only_fed_others_takes_that_back(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(FEED)
        w.finish("find", growth=growth(MORE))
        assert sources(w, job, "tell") == ["find.value->x", "find.value->y"]
        w.lose_input("tell", "find", gone=True)
        w.finish("find", growth=growth("- rewire: {stage: tell, in: {z: '@.value'}}"))
        assert sources(w, job, "tell") == ["find.value->x", "find.value->z"]
        w.lose_input("tell", "find", gone=True)
        w.finish("find")
        assert sources(w, job, "tell") == ["find.value->x"]
        w.lose_input("tell", "find", gone=True)
        w.finish("find", growth=growth(MORE))
        assert sources(w, job, "tell") == ["find.value->x", "find.value->y"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_what_people_have_undone_is_no_hindrance(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FEED)
        w.finish("find", growth=growth(f"{ADD}- rewire: {{stage: tell, in: {{y: '@0.value'}}}}"))
        w.request += 1
        back = inverse(w.job(job).patches[0].difference, restart=True)
        w.handle(PatchJob(request=w.request, job=job, patch=back))
        w.patched(w.request)
        assert w.job(job).constellation == FEED
        w.acknowledge_cancels()
        w.lose_input("tell", "find", gone=True)
        w.finish("find", growth=growth(MORE))
        assert sources(w, job, "tell") == ["find.value->x", "find.value->y"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_what_people_feed_otherwise_stays_so(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FEED)
        w.finish("aside")
        w.finish("find", growth=growth(MORE))
        w.patched(w.patch(job, "- rewire: {stage: tell, in: {y: aside.value}}", restart=True))
        w.acknowledge_cancels()
        w.lose_input("tell", "find", gone=True)
        w.finish("find")
        assert sources(w, job, "tell") == ["aside.value->y", "find.value->x"]
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_what_changes_nothing_is_no_growth(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FEED)
        w.finish("find", growth=growth("- rewire: {stage: tell, in: {x: '@.value'}}"))
        assert (w.job(job).revision, w.job(job).growths) == (1, {})
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_what_later_patches_rest_on_is_not_taken_back(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "find")
        w.patched(w.patch(job, "- add: {mine: {kind: t.work, in: {x: find-2.value}}}"))
        w.lose_input("find-0", "find", gone=True)
        w.finish("find", salt="other")
        message = w.stage(job, "find").error.message
        assert "what it added cannot be taken back" in message
        assert "mine.in.x: still needs find-2, which is removed" in message


class TestTrouble:
    def test_any_part_of_the_journal_has_both_or_none_and_goes_on(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(FIND)
        w.start("see")
        w.finish_all()
        assert w.status(job) == "succeeded"
        for length in range(len(w.facts) + 1):
            coordinator = Coordinator(Epoch(2))
            coordinator.replay(w.facts[:length])
            for found in coordinator.jobs.values():
                found.validate()
                there = StageId("find-0") in found.stages
                assert there == (found.stages[StageId("find")].committed is not None)
            coordinator.boot(w.now + SECOND)

    def test_a_restart_before_and_after(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see")
        w.restart()
        agent = w.where("find")
        report = agent.result(w.assigned("find"))
        w.report(agent, report)
        w.restart()
        w.report(agent, report)
        assert w.job(job).revision == 2
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_report_that_comes_twice_grows_once(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see")
        agent = w.where("find")
        report = w.finish("find")
        w.report(agent, report)
        assert w.job(job).revision == 2

    def test_a_late_growth_of_a_lost_agent_is_refused(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(FIND)
        w.finish("see")
        agent, assign = w.where("find"), w.assigned("find")
        w.goodbye(agent.name)
        w.report(agent, agent.result(assign))
        assert w.job(job).revision == 1
        w.hello(agent, held=())
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_of_two_copies_of_a_straggler_the_first_grows(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        text = "a: {kind: t.grow, params: {adds: 1}, straggler: {factor: 2, after: 1s}}"
        job = w.submit(constellation(f"stages: {{{text}, b: {{kind: t.work, in: {{x: a.value}}}}}}"))
        w.start("a")
        w.advance(3)
        attempts = [(agent, assign) for agent in w.agents.values() for assign in agent.tasks.values()]
        assert [assign.task.stage for _, assign in attempts] == ["a", "a"]
        for agent, assign in attempts:
            w.report(agent, agent.result(assign, salt=agent.name))
        assert w.coordinator.stale_refused == 1
        assert (w.job(job).revision, len(facts_of(w, StageCommitted, "a"))) == (2, 1)
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_result_that_read_something_else_does_not_grow(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see")
        agent = w.where("find")
        report = agent.result(w.assigned("find"))
        wrong = {"x": report.consumed["x"].__class__(StageId("see"), report.consumed["x"].token, "wrong")}
        w.report(agent, msgspec.structs.replace(report, consumed=wrong))
        assert w.job(job).revision == 1
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_cancelled_job_has_neither(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "aside")
        w.start("find")
        request = w.cancel(job)
        w.finish("find")
        assert w.stopped(request).status == "cancelled"
        assert w.status(job, "find") == ["cancelled"]
        assert w.job(job).revision == 1

    def test_growth_while_a_patch_settles(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(FIND)
        w.finish("see")
        w.start("find")
        patch = "- replace: {stage: aside, params: {label: new}}\n- replace: {stage: tell, params: {label: new}}"
        request = w.patch(job, patch)
        other = w.patch(job, "- cancel_stage: aside", if_revision=1)
        w.finish("find")
        assert (w.job(job).revision, request in w.answers) == (2, False)
        assert sources(w, job, "tell") == ["find-2.value->x"]
        w.give_back()
        assert w.patched(request).revision == 3
        assert "is 1, but the job is at revision 3" in w.refused(other)
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert w.stage(job, "tell").spec.params["label"] == "new"

    def test_a_patch_that_settles_is_judged_again_after_growth(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(FIND)
        w.finish("see")
        request = w.patch(job, "- remove: aside", if_revision=1)
        w.finish("find")
        w.give_back()
        assert "at revision 2, since a patch by stage find: add find-0" in w.refused(request)

    def test_a_patch_takes_the_stage_back_before_it_grows(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see")
        request = w.patch(job, "- replace: {stage: find, params: {adds: 1}}")
        w.give_back()
        w.patched(request)
        w.finish_all()
        assert sorted(set(w.job(job).stages) - set(FIND.stages)) == ["find-0", "find-1"]

    def test_grown_stages_are_patched_like_others(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(FIND)
        w.finish("see", "aside", "find")
        request = w.patch(job, "- replace: {stage: find-1, params: {label: new}}")
        w.give_back()
        w.patched(request)
        w.finish("find-0", "find-1")
        w.patched(w.patch(job, "- redirect: {from: find-2.value, to: find-1.value}\n- remove: find-2", restart=True))
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert w.job(job).grown == {"find": 2}


def test_names_come_of_the_stage_and_count_rounds() -> None:
    assert name_of("@3", StageId("find")) == "find-3"
    assert name_of("@again", StageId("round")) == "round-r2"
    assert name_of("@again", StageId("round-r99")) == "round-r100"
    assert name_of("@", StageId("round")) == "round"
    assert name_of("else", StageId("round")) == "else"
    assert name_of("@00", StageId("round")) is None


def test_equal_calls_grow_equally(world: Any) -> None:
    w = world(node("edge-1"))
    w.submit(FIND)
    w.finish("see")
    assign = w.assigned("find")
    assert growth_of(assign) == growth_of(assign)
