"""Random problems: shapes of jobs, networks and requirements. The same numbers give the same problem.

Jobs: layered, fork and join, and Montage's shape. Networks: `uneven` (speeds and links drawn apart), and `tiered`
(devices, edge nodes and clouds, with slots, fast near and slow far). The communication-to-computation ratio is what
a mean transfer between two nodes takes over what a mean stage takes.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from starloom.orchestrator.planner.problem import Place, Problem, problem

SHAPES = ("layered", "fork", "montage")
NETWORKS = ("uneven", "tiered")
Edges = list[tuple[int, int]]


class Network(NamedTuple):
    """Places, work per second of each place, and links [k, k]."""

    places: list[Place]
    speed: npt.NDArray[np.float64]
    latency: npt.NDArray[np.float64]
    per_byte: npt.NDArray[np.float64]


def instance(shape: str, network: str, stages: int, nodes: int, ratio: float, seed: int) -> Problem:
    """A problem with no requirement but its dependencies."""
    names, places, seconds, edges, links = parts(shape, network, stages, nodes, ratio, seed)
    return problem(names, places, seconds, edges, **links)


def parts(shape: str, network: str, stages: int, nodes: int, ratio: float, seed: int) -> tuple[Any, ...]:
    """What `problem` takes: names, places, seconds, dependencies, and the links by name."""
    draw = np.random.default_rng(seed)
    pairs = {"layered": _layered, "fork": _fork, "montage": _montage}[shape](draw, stages)
    made = {"uneven": _uneven, "tiered": _tiered}[network](draw, nodes)
    work = draw.lognormal(0.0, 0.8, stages)
    fit = draw.uniform(0.7, 1.4, (stages, len(made.places)))
    seconds = work[:, None] / made.speed[None, :] * fit
    sizes = draw.lognormal(0.0, 0.8, len(pairs)) if pairs else np.zeros(0)
    apart = ~np.eye(nodes, dtype=bool)
    moved = made.per_byte[apart].mean() if nodes > 1 else 1.0
    scale = ratio * seconds.mean() / moved / max(float(sizes.mean()) if pairs else 1.0, 1e-9)
    edges = [(up, down, float(size * scale)) for (up, down), size in zip(pairs, sizes, strict=True)]
    names = [f"stage-{index}" for index in range(stages)]
    return names, made.places, seconds, edges, {"latency": made.latency, "seconds_per_byte": made.per_byte}


def constrained(stages: int, nodes: int, seed: int) -> Problem:
    """A problem with all kinds of requirements; it may have no plan."""
    draw = np.random.default_rng(seed)
    shape, network = SHAPES[seed % 3], NETWORKS[seed // 3 % 2]
    names, places, seconds, edges, links = parts(shape, network, stages, nodes, float(draw.uniform(0.1, 5)), seed)
    k, m, w = nodes, len(places), int(draw.integers(0, 4))
    seconds = np.where(draw.random((stages, m)) < 0.2, np.inf, seconds)
    seconds[np.isinf(seconds).all(axis=1), 0] = 1.0
    ended = int(draw.integers(0, max(1, stages // 5)))
    for stage in range(ended):
        if all(down != stage or up < ended for up, down, _ in edges):
            place = int(draw.integers(m))
            seconds[stage] = np.inf
            seconds[stage, place] = 0.0
    edges = [(up, down, size) for up, down, size in edges if not (seconds[down] == 0).any()]
    node_of = {name: index for index, name in enumerate(dict.fromkeys(place.node for place in places))}
    node = np.array([node_of[place.node] for place in places])
    resident = draw.random((w, k)) < 0.2
    weight = draw.uniform(0.5, 2.0, w)
    tight = np.where(draw.random(k) < 0.5, np.inf, draw.uniform(2.0, 8.0, k))
    memory = np.maximum(tight, 0.5 + (weight @ resident if w else np.zeros(k)))
    started = np.zeros(stages, dtype=bool)
    waiting = {down for _, down, _ in edges}
    busy = np.zeros(m, dtype=int)
    for stage in range(stages):
        if stage in waiting or (seconds[stage] == 0).any() or draw.random() < 0.5 or started.sum() >= 3:
            continue
        place = int(draw.choice(np.flatnonzero(np.isfinite(seconds[stage]))))
        if busy[place] < places[place].slots and memory[node[place]] == np.inf:
            busy[place] += 1
            started[stage] = True
            left = seconds[stage, place] * draw.random()
            seconds[stage] = np.inf
            seconds[stage, place] = left
    return _zoned(
        draw,
        problem(
            names,
            places,
            seconds,
            edges,
            **links,
            byte_penalty=draw.uniform(0, 0.01, (k, k)) * (draw.random() < 0.5),
            penalty=draw.uniform(0, 0.5, (stages, m)) * (draw.random() < 0.5),
            available=np.where(draw.random(m) < 0.7, 0.0, draw.uniform(0, 2, m)),
            release=np.where(draw.random(stages) < 0.8, 0.0, draw.uniform(0, 2, stages)),
            started=started,
            models=[f"model-{index}" for index in range(w)],
            model=draw.integers(-1, w, stages) if w else -1,
            load_seconds=draw.uniform(0, 2, (w, m)),
            resident=resident,
            weight_bytes=weight,
            working_bytes=draw.uniform(0, 1, stages),
            memory_bytes=memory,
            together=_groups(draw, stages, ~started),
            apart=_groups(draw, stages, ~started),
        ),
    )


def _zoned(draw: np.random.Generator, made: Problem) -> Problem:
    """Some of the groups that stand apart over zones, and some that may share one for a price."""
    shape = made.arrays.zone.shape
    zone = np.where(draw.random(shape[:1])[:, None] < 0.3, draw.integers(-1, max(2, shape[1]), shape), -1)
    crowding = np.where(draw.random(shape[0]) < 0.3, draw.uniform(0, 2, shape[0]), np.inf)
    charge = draw.uniform(0, 1, made.arrays.seconds.shape)
    most = draw.uniform(0.5, 1.0, shape[1]) * len(made.stages) / shape[1]
    store = np.where(draw.random(shape[1]) < 0.8, np.inf, most)
    return made._replace(
        arrays=made.arrays._replace(zone=zone.astype(np.int32), crowding=crowding, charge=charge, store=store)
    )


def _groups(draw: np.random.Generator, stages: int, free: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    found = np.full(stages, -1, dtype=np.int32)
    for group in range(int(draw.integers(0, 3))):
        able = np.flatnonzero(free & (found < 0))
        found[draw.choice(able, size=min(len(able), 2), replace=False)] = group
    return found


def _layered(draw: np.random.Generator, stages: int) -> Edges:
    width = max(1, round(float(np.sqrt(stages) * draw.uniform(0.5, 2.0))))
    layer = np.sort(draw.integers(0, max(1, stages // width), stages))
    edges: Edges = []
    for stage in range(stages):
        above = np.flatnonzero(layer == layer[stage] - 1)
        if len(above):
            leads = draw.choice(above, size=min(len(above), 1 + int(draw.poisson(1.5))), replace=False)
            edges += [(int(up), stage) for up in sorted(leads)]
    return edges


def _fork(draw: np.random.Generator, stages: int) -> Edges:
    edges: Edges = []
    head, at = 0, 1
    while at < stages:
        width = min(stages - at, int(draw.integers(2, max(3, stages // 3))))
        edges += [(head, at + index) for index in range(width)]
        if at + width < stages:
            edges += [(at + index, at + width) for index in range(width)]
        head, at = at + width, at + width + 1
    return edges


def _montage(draw: np.random.Generator, stages: int) -> Edges:
    """Project, difference of neighbours, fit, model, correct, add: Montage's levels, as many images as fit."""
    images = max(1, (stages - 4) // 4)
    pairs = max(0, stages - 4 - 2 * images)
    if stages < 8:
        return [(index, index + 1) for index in range(stages - 1)]
    fit, model = images + pairs, images + pairs + 1
    correct, add = model + 1, model + 1 + images
    edges: Edges = []
    for index in range(pairs):
        first = index % images
        second = (first + 1 + int(draw.integers(0, 3))) % images
        edges += [(image, images + index) for image in sorted({first, second})]
        edges.append((images + index, fit))
    edges.append((fit, model))
    for image in range(images):
        edges += [(image, correct + image), (model, correct + image), (correct + image, add)]
    edges += [(stage, stage + 1) for stage in range(add, stages - 1)]
    return edges


def _uneven(draw: np.random.Generator, nodes: int) -> Network:
    places = [Place(f"node-{index}") for index in range(nodes)]
    speed = draw.uniform(1.0, 4.0, nodes)
    per_byte = draw.lognormal(0.0, 0.7, (nodes, nodes))
    return Network(places, speed, draw.uniform(0, 0.05, (nodes, nodes)), (per_byte + per_byte.T) / 2)


def _tiered(draw: np.random.Generator, nodes: int) -> Network:
    """Half devices of one slot, some edge nodes with an accelerator, the rest clouds of four slots."""
    tier = np.array([0] * ((nodes + 1) // 2) + [1] * (nodes // 3) + [2] * nodes)[:nodes]
    names = [f"{('device', 'edge', 'cloud')[which]}-{index}" for index, which in enumerate(tier)]
    places = [Place(name, "cpu", (1, 2, 4)[which]) for name, which in zip(names, tier, strict=True)]
    places += [Place(name, "npu") for name, which in zip(names, tier, strict=True) if which == 1]
    speed = np.array([(1.0, 3.0, 8.0)[tier[names.index(p.node)]] * (2.0 if p.target == "npu" else 1.0) for p in places])
    far = np.maximum(tier[:, None], tier[None, :])
    per_byte = np.choose(far, [1.0, 0.3, 2.0]) * draw.uniform(0.7, 1.4, (nodes, nodes))
    latency = np.choose(far, [0.005, 0.01, 0.05])
    return Network(places, speed * draw.uniform(0.8, 1.25, len(places)), latency, per_byte)
