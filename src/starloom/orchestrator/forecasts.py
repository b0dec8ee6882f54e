"""Run times of models on nodes where they did not run yet: what nodes measured of themselves, and what kinds ask.

    forecasts.meet(node, profile.measured)
    forecasts.seconds("vision.faces", node, "cpu")

A node's costs are `planner.predict`'s, fitted to the seconds of `agents.samples`, with those of the reference machine as
what was known before; runs of kinds that say what they ask go on teaching them (`planner.online`). All that is kept is plain
values that follow from facts, so that a replay gives the same and a snapshot can hold it.
"""

from collections.abc import Sequence
from functools import cache
from math import inf
from operator import mul
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starloom.agents import samples
from starloom.dag import limits
from starloom.dag.ids import AgentId
from starloom.devices.demand import Demand
from starloom.devices.node import Measured

if TYPE_CHECKING:
    from starloom.orchestrator.planner.features import Floats
    from starloom.orchestrator.planner.predict import Device, Prior


_LEAST_SHARE: Final = 0.02
"""No run is taken to be shorter than this share of a typical one: as `planner.predict` has it."""
_SAMPLE_SECONDS_MIN: Final = 1e-9
"""Of a sample's run: a clock tells no less."""
_ASKED_MIN: Final = 1e-6
_ASKED_MAX: Final = 1e21
"""What a run may be said to ask of anything, of which there has to be something: no run takes as many operations, or bytes."""


class NodeCosts(NamedTuple):
    """What a target of a node costs, as `planner.predict.Device` has it, in plain values.

    `mean` [p] and `covariance` [p * p]: seconds of each column of a usual sample, so that they add up to its run.
    `sampled`: the seconds that they were fitted to.
    """

    mean: tuple[float, ...]
    covariance: tuple[float, ...]
    typical: float
    noise: float
    multiplier: float
    surprises: int
    sampled: tuple[float, ...]


class Interval(NamedTuple):
    """Seconds of one run, and the bounds that are to hold 90 % of runs."""

    seconds: float
    low: float
    high: float


class _Reference(NamedTuple):
    """What is known before a node is: `scale` [p] makes demands features, `rows` [n, p] are those of the samples."""

    scale: tuple[float, ...]
    rows: Any
    prior: "Prior"
    seconds: float


class Forecasts:
    """Predictions by node and target, from profiles and what kinds ask. Pure; numpy is used when a node or a run is new."""

    __slots__ = ("asks", "nodes")

    def __init__(self) -> None:
        self.nodes: dict[tuple[AgentId, str], NodeCosts] = {}
        #: what a usual run of a kind asks, by kind and target
        self.asks: dict[tuple[str, str], Demand] = {}

    def meet(self, node: AgentId, measured: Measured | None) -> bool:
        """Takes in what a node tells of itself; whether anything of it is new.

        What runs have taught of a node stays as long as it tells of the same samples. Others than this version's are not
        understood, and passed over.
        """
        changed = False
        told = measured if measured is not None and measured.samples == samples.load().digest else Measured()
        for target in [target for name, target in self.nodes if name == node and target not in told.seconds]:
            del self.nodes[node, target]
            changed = True
        for target, seconds in told.seconds.items():
            known = self.nodes.get((node, target))
            if (known is None or known.sampled != seconds) and (fitted := _fitted(seconds)) is not None:
                self.nodes[node, target] = fitted
                changed = True
        for kind, by_target in told.asks.items():
            for target, asked in by_target.items():
                if self.asks.get((kind, target)) != asked and _can_be_asked(asked):
                    self.asks[kind, target] = asked
                    changed = True
        return changed

    def seconds(self, kind: str, node: AgentId, target: str) -> float | None:
        """What one run's models take there; None where the node has no profile, or it is not known what the kind asks."""
        costs, asked = self.nodes.get((node, target)), self.asks.get((kind, target))
        if costs is None or asked is None:
            return None
        # No run is nothing, whatever a line says that was drawn through samples of another size.
        told: float = sum(map(mul, costs.mean, _features(asked)))
        return max(told, _LEAST_SHARE * costs.typical)

    def slowness(self, node: AgentId, target: str) -> float | None:
        """How many times as long as on the reference machine a usual sample takes there; None without a profile."""
        costs = self.nodes.get((node, target))
        return None if costs is None else max(sum(costs.mean), _LEAST_SHARE * costs.typical) / _reference().seconds

    def interval(self, kind: str, node: AgentId, target: str) -> Interval | None:
        """As `seconds`, with bounds."""
        import numpy as np

        costs, asked = self.nodes.get((node, target)), self.asks.get((kind, target))
        if costs is None or asked is None:
            return None
        told = _device(costs).predict(np.array([_features(asked)]))
        return Interval(float(told.seconds[0]), float(told.low[0]), float(told.high[0]))

    def learn(self, kind: str, node: AgentId, target: str, seconds: float) -> bool:
        """Takes in a run that was measured; whether it taught anything of the node."""
        import numpy as np

        from starloom.orchestrator.planner.online import updated

        costs, asked = self.nodes.get((node, target)), self.asks.get((kind, target))
        if costs is None or asked is None or not 0 < seconds < inf:
            return False
        try:
            with np.errstate(over="raise", divide="raise", invalid="raise"):
                device = updated(_device(costs), np.array(_features(asked)), seconds)
        except ArithmeticError:
            # It is so far from all that was known that no costs come of it.
            return False
        self.nodes[node, target] = _plain(device, costs.sampled)
        return True


def _can_be_asked(asked: Demand) -> bool:
    """Whether a run may ask that; of anything else costs cannot be learned."""
    return (
        len(asked) == len(_reference().scale)
        and all(0.0 <= each <= _ASKED_MAX for each in asked)
        and max(asked) >= _ASKED_MIN
    )


def _features(asked: Sequence[float]) -> list[float]:
    return list(map(mul, asked, _reference().scale))


@cache
def _reference() -> _Reference:
    """The samples on the reference machine."""
    import numpy as np

    from starloom.orchestrator.planner import predict

    table = samples.load()
    demands = np.array(table.demands)
    scale = 1.0 / demands.mean(axis=0)
    rows = demands * scale
    shares = np.array([table.costs]) / sum(table.costs)
    sources = predict.Sources(shares, np.array([table.noise]), np.ones(1), ("reference",))
    seconds = float(np.sum(_fit(predict.prior(sources), rows, table.reference).mean))
    return _Reference(tuple(map(float, scale)), rows, predict.prior(sources), seconds)


def _fitted(seconds: Sequence[float]) -> NodeCosts | None:
    """A node's costs by the samples that it had time for; None without any, or for times that no machine has."""
    known = _reference()
    if len(seconds) != len(known.rows) or not any(each > 0 for each in seconds):
        return None
    # No machine is so fast or so slow, and no costs can be fitted to that.
    if not all(each <= 0 or _SAMPLE_SECONDS_MIN <= each <= limits.DURATION_SECONDS_MAX for each in seconds):
        return None
    return _plain(_fit(known.prior, known.rows, seconds), tuple(seconds))


def _fit(prior: "Prior", rows: "Floats", seconds: Sequence[float]) -> "Device":
    import numpy as np

    from starloom.orchestrator.planner import predict

    measured = [place for place, each in enumerate(seconds) if each > 0]
    return predict.fit(prior, rows[measured], np.array([seconds[place] for place in measured]))


def _plain(device: "Device", sampled: tuple[float, ...]) -> NodeCosts:
    return NodeCosts(
        tuple(map(float, device.mean)),
        tuple(map(float, device.covariance.ravel())),
        device.typical,
        device.noise,
        device.multiplier,
        device.surprises,
        sampled,
    )


def _device(costs: NodeCosts) -> "Device":
    import numpy as np

    from starloom.orchestrator.planner.predict import Device

    mean: Floats = np.array(costs.mean)
    covariance = np.array(costs.covariance).reshape(len(mean), len(mean))
    return Device(mean, covariance, costs.typical, costs.noise, costs.multiplier, costs.surprises)
