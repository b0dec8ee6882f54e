"""Private data stays on its tiers: where stages, their copies and the copies of their outputs go, whatever happens."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import KINDS, World, facts_of, inline, node, stored
from tests.orchestrator.test_coordinator_patch import constellation

from starloom.agents.messages import Assign, Publish, Replicate
from starloom.dag import limits
from starloom.dag.constellation import Constellation, Tier
from starloom.dag.document import load
from starloom.dag.errors import Infeasible, InvalidConstellation, InvalidInput
from starloom.dag.facts import JobPatched, StageFailed, StagePlaced, StageSuperseded
from starloom.dag.ids import JobId
from starloom.dag.patchdoc import load_patch
from starloom.devices.node import NodeProfile

PHOTO = {"photo": inline("a photograph")}
LINE = constellation(
    """
inputs: {photo: {type: json, private: device}}
stages:
  see: {kind: t.work, in: {image: $photo}}
  read: {kind: t.work, in: {regions: see.value}}
  blur: {kind: t.blur, in: {image: see.value}}
  show: {kind: t.work, in: {image: blur.value}, require: {tier: [edge, cloud]}}
outputs: {answer: read.value}
"""
)


def device(name: str = "pi-1", **more: Any) -> NodeProfile:
    return node(name, Tier.DEVICE, **more)


def three() -> tuple[NodeProfile, ...]:
    """Of each tier one, and the device the last that would be chosen: it is the last by name, with one slot."""
    return node("a-cloud", Tier.CLOUD, slots=8), node("b-edge", Tier.EDGE, slots=8), device("z-pi", slots=1)


def places(w: World, job: JobId | str) -> dict[str, set[str]]:
    """Where attempts of each stage were placed."""
    found: dict[str, set[str]] = {}
    for fact in facts_of(w, StagePlaced):
        if fact.job == job:
            found.setdefault(fact.stage, set()).add(fact.agent)
    return found


class TestPlaces:
    @pytest.mark.parametrize("delegate", [False, True])
    def test_what_reads_private_data_runs_on_its_tier_and_what_is_free_anywhere(
        self, world: Any, delegate: bool
    ) -> None:
        w = world(*three(), delegate=delegate)
        job = w.submit(LINE, PHOTO)
        w.finish_all()
        assert w.status(job) == "succeeded"
        found = places(w, job)
        assert [found[name] for name in ("see", "read", "blur")] == [{"z-pi"}] * 3
        assert "z-pi" not in found["show"]

    def test_delegation_sends_nothing_private_ahead_to_another_tier(self, world: Any) -> None:
        w = world(*three(), delegate=True)
        w.submit(LINE, PHOTO)
        ahead = {fact.stage: fact.agent for fact in facts_of(w, StagePlaced) if fact.awaits}
        assert ahead["read"] == ahead["blur"] == "z-pi"

    def test_edge_is_edge_or_device(self, world: Any) -> None:
        w = world(node("a-cloud", Tier.CLOUD), node("b-edge"))
        text = "inputs: {page: {type: json, private: edge}}\nstages: {read: {kind: t.work, in: {x: $page}}}"
        w.submit(constellation(text), {"page": inline("a page")})
        assert w.where("read").name == "b-edge"

    def test_a_retry_and_a_loss_wait_for_the_tier(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(LINE, PHOTO)
        w.fail("see", transient=True)
        w.advance(5)
        assert w.where("see").name == "z-pi"
        w.goodbye("z-pi")
        w.agents["z-pi"].tasks.clear()
        w.advance(5)
        assert w.active() == []
        assert w.coordinator.waits_for(job, "see") == (
            "a node that may run it: a-cloud is on the cloud tier, where what is private to device may not be; "
            "b-edge is on the edge tier, where what is private to device may not be; z-pi is lost"
        )
        w.join(device("y-pi"))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert places(w, job)["see"] == {"y-pi", "z-pi"}

    def test_a_restart_keeps_to_it(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(LINE, PHOTO)
        w.finish("see")
        w.goodbye("z-pi")
        w.agents["z-pi"].tasks.clear()
        w.restart()
        w.advance(5)
        assert w.active() == []
        w.join(device("y-pi"))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert places(w, job)["read"] <= {"y-pi", "z-pi"}

    def test_a_stragglers_copy_goes_where_the_stage_may_go(self, world: Any) -> None:
        w = world(node("a-cloud", Tier.CLOUD), node("b-edge"), device("y-pi"))
        slow = "inputs: {photo: {type: json, private: device}}\n"
        slow += "stages: {see: {kind: t.work, in: {x: $photo}, straggler: {factor: 3, after: 2s}}}"
        job = w.submit(constellation(slow), PHOTO)
        w.start("see")
        w.advance(10)
        assert places(w, job)["see"] == {"y-pi"}
        w.join(device("z-pi"))
        w.advance(1)
        assert places(w, job)["see"] == {"y-pi", "z-pi"}

    def test_copies_of_outputs_stay_there_as_well(self, world: Any) -> None:
        text = """
inputs: {photo: {type: bytes, private: device}}
stages:
  make: {kind: t.blob, in: {x: $photo}, replicate: 1}
  free: {kind: t.blob, in: {x: $photo}, replicate: 1, declassify: true}
  read: {kind: t.work, after: [make, free]}
  need: {kind: t.need, in: {data: make.data}, after: [read]}
  want: {kind: t.need, in: {data: free.data}, after: [read], require: {tier: cloud}}
"""
        w = world(*three())
        w.submit(constellation(text), {"photo": stored()})
        w.finish("make")
        assert w.asked("make") == []
        w.join(device("y-pi"))
        assert w.asked("make") == ["y-pi"]
        w.finish("free")
        assert w.asked("free") == ["b-edge"]
        there = {agent.name for agent in w.agents.values() if any(isinstance(each, Replicate) for each in agent.log)}
        assert there == {"y-pi", "b-edge"}

    def test_a_copy_that_was_asked_for_before_its_label_is_not_asked_for_again(self, world: Any) -> None:
        text = """
inputs: {photo: {type: bytes}}
stages:
  see: {kind: t.blob, in: {x: $photo}, require: {tier: device}}
  make: {kind: t.blob, in: {x: see.data}, replicate: 1, require: {tier: device}}
  read: {kind: t.work, after: [make]}
  need: {kind: t.need, in: {data: make.data}, after: [read]}
"""
        w = world(*three())
        job = w.submit(constellation(text), {"photo": stored()})
        w.finish("see", "make")
        assert w.asked("make") == ["b-edge"]
        w.silence("b-edge")
        w.agents["b-edge"].asked.clear()
        w.patched(w.patch(job, "- set_privacy: {stage: see, private: device}", restart=True))
        w.hello(w.agents["b-edge"])
        assert w.asked("make") == []
        w.join(device("y-pi"))
        assert w.asked("make") == ["y-pi"]

    def test_what_private_stages_give_is_kept_where_it_is_made(self, world: Any) -> None:
        w = world(*three())
        w.submit(LINE, PHOTO)
        w.finish_all()
        told = {command.task.stage: command.private for command in w.agents["z-pi"].log if isinstance(command, Assign)}
        assert told == {"see": True, "read": True, "blur": False}
        assert not w.sent[next(task for task in w.sent if task.stage == "show")].private

    def test_it_is_not_brought_to_the_job_store_for_who_cannot_reach_it(self, world: Any) -> None:
        text = """
inputs: {photo: {type: bytes, private: device}}
stages:
  make: {kind: t.blob, in: {x: $photo}, require: {node: y-pi}}
  free: {kind: t.blob, in: {x: $photo}, require: {node: y-pi}, declassify: true}
  need: {kind: t.need, in: {data: make.data}, require: {node: z-pi}}
  want: {kind: t.need, in: {data: free.data}, require: {node: a-cloud}}
"""
        w = world(node("a-cloud", Tier.CLOUD), device("y-pi"), device("z-pi"))
        job = w.submit(constellation(text), {"photo": stored()})
        w.finish("make", "free")
        w.lose_input("want", "free", gone=False)
        w.lose_input("need", "make", gone=False)
        brought = [each.task.stage for each in w.agents["y-pi"].log if isinstance(each, Publish)]
        assert brought == ["free"]
        for _ in range(limits.UNREACHABLE_BEFORE_REMADE - 1):
            assert w.status(job, "make") == ["succeeded"]
            w.advance(limits.UNREACHABLE_LAST_SECONDS + 0.1)
            w.lose_input("need", "make", gone=False)
        assert w.status(job, "make") == ["placed"]

    def test_a_kind_that_comes_and_declassifies_sets_free_what_waits(self, world: Any) -> None:
        plain = [msgspec.structs.replace(kind, declassifies=False) for kind in KINDS.values()]
        w = world()
        w.join(device("z-pi"), kinds=plain)
        w.join(node("a-cloud", Tier.CLOUD), kinds=[KINDS["t.work"]])
        text = """
inputs: {photo: {type: json, private: device}}
stages:
  hide: {kind: t.blur, in: {x: $photo}}
  gate: {kind: t.work, require: {tier: cloud}}
  show: {kind: t.work, in: {x: hide.value}, after: [gate]}
"""
        job = w.submit(constellation(text), PHOTO)
        w.finish("hide")
        w.goodbye("z-pi")
        w.finish("gate")
        assert w.active() == []
        assert "a-cloud is on the cloud tier" in w.coordinator.waits_for(job, "show")
        w.join(device("y-pi"))
        assert w.where("show").name == "a-cloud"


class TestAdmission:
    def refused(self, w: World, what: Constellation, kind: type[InvalidInput]) -> list[str]:
        error = w.ask_submit(what, PHOTO)
        assert isinstance(error, InvalidInput)
        assert type(error) is kind
        return [str(problem) for problem in error.problems]

    def test_a_stage_that_no_node_of_its_tier_may_run_says_why(self, world: Any) -> None:
        w = world(node("a-cloud", Tier.CLOUD), node("b-edge"), device("z-pi", targets=("npu",)))
        text = "inputs: {photo: {type: json, private: device}}\nstages: {see: {kind: t.work, in: {image: $photo}}}"
        (problem,) = self.refused(w, constellation(text), Infeasible)
        assert problem == (
            "stages.see.require: a-cloud is on the cloud tier, where what is private to device may not be; "
            "b-edge is on the edge tier, where what is private to device may not be; "
            "z-pi has no target cpu (it has npu); image is private to device: photo"
        )

    def test_a_node_of_another_tier_cannot_be_required(self, world: Any) -> None:
        w = world(node("a-cloud", Tier.CLOUD), device())
        text = "inputs: {photo: {type: json, private: device}}\n"
        text += "stages: {see: {kind: t.work, in: {x: $photo}, require: {node: a-cloud}}}"
        (problem,) = self.refused(w, constellation(text), Infeasible)
        assert "a-cloud is on the cloud tier, where what is private to device may not be" in problem

    def test_contradictions_are_told_with_all_else(self, world: Any) -> None:
        w = world(*three())
        text = "inputs: {photo: {type: json, private: device}}\n"
        text += "stages: {see: {kind: t.wrok, in: {x: $photo}}, "
        text += "far: {kind: t.work, in: {x: see.value}, require: {tier: cloud}}}"
        found = self.refused(w, load(f"api_version: starloom/v1\nname: test\n{text}"), InvalidConstellation)
        assert [problem.partition(":")[0] for problem in found] == ["stages.see.kind", "stages.far.in.x"]


class TestPatches:
    def test_one_that_would_let_private_data_leave_is_refused_and_changes_nothing(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(LINE, PHOTO)
        refused = w.refused(
            w.patch(
                job,
                "- move: {stage: read, require: {tier: cloud}}\n"
                "- add: {copy: {kind: t.work, in: {x: $photo}, require: {tier: edge}}}",
            )
        )
        assert "stages.read.in.regions: is private to device (photo -> see -> read)" in refused
        assert "stages.copy.in.x: is private to device (photo -> copy)" in refused
        assert facts_of(w, JobPatched) == []

    def test_a_stage_that_it_does_not_touch_may_find_no_node_any_more(self, world: Any) -> None:
        w = world(node("a-cloud", Tier.CLOUD, targets=("cpu", "npu")), device("z-pi"))
        text = """
inputs: {photo: {type: json, private: device}}
stages:
  gate: {kind: t.work}
  hear: {kind: t.work, after: [gate]}
  say: {kind: t.see, in: {x: hear.value}, require: {target: npu}}
"""
        job = w.submit(constellation(text), PHOTO)
        refused = w.refused(w.patch(job, "- rewire: {stage: hear, in: {x: $photo}}"))
        assert (
            "stages.say.require: a-cloud is on the cloud tier, where what is private to device may not be; "
            "z-pi has no target npu (it has cpu); x is private to device: photo -> hear"
        ) in refused

    def test_what_it_makes_private_goes_elsewhere_and_what_was_ready_as_well(self, world: Any) -> None:
        w = world(node("a-cloud", Tier.CLOUD), device("z-pi"))
        text = """
inputs: {photo: {type: json, private: device}}
stages:
  hear: {kind: t.work, require: {tier: cloud}}
  think: {kind: t.work, in: {x: hear.value}, params: {seed: 1}}
  say: {kind: t.work, in: {x: think.value}}
"""
        job = w.submit(constellation(text), PHOTO)
        w.patched(w.patch(job, "- rewire: {stage: think, in: {y: $photo}}"))
        w.finish_all()
        found = places(w, job)
        assert (found["hear"], found["think"], found["say"]) == ({"a-cloud"}, {"z-pi"}, {"z-pi"})

    def test_what_is_ready_moves_with_its_label(self, world: Any) -> None:
        """`wait` is ready, and the job has as many attempts as it may, when what else feeds it becomes private."""
        w = world(node("a-cloud", Tier.CLOUD), device("z-pi"))
        text = """
inputs: {photo: {type: json, private: device}}
stages:
  one: {kind: t.work}
  gate: {kind: t.work, after: [one]}
  two: {kind: t.work, after: [gate]}
  wait: {kind: t.work, in: {x: one.value, y: two.value}, join: any}
"""
        job = w.submit(constellation(text), PHOTO, max_parallel=1)
        w.finish("one")
        assert w.active() == ["gate"]
        assert w.coordinator._endings.runs[job].queued == {"wait"}
        w.patched(w.patch(job, "- rewire: {stage: two, in: {z: $photo}}"))
        w.finish_all()
        found = places(w, job)
        assert (found["one"], found["two"], found["wait"]) == ({"a-cloud"}, {"z-pi"}, {"z-pi"})

    def test_what_is_ready_and_fed_with_private_data_moves_as_well(self, world: Any) -> None:
        w = world(node("a-cloud", Tier.CLOUD), device("z-pi"))
        text = """
inputs: {photo: {type: json, private: device}}
stages:
  one: {kind: t.work}
  gate: {kind: t.work, after: [one]}
  two: {kind: t.work, after: [gate]}
  wait: {kind: t.work, in: {x: one.value}}
"""
        job = w.submit(constellation(text), PHOTO, max_parallel=1)
        w.finish("one")
        assert w.active() == ["gate"]
        assert w.coordinator._endings.runs[job].queued == {"wait"}
        w.patched(w.patch(job, "- rewire: {stage: wait, in: {y: $photo}}"))
        w.finish_all()
        assert places(w, job)["wait"] == {"z-pi"}

    @pytest.mark.parametrize("started", [False, True])
    @pytest.mark.parametrize("where", ["a-cloud", "z-pi"])
    def test_what_was_given_out_before_and_reads_it_does_not_go_on(self, world: Any, where: str, started: bool) -> None:
        """On another tier it would still fetch what is private now, and on the right one tell it with its report."""
        w = world(node("a-cloud", Tier.CLOUD), device("z-pi"))
        text = f"""
inputs: {{photo: {{type: bytes}}}}
stages:
  see: {{kind: t.blob, in: {{x: $photo}}, require: {{tier: device}}}}
  read: {{kind: t.need, in: {{data: see.data}}, prefer: [{{node: {where}, seconds: 100}}]}}
  say: {{kind: t.work, in: {{x: read.value}}}}
"""
        job = w.submit(constellation(text), {"photo": stored()})
        w.finish("see")
        if started:
            w.start("read")
        before = w.assigned("read").task
        w.patched(w.patch(job, "- set_privacy: {stage: see, private: device}", restart=True))
        (superseded,) = (fact for fact in facts_of(w, StageSuperseded) if fact.stage == "read")
        assert (superseded.token, superseded.reason) == (before.token, "what it reads is private to device now")
        assert [name for name, agent in w.agents.items() if before in agent.cancelled] == [where]
        w.acknowledge_cancels()
        w.finish_all()
        assert w.status(job) == "succeeded"
        last = w.sent[max((task for task in w.sent if task.stage == "read"), key=lambda task: task.token.attempt)]
        assert last.private
        assert w.coordinator.jobs[job].stages["read"].agent == "z-pi"
        assert w.coordinator.jobs[job].stages["say"].agent == "z-pi"

    def test_what_reads_nothing_of_it_goes_on(self, world: Any) -> None:
        """`read` joined any, and read what is free; that another way to it is private now changes nothing for it."""
        w = world(node("a-cloud", Tier.CLOUD), device("z-pi"))
        text = """
inputs: {photo: {type: json}}
stages:
  see: {kind: t.work, in: {x: $photo}}
  gate: {kind: t.work, require: {tier: device}}
  late: {kind: t.work, after: [gate], in: {x: $photo}}
  read: {kind: t.work, join: any, in: {x: see.value, y: late.value}}
"""
        job = w.submit(constellation(text), PHOTO)
        w.finish("see")
        w.start("read")
        w.patched(w.patch(job, "- set_privacy: {stage: late, private: device}"))
        assert "read" in w.active()
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert places(w, job)["read"] == {"a-cloud"}

    def test_people_may_declassify_by_one(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(LINE, PHOTO)
        say = "- add: {say: {kind: t.work, in: {x: read.value}, require: {tier: cloud}}}"
        assert "photo -> see -> read -> say" in w.refused(w.patch(job, say))
        w.patched(w.patch(job, f"- set_privacy: {{stage: read, declassify: true}}\n{say}", why="the text is public"))
        w.finish_all()
        assert (places(w, job)["read"], places(w, job)["say"]) == ({"z-pi"}, {"a-cloud"})

    @pytest.mark.parametrize("under_way", [False, True])
    @pytest.mark.parametrize(
        ("private", "patches"),
        [
            (", private: device", ["- rewire: {stage: read, in: {x: $note}}"]),
            (", private: device", ["- replace: {stage: read, kind: t.blur}"]),
            ("", ["- rewire: {stage: read, in: {x: $note}}\n- set_privacy: {stage: see, private: device}"]),
            ("", ["- rewire: {stage: read, in: {x: $note}}", "- set_privacy: {stage: see, private: device}"]),
        ],
    )
    def test_what_was_computed_from_private_data_before_one_is_not_read_elsewhere(
        self, world: Any, private: str, patches: list[str], under_way: bool
    ) -> None:
        """`read` reads nothing private any more, and runs again; what `sum` had made of the photograph is not free by that."""
        w = world(*three())
        text = f"""
inputs: {{photo: {{type: json{private}}}, note: {{type: json}}}}
stages:
  see: {{kind: t.work, in: {{x: $photo}}}}
  read: {{kind: t.work, in: {{x: see.value}}}}
  sum: {{kind: t.work, in: {{x: read.value}}}}
  gate: {{kind: t.work, require: {{tier: cloud}}}}
  say: {{kind: t.work, in: {{x: sum.value}}, after: [gate]}}
"""
        job = w.submit(constellation(text), {**PHOTO, "note": inline("a note")})
        w.finish("see", "read")
        old = w.assigned("sum").task
        if not under_way:
            w.finish("sum")
        for patch in patches:
            w.patched(w.patch(job, patch, restart=True))
        w.finish("gate")
        w.acknowledge_cancels()
        assert not {"sum", "say"} & set(w.active())
        w.finish("read", "sum")
        (read,) = w.assigned("say").inputs
        assert read.consumed.token.attempt > old.token.attempt
        assert w.where("say").name != "z-pi"
        w.finish_all()
        assert w.status(job) == "succeeded"
        w.check_replay()


class TestGrowth:
    TEXT = """
inputs: {photo: {type: json, private: device}}
stages:
  grow: {kind: t.grow, in: {x: $photo}, params: {adds: 2}, retry: 0}
  end: {kind: t.work, in: {x: grow.value}}
"""

    def test_what_is_added_is_as_private_as_what_it_comes_of(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(constellation(self.TEXT), PHOTO)
        w.finish_all()
        assert w.status(job) == "succeeded"
        found = places(w, job)
        assert set(found) == {"grow", "grow-0", "grow-1", "grow-2", "end"}
        assert set().union(*found.values()) == {"z-pi"}

    def test_what_it_adds_again_once_it_is_private_is_private_as_well(self, world: Any) -> None:
        """The same growth, but of data that may not leave now: what it had added reads none of it but by its parameters."""
        w = world(*three())
        job = w.submit(constellation(self.TEXT.replace(", private: device", "")), PHOTO)
        w.finish("grow", growth=load_patch("patch: [{add: {'@0': {kind: t.work, params: {label: a face}}}}]"))
        w.start("grow-0")
        assert w.where("grow-0").name != "z-pi"
        w.patched(w.patch(job, "- set_privacy: {stage: grow, private: device}", restart=True))
        w.acknowledge_cancels()
        w.finish("grow", growth=load_patch("patch: [{add: {'@0': {kind: t.work, params: {label: a face}}}}]"))
        w.acknowledge_cancels()
        assert w.where("grow-0").name == "z-pi"
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert w.job(job).constellation.stages["grow-0"].private == "device"
        w.check_replay()

    def test_also_what_reads_nothing_of_it(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(constellation(self.TEXT), PHOTO)
        w.finish("grow", growth=load_patch("patch: [{add: {'@0': {kind: t.work, params: {label: a face}}}}]"))
        w.finish_all()
        assert places(w, job)["grow-0"] == {"z-pi"}

    @pytest.mark.parametrize(
        ("what", "reason"),
        [
            ("{kind: t.work, require: {tier: cloud}}", "stages.grow-0.private: is private to device (grow-0), but"),
            (
                "{kind: t.work, in: {x: '@in.x'}, require: {tier: edge}}",
                "stages.grow-0.in.x: is private to device (photo",
            ),
            ("{kind: t.work, declassify: true}", "a stage may not declassify what it adds"),
        ],
    )
    def test_one_that_would_let_private_data_leave_fails_the_stage(self, world: Any, what: str, reason: str) -> None:
        w = world(*three())
        job = w.submit(constellation(self.TEXT), PHOTO)
        w.finish("grow", growth=load_patch(f"patch: [{{add: {{'@0': {what}}}}}]"))
        (fact,) = facts_of(w, StageFailed)
        assert reason in fact.error.message
        assert w.status(job) == "failed"
