"""What people are shown: the fleet, and in one line what a stage waits for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from starloom.agents.messages import Load
from starloom.dag.constellation import Join
from starloom.dag.errors import NotFound
from starloom.dag.ids import AgentId, StageId
from starloom.dag.job import JobState
from starloom.dag.stagestate import ENDED, StageState, StageStatus
from starloom.devices.node import NodeProfile
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.feasible import in_words
from starloom.orchestrator.fleet import AgentState, Fleet, Member
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.runs import BackOff, Run, Silence

_NAMES_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node: as its agent described it, how it is doing, and since how many seconds it has not been heard of.

    `assigned`: attempts that it was given and that have not ended.
    """

    name: AgentId
    state: AgentState
    profile: NodeProfile
    load: Load
    heard_seconds: float
    incarnation: str
    assigned: int


def node_view(member: Member, now: int) -> NodeView:
    """A node at a time, in monotonic nanoseconds."""
    return NodeView(
        name=member.name,
        state=member.state,
        profile=member.profile,
        load=msgspec.structs.replace(member.load, links=member.links),
        heard_seconds=max(0, now - member.heard) / NANOS,
        incarnation=member.incarnation,
        assigned=len(member.assigned),
    )


def waits_for(job: JobState, run: Run | None, name: StageId, lanes: ReadyLanes, fleet: Fleet, now: int) -> str:
    """What a stage waits for, in one line; empty if it has ended. Raises NotFound."""
    stage = job.stages.get(name)
    if stage is None:
        raise NotFound(f"job {job.id} has no stage {name!r}")
    if stage.status in ENDED or run is None:
        return ""
    if name in run.held:
        return "a patch of the job to be settled"
    if name in run.unsettled:
        return f"another try: {run.unsettled[name]}"
    if stage.live:
        return _for_agent(stage, fleet, run.streams.reads(name))
    if job.undecided[name]:
        open_ones = dict.fromkeys(a.upstream for a in job.upstreams[name] if job.stages[a.upstream].status not in ENDED)
        if name not in run.queued and name not in run.waits:
            which = "one of " if stage.spec.join is Join.ANY else ""
            return f"{which}its upstreams: {_names(list(open_ones))}"
    if name in run.streams.groups and (others := dict.fromkeys(run.streams.waits_for(job, name))):
        return f"the upstreams of those that it streams with: {_names(list(others))}"
    match run.waits.get(name):
        case BackOff(until=until, why=why):
            return f"the next attempt, in {max(0, until - now) / NANOS:.1f} s, after: {why}"
        case Silence(agents=agents):
            which = "which holds an input and has" if len(agents) == 1 else "which hold inputs and have"
            seconds = min(_silence(fleet, agent, now) for agent in agents)
            return f"{_names(agents)}, {which} not been heard of for {seconds:.1f} s"
    if run.full:
        return (
            f"one of the job's {job.active_attempts} active stages to end: max_parallel is {job.options.max_parallel}"
        )
    return _for_place(run, name, lanes, fleet)


def copy_waits(run: Run) -> str:
    """What the copy of a stage that runs too long waits for, in a few words."""
    full = f"one of the job's active stages to end: max_parallel is {run.job.options.max_parallel}"
    return f"it runs too long, and its copy waits for {full if run.full else 'a free slot on another node'}"


def _for_agent(stage: StageState, fleet: Fleet, streams: bool) -> str:
    agents = sorted(stage.live.values())
    if stage.awaits and not streams:
        begun = ", where it has started" if stage.started else ""
        return f"its upstreams: {_names(list(stage.awaits))}; it was sent ahead to {_names(agents)}{begun}"
    if stage.elder is not None:
        silent = [f"{agent} is not heard of" for agent in agents if fleet.members[agent].state is AgentState.SUSPECT]
        also = f"; {_names(silent)}" if silent else ""
        return f"{stage.elder.agent}, or its copy on {stage.agent}, to end it{also}"
    silent = [agent for agent in agents if fleet.members[agent].state is AgentState.SUSPECT]
    doing = "to end it" if stage.status is StageStatus.RUNNING else "to start it"
    return f"{_names(agents)} {doing}{', but it is not heard of' if silent else ''}"


def _for_place(run: Run, name: StageId, lanes: ReadyLanes, fleet: Fleet) -> str:
    lane = lanes.lane_of(run, name)
    candidates = lanes.candidates(lane, run, name)
    group = run.colocated.get(name)
    if candidates:
        names = _names(list(dict.fromkeys(candidate.member.name for candidate in candidates)))
        names += f", with {group.name}" if group is not None else ""
        return f"a place on {names}{f'; it {told}' if (told := in_words(lane.prefers)) else ''}"
    apart = run.spread.get(name)
    if apart is not None and lane.candidates(fleet):
        return f"a node {apart.words(run.job, fleet, name)}"
    if group is not None and lane.candidates(fleet):
        return f"a node that may run all of {group.name}: {_names(group.members)}"
    reasons = [f"{agent} {lane.misfits(fleet.members[agent]) or 'is lost'}" for agent in sorted(fleet.members)]
    return f"a node that may run it: {_names(reasons, '; ')}"


def _silence(fleet: Fleet, agent: AgentId, now: int) -> float:
    return max(0, now - fleet.members[agent].heard) / NANOS


def _names(names: Sequence[str], separator: str = ", ") -> str:
    shown = separator.join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
