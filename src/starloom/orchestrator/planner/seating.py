"""A place for every stage where lists run into dead ends: what found none goes first the next time. Compiled.

What must hold of places does not depend on the clock, so that a full set of places is a schedule in any order. After
the squeaky wheel of Joslin and Clements 1999.
"""

import numpy as np

from starloom.orchestrator.planner.compiled import inner, lean
from starloom.orchestrator.planner.prepared import NONE, Board, Numbers, Prepared
from starloom.orchestrator.planner.problem import Floats
from starloom.orchestrator.planner.standing import clear, fits, settle

TRIES_MAX = 200


@inner
def _seat(p: Prepared, b: Board, turn: Numbers, pile: Floats) -> int:
    """Gives each stage in turn the place that has least to do with it. Returns the turn of one that finds none, or -1."""
    clear(p, b)
    for place in range(len(pile)):
        pile[place] = p.available[place]
    for index in range(len(turn)):
        stage = turn[index]
        best, found = np.inf, NONE
        for place in range(len(p.node)):
            if not p.allowed[stage, place]:
                continue
            slots = p.upto[place] - p.lanes[place]
            value = pile[place] + p.seconds[stage, place] / slots + p.penalty[stage, place]
            if value < best and fits(p, b, stage, place):
                best, found = value, place
        if found < 0:
            return index
        settle(p, b, stage, found)
        more = p.seconds[stage, found] / (p.upto[found] - p.lanes[found])
        for place in range(len(pile)):
            if p.lanes[place] == p.lanes[found]:
                pile[place] += more
    return NONE


@lean
def seats(p: Prepared, b: Board, turn: Numbers, pile: Floats) -> bool:
    """Leaves a place for each stage in `b.place`; False if none was found in TRIES_MAX tries. `pile` [m]: scratch.

    `turn` [n]: who chooses first; it is changed.
    """
    for _ in range(TRIES_MAX):
        stuck = _seat(p, b, turn, pile)
        if stuck < 0:
            return True
        stage = turn[stuck]
        for index in range(stuck, 0, -1):
            turn[index] = turn[index - 1]
        turn[0] = stage
    return False
