"""Patches of running jobs: who wins a race, what is refused, what runs again, and that the rest runs on."""

from typing import Any

import pytest
from tests.orchestrator.harness import KINDS, SECOND, facts_of, node

from starloom.agents.messages import Cancel, Revoke, Revoked, WasCancelled
from starloom.dag import limits
from starloom.dag.constellation import Constellation, Tier
from starloom.dag.document import load
from starloom.dag.errors import Conflict, NotFound, Overloaded, PatchRefused
from starloom.dag.facts import JobPatched, StagePlaced, StageReopened, StageSuperseded
from starloom.dag.ids import Epoch, StageId
from starloom.dag.patch import inverse
from starloom.dag.validate import problems
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.inputs import PatchJob


def constellation(text: str) -> Constellation:
    found = load(f"api_version: starloom/v1\nname: test\n{text}")
    assert problems(found, KINDS) == []
    return found


LINE = constellation(
    """
stages:
  hear: {kind: t.work}
  words: {kind: t.work, in: {x: hear.value}}
  find: {kind: t.work, in: {x: words.value}, params: {label: first}}
  speak: {kind: t.work, in: {x: find.value}}
outputs: {answer: speak.value}
"""
)
WIDE = constellation(
    "stages: {a: {kind: t.work}, b: {kind: t.work}, c: {kind: t.work}, d: {kind: t.work, in: {x: a.value}}}"
)
STREAMS = constellation(
    """
stages:
  early: {kind: t.grow}
  late: {kind: t.work, in: {x: early.value}}
  tick: {kind: t.ticks}
  tock: {kind: t.ticks, in: {x: late.value}}
  sum: {kind: t.sum, in: {a: tick.ticks, b: tock.ticks}}
outputs: {sum: sum.value}
"""
)
REPLACE_A = "- replace: {stage: a, params: {label: new}}"


class TestNotStarted:
    def test_a_pending_stage_is_changed_at_once(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        answer = w.patched(w.patch(job, "- replace: {stage: find, params: {label: second}}", why="better", id="p1"))
        assert (answer.job, answer.revision, answer.existing) == (job, 2, False)
        assert answer.changes == ('~ find: label "first" -> "second"',)
        (fact,) = facts_of(w, JobPatched)
        assert (fact.principal, fact.why, fact.patch, fact.operations) == ("tester", "better", "p1", ("replace find",))
        w.finish("hear", "words")
        assert w.assigned("find").params["label"] == "second"
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_stage_is_added_after_one_that_runs(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.finish("hear")
        w.start("words")
        w.patched(w.patch(job, "- add: {short: {kind: t.say, in: {x: words.value}}}\n- outputs: {short: short.text}"))
        w.finish("words")
        assert w.active() == ["find", "short"]
        w.finish_all()
        assert sorted(w.job(job).outputs) == ["answer", "short"]

    def test_a_stage_is_added_behind_a_finished_one(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.finish("hear")
        w.patched(w.patch(job, "- add: {short: {kind: t.say, in: {x: hear.value}}}"))
        assert w.active() == ["short", "words"]

    def test_a_stage_is_moved_to_another_tier(self, world: Any) -> None:
        w = world(node("edge-1"), node("cloud-1", Tier.CLOUD))
        job = w.submit(LINE)
        w.patched(w.patch(job, "- move: {stage: words, require: {tier: cloud}}"))
        w.finish("hear")
        assert w.where("words").name == "cloud-1"

    def test_stages_are_removed_and_come_again_with_numbers_that_count_on(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        request = w.patch(job, "- remove: a\n- remove: d")
        w.give_back()
        w.patched(request)
        assert list(w.job(job).stages) == ["b", "c"]
        w.patched(w.patch(job, "- add: {a: {kind: t.work}}"))
        assert w.assigned("a").task.token.attempt == 2

    def test_removing_all_that_is_open_ends_the_job(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.finish("hear", "words")
        request = w.patch(job, "- remove: find\n- remove: speak\n- outputs: {answer: null}")
        w.give_back()
        w.patched(request)
        assert w.status(job) == "succeeded"

    def test_a_cancelled_stage_is_skipped_with_what_needs_it(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.patched(w.patch(job, "- cancel_stage: find"))
        assert w.status(job, "hear", "words", "find", "speak") == ["placed", "pending", "skipped", "skipped"]
        assert "cancelled" in w.stage(job, "find").reason
        w.finish_all()
        assert (w.status(job), dict(w.job(job).outputs)) == ("succeeded", {})

    def test_a_constellation_with_a_cancelled_stage(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(
            constellation("stages: {a: {kind: t.work}, b: {kind: t.work, in: {x: a.value}, cancelled: true}}")
        )
        assert w.status(job, "a", "b") == ["placed", "skipped"]
        w.patched(w.patch(job, "- resume_stage: b", restart=True))
        w.finish_all()
        assert w.status(job, "a", "b") == ["succeeded", "succeeded"]

    def test_a_stage_that_waits_for_a_retry_forgets_its_failures(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        w.fail("a", transient=True)
        w.patched(w.patch(job, REPLACE_A))
        assert w.assigned("a").params["label"] == "new"
        assert w.stage(job, "a").failures == 0

    def test_many_stages_in_one_patch(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        stages = ", ".join(f"s{n}: {{kind: t.work, in: {{x: {f's{n - 1}' if n else 'a'}.value}}}}" for n in range(200))
        assert w.patched(w.patch(job, f"- add: {{{stages}}}")).changes[-1] == "and 300 more changes"
        w.finish_all()
        assert w.status(job) == "succeeded"


class TestRace:
    def test_what_is_given_back_is_handed_out_again_as_another_attempt(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        task = w.assigned("a").task
        request = w.patch(job, REPLACE_A)
        assert request not in w.answers
        assert w.agents["edge-1"].log[-1] == Revoke(task=task)
        assert "a patch of the job" in w.coordinator.waits_for(job, StageId("a"))
        w.give_back()
        assert w.patched(request).revision == 2
        assert w.assigned("a").task.token.attempt == 2
        assert w.assigned("a").params["label"] == "new"
        (fact,) = facts_of(w, StageSuperseded)
        assert (fact.token, fact.death) == (task.token, False)
        assert w.stage(job, "a").failures == 0

    def test_a_stage_that_starts_first_wins(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        before = w.job(job).constellation
        request = w.patch(job, f"{REPLACE_A}\n- replace: {{stage: b, params: {{label: new}}}}")
        w.start("a")
        assert "stages.a: runs on edge-1, and the patch changes it; say restart" in w.refused(request)
        assert w.job(job).constellation is before
        assert not facts_of(w, JobPatched)
        w.give_back()
        assert w.assigned("b").task.token.attempt == 2, "what was given back meanwhile is handed out again"
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_stage_that_finishes_first_wins(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        request = w.patch(job, REPLACE_A)
        w.finish("a")
        assert "stages.a: has succeeded" in w.refused(request)
        assert w.active() == ["b", "c", "d"]

    def test_a_stage_that_fails_and_is_to_be_tried_again_has_not_started(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        request = w.patch(job, REPLACE_A)
        w.fail("a", transient=True)
        assert w.patched(request).revision == 2

    def test_a_failure_that_ends_the_job_refuses_the_patch(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        request = w.patch(job, REPLACE_A)
        w.fail("a")
        assert isinstance(w.answers[request], Conflict)
        assert "is failed" in w.refused(request)

    def test_the_rest_runs_on_while_it_settles(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(LINE)
        other = w.submit(WIDE)
        request = w.patch(job, "- replace: {stage: hear, params: {label: new}}")
        w.finish("a", "b", "c", "d")
        assert w.status(other) == "succeeded"
        assert request not in w.answers
        w.give_back()
        w.patched(request)

    def test_pending_stages_that_it_touches_are_held_until_it_is_decided(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        w.start("a")
        request = w.patch(
            job, "- replace: {stage: b, params: {label: new}}\n- replace: {stage: d, params: {label: new}}"
        )
        w.finish("a")
        assert w.status(job, "d") == ["pending"], "d is ready, but the patch touches it"
        w.give_back()
        w.patched(request)
        assert w.assigned("d").params["label"] == "new"

    def test_a_silent_agent_is_waited_for_until_it_is_lost(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(WIDE)
        name = w.where("a").name
        request = w.patch(job, REPLACE_A)
        w.silence(name)
        w.advance(limits.LEASE_SECONDS)
        assert request not in w.answers
        w.advance(limits.LOST_AFTER_SUSPECT_SECONDS + 1)
        w.patched(request)
        assert w.agents[name].tasks
        assert w.stage(job, "a").attempt == 2
        assert w.stage(job, "a").agent != name

    def test_an_agent_that_is_lost_has_given_back(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(WIDE)
        request = w.patch(job, REPLACE_A)
        w.goodbye(w.where("a").name)
        w.patched(request)

    def test_an_agent_that_does_not_answer_in_time(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        request = w.patch(job, REPLACE_A)
        w.advance(limits.PATCH_SETTLE_SECONDS)
        assert "within PATCH_SETTLE_SECONDS = 20 s whether a has started" in w.refused(request)
        w.give_back()
        assert w.assigned("a").task.token.attempt == 2
        assert "label" not in w.assigned("a").params or w.assigned("a").params["label"] is None

    def test_a_new_session_is_asked_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        agent = w.agents["edge-1"]
        request = w.patch(job, REPLACE_A)
        w.silence("edge-1")
        w.hello(agent)
        assert sum(isinstance(command, Revoke) for command in agent.log) == 2
        w.give_back()
        w.patched(request)

    def test_a_repeated_answer_changes_nothing(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        task = w.assigned("a").task
        w.patch(job, REPLACE_A)
        w.give_back()
        facts = len(w.facts)
        w.report(w.agents["edge-1"], Revoked(task=task))
        assert len(w.facts) == facts
        assert w.coordinator.stale_refused == 0
        w.finish_all()
        w.report(w.agents["edge-1"], Revoked(task=task))

    def test_a_late_result_of_what_was_given_up_is_refused(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        agent, assign = w.agents["edge-1"], w.assigned("a")
        w.patched(w.patch(job, REPLACE_A, restart=True))
        w.report(agent, agent.result(assign))
        assert w.coordinator.stale_refused == 1
        assert w.status(job, "a") == ["placed"]

    def test_a_deadline_begins_anew_for_what_is_fed_differently(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(
            constellation(
                "stages: {slow: {kind: t.work}, a: {kind: t.work}, b: {kind: t.work, deadline: 5s, in: {x: a.value}}}"
            )
        )
        w.finish("a")
        w.advance(3.0)
        request = w.patch(job, "- rewire: {stage: b, in: {x: slow.value}}")
        w.give_back("b")
        w.patched(request)
        w.advance(3.0)
        assert w.status(job, "b") == ["pending"]
        w.finish("slow")
        w.restart()
        w.advance(3.0)
        w.finish_all()
        assert w.status(job, "b") == ["succeeded"]


class TestRestart:
    def test_a_running_stage_is_stopped_and_runs_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        task = w.assigned("a").task
        w.start("a")
        w.patched(w.patch(job, REPLACE_A, restart=True))
        assert Cancel(task=task) in w.agents["edge-1"].log
        w.report(w.agents["edge-1"], WasCancelled(task=task))
        assert w.assigned("a").task.token.attempt == 2

    def test_a_finished_stage_runs_again_with_what_is_downstream(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.finish("hear", "words", "find")
        w.patched(w.patch(job, "- replace: {stage: words, params: {label: new}}", restart=True))
        assert [fact.stage for fact in facts_of(w, StageReopened)] == ["words"]
        w.finish("words")
        assert [fact.stage for fact in facts_of(w, StageReopened)] == ["words", "find"]
        w.finish("find")
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert w.stage(job, "speak").consumed["x"].token == w.stage(job, "find").committed

    def test_the_same_result_spares_what_is_downstream(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.finish("hear", "words", "find")
        w.patched(w.patch(job, "- set_policy: {stage: words, retry: 5}", restart=True))
        w.finish("words")
        assert len(facts_of(w, StageReopened)) == 1

    def test_a_finished_stage_is_removed(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.finish("hear", "words")
        w.patched(w.patch(job, "- remove: words\n- rewire: {stage: find, in: {x: hear.value}}", restart=True))
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_running_stage_is_cancelled(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        w.start("a")
        w.patched(w.patch(job, "- cancel_stage: a", restart=True))
        assert w.status(job, "a", "d") == ["skipped", "skipped"]

    def test_what_failed_for_want_of_an_input_runs_once_there_is_one(self, world: Any) -> None:
        w = world(node("edge-1"))
        need = "{kind: t.need, in: {data: {from: see.data, on: completion}}, on_failure: skip}"
        job = w.submit(
            constellation(f"stages: {{see: {{kind: t.blob, cancelled: true}}, need: {need}, o: {{kind: t.work}}}}")
        )
        assert w.status(job, "see", "need") == ["skipped", "skipped"]
        w.patched(w.patch(job, "- resume_stage: see", restart=True))
        w.finish("see", "need")
        w.finish_all()
        assert w.status(job, "see", "need") == ["succeeded", "succeeded"]

    @pytest.mark.parametrize("restarted", [False, True])
    def test_what_lacks_an_input_waits_for_what_is_made_again_above_it(self, world: Any, restarted: bool) -> None:
        w = world(node("edge-1"))
        job = w.submit(
            constellation(
                """
stages:
  see: {kind: t.work, cancelled: true}
  scan: {kind: t.blob, after: [see]}
  gate: {kind: t.work}
  need: {kind: t.need, in: {data: {from: scan.data, on: completion}}, after: [gate]}
"""
            )
        )
        assert w.status(job, "see", "scan", "need") == ["skipped", "skipped", "pending"]
        w.patched(w.patch(job, "- resume_stage: see", restart=True))
        w.finish("gate")
        assert w.status(job, "scan", "need") == ["skipped", "pending"], "scan is judged again once see has ended"
        assert "another try: see, which it rests on, runs again" in w.coordinator.waits_for(job, StageId("need"))
        if restarted:
            w.restart()
        w.finish("see", "scan", "need")
        assert w.status(job) == "succeeded"

    @pytest.mark.parametrize("salt", ["", "otherwise"])
    def test_a_failure_counts_once_what_it_rests_on_has_run_again(self, world: Any, salt: str) -> None:
        w = world(node("edge-1"))
        job = w.submit(
            constellation(
                "stages: {see: {kind: t.work}, words: {kind: t.work, in: {x: see.value}},"
                " find: {kind: t.work, in: {x: words.value}}}"
            )
        )
        w.finish("see", "words")
        w.patched(w.patch(job, "- set_policy: {stage: see, retry: 5}", restart=True))
        w.fail("find")
        assert w.status(job, "see", "words", "find") == ["placed", "succeeded", "pending"]
        w.finish("see", salt=salt)
        if salt:
            w.finish("words", salt=salt)
            w.finish("find")
            assert w.status(job) == "succeeded"
        else:
            w.fail("find")
            assert w.status(job) == "failed"


class TestRefused:
    def test_what_has_started_with_every_reason(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.finish("hear")
        w.start("words")
        text = w.refused(
            w.patch(
                job,
                "- replace: {stage: hear, params: {label: x}}\n- move: {stage: words, require: {tier: edge}}\n"
                "- remove: nobody\n- rewire: {stage: find, wait: [speak]}",
                if_revision=7,
            )
        )
        for part in ("hear: has succeeded", "words: runs on edge-1", "no stage is called 'nobody'", "wait for itself"):
            assert part in text
        assert "if_revision: is 7, but the job is at revision 1" in text
        assert not facts_of(w, JobPatched)
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_stale_revision_names_the_patch_that_came_first(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.patched(w.patch(job, "- replace: {stage: find, params: {label: x}}", if_revision=1, why="so"))
        text = w.refused(w.patch(job, "- cancel_stage: speak", if_revision=1))
        assert "is at revision 2, since a patch by tester (so): replace find" in text

    def test_what_no_node_can_run(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        text = w.refused(w.patch(job, "- move: {stage: find, require: {tier: cloud}}"))
        assert "stages.find.require: edge-1 is on the edge tier" in text
        text = w.refused(w.patch(job, "- add: {s: {kind: t.stream}}"))
        assert "stream ports" in text

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("- add: {more: {kind: t.work, after: [tick]}}", "- rewire: {stage: late, in: {y: more.value}}"),
            (
                "- add: {more: {kind: t.work}}\n- rewire: {stage: late, in: {y: more.value}}",
                "- rewire: {stage: more, wait: [tick]}",
            ),
        ],
    )
    def test_patches_that_would_keep_streams_from_starting_only_together(
        self, world: Any, first: str, second: str
    ) -> None:
        w = world(node("edge-1"))
        job = w.submit(STREAMS)
        w.patched(w.patch(job, first, restart=True))
        text = w.refused(w.patch(job, second, restart=True))
        assert "wait for each other's end: " in text
        assert w.job(job).revision == 2
        assert problems(w.job(job).constellation, KINDS) == []
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_jobs_that_do_not_run(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        w.start("a")
        w.cancel(job)
        assert "is cancelling" in w.refused(w.patch(job, REPLACE_A))
        w.acknowledge_cancels()
        assert "is cancelled" in w.refused(w.patch(job, REPLACE_A))
        assert isinstance(w.answers[w.patch("nobody", REPLACE_A)], NotFound)

    def test_a_cancel_refuses_what_settles_and_what_waits(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        first, second = w.patch(job, REPLACE_A), w.patch(job, "- cancel_stage: b")
        w.cancel(job)
        assert "is cancelling" in w.refused(first)
        assert "is cancelling" in w.refused(second)
        w.give_back()
        w.acknowledge_cancels()
        assert w.status(job) == "cancelled"

    def test_new_comparisons_and_outputs_of_what_has_started(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(constellation("stages: {see: {kind: t.blob}, judge: {kind: t.judge}, last: {kind: t.work}}"))
        w.start("see", "judge")
        add = "- add: {s: {kind: t.work, in: {x: {from: judge.value, when: {is: '==', value: 1, path: score}}}}}"
        assert "compares its outputs in another way" in w.refused(w.patch(job, add))
        out = "- outputs: {photo: see.data}"
        assert "makes data an output of the job, photo" in w.refused(w.patch(job, out))
        w.finish("see", "judge")
        assert "judge: has succeeded" in w.refused(w.patch(job, add))
        assert "see: has succeeded" in w.refused(w.patch(job, out))
        w.patched(w.patch(job, "- outputs: {verdict: judge.value}"))
        w.patched(w.patch(job, f"{add}\n{out}", restart=True))
        w.finish_all()
        assert sorted(w.job(job).outputs) == ["photo", "verdict"]
        assert w.status(job, "s") == ["skipped"]

    def test_too_many_stages_are_open(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        monkeypatch.setattr(limits, "OPEN_STAGES_MAX", 4)
        assert isinstance(w.answers[w.patch(job, "- add: {e: {kind: t.work}}")], Overloaded)

    def test_too_many_patches_and_too_many_words(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        text = w.refused(w.patch(job, "- cancel_stage: speak", id="i" * 129, why="w" * 1001))
        assert "PATCH_ID_CHARACTERS_MAX = 128" in text
        assert "PATCH_WHY_CHARACTERS_MAX = 1000" in text
        monkeypatch.setattr(limits, "PATCHES_PER_JOB_MAX", 0)
        assert "PATCHES_PER_JOB_MAX = 0" in w.refused(w.patch(job, "- cancel_stage: speak"))


class TestTurns:
    def test_patches_of_one_job_wait_for_each_other(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        first = w.patch(job, REPLACE_A)
        second = w.patch(job, "- cancel_stage: d")
        third = w.patch(job, "- replace: {stage: b, params: {label: new}}")
        assert not {first, second, third} & w.answers.keys()
        w.give_back("a")
        assert [w.patched(request).revision for request in (first, second)] == [2, 3]
        assert third not in w.answers
        w.give_back("b")
        assert w.patched(third).revision == 4

    def test_what_follows_from_one_comes_before_the_next(self, world: Any) -> None:
        """The first skips a stage that the second takes away."""
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        first = w.patch(job, f"{REPLACE_A}\n- cancel_stage: d")
        second = w.patch(job, "- remove: d", restart=True)
        w.give_back()
        assert [w.patched(request).revision for request in (first, second)] == [2, 3]
        w.finish_all()
        assert (w.status(job), list(w.job(job).stages)) == ("succeeded", ["a", "b", "c"])

    def test_the_next_is_refused_where_one_ends_the_job(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        first = w.patch(job, "- cancel_stage: hear")
        second = w.patch(job, "- add: {more: {kind: t.work}}")
        w.give_back()
        w.patched(first)
        assert w.status(job) == "succeeded"
        assert "is succeeded" in w.refused(second)

    def test_only_so_many_wait(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        for _ in range(limits.PATCHES_WAITING_MAX + 1):
            w.patch(job, REPLACE_A)
        answer = w.answers[w.patch(job, REPLACE_A)]
        assert isinstance(answer, Overloaded)
        assert "PATCHES_WAITING_MAX = 16" in str(answer)

    def test_a_repeat_gets_the_first_answer(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        first, again = w.patch(job, REPLACE_A, id="p"), w.patch(job, REPLACE_A, id="p")
        assert isinstance(w.answers[w.patch(job, "- cancel_stage: d", id="p")], Conflict)
        w.give_back()
        assert w.patched(first) == w.patched(again)
        late = w.patched(w.patch(job, REPLACE_A, id="p"))
        assert (late.revision, late.existing) == (2, True)
        assert len(facts_of(w, JobPatched)) == 1
        assert isinstance(w.answers[w.patch(job, "- cancel_stage: d", id="p")], Conflict)
        w.restart()
        assert w.patched(w.patch(job, REPLACE_A, id="p")).existing
        w.finish_all()
        assert w.patched(w.patch(job, REPLACE_A, id="p")).existing

    def test_a_repeat_of_a_refusal_gets_it_again(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "PATCH_REFUSALS_KEPT", 1)
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        w.start("a")
        first = w.refused(w.patch(job, REPLACE_A, id="p"))
        w.fail("a", transient=True)
        assert w.refused(w.patch(job, REPLACE_A, id="p")) == first
        assert isinstance(w.answers[w.patch(job, "- remove: nobody", id="q")], PatchRefused)
        w.patched(w.patch(job, REPLACE_A, id="p"))


class TestHistory:
    def test_the_constellation_as_it_was_and_undo(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE)
        w.patched(w.patch(job, "- cancel_stage: speak"))
        assert w.job(job).constellation_at(1) == LINE
        assert w.job(job).constellation_at(2) == w.job(job).constellation
        with pytest.raises(NotFound, match="has no revision 3; it has 1 to 2"):
            w.job(job).constellation_at(3)
        back = inverse(w.job(job).patches[0].difference, restart=True)
        w.request += 1
        w.handle(PatchJob(request=w.request, job=job, patch=back))
        w.patched(w.request)
        assert w.job(job).constellation == LINE
        w.finish_all()
        assert "answer" in w.job(job).outputs

    def test_a_key_stands_for_what_was_submitted(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(LINE, key="mine")
        w.patched(w.patch(job, "- cancel_stage: speak"))
        assert w.submit(LINE, key="mine") == job

    def test_any_part_of_the_journal_gives_a_job_that_goes_on(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(LINE)
        w.start("hear")
        w.patched(
            w.patch(
                job,
                "- add: {more: {kind: t.work, in: {x: hear.value}}}\n- remove: speak\n- outputs: {answer: more.value}",
            )
        )
        w.finish("hear")
        w.patched(w.patch(job, "- replace: {stage: hear, params: {label: x}}", restart=True))
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"
        for length in range(len(w.facts) + 1):
            coordinator = Coordinator(Epoch(2))
            coordinator.replay(w.facts[:length])
            for found in coordinator.jobs.values():
                found.validate()
            coordinator.boot(w.now + SECOND)

    def test_a_restart_while_it_settles_forgets_the_patch_and_loses_nothing(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(WIDE)
        w.patch(job, REPLACE_A, id="p")
        w.restart()
        w.give_back()
        assert w.assigned("a").task.token.attempt == 2
        request = w.patch(job, REPLACE_A, id="p")
        w.give_back()
        w.patched(request)
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert [fact.token.attempt for fact in facts_of(w, StagePlaced, "a")] == [1, 2, 3]
