"""What a stage is said to wait for, and where jobs are found."""

from typing import Any

import pytest
from tests.orchestrator.harness import KINDS, node

from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Requirements, Tier
from starloom.dag.errors import NotFound
from starloom.dag.ids import JobId, StageId


def test_every_open_stage_says_what_it_waits_for(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AGENT_BACKLOG_STAGES", 0)
    w = world(node("edge-1", slots=1), node("cloud-1", Tier.CLOUD))
    graph = Graph("waits")
    edge = Requirements(tiers=(Tier.EDGE,))
    first = [graph.stage(f"a{index}", "t.work", require=edge) for index in range(5)]
    graph.stage("end", "t.work", after=first)
    job = w.submit(graph.build(KINDS))
    ask = w.coordinator.waits_for
    assert ask(job, "a0") == "edge-1 to start it"
    w.start("a0")
    assert ask(job, "a0") == "edge-1 to end it"
    assert ask(job, "a1") == "a place on edge-1"
    assert ask(job, "end") == "its upstreams: a0, a1, a2 and 2 more"
    w.goodbye("edge-1")
    assert ask(job, "a1") == "a node that may run it: cloud-1 is on the cloud tier; edge-1 is lost"
    w.join(node("edge-1"))
    w.finish_all()
    assert ask(job, "a0") == ""


def test_unknown_jobs_and_stages_are_not_found(world: Any) -> None:
    w = world(node("edge-1"))
    graph = Graph("one")
    graph.stage("a", "t.work")
    job = w.submit(graph.build(KINDS))
    with pytest.raises(NotFound, match="no job with the id or key 'nobody'"):
        w.coordinator.waits_for(JobId("nobody"), StageId("a"))
    with pytest.raises(NotFound, match="no stage 'b'"):
        w.coordinator.waits_for(job, StageId("b"))


def test_next_wake_is_the_next_thing_that_time_brings(world: Any) -> None:
    w = world()
    assert w.coordinator.next_wake() is None
    w.join(node("edge-1"))
    assert w.coordinator.next_wake() == w.now + round(limits.LEASE_SECONDS * 1e9)
