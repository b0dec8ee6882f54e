"""Putting stages on a board and taking them off, and what must hold of who shares a node. Compiled.

Memory is kept by a rule that does not look at the clock: on a node, the weights of all models that stand there and,
for each place, as many of the largest working sets as it has slots. It never holds less than the running sum.
"""

import numpy as np

from starloom.orchestrator.planner.compiled import inlined, inner
from starloom.orchestrator.planner.prepared import NONE, Board, Prepared

DRAWN = 1 + 1e-9
"""Times a store that may be drawn: what adding and taking away leaves behind."""

NOT_YET = -2
"""In `Board.place`: the stage has not been put anywhere."""


@inner
def clear(p: Prepared, b: Board) -> None:
    """Empties the board."""
    b.place[:] = NOT_YET
    b.lane[:] = NONE
    b.before[:] = NONE
    b.after[:] = NONE
    b.first[:] = NONE
    b.last[:] = NONE
    b.loader[:] = NONE
    b.users[:] = 0
    b.top[:] = 0.0
    b.group_node[:] = NONE
    b.group_count[:] = 0
    b.taken[:] = 0
    b.drawn[:] = 0.0
    b.held[:] = 0.0
    b.busy[:] = 0.0
    for model in range(len(p.weight)):
        for node in range(len(p.memory)):
            if p.resident[model, node]:
                b.held[node] += p.weight[model]


@inlined
def fits(p: Prepared, b: Board, stage: int, place: int) -> bool:
    """Whether the stage may stand there beside all that is put already."""
    if not p.allowed[stage, place]:
        return False
    node = p.node[place]
    group = p.together[stage]
    if group >= 0 and b.group_count[group] > 0 and b.group_node[group] != node:
        return False
    group = p.apart[stage]
    if group >= 0 and b.taken[group, p.zone[group, node]] > 0 and p.crowding[group] == np.inf:
        return False
    if p.store[node] < np.inf and b.drawn[node] + p.charge[stage, place] > p.store[node] * DRAWN:
        return False
    if p.memory[node] == np.inf or p.seconds[stage, place] <= 0.0:
        return True
    return _room(p, b, stage, place, node)


@inner
def _room(p: Prepared, b: Board, stage: int, place: int, node: int) -> bool:
    held = b.held[node] + b.busy[node]
    model = p.model[stage]
    if model >= 0 and b.users[model, node] == 0 and not p.resident[model, node]:
        held += p.weight[model]
    smallest = b.top[p.upto[place] - 1]
    if p.working[stage, p.variant[place]] > smallest:
        held += p.working[stage, p.variant[place]] - smallest
    return held <= p.memory[node]


@inner
def settle(p: Prepared, b: Board, stage: int, place: int) -> None:
    """Counts the stage at its place: models, memory and groups; `link` puts it on a lane."""
    b.place[stage] = place
    node = p.node[place]
    group = p.together[stage]
    if group >= 0:
        b.group_node[group] = node
        b.group_count[group] += 1
    group = p.apart[stage]
    if group >= 0:
        b.taken[group, p.zone[group, node]] += 1
    b.drawn[node] += p.charge[stage, place]
    if p.seconds[stage, place] <= 0.0:
        return
    model = p.model[stage]
    if model >= 0:
        b.users[model, node] += 1
        if b.users[model, node] == 1 and not p.resident[model, node]:
            b.held[node] += p.weight[model]
    if p.memory[node] != np.inf:
        _rank(p, b, place, p.working[stage, p.variant[place]])


@inner
def _rank(p: Prepared, b: Board, place: int, size: float) -> None:
    slot = p.upto[place] - 1
    if size <= b.top[slot]:
        return
    b.busy[p.node[place]] += size - b.top[slot]
    while slot > p.lanes[place] and b.top[slot - 1] < size:
        b.top[slot] = b.top[slot - 1]
        slot -= 1
    b.top[slot] = size


@inner
def lift(p: Prepared, b: Board, stage: int) -> None:
    """Takes the stage off its place and its lane. A model that it loaded is left without a loader."""
    place = b.place[stage]
    node = p.node[place]
    b.place[stage] = NOT_YET
    group = p.together[stage]
    if group >= 0:
        b.group_count[group] -= 1
    group = p.apart[stage]
    if group >= 0:
        b.taken[group, p.zone[group, node]] -= 1
    b.drawn[node] -= p.charge[stage, place]
    if p.seconds[stage, place] <= 0.0:
        return
    unlink(b, stage)
    model = p.model[stage]
    if model >= 0:
        b.users[model, node] -= 1
        if b.users[model, node] == 0 and not p.resident[model, node]:
            b.held[node] -= p.weight[model]
        if b.loader[model, node] == stage:
            b.loader[model, node] = NONE
    if p.memory[node] != np.inf:
        for slot in range(p.lanes[place], p.upto[place]):
            b.busy[node] -= b.top[slot]
            b.top[slot] = 0.0
        for lane in range(p.lanes[place], p.upto[place]):
            other = b.first[lane]
            while other >= 0:
                _rank(p, b, place, p.working[other, p.variant[b.place[other]]])
                other = b.after[other]


@inlined
def crowds(p: Prepared, b: Board, stage: int, node: int) -> float:
    """What the stage costs there for others of its group that stand in the zone, where they may."""
    group = p.apart[stage]
    if group < 0 or p.crowding[group] == np.inf or b.taken[group, p.zone[group, node]] <= 0:
        return 0.0
    return p.crowding[group]


@inlined
def crowding(p: Prepared, b: Board) -> float:
    """What all that share a zone cost."""
    total = 0.0
    for group in range(len(p.crowding)):
        if p.crowding[group] < np.inf:
            for zone in range(b.taken.shape[1]):
                total += p.crowding[group] * max(0, b.taken[group, zone] - 1)
    return total


@inlined
def link(b: Board, stage: int, lane: int, before: int) -> None:
    """Puts the stage on a lane, behind `before`, or first."""
    after = b.first[lane] if before < 0 else b.after[before]
    b.lane[stage] = lane
    b.before[stage] = before
    b.after[stage] = after
    if before < 0:
        b.first[lane] = stage
    else:
        b.after[before] = stage
    if after < 0:
        b.last[lane] = stage
    else:
        b.before[after] = stage


@inlined
def unlink(b: Board, stage: int) -> None:
    """Takes the stage off its lane."""
    lane, before, after = b.lane[stage], b.before[stage], b.after[stage]
    if before < 0:
        b.first[lane] = after
    else:
        b.after[before] = after
    if after < 0:
        b.last[lane] = before
    else:
        b.before[after] = before
    b.lane[stage] = NONE


@inlined
def pays(p: Prepared, b: Board, stage: int, place: int) -> bool:
    """Whether the stage, put there, would have to load its model or wait for it: it is not resident."""
    model = p.model[stage]
    if model < 0 or p.started[stage] or p.seconds[stage, place] <= 0.0:
        return False
    return not p.resident[model, p.node[place]]
