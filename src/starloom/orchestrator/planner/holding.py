"""What nodes hold, in a CP-SAT model: models loaded once and kept, memory as a running sum, nodes shared or not."""

from typing import Any

import numpy as np

from starloom.orchestrator.planner.model import Key, Model
from starloom.orchestrator.planner.problem import NO_MODEL, zones
from starloom.orchestrator.planner.ticks import NEVER, near

MEMORY_UNITS = 2**26
"""Into how many units a node's memory is divided. The checker grants a millionth, 67 units: more than rounding takes."""

GRANTED = 67


def hold(model: Model) -> None:
    """Add all of it."""
    _loads(model)
    for node in range(len(model.ticks.problem.nodes)):
        if np.isfinite(model.ticks.problem.arrays.memory_bytes[node]):
            _memory(model, node)
        if np.isfinite(model.ticks.problem.arrays.store[node]):
            _store(model, node)
    _groups(model)


def _loads(model: Model) -> None:
    """Who does not load its model starts when one of those who do on the node is done with it."""
    arrays, cp = model.ticks.problem.arrays, model.cp
    finders: dict[tuple[int, int], list[tuple[int, int]]] = {}
    loaders: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for stage, index in model.at(range(len(arrays.node))):
        mode, what = model.modes[stage][index], int(arrays.model[stage])
        key = (what, int(arrays.node[mode.place]))
        if what != NO_MODEL and not arrays.started[stage] and not arrays.resident[key]:
            (loaders if mode.loads else finders).setdefault(key, []).append((stage, index))
    for key, stages in finders.items():
        ready, first = cp.new_int_var(0, model.horizon, ""), []
        for stage, index in loaders.get(key, []):
            first.append(cp.new_bool_var(""))
            cp.add_implication(first[-1], model.uses[stage][index])
            done = model.start[stage] + model.modes[stage][index].load_ticks
            cp.add(ready >= done).only_enforce_if(first[-1])
        for stage, index in stages:
            cp.add_bool_or([*first, model.uses[stage][index].negated()])
            cp.add(model.start[stage] >= ready).only_enforce_if(model.uses[stage][index])


def _memory(model: Model, node: int) -> None:
    """Every model from the first start of one who uses it, to the end; and what runs, while it runs."""
    arrays, key = model.ticks.problem.arrays, ("memory", node)
    has = float(arrays.memory_bytes[node])
    unit = has / MEMORY_UNITS if has > 0 else 1.0
    weights = [_units(float(size), unit) for size in arrays.weight_bytes]
    room = MEMORY_UNITS + GRANTED if has > 0 else 0
    room -= sum(weights[index] for index in np.flatnonzero(arrays.resident[:, node]))
    users: dict[int, list[tuple[int, int]]] = {}
    working: dict[tuple[int, int], int] = {}
    for stage, index in model.at(np.flatnonzero(arrays.node == node).tolist()):
        place, what = model.modes[stage][index].place, int(arrays.model[stage])
        needs = _units(float(arrays.working_bytes[stage, arrays.variant[place]]), unit)
        if needs:
            working[stage, index] = needs
        if what != NO_MODEL and not arrays.resident[what, node]:
            users.setdefault(what, []).append((stage, index))
            needs += weights[what]
        if needs > room:
            model.cp.add_bool_or([model.uses[stage][index].negated(), *model.unless(key)])
    stages: dict[int, int] = {}
    for (stage, _), needs in working.items():
        stages[stage] = max(needs, stages.get(stage, 0))
    total = sum(stages.values()) + sum(weights[what] for what in users)
    if total > (room := max(room, 0)):
        most = model.capacity(key, room, total)
        held = _held(model, users, weights)
        intervals = [model.intervals[stage][index] for stage, index in working]
        demands = list(working.values())
        model.cp.add_cumulative(intervals + [span for _, span, _ in held], demands + [size for *_, size in held], most)
        # In the end all of them are there at once.
        model.cp.add(sum(literal * size for literal, _, size in held) <= most)


def _held(model: Model, users: dict[int, list[tuple[int, int]]], weights: list[int]) -> list[tuple[Any, Any, int]]:
    """Of each model: whether the node comes to hold it, from when on, and its units."""
    cp, found = model.cp, []
    for what, modes in users.items():
        literal, since = cp.new_bool_var(""), cp.new_int_var(0, model.horizon, "")
        lasts = cp.new_int_var(0, model.horizon + 1, "")
        for stage, index in modes:
            cp.add_implication(model.uses[stage][index], literal)
            cp.add(since <= model.start[stage]).only_enforce_if(model.uses[stage][index])
        found.append(
            (literal, cp.new_optional_interval_var(since, lasts, model.horizon + 1, literal, ""), weights[what])
        )
    return found


def _store(model: Model, node: int) -> None:
    """What all that stands there takes is no more than the node has."""
    arrays, key = model.ticks.problem.arrays, ("store", node)
    has = float(arrays.store[node])
    unit = has / MEMORY_UNITS if has > 0 else 1.0
    room = MEMORY_UNITS + GRANTED if has > 0 else 0
    terms, most = [], 0
    for stage, modes in enumerate(model.modes):
        here = []
        for index, mode in enumerate(modes):
            takes = _units(float(arrays.charge[stage, mode.place]), unit) if arrays.node[mode.place] == node else 0
            if takes:
                here.append(takes)
                terms.append(model.uses[stage][index] * takes)
        most += max(here, default=0)
    if most > room:
        model.cp.add(sum(terms) <= model.capacity(key, room, most))


def _units(size: float, unit: float) -> int:
    return int(np.ceil(min(size / unit, 2.0 * MEMORY_UNITS) - 1e-9))


def _groups(model: Model) -> None:
    arrays, cp = model.ticks.problem.arrays, model.cp
    for group in np.unique(arrays.together[arrays.together >= 0]).tolist():
        first, *others = np.flatnonzero(arrays.together == group).tolist()
        key: Key = ("together", group)
        for other in others:
            for node in sorted(model.on[first].keys() | model.on[other].keys()):
                a, b = (model.on[stage].get(node, 0) for stage in (first, other))
                cp.add(a == b).only_enforce_if(model.when(key))
    zone, crowding = zones(arrays)
    for group in np.unique(arrays.apart[arrays.apart >= 0]).tolist():
        members = np.flatnonzero(arrays.apart == group).tolist()
        more = int(near(crowding[[group]], model.ticks.tick)[0])
        for which in range(int(zone[group].max()) + 1):
            nodes = np.flatnonzero(zone[group] == which).tolist()
            here = [model.on[stage][node] for stage in members for node in nodes if node in model.on[stage]]
            if len(here) > 1 and more == NEVER:
                cp.add(sum(here) <= 1).only_enforce_if(model.when(("apart", group)))
            elif len(here) > 1 and more:
                beyond = cp.new_int_var(0, len(members), "")
                cp.add(beyond >= sum(here) - 1)
                model.costs.append(beyond * more)
