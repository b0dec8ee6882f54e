"""What became of a job under a plan of faults: what was seen of each fault, and whether all is as promised. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

import msgspec

from starloom.dag import facts
from starloom.dag.facts import Fact, JobStatus
from starloom.dag.ids import JobId
from starloom.devices.faults import ORCHESTRATOR, FaultKind
from starloom.orchestrator.infos import Event
from starloom.orchestrator.trials.case import BROKEN, HELD, duplicates
from starloom.orchestrator.trials.planning import Planned

_NANOS: Final = 1e9


class Injection(msgspec.Struct, frozen=True, kw_only=True):
    """What was done of one planned fault.

    `node`: where, ORCHESTRATOR, or empty for several. `unix_nanos`: when, 0 if it was not. `healed_unix_nanos`: when it was
    over, 0 if it was not within the run. `incarnation`: of the agent's process that it happened to. `met`: how often it
    changed something, None where nobody counts. `why`: what kept it
    from happening, or from ending.
    """

    planned: Planned
    node: str = ""
    unix_nanos: int = 0
    healed_unix_nanos: int = 0
    incarnation: str = ""
    met: int | None = None
    why: str = ""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One fault as it went. Seconds: `at_seconds` and `healed_seconds` from the job's submission on, the others from the
    injection on.

    detect_seconds: to the event that tells of it, an agent lost or an epoch started; None where nothing had to be noticed.
    recover_seconds: until all that it had cost was committed again; where that was nothing, until the process that it had
    ended was back; None where there was neither.
    """

    id: str
    what: FaultKind
    node: str
    stage: str = ""
    at_seconds: float | None = None
    healed_seconds: float | None = None
    met: int | None = None
    detect_seconds: float | None = None
    recover_seconds: float | None = None
    recovered: bool
    why: str = ""


class Survival(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run. `lost`: accepted jobs that did not succeed; `duplicated`: results that were committed twice.

    Seconds of detection and recovery are medians. `what`: why it is broken.
    """

    planned: int
    injected: int
    recovered: int
    lost: int
    duplicated: int
    detect_seconds: float | None
    recover_seconds: float | None
    verdict: str
    what: tuple[str, ...]
    status: str
    equal: bool
    job_seconds: float
    faults: tuple[Seen, ...]


def judge(
    job: JobId,
    seen: Sequence[Event],
    injections: Sequence[Injection],
    whole: Set[str],
    outputs: Mapping[str, str],
    expected: Mapping[str, str],
) -> Survival:
    """What the events from the submission on say.

    `whole`: the nodes that were online in the end, with ORCHESTRATOR if it answered. Outputs are digests by name.
    """
    of_job = [event for event in seen if getattr(event.fact, "job", None) == job]
    begin = of_job[0].unix_nanos if of_job else 0
    ended = next((event for event in of_job if isinstance(event.fact, facts.JobEnded)), None)
    status = str(ended.fact.status) if ended and isinstance(ended.fact, facts.JobEnded) else "open"
    rows = tuple(_seen(injection, of_job, seen, whole, begin) for injection in injections)
    done = [row for row in rows if row.at_seconds is not None]
    doubled = duplicates(event.fact for event in of_job)
    differing = sorted(name for name in {*outputs, *expected} if outputs.get(name) != expected.get(name))
    broken = (
        *([f"the job is {status}"] if status != JobStatus.SUCCEEDED else []),
        *([f"outputs differ: {', '.join(differing)}"] if differing else []),
        *([f"{doubled} results committed twice"] if doubled else []),
        *(f"{row.id} ({row.what} of {row.node or 'several'}): {row.why}" for row in done if not row.recovered),
    )
    return Survival(
        planned=len(rows),
        injected=len(done),
        recovered=sum(row.recovered for row in done),
        lost=int(status != JobStatus.SUCCEEDED),
        duplicated=doubled,
        detect_seconds=_median(row.detect_seconds for row in done),
        recover_seconds=_median(row.recover_seconds for row in done),
        verdict=BROKEN if broken else HELD,
        what=broken,
        status=status,
        equal=not differing,
        job_seconds=(ended.unix_nanos - begin) / _NANOS if ended else 0.0,
        faults=rows,
    )


def _seen(injection: Injection, of_job: Sequence[Event], seen: Sequence[Event], whole: Set[str], begin: int) -> Seen:
    planned = injection.planned
    row = Seen(
        id=planned.id,
        what=planned.what,
        node=injection.node or planned.node,
        stage=planned.stage,
        recovered=False,
        why=injection.why,
    )
    if not injection.unix_nanos:
        return row
    told = _told(injection, seen)
    healed = injection.healed_unix_nanos
    back = _back(injection, seen)
    why = injection.why or _unrecovered(injection, whole, back)
    return msgspec.structs.replace(
        row,
        at_seconds=max(0, injection.unix_nanos - begin) / _NANOS,
        healed_seconds=(healed - begin) / _NANOS if healed else None,
        met=injection.met,
        detect_seconds=_since(injection, told),
        recover_seconds=_since(injection, _made_again(injection, of_job, told) or back),
        recovered=not why,
        why=why,
    )


def _unrecovered(injection: Injection, whole: Set[str], back: int | None) -> str:
    """Why a fault is not over; empty if it is."""
    kills = injection.planned.what in (FaultKind.AGENT_CRASH, FaultKind.ORCHESTRATOR_CRASH)
    if kills and back is None:
        return "nothing tells that another process took its place"
    if not injection.healed_unix_nanos:
        return "it was not healed"
    if injection.node and injection.node not in whole:
        return f"{injection.node} is not back"
    return ""


def _told(injection: Injection, seen: Sequence[Event]) -> int | None:
    """When the journal tells that the process was lost."""
    for event in seen:
        if event.unix_nanos >= injection.unix_nanos and _tells(injection, event.fact):
            return event.unix_nanos
    return None


def _tells(injection: Injection, fact: Fact) -> bool:
    match fact:
        case facts.EpochStarted():
            return injection.planned.what == FaultKind.ORCHESTRATOR_CRASH
        case facts.AgentLost():
            return fact.agent == injection.node and fact.incarnation == injection.incarnation
    return False


def _back(injection: Injection, seen: Sequence[Event]) -> int | None:
    """When another process had taken the place of the one that was killed; None for other faults."""
    for event in seen:
        fact = event.fact
        if event.unix_nanos < injection.unix_nanos:
            continue
        if injection.planned.what == FaultKind.ORCHESTRATOR_CRASH and isinstance(fact, facts.EpochStarted):
            return event.unix_nanos
        if (
            injection.planned.what == FaultKind.AGENT_CRASH
            and isinstance(fact, facts.AgentJoined)
            and fact.agent == injection.node
            and fact.incarnation != injection.incarnation
        ):
            return event.unix_nanos
    return None


def _made_again(injection: Injection, of_job: Sequence[Event], told: int | None) -> int | None:
    """When all that a fault had cost was committed again; None where it cost nothing that the journal tells of."""
    after = [event for event in of_job if event.unix_nanos >= injection.unix_nanos]
    commits = [event for event in after if isinstance(event.fact, facts.StageCommitted)]
    if injection.node == ORCHESTRATOR:
        # What was on its way when it died may have been stamped a moment later.
        return min(
            (event.unix_nanos for event in commits if told is not None and event.unix_nanos >= told), default=None
        )
    where = {
        (event.fact.stage, event.fact.token): event.fact.agent
        for event in of_job
        if isinstance(event.fact, facts.StagePlaced)
    }
    hurt = {
        fact.stage
        for fact in (event.fact for event in after)
        if isinstance(fact, facts.StageSuperseded | facts.StageReopened | facts.StageFailed)
        and where.get((fact.stage, fact.token)) == injection.node
    }
    return max((event.unix_nanos for event in commits if getattr(event.fact, "stage", None) in hurt), default=None)


def _since(injection: Injection, unix_nanos: int | None) -> float | None:
    return None if unix_nanos is None else (unix_nanos - injection.unix_nanos) / _NANOS


def _median(seconds: Iterable[float | None]) -> float | None:
    found = [each for each in seconds if each is not None]
    return statistics.median(found) if found else None
