"""Random jobs that come again and again, planned for a period and judged: plans by the checkers, periods that none holds by CP-SAT.

That no placement holds a period is right if the stages that are named do not fit it, others aside, and all of them but any one do:
what shows it (`planner.balance.within`) places stages in time as well, and what says it sums up what is busy.
"""

from typing import Final

import numpy as np

from starloom.dag.errors import Infeasible
from starloom.orchestrator.bench.placing.cases import Shape, feasible
from starloom.orchestrator.bench.placing.judging import BUDGET, EXPLAINED, PLANNED, UNEXPLAINED, VIOLATION, Verdict
from starloom.orchestrator.planner.balance import taking, within
from starloom.orchestrator.planner.bills import Rates
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.filling import overfull
from starloom.orchestrator.planner.goals import Asked
from starloom.orchestrator.planner.pacing import Chosen, TooMuch, conflict, find_paced, held_by_none
from starloom.orchestrator.planner.planning import plan
from starloom.orchestrator.planner.problem import Plan, Problem
from starloom.orchestrator.planner.steady import Pace, pace, work

CASES: Final = 1_000
USUAL: Final = Shape(stages=(2, 10), nodes=(2, 5), running=0.0, waits=0.0, variants=0.3)
_PERIODS: Final = (0.2, 1.2)
"""As shares of the least period of the plan for one round."""
_ALONE: Final = 0.2
"""How many stages take one round after the other."""
_LOSS: Final = 0.1
"""What each variant lacks of the one before."""
_EFFORT: Final = 0.2
_SHOW_EFFORTS: Final = (1.0, 20.0)
"""CP-SAT's deterministic time for each thing to be shown; more where the first shows neither."""


def judged(index: int) -> Verdict:
    """The verdict on one case, which has a plan, for a period that some placement holds or none."""
    case, draw = feasible(index, USUAL), np.random.default_rng([index, 3])
    asked = case.problem
    n, k, m = len(asked.stages), len(asked.nodes), len(asked.places)
    loss = np.tile(_LOSS * np.arange(asked.arrays.working_bytes.shape[1]), (n, 1))
    rates = Rates(np.zeros(m), np.zeros(m), np.zeros((k, k)), np.zeros((k, k)), loss)

    def planned(what: Problem, warm: Plan | None) -> Plan:
        return plan(what, BUDGET, index, warm, case.reasons)

    try:
        least = work(asked, planned(asked, None).place, pace(asked, 0.0)).least_period
        often = pace(asked, least * float(draw.uniform(*_PERIODS)) or 1.0)._replace(alone=draw.random(n) < _ALONE)
        chosen = find_paced(asked, Asked(rates, effort=_EFFORT, seed=index), often, planned)
    except Infeasible as error:
        return Verdict(VIOLATION, 0, f"there is a plan; {error}")
    found = chosen.best.found.plan
    if wrong := faults(asked, found):
        return Verdict(VIOLATION, 0, "; ".join(wrong))
    if chosen.best.holds != (not list(overfull(asked, found.place, often))):
        return Verdict(VIOLATION, 0, "what is told of the period is not what the checker says")
    return Verdict(PLANNED) if chosen.best.holds else _explained(asked, often, chosen)


def amiss(asked: Problem, often: Pace, named: TooMuch) -> str:
    """What is wrong with stages that are told not to fit a period, in words; empty if they do not, and all but any one do if told so."""
    if holds(taking(asked, named.stages), often) is not False:
        return "they are not shown to be too much"
    for left_out in named.stages if named.smallest else ():
        if not holds(taking(asked, [each for each in named.stages if each != left_out]), often):
            return f"they are too much without {asked.stages[left_out]}"
    return ""


def holds(asked: Problem, often: Pace) -> bool | None:
    """Whether some plan holds the period, by one or by proof; None where neither was found."""
    for effort in _SHOW_EFFORTS:
        proof = within(asked, often, often.cap, effort=effort)
        if proof.plan is not None or proof.proven:
            return proof.plan is not None
    return None


def _explained(asked: Problem, often: Pace, chosen: Chosen) -> Verdict:
    if not held_by_none(often, chosen.least):
        known = holds(asked, often)
        if chosen.none:
            return Verdict(VIOLATION, 0, "a plan holds what none is told to hold") if known else Verdict(EXPLAINED)
        return Verdict(
            UNEXPLAINED, 0, "there is a plan that holds the period" if known else "none is shown to hold it, nor not"
        )
    named = conflict(asked, often, chosen.least, _EFFORT)
    if named is None:
        return Verdict(UNEXPLAINED, 0, "no stages were named that do not fit")
    if wrong := amiss(asked, often, named):
        return Verdict(VIOLATION, 1, f"{', '.join(asked.stages[each] for each in named.stages)}: {wrong}")
    return Verdict(EXPLAINED, 1)
