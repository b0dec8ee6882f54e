"""Requirements of a job on tiers: pinned sensors, private data, operators without support, models, memory and groups.

One edge node holds everything and has no limit, so that what may leave the devices always has a place.
"""

from typing import Any, Final

import numpy as np

from starloom.dag.constellation import Tier
from starloom.orchestrator.bench.placing.draws import Draws
from starloom.orchestrator.bench.placing.jobs import Job
from starloom.orchestrator.bench.placing.networks import Network
from starloom.orchestrator.planner.problem import NO_MODEL, Flags, Floats, Indices

_PINNED: Final = 0.5
_PRIVATE: Final = 0.3
_DECLASSIFIES: Final = 0.3
_UNSUPPORTED: Final = 0.35
_MODELS: Final = 4
_HAS_MODEL: Final = 0.4
_RESIDENT: Final = 0.2
_GROUPS_EACH: Final = 40
_GROUPS_MAX: Final = 25
_APART: Final = 3


def drawn(made: Job, on: Network, seconds: Floats, draws: Draws) -> dict[str, Any]:
    """What `planner.problem.problem` takes by name, with `seconds` [n, m] infinite where a stage may not run."""
    allowed, free = _allowed(made, on, draws)
    models = _models(made, on, free, draws)
    groups = _groups(made, free, draws)
    return {"seconds": np.where(allowed, seconds, np.inf), **models, **groups}


def _allowed(made: Job, on: Network, draws: Draws) -> tuple[Flags, Flags]:
    """[n, m] where stages may run, and [n] those that are not pinned."""
    n = len(made.work)
    tier_of = np.array([list(Tier).index(tier) for tier in on.tiers])[on.node]
    ups: list[list[int]] = [[] for _ in range(n)]
    for up, down in made.edges:
        ups[down].append(up)
    sinks = np.ones(n, dtype=bool)
    sinks[[up for up, _ in made.edges]] = False
    npu = np.array([place.target == "npu" for place in on.places])
    devices = np.flatnonzero((tier_of == 0) & ~npu)
    allowed = np.ones((n, len(on.places)), dtype=bool)
    free = np.ones(n, dtype=bool)
    private = np.zeros(n, dtype=bool)
    for stage in range(n):
        if not ups[stage]:
            private[stage] = draws.chance(_PRIVATE)
        else:
            private[stage] = any(private[up] for up in ups[stage])
        if private[stage]:
            allowed[stage] &= tier_of < list(Tier).index(Tier.CLOUD)
            # What it makes of private data is private again, unless it declassifies it.
            private[stage] = not draws.chance(_DECLASSIFIES)
        if draws.chance(_UNSUPPORTED):
            allowed[stage] &= ~npu
        if (not ups[stage] or sinks[stage]) and draws.chance(_PINNED):
            allowed[stage] = np.arange(len(npu)) == devices[draws.below(len(devices))]
            free[stage] = False
    return allowed, free


def _models(made: Job, on: Network, free: Flags, draws: Draws) -> dict[str, Any]:
    """Models that stages load unless they are pinned, and memory: of devices for one large model, of edge nodes for two."""
    n, k = len(made.work), len(on.tiers)
    # Sensors and actuators need no model: two of them on a device with two models would have no plan.
    has = np.array([draws.chance(_HAS_MODEL) for _ in range(n)]) & free
    which = np.where(has, [draws.below(_MODELS) for _ in range(n)], NO_MODEL)
    weight = draws.uniform(1.0, 3.0, _MODELS)
    working = draws.uniform(0.1, 1.0, n)
    resident = draws.uniform(0.0, 1.0, _MODELS, k) < _RESIDENT
    memory = np.full(k, np.inf)
    ceiling = np.sort(weight)[::-1]
    for node, tier in enumerate(on.tiers):
        if tier is Tier.DEVICE:
            memory[node] = ceiling[0] + 2.0
            resident[:, node] = False
        elif tier is Tier.EDGE and node != on.tiers.index(Tier.EDGE):
            memory[node] = ceiling[0] + ceiling[1] + 4.0
            resident[:, node] &= np.cumsum(resident[:, node]) < 2
    return {
        "models": tuple(f"model-{index}" for index in range(_MODELS)),
        "model": which,
        "load_seconds": draws.uniform(0.5, 2.0, _MODELS, len(on.places)),
        "resident": resident,
        "weight_bytes": weight,
        "working_bytes": working,
        "memory_bytes": memory,
    }


def _groups(made: Job, free: Flags, draws: Draws) -> dict[str, Indices]:
    """Some pairs that share a node, upstream and downstream, and some triples that do not, none of them pinned."""
    n = len(made.work)
    together, apart = np.full(n, -1, dtype=np.int32), np.full(n, -1, dtype=np.int32)
    pairs = [(up, down) for up, down in made.edges if free[up] and free[down]]
    for group in range(min(_GROUPS_MAX, max(1, n // _GROUPS_EACH))):
        if pairs:
            up, down = pairs[draws.below(len(pairs))]
            if (together[[up, down]] < 0).all() and (apart[[up, down]] < 0).all():
                together[[up, down]] = group
        able = np.flatnonzero(free & (apart < 0) & (together < 0))
        if len(able) >= _APART:
            apart[draws.some(able, _APART)] = group
    return {"together": together, "apart": apart}
