"""`starloom plan` for jobs that come again and again: the period that is held, what limits it, and how long rounds take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from starloom.dag import limits
from starloom.dag.errors import Problem
from starloom.orchestrator.cli.output import Output
from starloom.orchestrator.planner.pacing import Chosen, conflict, held_by_none
from starloom.orchestrator.planner.steady import Load, loads

if TYPE_CHECKING:
    from starloom.orchestrator.planner.problem import Problem as Planned
    from starloom.orchestrator.planner.promises import Kept

_MILLIS: Final = 1000.0
_SHOWN: Final = 8
"""Resources in the table, the fullest first."""
_EFFORT: Final = 0.5
"""CP-SAT's deterministic time for each stage that may be none of a conflict, about seconds."""


class ToldPaced:
    """What rounds of a plan are like. `jobs`: their names. `round`: what one is, a job or a chunk."""

    def __init__(self, problem: "Planned", chosen: Chosen, jobs: Sequence[str], chunks: bool = False) -> None:
        self.problem, self.chosen, self.jobs = problem, chosen, jobs
        self.round = "a chunk" if chunks else "a round"
        self.loads = loads(problem, chosen.best.found.plan.place, chosen.best.pace)

    @property
    def kept(self) -> bool:
        """Whether the period is held and all that was promised is."""
        return self.chosen.best.holds and all(each.met for each in self.chosen.best.kept)

    def tell(self, asked: bool, out: Output) -> dict[str, Any]:
        """All of it, as text and for JSON. `asked`: whether a period was, or the plan tells how short it can be."""
        best = self.chosen.best
        out.text(f"\n{self._period(asked)}")
        rows = [
            [each.what, f"{each.seconds:.4g} s", f"{each.seconds / best.pace.every:.0%}", self._names(each.stages)]
            for each in self.loads[:_SHOWN]
        ]
        out.table(["BUSY", f"FOR {self.round.upper()}", "OF THE PERIOD", "WITH"], rows)
        for job, name in enumerate(self.jobs):
            p50, p95, p99 = (f"{best.rounds.quantile(share, job):.4g} s" for share in (0.5, 0.95, 0.99))
            whose = f"{self.round} of {name}" if len(self.jobs) > 1 else self.round
            out.text(
                f"{whose}, every {best.pace.period(job):.4g} s: half end within {p50}, 95 % within {p95}, 99 % within {p99}"
            )
        for kept in best.kept:
            out.text(self._promise(kept))
        told = self._json(asked)
        for problem in self._why():
            out.text(f"{problem}")
        return told

    def _period(self, asked: bool) -> str:
        best = self.chosen.best
        if not self.loads:
            return f"{self.round} keeps nothing busy: it may come as often as one likes"
        first = self.loads[0]
        holds = f"{self.round} may come every {best.work.least_period:.4g} s: {first.what} is busy for {first.seconds:.4g} s then"
        holds += f", {limits.PLAN_LOAD_MAX:.0%} of it"
        if not asked:
            return holds
        verdict = "is held" if best.holds else "is not held"
        return f"a period of {best.pace.every:.4g} s {verdict}; {holds}"

    def _why(self) -> list[Problem]:
        """Why the period is not held: what takes too much, wherever it stands, and what would be enough."""
        best, least = self.chosen.best, self.chosen.least
        if best.holds:
            return []
        found = [Problem("conflict", each) for each in best.overfull]
        if not held_by_none(best.pace, least):
            bound = f"none holds less than {least.bound / limits.PLAN_LOAD_MAX:.4g} s"
            if self.chosen.none:
                shown = "beside the models that stages have, their memory and their order, as CP-SAT has shown"
                return [*found, Problem("conflict", f"no plan holds it {shown}; by sums alone {bound}"), self._enough()]
            return [*found, Problem("unproven", f"no placement was found that holds it, which is no proof; {bound}")]
        core = conflict(self.problem, best.pace, least, _EFFORT)
        if core is not None:
            others = "the others fit" if core.smallest else "the others are not shown to be too much"
            found = [
                Problem(
                    "conflict",
                    f"{self._each(core.stages)}: wherever these stand, something is busy for more than {best.pace.cap:.4g} s of "
                    f"{best.pace.every:.4g} s; without any one of them {others}",
                )
            ]
        return [*found, self._enough()]

    def _enough(self) -> Problem:
        best = self.chosen.best
        enough = f"a period of {best.work.least_period:.4g} s"
        if len(best.overfull) == 1 and self.loads[0].kind == "slots" and len(self.loads[0].stages) > 1:
            enough += f", or more slots for {self.loads[0].what}"
        return Problem("enough would be", enough)

    def _each(self, stages: Sequence[int]) -> str:
        """Stages, with the places that they may have and the least that they take there."""
        told = []
        for stage in stages:
            seconds = self.problem.arrays.seconds[stage]
            # Variants of a stage are places of their own, on one target.
            targets = (place._replace(variant=0) for place in self.problem.places)
            able = [str(place) for place, takes in zip(targets, seconds, strict=True) if takes < float("inf")]
            able = list(dict.fromkeys(able))
            where = ", ".join(able) if len(able) <= _SHOWN else f"{len(able)} places"
            told.append(f"{self.problem.stages[stage]} ({seconds.min():.4g} s at the least, on {where})")
        return "; ".join(told)

    def _promise(self, kept: "Kept") -> str:
        whose = f"{self.jobs[kept.job]}: " if len(self.jobs) > 1 else ""
        verdict = "kept" if kept.met else "not kept"
        return (
            f"{whose}{kept.what} within {kept.seconds:.4g} s is {verdict}: {kept.attained:.1%} of rounds are, of "
            f"{kept.share:.0%} promised, and {kept.share:.0%} are within {kept.took:.4g} s"
        )

    def _names(self, stages: Sequence[int]) -> str:
        names = [self.problem.stages[stage] for stage in stages]
        return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

    def _load(self, load: Load) -> dict[str, Any]:
        names = [self.problem.stages[stage] for stage in load.stages]
        share = load.seconds / self.chosen.best.pace.every
        return {"what": load.what, "kind": load.kind, "seconds": load.seconds, "share": share, "stages": names}

    def _json(self, asked: bool) -> dict[str, Any]:
        best, least = self.chosen.best, self.chosen.least
        return {
            "every": best.pace.every if asked else None,
            "holds": best.holds,
            "least_period": best.work.least_period,
            "least_period_bound": least.bound / limits.PLAN_LOAD_MAX,
            "load_max": limits.PLAN_LOAD_MAX,
            "bottleneck": self.loads[0].what if self.loads else None,
            "loads": [self._load(each) for each in self.loads],
            "jobs": [
                {
                    "name": name,
                    "every": best.pace.period(job),
                    "p50": best.rounds.quantile(0.5, job),
                    "p95": best.rounds.quantile(0.95, job),
                    "p99": best.rounds.quantile(0.99, job),
                    "rounds": int((best.rounds.job == job).sum()),
                    "slo": [
                        {
                            "what": kept.what,
                            "seconds": kept.seconds,
                            "share": kept.share,
                            "attained": kept.attained,
                            "took": kept.took,
                            "met": kept.met,
                        }
                        for kept in best.kept
                        if kept.job == job
                    ],
                }
                for job, name in enumerate(self.jobs)
            ],
            "why": [str(each) for each in self._why()],
            "tried": self.chosen.tried,
        }
