"""What `starloom plan` says of a plan: its table, what it takes, and what else would; as text and for JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from starloom.dag.constellation import Goal, Measure
from starloom.orchestrator.cli.output import Output
from starloom.orchestrator.planner import bound, whatif
from starloom.orchestrator.planner.bills import best_variants, least
from starloom.orchestrator.planner.building import Built
from starloom.orchestrator.planner.goals import SAME, Found, rank, rated
from starloom.orchestrator.planner.pacing import PACED
from starloom.orchestrator.planner.steady import Pace, work
from starloom.orchestrator.planner.timing import retimed
from starloom.orchestrator.planner.uplinks import carried, lags
from starloom.orchestrator.planner.whatif import Alternative, Loss

if TYPE_CHECKING:
    from starloom.orchestrator.planner.problem import Plan, Problem

_MILLIS: Final = 1000.0
_PAID: Final = ("JOULES", "PRICE")
_NO_PLAN: Final = "no plan"


class Told:
    """A plan that was found for goals and a deadline, 0 for none; and for rounds at a `pace`, if jobs come again and again."""

    def __init__(
        self, built: Built, found: Found, goals: Sequence[Goal], deadline: float, pace: Pace | None = None
    ) -> None:
        self.built, self.found, self.goals, self.deadline = built, found, goals, deadline
        #: where it says how often rounds come: else any plan holds as often as it can
        self.pace = pace if pace is not None and pace.every else None
        self.paid = built.rates.any
        self.least = bound.least(self._of_this_quality(), found.plan, found.bound)

    @property
    def gap(self) -> float | None:
        """By which share the plan's objective is above what no plan's is below; none where that is 0 and the plan's is not."""
        most, least = self.found.plan.objective, self.least.objective
        if most <= least:
            return 0.0
        return most / least - 1 if least > 0 else None

    def _of_this_quality(self) -> "Problem":
        """The problem without the variants that are out of the question where quality comes before all else."""
        asked = any(goal.by is Measure.QUALITY for goal in self.goals)
        best = None if asked else best_variants(self.built.problem, self.built.rates)
        if best is None or self.found.bill.loss > self._least(Measure.QUALITY) + SAME:
            return self.built.problem
        return best

    def plan(self, seconds: float, out: Output) -> dict[str, Any]:
        """The plan, found in so many seconds, without what else there could be."""
        self._table(out)
        out.text(f"\n{self._ends(seconds)}")
        self._takes(out)
        plan, taken = self.found.plan, self.found.bill
        told: dict[str, Any] = {
            "placement": self._placement(),
            "makespan": plan.makespan,
            "penalty": plan.penalty,
            "lower_bound": self.least.makespan,
            "objective_lower_bound": self.least.objective,
            "gap": self.gap,
            "planner_seconds": seconds,
            "method": plan.method,
            "objective": [{"by": str(goal.by), "weight": goal.weight, "within": goal.within} for goal in self.goals],
            "energy_joules": taken.joules,
            "energy_lower_bound": self._least(Measure.ENERGY),
            "price": taken.price,
            "price_lower_bound": self._least(Measure.PRICE),
            "period": _busiest(self.built.problem, self.found)[0],
            "quality_lost": taken.loss,
            "quality_lost_lower_bound": self._least(Measure.QUALITY),
            "batteries": {name: {"gives": drawn, "has": has} for name, drawn, has in self._batteries()},
        }
        if self.built.problem.uplinks:
            told["uplinks"] = _uplinks(self.built.problem, plan, out)
        if self.deadline:
            told["deadline"] = {"seconds": self.deadline, "met": self.found.ends_by(self.deadline)}
        return told

    def explain(self, stage: int, others: Sequence[Alternative], out: Output) -> dict[str, Any]:
        """What each other place of a stage would take, the best by the goals first, and why it may not have the rest."""
        built, disliked = self.built, self.built.disliked[stage]
        chosen = int(self.found.plan.place[stage])
        others = sorted(others, key=lambda each: (self._rank(each.plan), each.place != chosen))
        rows = []
        for each in others:
            here = ["chosen"] if each.place == chosen else []
            why = [
                *here,
                *self._late(each.plan),
                *disliked.get(each.place, ()),
                *([each.excluded] if each.excluded else []),
            ]
            rows.append([built.named(stage, each.place), *self._elsewhere(each.plan), "; ".join(why)])
        faults: dict[int, list[str]] = {}
        for fault, which in built.excluded[stage].items():
            for place in which:
                faults.setdefault(place, []).append(fault)
        barred = {built.named(stage, place): "; ".join(told) for place, told in faults.items()}
        blank = ["" for _ in self._columns()[1:]]
        rows += [[name, "excluded", *blank, f"{name} {fault}"] for name, fault in barred.items()]
        name = self.built.stages[stage]
        private = self.built.private.get(name, "")
        out.text("")
        out.table(["PLACE", *self._columns(), "WHY"], rows, title=f"{name}, elsewhere:")
        if private:
            out.text(f"{name}: {private}")
        told = [
            {"place": built.named(stage, each.place), **self._other(each.plan), "excluded": each.excluded}
            | self._variant(stage, each.place)
            | {"disliked": list(disliked.get(each.place, ()))}
            for each in others
        ]
        return {"stage": name, "private": private, "alternatives": told, "excluded": barred}

    def losses(self, losses: Sequence[Loss], out: Output) -> list[dict[str, Any]]:
        """What would be without each node that is used."""
        rows = [
            [
                each.node,
                len(each.stages),
                *self._elsewhere(each.plan),
                "; ".join([*self._late(each.plan), each.excluded]),
            ]
            for each in losses
        ]
        out.text("")
        out.table(["WITHOUT", "STAGES MOVE", *self._columns(), "WHY"], rows)
        return [
            {"node": each.node, "stages": each.stages, **self._other(each.plan), "excluded": each.excluded}
            for each in losses
        ]

    def _placement(self) -> dict[str, dict[str, Any]]:
        places, plan, taken = self.built.problem.places, self.found.plan, self.found.bill
        return {
            name: {
                "node": places[plan.place[index]].node,
                "target": places[plan.place[index]].target,
                **self._variant(index, int(plan.place[index])),
                "start": float(plan.start[index]),
                "finish": float(plan.finish[index]),
                "loads": bool(plan.loads[index]),
                "energy_joules": float(taken.stage_joules[index]),
                "price": float(taken.stage_price[index]),
            }
            for index, name in enumerate(self.built.stages)
        }

    def _variant(self, stage: int, place: int) -> dict[str, Any]:
        """The variant that a stage has at a place, and its quality; nothing for a stage without variants."""
        which = self.built.variant(stage, place)
        return {"variant": which.name, "quality": which.quality} if which else {}

    def _table(self, out: Output) -> None:
        rows, plan, built, taken = [], self.found.plan, self.built, self.found.bill
        lag = lags(built.problem, plan)
        for stage in sorted(range(len(built.stages)), key=lambda each: (plan.start[each], each)):
            made, place = whatif.part(built.problem, plan, stage, lag), built.problem.places[plan.place[stage]]
            times = (plan.start[stage], plan.finish[stage], made.transfer, made.load, made.run)
            takes = _figures(float(taken.stage_joules[stage]), float(taken.stage_price[stage])) if self.paid else []
            columns = [*(f"{value:.3f}" for value in times), *takes, made.last]
            named = built.variant(stage, int(plan.place[stage]))
            which = [f"{named.name} ({named.quality:g})" if named else ""] if built.variants else []
            rows.append([built.stages[stage], place.node, place.target, *which, *columns])
        which = ["VARIANT (QUALITY)"] if built.variants else []
        columns = ["STAGE", "NODE", "TARGET", *which, "START", "FINISH", "FETCH", "LOAD", "RUN"]
        out.table([*columns, *(_PAID if self.paid else ()), "AFTER"], rows)

    def _ends(self, seconds: float) -> str:
        """When the job ends; how far that is above what it can be is told where plans are to be fast before all else."""
        plan = self.found.plan
        first = self.goals[0].by if self.goals else Measure.LATENCY
        paid = any(goal.by is not Measure.LATENCY for goal in self.goals)
        by = f"the best by {', '.join(str(goal.by) for goal in self.goals)}; " if paid else ""
        how = f"{by}found by {plan.method} in {seconds * _MILLIS:.0f} ms"
        if first is not Measure.LATENCY:
            return f"the job ends after {plan.makespan:.3f} s, where any plan takes {self.least.makespan:.3f} s at the least; {how}"
        above = "above a" if self.gap is None else f"{self.gap:.1%} above a"
        above = f"{above} lower bound of {self.least.objective:.3f} s"
        if plan.penalty:
            above = f"and what is disliked counts {plan.penalty:.3f} s: together {above}"
        return f"the job ends after {plan.makespan:.3f} s, {above}; {how}"

    def _takes(self, out: Output) -> None:
        taken = self.found.bill
        seconds, busiest = _busiest(self.built.problem, self.found)
        if seconds:
            out.text(f"such jobs can follow each other every {seconds:.3f} s, which {busiest} is busy for each")
        if self.paid:
            joules, price = _figures(self._least(Measure.ENERGY), self._least(Measure.PRICE))
            takes, costs = _figures(taken.joules, taken.price)
            out.text(
                f"it takes {takes} J and costs {costs}, links included; any plan takes {joules} J and costs {price} at the least"
            )
        if self.built.variants:
            least = self._least(Measure.QUALITY)
            out.text(
                f"its variants lack {taken.loss:.4g} of a quality of 1, added up; any plan's lack {least:.4g} at the least"
            )
        for name, drawn, has in self._batteries():
            out.text(f"{name} gives {drawn:.4g} J of its {has:.4g} J")
        if self.deadline:
            late = self.found.plan.makespan - self.deadline
            missed = f"missed by {late:.3f} s; no plan was found that meets it"
            out.text(f"the deadline of {self.deadline:g} s is {'met' if self.found.ends_by(self.deadline) else missed}")

    def _least(self, measure: Measure) -> float:
        return least(self.built.problem, self.built.rates, measure)

    def _batteries(self) -> list[tuple[str, float, float]]:
        """Of each node with a battery what its stages take of it, and what it has, in joules."""
        problem, drawn = self.built.problem, self.found.bill.drawn
        stores = zip(problem.nodes, drawn.tolist(), problem.arrays.store.tolist(), strict=True)
        return [each for each in stores if each[2] < float("inf")]

    def _columns(self) -> list[str]:
        return ["JOB ENDS AFTER", "DIFFERENCE", *(_PAID if self.paid else ()), *self._lacks]

    @property
    def _lacks(self) -> list[str]:
        return ["QUALITY LOST"] if self.built.variants else []

    def _elsewhere(self, plan: "Plan | None") -> list[str]:
        """A row's columns: when the job ends then, how much later, and what that takes."""
        if plan is None:
            return [_NO_PLAN, *("" for _ in self._columns()[1:])]
        takes = self._other(plan)
        more = takes["objective"] - self.found.plan.objective
        paid = _figures(takes["energy_joules"], takes["price"]) if self.paid else []
        lacks = [f"{takes['quality_lost']:.4g}"] if self._lacks else []
        return [f"{takes['objective']:.3f} s", f"{more:+.3f} s", *paid, *lacks]

    def _other(self, plan: "Plan | None") -> dict[str, Any]:
        """What another plan takes, in each measure; without any, an objective of nothing."""
        if plan is None:
            return {"objective": None}
        other = self._rated(plan)
        return {
            "objective": plan.objective,
            "energy_joules": other.bill.joules,
            "price": other.bill.price,
            "period": _busiest(self.built.problem, other)[0],
            "quality_lost": other.bill.loss,
            **({"holds": self._holds(plan)} if self.pace else {}),
        }

    def _late(self, plan: "Plan | None") -> list[str]:
        """What another plan does not keep: the deadline, the period."""
        if plan is None:
            return []
        late = [] if self._rated(plan).ends_by(self.deadline) else [f"after the deadline of {self.deadline:g} s"]
        if self.pace and not self._holds(plan):
            late.append(f"does not hold the period of {self.pace.every:g} s")
        return late

    def _holds(self, plan: "Plan") -> bool:
        return self.pace is None or work(self.built.problem, plan.place, self.pace).fits(self.pace.cap)

    def _rank(self, plan: "Plan | None") -> tuple[float, ...]:
        if plan is None:
            return (float("inf"),)
        # Of other plans no rounds were simulated.
        goals = [goal for goal in self.goals if goal.by not in PACED]
        return (0.0 if self._holds(plan) else 1.0, *rank(self._rated(plan), goals, self.deadline))

    def _rated(self, plan: "Plan") -> Found:
        return rated(self.built.problem, self.built.rates, plan)


def _figures(joules: float, price: float) -> list[str]:
    return [f"{joules:.4g}", f"{price:.4g}"]


def _busiest(problem: "Problem", found: Found) -> tuple[float, str]:
    """For how many seconds each job keeps something busy that others share, slots or an up-link, and what that is."""
    busy = [(found.bill.period, str(problem.places[int(found.bill.work.argmax())]))]
    busy += [(each.seconds, f"the up-link {each.name}") for each in carried(problem, found.plan.place)]
    return max(busy, key=lambda each: each[0])


def _uplinks(problem: "Problem", plan: "Plan", out: Output) -> list[dict[str, Any]]:
    """What each way of an up-link carries, and what the job would take if no two values met there."""
    told = carried(problem, plan.place)
    for each in told:
        out.text(f"the up-link {each.name} carries {each.bytes:.4g} bytes, for {each.seconds:.3f} s at its full rate")
    alone = retimed(problem, plan).makespan
    if plan.makespan > alone * (1 + SAME):
        out.text(f"with each value alone on its way the job would end after {alone:.3f} s on the same places")
    stages = problem.stages
    return [each._asdict() | {"stages": [stages[stage] for stage in each.stages]} for each in told]
