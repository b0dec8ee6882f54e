"""A case of a plan: who is killed and when, what the cluster's events tell of it, and whether that is as promised. Pure."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from starloom.dag import facts
from starloom.dag.facts import Fact, JobStatus
from starloom.dag.ids import AgentId, JobId
from starloom.orchestrator.infos import Event

ORCHESTRATOR: Final = "orchestrator"
HELD: Final = "held"
BROKEN: Final = "broken"
_NANOS = 1e9


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Kill these, by their nodes' names or as ORCHESTRATOR, as soon as a stage of the job is told to have started."""

    victims: tuple[str, ...]
    stage: str

    @property
    def victim(self) -> str:
        """The victims in one word."""
        return "+".join(self.victims)

    @property
    def group(self) -> str:
        """What sort of case this is: `orchestrator`, `agent` or `two agents`."""
        if self.victims == (ORCHESTRATOR,):
            return ORCHESTRATOR
        return "agent" if len(self.victims) == 1 else "two agents"


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """What was done: when, by the machine's clock, and to which incarnations of agents.

    `moment`: what the event stream had told of the stage, `started` or, of one that is too short for its start to be
    told, `committed`.
    """

    unix_nanos: int
    moment: str
    incarnations: dict[str, str] = {}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a case. Seconds are from the kill on, but for `job_seconds`: from the submission to the end.

    detect_seconds: to the journal's own event of it, of two agents to the later one: an agent lost, an epoch started. recover_seconds: until all that
    the kill had cost was committed again; of the orchestrator, to the job's next commit; None where it cost nothing.
    superseded: attempts that it ended. reopened: results that it took away and that were made again.
    duplicated: commits of a stage beyond the first that no reopening stands before. what: why it is broken.
    """

    victim: str
    group: str
    stage: str
    moment: str = ""
    status: str
    equal: bool
    detect_seconds: float | None = None
    recover_seconds: float | None = None
    job_seconds: float = 0.0
    superseded: int = 0
    reopened: int = 0
    duplicated: int = 0
    verdict: str
    what: str = ""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Some cases together; seconds are [median, greatest], None where no case has any."""

    group: str
    cases: int
    held: int
    detect_seconds: tuple[float, float] | None
    recover_seconds: tuple[float, float] | None
    job_seconds: tuple[float, float] | None


def judge(
    case: Case,
    job: JobId,
    seen: Sequence[Event],
    kill: Kill,
    outputs: Mapping[str, str],
    expected: Mapping[str, str],
) -> Outcome:
    """What the events of the cluster, in order, say of a case. Outputs are digests by name, those expected an undisturbed run's."""
    of_job = [event for event in seen if getattr(event.fact, "job", None) == job]
    after = [event for event in of_job if event.unix_nanos >= kill.unix_nanos]
    ended = next((event for event in of_job if isinstance(event.fact, facts.JobEnded)), None)
    status = str(ended.fact.status) if ended and isinstance(ended.fact, facts.JobEnded) else "open"
    told = detected(case, seen, kill)
    doubled = duplicates(event.fact for event in of_job)
    differing = sorted(name for name in {*outputs, *expected} if outputs.get(name) != expected.get(name))
    faults = [
        *([f"the job is {status}"] if status != JobStatus.SUCCEEDED else []),
        *([f"outputs differ: {', '.join(differing)}"] if differing else []),
        *([f"{doubled} results committed twice"] if doubled else []),
        *(["no event tells of the death"] if told is None else []),
    ]
    return Outcome(
        victim=case.victim,
        group=case.group,
        stage=case.stage,
        moment=kill.moment,
        status=status,
        equal=not differing,
        detect_seconds=None if told is None else (told - kill.unix_nanos) / _NANOS,
        recover_seconds=_recovered(case, after, kill, told),
        job_seconds=(ended.unix_nanos - of_job[0].unix_nanos) / _NANOS if ended else 0.0,
        superseded=sum(isinstance(event.fact, facts.StageSuperseded) for event in after),
        reopened=sum(isinstance(event.fact, facts.StageReopened) for event in after),
        duplicated=doubled,
        verdict=BROKEN if faults else HELD,
        what="; ".join(faults),
    )


def duplicates(of_job: Iterable[Fact]) -> int:
    """How many results of one job were committed where there was one already."""
    standing: Counter[str] = Counter()
    doubled = 0
    for fact in of_job:
        match fact:
            case facts.StageCommitted():
                doubled += standing[fact.stage]
                standing[fact.stage] = 1
            case facts.StageReopened():
                standing[fact.stage] = 0
    return doubled


def tells_of(case: Case, kill: Kill, fact: Fact) -> AgentId | None:
    """Whose death a fact tells of, if it is one of the case's victims."""
    match fact:
        case facts.EpochStarted() if ORCHESTRATOR in case.victims:
            return AgentId(ORCHESTRATOR)
        case facts.AgentLost() if kill.incarnations.get(fact.agent) == fact.incarnation:
            return fact.agent
    return None


def detected(case: Case, seen: Sequence[Event], kill: Kill) -> int | None:
    """When the last victim's death was told of, in unix nanoseconds; None if one never was."""
    times: dict[AgentId, int] = {}
    for event in seen:
        victim = tells_of(case, kill, event.fact) if event.unix_nanos >= kill.unix_nanos else None
        if victim is not None:
            times.setdefault(victim, event.unix_nanos)
    if len(times) < len(case.victims):
        return None
    return max(times.values())


def _recovered(case: Case, after: Sequence[Event], kill: Kill, told: int | None) -> float | None:
    """Seconds until what was lost had been made again; None where nothing was."""
    commits = [event for event in after if isinstance(event.fact, facts.StageCommitted)]
    if case.group == ORCHESTRATOR:
        # What was on its way when it died may have been stamped a moment later.
        next_ones = [event.unix_nanos for event in commits if told is not None and event.unix_nanos >= told]
        return (min(next_ones) - kill.unix_nanos) / _NANOS if next_ones else None
    hurt = {event.fact.stage for event in after if isinstance(event.fact, facts.StageSuperseded | facts.StageReopened)}
    again = [event.unix_nanos for event in commits if getattr(event.fact, "stage", None) in hurt]
    return (max(again) - kill.unix_nanos) / _NANOS if again else None


def summaries(outcomes: Sequence[Outcome]) -> list[Summary]:
    """One for each sort of case, in the order in which they come, and one for all."""
    groups = dict.fromkeys(outcome.group for outcome in outcomes)
    found = [_summary(group, [outcome for outcome in outcomes if outcome.group == group]) for group in groups]
    return found if len(found) == 1 else [*found, _summary("all", outcomes)]


def _summary(group: str, outcomes: Sequence[Outcome]) -> Summary:
    return Summary(
        group=group,
        cases=len(outcomes),
        held=sum(outcome.verdict == HELD for outcome in outcomes),
        detect_seconds=_spread(outcome.detect_seconds for outcome in outcomes),
        recover_seconds=_spread(outcome.recover_seconds for outcome in outcomes),
        job_seconds=_spread(outcome.job_seconds or None for outcome in outcomes),
    )


def _spread(seconds: Iterable[float | None]) -> tuple[float, float] | None:
    found = [each for each in seconds if each is not None]
    return (statistics.median(found), max(found)) if found else None
