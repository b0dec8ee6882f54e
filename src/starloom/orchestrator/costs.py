"""Seconds that runs and model loads take on a node: measured there, or told by what is known of it and of the kind."""

from enum import StrEnum
from math import inf, isinf, sqrt
from typing import Any, Final, NamedTuple

from starloom.dag import limits
from starloom.dag.facts import Timing
from starloom.dag.ids import AgentId
from starloom.dag.kinds import KindSpec
from starloom.devices.node import Measured
from starloom.orchestrator.forecasts import Forecasts

_NEWEST_SHARE: Final = 0.3
"""Weight of the newest run in a moving average."""
_TOLD_SECONDS_MIN: Final = 1e-3
"""Of shorter stages what the runtime adds is more than what their parameters tell, and a ratio says nothing."""
_DEVIATIONS: Final = 1.645
"""From the mean of a normal distribution to the bounds of its middle 90 %."""
_OFF_MAX: Final = 1e12
"""How many times its average a run may be off by. Beyond, it is no clock's, and squares are no numbers any more."""


class Source(StrEnum):
    """Where seconds come from: that kind ran there; it ran elsewhere; its graphs and the node's profile; its author."""

    MEASURED = "measured"
    SCALED = "scaled"
    PREDICTED = "predicted"
    HINTED = "hinted"


class Predicted(NamedTuple):
    """Seconds of one run, and the bounds that are to hold 90 % of runs: 0 and infinity where nothing tells of any."""

    seconds: float
    low: float
    high: float
    source: Source

    @property
    def deviation(self) -> float:
        """Standard deviation as a share of the seconds; PLAN_DEVIATION where nothing tells of any."""
        if isinf(self.high) or self.seconds <= 0:
            return limits.PLAN_DEVIATION
        return (self.high / self.seconds - 1.0) / _DEVIATIONS


class _Remembers:
    """What was worked out from the rest, and can be again: a slot of its own class, since images hold `Costs.__slots__`."""

    __slots__ = ("_worked_out",)

    def __new__(cls) -> "Any":
        made = super().__new__(cls)
        made._worked_out = {}
        return made

    _worked_out: dict[tuple[str, AgentId, str], float]


class Costs(_Remembers):
    """What runs have told, and what nodes and kinds tell of themselves. All of it follows from facts.

    A kind that ran elsewhere is taken to be as much slower or faster here as the two nodes' profiles say: for what its
    graphs ask, where that is known, and for the samples otherwise. One that ran nowhere is predicted by its graphs, or
    hinted at by its author. Of kinds whose parameters tell seconds (`dag.expectation`) it is the ratio to these that is
    learned; `told` are those seconds. A run counts there for as much as it was told to take: what the runtime adds is many
    times a short one, and next to nothing of a long one.
    """

    __slots__ = ("factor", "forecasts", "load", "ratio", "ratio_anywhere", "run", "run_anywhere", "spread", "told")

    def __init__(self) -> None:
        self.run: dict[tuple[str, AgentId, str], float] = {}
        #: on whichever node, for those where it did not run yet and of which no more is known
        self.run_anywhere: dict[tuple[str, str], float] = {}
        self.load: dict[str, float] = {}
        #: measured seconds to those that parameters tell
        self.ratio: dict[tuple[str, AgentId, str], float] = {}
        self.ratio_anywhere: dict[tuple[str, str], float] = {}
        #: the told seconds that those ratios rest on, of which older ones count for less
        self.told: dict[tuple[str, ...], float] = {}
        #: squared deviations from the average, relative to it
        self.spread: dict[tuple[str, AgentId, str], float] = {}
        self.forecasts = Forecasts()
        #: measured seconds of a kind to those that follow from profiles, on whichever node
        self.factor: dict[tuple[str, str], float] = {}

    def meet(self, node: AgentId, measured: Measured | None) -> None:
        """Takes in what a node tells of itself."""
        if not self.forecasts.meet(node, measured):
            return
        self._worked_out.clear()
        self.factor.clear()
        for (kind, where, target), seconds in self.run.items():
            if (base := self._base(kind, where, target)) and (kind, where, target) not in self.ratio:
                self.factor[kind, target] = _average(self.factor.get((kind, target)), seconds / base)

    def learn(self, kind: str, node: AgentId, target: str, timing: Timing, told: float | None = None) -> None:
        """Takes in one run."""
        here, anywhere = (kind, node, target), (kind, target)
        if timing.load > 0:
            self.load[kind] = _average(self.load.get(kind), timing.load)
        self.run_anywhere[anywhere] = _average(self.run_anywhere.get(anywhere), timing.run)
        self._worked_out.clear()
        if told is not None:
            if told >= _TOLD_SECONDS_MIN:
                share = self._share(here, told)
                self._spread(here, self.ratio.get(here), timing.run / told, share)
                self.ratio[here] = _average(self.ratio.get(here), timing.run / told, share)
                share = self._share(anywhere, told)
                self.ratio_anywhere[anywhere] = _average(self.ratio_anywhere.get(anywhere), timing.run / told, share)
            return
        self._spread(here, self.run.get(here), timing.run)
        self.run[here] = _average(self.run.get(here), timing.run)
        base = self._base(kind, node, target)
        if base and timing.run > 0:
            factor = self.factor.get(anywhere)
            self.factor[anywhere] = _average(factor, timing.run / base)
            if factor:
                self.forecasts.learn(kind, node, target, timing.run / factor)

    def run_seconds(self, kind: KindSpec, node: AgentId, target: str, told: float | None = None) -> float:
        """Seconds of one run there."""
        here = (kind.name, node, target)
        if told is not None:
            return told * self._ratio(here)
        found = self.run.get(here)
        if found is None and not self.forecasts.nodes:
            return self.run_anywhere.get((kind.name, target), kind.cost.run_seconds)
        if found is None:
            found = self._worked_out.get(here)
        if found is None:
            found = self._worked_out[here] = self._elsewhere(kind, node, target)[0]
        return found

    def predicted(self, kind: KindSpec, node: AgentId, target: str, told: float | None = None) -> Predicted:
        """As `run_seconds`, with bounds, and where it comes from."""
        here = (kind.name, node, target)
        known = self.run if told is None else self.ratio
        if here in known:
            return _within(self.run_seconds(kind, node, target, told), self.spread.get(here))
        if told is not None:
            source = Source.SCALED if here[::2] in self.ratio_anywhere else Source.HINTED
            return Predicted(told * self._ratio(here), 0.0, inf, source)
        seconds, source = self._elsewhere(kind, node, target)
        interval = self.forecasts.interval(kind.name, node, target)
        if interval is None or source is Source.HINTED or not interval.seconds:
            return Predicted(seconds, 0.0, inf, source)
        scale = seconds / interval.seconds
        return Predicted(seconds, scale * interval.low, scale * interval.high, source)

    def known(self, kind: KindSpec, target: str) -> bool:
        """Whether the kind ran on that target, on whichever node."""
        return (kind.name, target) in self.run_anywhere

    def load_seconds(self, kind: KindSpec) -> float:
        """Seconds to load what the kind needs, where it did not run yet."""
        return self.load.get(kind.name, kind.cost.load_seconds)

    def _elsewhere(self, kind: KindSpec, node: AgentId, target: str) -> tuple[float, Source]:
        """Seconds where it did not run yet."""
        anywhere = (kind.name, target)
        base, factor = self._base(kind.name, node, target), self.factor.get(anywhere)
        if base is not None and factor is not None:
            return base * factor, Source.SCALED
        if anywhere in self.run_anywhere:
            return self.run_anywhere[anywhere], Source.SCALED
        predicted = self.forecasts.seconds(kind.name, node, target)
        if predicted is not None:
            return predicted, Source.PREDICTED
        return kind.cost.run_seconds * (self.forecasts.slowness(node, target) or 1.0), Source.HINTED

    def _base(self, kind: str, node: AgentId, target: str) -> float | None:
        """What seconds of a kind are compared by between nodes; None for a node without a profile."""
        found = self.forecasts.seconds(kind, node, target)
        return self.forecasts.slowness(node, target) if found is None else found

    def _ratio(self, here: tuple[str, AgentId, str]) -> float:
        found = self.ratio.get(here)
        return self.ratio_anywhere.get((here[0], here[2]), 1.0) if found is None else found

    def _share(self, known: tuple[str, ...], told: float) -> float:
        """Of all that a ratio rests on then, the share that a run has of so many told seconds; of equal ones soon _NEWEST_SHARE."""
        before = (1.0 - _NEWEST_SHARE) * self.told.get(known, 0.0)
        self.told[known] = before + told
        return told / self.told[known]

    def _spread(
        self, here: tuple[str, AgentId, str], mean: float | None, newest: float, share: float = _NEWEST_SHARE
    ) -> None:
        if mean:
            off = min(newest / mean - 1.0, _OFF_MAX)
            self.spread[here] = _average(self.spread.get(here), off * off, share)


def _within(seconds: float, spread: float | None) -> Predicted:
    if spread is None:
        return Predicted(seconds, 0.0, inf, Source.MEASURED)
    reach = _DEVIATIONS * sqrt(spread) * seconds
    return Predicted(seconds, max(0.0, seconds - reach), seconds + reach, Source.MEASURED)


def _average(known: float | None, newest: float, share: float = _NEWEST_SHARE) -> float:
    return newest if known is None else known + share * (newest - known)
