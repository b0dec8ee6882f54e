"""What is accepted, and what is refused with every reason."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import KINDS, World, facts_of, inline, node, stored

from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.dag.errors import (
    Conflict,
    Infeasible,
    InternalError,
    InvalidConstellation,
    InvalidInput,
    NotFound,
    Overloaded,
    StarloomError,
    Unavailable,
)
from starloom.dag.facts import JobSubmitted, StreamOptions
from starloom.dag.ids import StageId
from starloom.dag.values import Full, PortType
from starloom.orchestrator.effects import Submitted


def one(require: Requirements | None = None, kind: str = "t.work") -> Constellation:
    graph = Graph("one")
    stage = graph.stage("a", kind, require=require or Requirements())
    graph.output("out", stage["value"])
    return graph.build(KINDS)


def with_inputs() -> Constellation:
    graph = Graph("fed")
    audio = graph.input("audio", PortType.BYTES)
    graph.stage("a", "t.need", data=audio)
    return graph.build(KINDS)


def refused(world: World, kind: type[StarloomError], constellation: Constellation, *args: Any, **kwargs: Any) -> Any:
    """The error that a submission gets; nothing of it is accepted."""
    before = len(world.facts)
    result = world.ask_submit(constellation, *args, **kwargs)
    assert type(result) is kind, result
    assert len(world.facts) == before
    return result


def places(error: InvalidInput) -> list[str]:
    return [problem.place for problem in error.problems]


class TestAccepted:
    def test_a_job_runs_from_end_to_end(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("two")
        audio = graph.input("audio", PortType.BYTES)
        first = graph.stage("first", "t.need", data=audio)
        second = graph.stage("second", "t.work", x=first["value"])
        graph.output("answer", second["value"])
        job = w.submit(graph.build(KINDS), {"audio": stored()})
        assert w.status(job, "first", "second") == ["placed", "pending"]
        w.start("first")
        assert w.status(job, "first") == ["running"]
        w.finish("first")
        result = w.finish("second")
        assert w.status(job) == "succeeded"
        assert w.job(job).outputs["answer"].digest == result.outputs["value"].digest

    def test_an_assignment_says_all_that_the_agent_needs(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("two")
        first = graph.stage("first", "t.work", params={"label": "x"})
        second = graph.stage("second", "t.say", x=first["value"].when("contains", "salt"))
        graph.output("answer", second["text"])
        graph.output("again", second["text"])
        job = w.submit(graph.build(KINDS), priority=3)
        assign = w.assigned("first")
        assert (assign.kind, assign.params, assign.target) == ("t.work", {"seed": 7, "label": "x"}, "cpu")
        assert (assign.priority, assign.publish) == (3, ())
        assert [c.operator for c in assign.comparisons] == ["contains"]
        w.finish("first")
        assign = w.assigned("second")
        (item,) = assign.inputs
        assert (item.port, item.consumed.upstream) == ("x", "first")
        assert item.consumed.token == w.stage(job, "first").committed
        assert item.consumed.digest == item.ref.digest
        assert assign.publish == ("text",)

    def test_an_input_names_the_address_of_its_holder(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("two")
        audio = graph.input("audio", PortType.BYTES)
        first = graph.stage("first", "t.blob", x=audio)
        second = graph.stage("second", "t.blob", x=first["data"])
        graph.stage("third", "t.need", data=second["data"])
        graph.output("kept", second["data"])
        w.submit(graph.build(KINDS), {"audio": stored()})
        (item,) = w.assigned("first").inputs
        assert (item.address, item.consumed.upstream, item.consumed.token) == ("", "", None)
        w.finish("first")
        (item,) = w.assigned("second").inputs
        assert (item.ref.holder, item.address) == ("edge-1", "edge-1:1")
        w.finish("second")
        (item,) = w.assigned("third").inputs
        assert (item.ref.holder, item.address) == ("", ""), "published values are in the job store"

    def test_a_key_again_gives_the_same_job(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(with_inputs(), {"audio": stored()}, key="mine")
        again = w.ask_submit(with_inputs(), {"audio": stored()}, job="other", key="mine")
        assert again == Submitted(job=job, revision=w.job(job).revision, existing=True)
        assert w.coordinator.find("mine") is w.coordinator.find(job) is w.job(job)
        assert len(facts_of(w, JobSubmitted)) == 1
        w.finish_all()
        assert w.ask_submit(with_inputs(), {"audio": stored()}, key="mine").existing

    def test_an_optional_input_may_be_left_out(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("optional")
        hint = graph.input("hint", PortType.JSON)
        graph.stage("a", "t.work", hint=hint)
        built = graph.build(KINDS)
        inputs = {"hint": msgspec.structs.replace(built.inputs["hint"], optional=True)}
        kind = msgspec.structs.replace(KINDS["t.work"], variadic_input=inputs["hint"])
        w.join(node("edge-2"), kinds=[kind])
        w.goodbye("edge-1")
        w.join(node("edge-1"), kinds=[kind])
        w.submit(msgspec.structs.replace(built, inputs=inputs))
        assert w.assigned("a").inputs == ()

    def test_an_empty_job_of_optional_parts_ends(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one())
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert list(w.job(job).outputs) == ["out"]


class TestRefused:
    def test_nothing_is_accepted_before_an_agent_has_joined(self, world: Any) -> None:
        error = refused(world(), Unavailable, one())
        assert "no agent has joined" in str(error)

    def test_every_problem_is_told_at_once(self, world: Any) -> None:
        w = world(node("edge-1"))
        valid = with_inputs()
        stage = msgspec.structs.replace(valid.stages[StageId("a")], params={"x": 1})
        broken = msgspec.structs.replace(valid, stages={StageId("a"): stage})
        error = refused(w, InvalidConstellation, broken, {"adio": inline(1)}, max_parallel=-1)
        assert places(error) == ["stages.a.params.x", "inputs.audio", "inputs.adio", "options.max_parallel"]

    def test_inputs_have_to_be_those_of_the_job(self, world: Any) -> None:
        w = world(node("edge-1"))
        error = refused(w, InvalidInput, with_inputs(), {"audio": inline(1)})
        assert "inputs.audio: is json, but the job takes bytes" in str(error).replace("a bytes", "bytes")
        error = refused(w, InvalidInput, with_inputs())
        assert places(error) == ["inputs.audio"]
        large = stored(size=limits.JOB_INPUT_BYTES_MAX + 1)
        error = refused(w, InvalidInput, with_inputs(), {"audio": large})
        assert places(error) == ["inputs"]
        assert "JOB_INPUT_BYTES_MAX" in str(error)

    def test_keys_and_options_are_bounded(self, world: Any) -> None:
        w = world(node("edge-1"))
        error = refused(w, InvalidInput, one(), key="k" * 200, max_parallel=limits.JOB_PARALLEL_MAX + 1)
        assert places(error) == ["key", "options.max_parallel"]

    def test_unknown_kinds_are_those_that_no_agent_offers(self, world: Any) -> None:
        w = world()
        w.join(node("edge-1"), kinds=[KINDS["t.say"]])
        error = refused(w, InvalidConstellation, one())
        assert places(error) == ["stages.a.kind"]

    def test_what_does_not_fit_streams_is_refused_clearly(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("streaming")
        sound = graph.input("sound", PortType.AUDIO, stream=True)
        graph.stage("a", "t.stream", sound=sound)
        made = graph.build(KINDS)
        streams = {
            "sound": StreamOptions(full=Full.LATEST, spool=True),
            "light": StreamOptions(),
        }
        error = refused(w, InvalidInput, made, {"sound": inline(1)}, streams=streams)
        assert [str(problem) for problem in error.problems] == [
            "inputs.sound: is a stream, which takes no value; feed it once the job is accepted",
            "streams.sound: is spooled, where nothing is dropped, but what is too much is to be dropped (latest); say one of both",
            "streams.light: the job has no such input stream; it has sound",
        ]
        assert w.submit(made)

    def test_input_streams_are_as_many_as_memory_is_for(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "OPEN_INPUT_STREAMS_MAX", 2)
        w = world(node("edge-1", slots=9))
        graph = Graph("streaming")
        graph.stage("a", "t.stream", sound=graph.input("sound", PortType.AUDIO, stream=True))
        made = graph.build(KINDS)
        first = w.submit(made)
        w.submit(made)
        error = refused(w, Overloaded, made)
        assert "2 input streams are open, and 1 more are over OPEN_INPUT_STREAMS_MAX = 2" in str(error)
        w.submit(one())
        w.cancel(first)
        w.acknowledge_cancels()
        w.submit(made)

    def test_a_requirement_that_no_node_meets_says_why_for_each(self, world: Any) -> None:
        w = world(node("cloud-1", Tier.CLOUD), node("edge-1", labels={"site": "south"}))
        require = Requirements(tiers=(Tier.EDGE,), labels={"site": "north"}, memory_bytes=2**40)
        error = refused(w, Infeasible, one(require))
        (problem,) = error.problems
        assert problem.place == "stages.a.require"
        assert problem.what == (
            f"cloud-1 is on the cloud tier and has no label site and has {2**30} bytes of memory; "
            f"edge-1 has the label site=south and has {2**30} bytes of memory"
        )

    def test_what_no_node_meets_is_told_beside_what_is_wrong(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("mixed")
        graph.stage("bad", "t.work", params={"no": 1}, require=Requirements(node="edge-8"))
        graph.stage("far", "t.work", require=Requirements(tiers=(Tier.CLOUD,)))
        graph.stage("lost", "t.work", require=Requirements(node="edge-7"))
        error = refused(w, InvalidConstellation, graph.build())
        assert places(error) == ["stages.bad.params.no", "stages.far.require", "stages.lost.require"]

    def test_a_defect_in_judging_one_job_ends_no_other(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("edge-1"))
        monkeypatch.setattr("starloom.orchestrator.admission.problems", lambda *_: 1 // 0)
        assert "ZeroDivisionError" in str(refused(w, InternalError, one()))
        monkeypatch.undo()
        assert isinstance(w.ask_submit(one()), Submitted)

    def test_targets_and_nodes_may_be_what_is_missing(self, world: Any) -> None:
        w = world(node("edge-1"))
        error = refused(w, Infeasible, one(Requirements(target="npu"), "t.see"))
        assert "edge-1 has no target npu (it has cpu)" in str(error)
        error = refused(w, Infeasible, one(Requirements(node="edge-7")))
        assert "edge-1 is not 'edge-7'" in str(error)

    def test_many_nodes_are_not_all_listed(self, world: Any) -> None:
        w = world(*(node(f"edge-{index:03}") for index in range(limits.NODES_EXPLAINED_MAX + 5)))
        error = refused(w, Infeasible, one(Requirements(tiers=(Tier.CLOUD,))))
        assert "and 5 more nodes do not either" in str(error)

    def test_a_node_that_was_lost_lately_still_counts(self, world: Any) -> None:
        w = world(node("edge-1"), node("cloud-1", Tier.CLOUD))
        w.goodbye("cloud-1")
        job = w.submit(one(Requirements(tiers=(Tier.CLOUD,))))
        assert "cloud-1 is lost" in w.coordinator.waits_for(job, "a")
        w.join(node("cloud-1", Tier.CLOUD))
        assert w.active() == ["a"]
        w.goodbye("cloud-1")
        w.advance(limits.LOST_NODE_COUNTS_SECONDS + 1)
        error = refused(w, Infeasible, one(Requirements(tiers=(Tier.CLOUD,))))
        assert "cloud-1 is lost" in str(error)

    def test_a_key_of_another_job_is_a_conflict(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.submit(with_inputs(), {"audio": stored()}, key="mine")
        assert "other inputs" in str(refused(w, Conflict, with_inputs(), {"audio": stored("else")}, key="mine"))
        error = refused(w, Conflict, one(), key="mine", priority=1)
        assert "other constellation and inputs and options" in str(error)

    def test_an_id_is_used_once(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.submit(one(), job="j")
        refused(w, Conflict, one(), job="j")

    def test_overload_is_refused_with_a_time(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("edge-1"))
        monkeypatch.setattr(limits, "OPEN_JOBS_MAX", 2)
        w.submit(one())
        w.submit(one())
        error = refused(w, Overloaded, one())
        assert error.retry_after_seconds == limits.OVERLOADED_RETRY_SECONDS
        assert "OPEN_JOBS_MAX = 2" in str(error)
        w.finish_all()
        w.submit(one())

    def test_open_stages_are_bounded(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("edge-1"))
        monkeypatch.setattr(limits, "OPEN_STAGES_MAX", 1)
        w.submit(one())
        assert "OPEN_STAGES_MAX = 1" in str(refused(w, Overloaded, one()))


class TestKept:
    def test_ended_jobs_are_kept_up_to_a_number(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("edge-1"))
        monkeypatch.setattr(limits, "FINISHED_JOBS_KEPT", 2)
        jobs = [w.submit(one(), key=f"k{index}") for index in range(4)]
        w.finish_all()
        assert len(w.coordinator.jobs) == 2
        with pytest.raises(NotFound, match="ended long ago"):
            w.coordinator.find("k0")
        assert w.coordinator.find("k3").id == jobs[3]
        assert not w.ask_submit(one(), key="k0").existing

    def test_ended_stages_are_kept_up_to_a_number(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        w = world(node("edge-1"))
        monkeypatch.setattr(limits, "FINISHED_STAGES_KEPT", 1)
        first, second = w.submit(one()), w.submit(one())
        w.finish_all()
        assert first not in w.coordinator.jobs
        assert second in w.coordinator.jobs
