"""What is asked of a planner about a job that runs, and what it advises: values that travel between processes.

    coordinator: PlanWanted -> the shell -> a process of its own -> Planned -> coordinator

All times are seconds from when the plan was asked for.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from starloom.dag import limits
from starloom.dag.constellation import Constellation, StageSpec
from starloom.dag.expectation import told_seconds
from starloom.dag.ids import AgentId, JobId, Revision, StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.variants import ways_of
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.node import NodeProfile


class PlannedRounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan for a period tells of rounds, in seconds: whether the period `holds`, the `least` one that its places can hold.

    `p95`: within which 95 % of rounds end. `busy`: how long each slot of a node is busy for each round, of its busiest target.
    """

    holds: bool
    least: float
    p95: float
    busy: dict[AgentId, float] = {}


class NodeNow(msgspec.Struct, frozen=True, kw_only=True):
    """A node as it stands. `offers`, `loaded`: names of kinds.

    `takes`: whether it is given anything new. `busy_seconds`: until what other jobs have there is done, by all its slots.
    `taken`: the share of its time that others take, for plans for a period. `links`: what it has measured of those to it, by the
    names of the nodes that it fetched from; empty for the job store.
    """

    profile: NodeProfile
    offers: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    takes: bool = True
    busy_seconds: float = 0.0
    taken: float = 0.0
    links: dict[str, MeasuredLink] = {}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A stage that is not to be placed any more: where it is, or was, and the `left` seconds of its run.

    `node`: empty where it is on none that is there. `started`: it runs; neither that nor `ended`: it was given out. `free`:
    to read what it gave costs nothing, wherever that is. `sizes`: bytes of its outputs. `variant`: in which it runs or ran.
    """

    node: AgentId = AgentId("")
    target: str = ""
    variant: str = ""
    left: float = 0.0
    started: bool = False
    ended: bool = False
    free: bool = False
    sizes: dict[str, int] = {}


class RunSeconds(msgspec.Struct, frozen=True, array_like=True):
    """What a run of a kind takes on a target of a node.

    `known`: it ran there, or what the node tells of itself predicts it; else it is what it takes elsewhere, or a hint.
    `told`: of stages whose parameters, or whose variant, tell seconds: so much for each that they tell. `deviation`: standard
    deviation of a run as a share of that.
    """

    kind: str
    node: AgentId
    target: str
    seconds: float
    known: bool = True
    told: bool = False
    deviation: float = limits.PLAN_DEVIATION


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where and when a plan has a stage. `variant`: a lesser one than it would have else, for the job's deadline."""

    node: AgentId
    target: str
    start: float
    finish: float
    variant: str = ""


class PlanWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A plan is wanted of what is left of a job. An immutable snapshot; `number` names the answer.

    `input_bytes`: of the job's inputs that have to be fetched. `standing`: the stages that have ended or were given out.
    `old`: the places of the plan before, of what still waits. `had`: the variants that stages keep which wait for another
    place. `left`: seconds until the job's deadline, below 0 once that is over; None where it has none. `rounds`: it is a plan for
    the period that the constellation says, for whole jobs, of which this is one.
    """

    job: JobId
    number: int
    revision: Revision
    constellation: Constellation
    kinds: dict[str, KindSpec]
    nodes: tuple[NodeNow, ...]
    input_bytes: dict[str, int] = {}
    standing: dict[StageId, Standing] = {}
    seconds: tuple[RunSeconds, ...] = ()
    old: dict[StageId, Place] = {}
    had: dict[StageId, str] = {}
    left: float | None = None
    rounds: bool = False


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """Advice on the stages that wait, or in `refusal` why there is none. An input of the coordinator, and no fact.

    `ends`: when all has ended and the outputs are in the store. `kept`: a new plan was not worth its moves. `again`: there was
    no planner to ask, so it is worth asking later. `rounds`: of a plan for a period, which `ends` for 95 % of rounds.
    """

    job: JobId
    number: int
    places: dict[StageId, Place] = {}
    ends: float = 0.0
    method: str = ""
    kept: bool = False
    refusal: str = ""
    again: bool = False
    rounds: PlannedRounds | None = None

    def nonsense(self) -> str:
        """What cannot be meant of it, as a clause; empty for sound advice.

        Numbers alone: a place that is not there, or not the stage's, is no harm, for it is no candidate.
        """
        numbers = [self.ends, *(number for place in self.places.values() for number in (place.start, place.finish))]
        if self.rounds is not None:
            numbers += [self.rounds.least, self.rounds.p95, *self.rounds.busy.values()]
        # So also what is no number at all is found, which compares with nothing.
        if all(abs(number) <= limits.PLAN_SECONDS_MAX for number in numbers):
            return ""
        return "it has stages start or end at no time that can be"


class Advised(NamedTuple):
    """Where a plan has one stage, for placement: `finish` in seconds from now, below 0 where that has passed.

    `slack`: the seconds by which it may end it later than other places do, and later than planned.
    """

    node: AgentId
    target: str
    finish: float
    slack: float


def cells(stages: Iterable[StageSpec], nodes: int) -> int:
    """Stages, each as often as it has variants, times nodes."""
    return nodes * sum(max(1, len(spec.variants)) for spec in stages)


def told_of(spec: StageSpec, kind: KindSpec | None) -> set[bool]:
    """Whether a stage tells how long its run takes, in each of its variants: what runs of its kind took is no measure then."""
    return {told_seconds(way, kind) is not None for way in ways_of(spec)}


def known_share(stages: Iterable[StageSpec], kinds: Mapping[str, KindSpec], seconds: Iterable[RunSeconds]) -> float:
    """Of how many places of its stages' kinds it is known how long they run there, weighed by the stages; 1 if there are none."""
    places: dict[tuple[str, bool], list[bool]] = {}
    for run in seconds:
        places.setdefault((run.kind, run.told), []).append(run.known)
    shares = []
    for spec in stages:
        known = [each for told in told_of(spec, kinds.get(spec.kind)) for each in places.get((spec.kind, told), ())]
        if known:
            shares.append(sum(known) / len(known))
    return sum(shares) / len(shares) if shares else 1.0
