"""How well rounds keep what is promised of them: the share of rounds within each bound. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from starloom.dag import limits
from starloom.dag.constellation import Slo
from starloom.dag.slo import SHARES, to_json
from starloom.orchestrator.planner.problem import Floats, Indices
from starloom.orchestrator.planner.rounds import Rounds, quantile


class Answering(NamedTuple):
    """Of stages that write an answer, at each place, in seconds; nothing is known of stages and places that have 0.

    `first` [n, m]: from a run's start to the answer's first token. `token` [n, m]: from one token to the next.
    """

    first: Floats
    token: Floats


class Kept(NamedTuple):
    """A promise of a job: within `seconds` in a `share` of rounds; the seconds that this share took, and the share that was in time."""

    job: int
    what: str
    seconds: float
    share: float
    took: float
    attained: float

    @property
    def met(self) -> bool:
        """Whether it was kept."""
        return self.attained >= self.share


def kept(
    rounds: Rounds, slo: Slo, job: int, deadline: float, answering: Answering | None, place: Indices, runs: Floats
) -> Iterator[Kept]:
    """How rounds of a job kept what is promised of it, and its deadline. `runs` [n]: seconds that were predicted of stages.

    Promises of tokens are left out where nothing is known of any.
    """
    mine = rounds.job == job
    for name, seconds in to_json(slo).items():
        if name in SHARES:
            yield _kept(job, name, seconds, SHARES[name], rounds.seconds[mine])
        elif answering is not None and len(took := _tokens(name, rounds, mine, answering, place, runs)):
            yield _kept(job, name, seconds, limits.SLO_TOKEN_SHARE, took)
    if deadline:
        yield _kept(job, "deadline", deadline, limits.SLO_DEADLINE_SHARE, rounds.seconds[mine])


def _kept(job: int, what: str, seconds: float, share: float, took: Floats) -> Kept:
    attained = float((took <= seconds * (1 + 1e-9)).mean()) if len(took) else 1.0
    return Kept(job, what, seconds, share, quantile(took, share), attained)


def _tokens(name: str, rounds: Rounds, mine: Indices, answering: Answering, place: Indices, runs: Floats) -> Floats:
    """[rounds] Of the slowest stage that writes: until its first token, or from token to token; none where nobody writes.

    What a run took longer than predicted, all of its parts did.
    """
    each = np.arange(len(place))
    first, token = answering.first[each, place], answering.token[each, place]
    writes = np.flatnonzero(
        ((first if name == "first_token" else token) > 0) & np.isfinite(rounds.finish[mine]).all(axis=0)
    )
    if not len(writes):
        return np.zeros(0)
    start, finish = rounds.start[mine][:, writes], rounds.finish[mine][:, writes]
    longer = (finish - start) / runs[writes]
    took: Floats = (start + first[writes] * longer if name == "first_token" else token[writes] * longer).max(axis=1)
    return took
