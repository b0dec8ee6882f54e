"""How good a plan can be at most: a lower bound of the objective. Weak where much is moved; it proves little."""

import numpy as np

from starloom.orchestrator.planner.prepared import Prepared, slots_of
from starloom.orchestrator.planner.problem import Flags, Floats


def lower_bound(prepared: Prepared) -> float:
    """Seconds that no plan's objective is below.

    The greater of the longest path, each dependency at its cheapest over the places of its two ends, and of the work
    that only some places may do, shared by all their slots; plus the least penalty of each stage. Infinite if a stage
    has no place.
    """
    if not len(prepared.seconds):
        return 0.0
    if not prepared.allowed.any(axis=1).all():
        return float("inf")
    seconds = np.where(prepared.allowed, prepared.seconds, np.inf)
    least = float(np.where(prepared.allowed, prepared.penalty, np.inf).min(axis=1).sum())
    return max(_path(prepared, seconds), _work(prepared, seconds)) + least


def _path(prepared: Prepared, seconds: Floats) -> float:
    """The longest path; ends[k]: the least second at which a stage's output can have come to node k."""
    n, k = len(seconds), len(prepared.memory)
    there = np.zeros((n, k))
    last = 0.0
    onto = _onto(prepared, k)
    for stage in prepared.order:
        begin = np.full(k, 0.0 if prepared.started[stage] else prepared.release[stage])
        for lead in range(prepared.lead_heads[stage], prepared.lead_heads[stage + 1]):
            up, size = prepared.lead_stage[lead], prepared.lead_bytes[lead]
            moved = prepared.latency + (size * prepared.per_byte if size > 0 else 0.0)
            begin = np.maximum(begin, (there[up][:, None] + moved).min(axis=0))
        runs = seconds[stage] > 0
        opens = 0.0 if prepared.started[stage] else np.where(runs, prepared.available, 0.0)
        ends = np.maximum(begin[prepared.node], opens) + seconds[stage]
        there[stage] = np.where(onto, ends[None, :], np.inf).min(axis=1)
        last = max(last, float(ends.min()))
    return last


def _onto(prepared: Prepared, k: int) -> Flags:
    found: Flags = prepared.node[None, :] == np.arange(k)[:, None]
    return found


def _work(prepared: Prepared, seconds: Floats) -> float:
    """For each set of places that is all that some stage may have: the least work bound to it over its slots."""
    least = seconds.min(axis=1)
    kinds, which = np.unique(prepared.allowed, axis=0, return_inverse=True)
    bound = np.bincount(which.ravel(), weights=least, minlength=len(kinds))
    found = 0.0
    for places in kinds:
        inside = ~(kinds & ~places).any(axis=1)
        found = max(found, float(bound[inside].sum() / slots_of(prepared, places)))
    return found
