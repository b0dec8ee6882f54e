"""How a stage takes its facts: `TRANSITIONS` has a row for each (status, fact) that may meet.

Anything else is an InvalidTransition that carries the stage's story.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from starloom.dag import facts
from starloom.dag.errors import InvalidTransition
from starloom.dag.facts import Fact
from starloom.dag.ids import AgentId
from starloom.dag.stagestate import ACTIVE, LIVE_MAX, NO_TOKENS, NOTHING, Place, StageState, StageStatus


def faults(stage: StageState) -> Iterator[str]:
    s = StageStatus
    succeeded = stage.status is s.SUCCEEDED
    if bool(stage.live) != (stage.status in ACTIVE) or len(set(stage.live.values())) < len(stage.live):
        yield f"live tokens {stage.live} do not fit the status"
    if not stage.started <= stage.live.keys() or bool(stage.started) != (stage.status is s.RUNNING):
        yield f"started tokens {list(stage.started)} do not fit the status"
    if (len(stage.live) == LIVE_MAX) != (stage.elder is not None) or len(stage.live) > LIVE_MAX:
        yield f"live tokens {stage.live} do not fit the elder {stage.elder}"
    if (stage.awaits and len(stage.live) != 1) or not stage.awaits.items() <= stage.ahead_of.items():
        yield f"awaits {dict(stage.awaits)} of {dict(stage.ahead_of)} with the live tokens {stage.live}"
    if (stage.committed is not None) != (stage.status in {s.SUCCEEDED, s.SKIPPED}):
        yield f"committed {stage.committed} does not fit the status"
    if not succeeded and (stage.outputs or stage.holds or stage.consumed or stage.published or stage.holders):
        yield "has outputs without success"
    if not stage.published <= stage.outputs.keys():
        yield f"published {sorted(stage.published)}, which are no outputs"
    if stage.holders and not stage.held:
        yield f"{', '.join(stage.holders)} keep outputs of which there are none"
    if stage.former is not None and stage.status in {s.SUCCEEDED, s.SKIPPED}:
        yield "keeps a former outcome beside its own"
    if stage.earlier is not None and stage.former is not None:
        yield "keeps two former outcomes"
    tokens = [*stage.live, *filter(None, [stage.committed])]
    if any(token.attempt > stage.attempt for token in tokens):
        yield f"has a token beyond attempt {stage.attempt}"
    if not 0 <= stage.tries <= stage.attempt:
        yield f"{stage.tries} tries in {stage.attempt} attempts"


Row = Callable[[StageState, "facts.StageFact | facts.StageCancelled"], None]


def misfit(stage: StageState, fact: Fact, why: str) -> InvalidTransition:
    """The error for a fact that does not fit a stage's state."""
    story = "\n  ".join(map(repr, stage.story)) or "nothing yet"
    return InvalidTransition(f"{stage!r}: {why}; {fact!r} does not fit. Its story:\n  {story}")


def _place(stage: StageState, fact: facts.StagePlaced) -> None:
    if fact.copy:
        raise misfit(stage, fact, "there is nothing that it would be a copy of")
    _take_number(stage, fact)
    stage.tries += 1
    stage.live[fact.token] = fact.agent
    stage.ahead_of = stage.awaits = fact.awaits or NOTHING
    stage.status = StageStatus.PLACED
    stage.agent, stage.incarnation, stage.target = fact.agent, fact.incarnation, fact.target
    if stage.variant and stage.variant != fact.variant:
        stage.degraded = stage.variant
    stage.variant = fact.variant
    stage.retry_seconds = None


def _copy(stage: StageState, fact: facts.StagePlaced) -> None:
    if not fact.copy or len(stage.live) != 1 or fact.agent in stage.live.values():
        raise misfit(stage, fact, "it has an attempt, and gets only a copy of that, elsewhere")
    if stage.awaits or fact.awaits:
        raise misfit(stage, fact, "what awaits upstreams is not copied")
    if stage.variant != fact.variant:
        raise misfit(stage, fact, "a copy runs in the variant of what it is a copy of")
    (token,) = stage.live
    _take_number(stage, fact)
    stage.tries += 1
    stage.copies += 1
    stage.live[fact.token] = fact.agent
    stage.elder = Place(token, stage.agent, stage.incarnation, stage.target)
    stage.agent, stage.incarnation, stage.target = fact.agent, fact.incarnation, fact.target


def _start(stage: StageState, fact: facts.StageStarted) -> None:
    _require_live(stage, fact)
    if fact.token in stage.started:
        raise misfit(stage, fact, f"token {fact.token} has started before")
    stage.started |= {fact.token}
    stage.status = StageStatus.RUNNING


def _commit(stage: StageState, fact: facts.StageCommitted) -> None:
    agent = _require_live(stage, fact)
    if stage.awaits:
        raise misfit(stage, fact, f"it awaits {', '.join(stage.awaits)}, which has no result yet")
    stage.agent = agent
    if stage.elder is not None and stage.elder.token == fact.token:
        stage.incarnation = stage.elder.incarnation
    _settle(stage, StageStatus.SUCCEEDED)
    stage.committed = fact.token
    stage.outputs, stage.consumed, stage.holds = fact.outputs, fact.consumed, fact.holds
    stage.published = frozenset(fact.published)
    stage.holders = {stage.agent: stage.incarnation} if stage.held else NOTHING
    stage.timing, stage.models, stage.figures = fact.timing, fact.models, fact.figures
    stage.target, stage.emulated = fact.target, fact.emulated
    stage.error, stage.reason = None, ""


def _fail(stage: StageState, fact: facts.StageFailed) -> None:
    if stage.live:
        _give_up(stage, fact)
    stage.failures += 1
    stage.error, stage.retry_seconds = fact.error, fact.retry_seconds
    if not stage.live:
        stage.status = StageStatus.PENDING if fact.retry_seconds is not None else StageStatus.FAILED


def _default(stage: StageState, fact: facts.StageDefaulted) -> None:
    _take_number(stage, fact)
    _settle(stage, StageStatus.SUCCEEDED)
    stage.committed, stage.outputs, stage.holds = fact.token, fact.outputs, fact.holds


def _skip(stage: StageState, fact: facts.StageSkipped) -> None:
    _take_number(stage, fact)
    if stage.status is StageStatus.PENDING:
        stage.error = None
    _settle(stage, StageStatus.SKIPPED)
    stage.committed, stage.reason = fact.token, fact.reason


def _supersede(stage: StageState, fact: facts.StageSuperseded) -> None:
    _give_up(stage, fact)
    stage.deaths += fact.death
    stage.input_losses += fact.input_lost
    stage.reason = fact.reason
    if not stage.live:
        stage.status = StageStatus.PENDING


def _reopen(stage: StageState, fact: facts.StageReopened) -> None:
    _require_committed(stage, fact)
    stage.former = (stage.earlier if fact.unjudged else None) or stage.outcome
    stage.earlier = None
    stage.status, stage.committed, stage.reason = StageStatus.PENDING, None, fact.reason
    stage.outputs = stage.holds = stage.consumed = NOTHING
    stage.published = frozenset()
    stage.deadline_spent = stage.deadline_ran = 0.0
    stage.holders = NOTHING


def _hold(stage: StageState, fact: facts.OutputsHeld) -> None:
    _require_committed(stage, fact)
    stage.holders = {**stage.holders, fact.agent: fact.incarnation}


def _miss(stage: StageState, fact: facts.OutputsGone) -> None:
    _require_committed(stage, fact)
    stage.holders = {agent: process for agent, process in stage.holders.items() if agent != fact.agent}


def _cancel(stage: StageState, fact: facts.StageCancelled) -> None:
    _settle(stage, StageStatus.CANCELLED)


def _give_up(stage: StageState, fact: facts.StageFact) -> None:
    """One of the stage's attempts is over; the other one goes on, if there is one."""
    _require_live(stage, fact)
    del stage.live[fact.token]
    stage.ahead_of = stage.awaits = NOTHING
    if fact.token in stage.started:
        stage.started -= {fact.token}
    if stage.elder is not None and stage.elder.token != fact.token:
        _, stage.agent, stage.incarnation, stage.target = stage.elder
    stage.elder = None
    if stage.live:
        stage.status = StageStatus.RUNNING if stage.started else StageStatus.PLACED


def _settle(stage: StageState, status: StageStatus) -> None:
    stage.live.clear()
    stage.started, stage.elder = NO_TOKENS, None
    stage.ahead_of = stage.awaits = NOTHING
    stage.status, stage.earlier, stage.former = status, stage.former, None


def _take_number(stage: StageState, fact: facts.StageFact) -> None:
    if fact.token.attempt <= stage.attempt:
        raise misfit(stage, fact, f"attempt {fact.token.attempt} was used; attempts only count up")
    stage.attempt = fact.token.attempt


def _require_committed(stage: StageState, fact: facts.StageFact) -> None:
    if fact.token != stage.committed:
        raise misfit(stage, fact, f"its result is of {stage.committed}")


def _require_live(stage: StageState, fact: facts.StageFact) -> AgentId:
    if fact.token not in stage.live:
        raise misfit(stage, fact, f"token {fact.token} is not live")
    return stage.live[fact.token]


def _table() -> Mapping[tuple[StageStatus, type[Fact]], Row]:
    s = StageStatus
    rows: dict[tuple[StageStatus, type[Fact]], Callable[..., None]] = {
        (s.PENDING, facts.StagePlaced): _place,
        (s.PENDING, facts.StageSkipped): _skip,
        (s.PENDING, facts.StageFailed): _fail,
        (s.PENDING, facts.StageCancelled): _cancel,
        (s.PLACED, facts.StageStarted): _start,
        (s.RUNNING, facts.StageStarted): _start,
        (s.RUNNING, facts.StagePlaced): _copy,
        (s.SUCCEEDED, facts.StageReopened): _reopen,
        (s.SUCCEEDED, facts.OutputsHeld): _hold,
        (s.SUCCEEDED, facts.OutputsGone): _miss,
        (s.SKIPPED, facts.StageReopened): _reopen,
        (s.FAILED, facts.StageDefaulted): _default,
        (s.FAILED, facts.StageSkipped): _skip,
    }
    for active in (s.PLACED, s.RUNNING):
        rows[active, facts.StageCommitted] = _commit
        rows[active, facts.StageFailed] = _fail
        rows[active, facts.StageSuperseded] = _supersede
        rows[active, facts.StageCancelled] = _cancel
    return MappingProxyType(rows)


TRANSITIONS: Final = _table()
