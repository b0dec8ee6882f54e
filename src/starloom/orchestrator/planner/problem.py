"""What is to be planned, as arrays: stages, places, what runs and transfers take, and what must hold.

n stages, m places, k nodes, e dependencies, w models, v variants of the stage that has most. A variant of a stage is a
place of its own, so that where it runs and how is chosen at once: it has the slots of the place that stands for the first.
A stage that has ended is one that takes no time on the place
that holds its outputs; one that runs is `started`, may stand on its own place only, and takes what is left of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from starloom.dag import limits
from starloom.dag.errors import InvalidInput
from starloom.dag.errors import Problem as Trouble

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

NO_MODEL = -1

PROVEN = ", proven best"
"""What a plan's method ends with if CP-SAT has shown that none is better by more than some millionths."""


class Place(NamedTuple):
    """A target of a node: its CPU, its NPU. At most `slots` stages run there at one time.

    `variant`: the number of that in which a stage runs there. Those of one target share its slots.
    """

    node: str
    target: str = "cpu"
    slots: int = 1
    variant: int = 0

    def __str__(self) -> str:
        name = self.node if self.target == "cpu" else f"{self.node}/{self.target}"
        return f"{name}, variant {self.variant + 1}" if self.variant else name


class Arrays(NamedTuple):
    """The numbers of a problem, as compiled code takes them. Shapes in brackets.

    `seconds` [n, m]: a run of the stage there, infinite where it may not run, or has no such variant. `penalty` [n, m]: what standing there
    costs beside time (energy, price, dislike, moving), in seconds. `node` [m], `slots` [m], `variant` [m]: of each place.
    `shares` [m]: the first place with the same slots. `variants` [n]: how many each stage has, 1 or more. `available`
    [m]: seconds until the place takes new work. `release` [n]: seconds before which a stage may not start. `started`
    [n]. `upstream`, `downstream` [e]: stages; `size_bytes` [e]: what moves from one to the other. `latency`,
    `seconds_per_byte`, `byte_penalty` [k, k], from row to column, zero on the diagonal. `model` [n]: or NO_MODEL.
    `load_seconds` [w, m]; `resident` [w, k]; `weight_bytes` [w]; `working_bytes` [n, v]: while the stage runs, beside its
    model; `memory_bytes` [k], infinite where it is not known. `together`, `apart` [n]: groups that must share a node,
    that must not share a zone; -1 for none. `zone` [g, k]: of each group apart, which zone a node is in; -1 where it is
    one by itself. `charge` [n, m]: joules that standing there takes of the node's `store` [k], which a plan cannot exceed.
    `crowding` [g]: the penalty of each stage in a zone beyond the first, infinite where there may be none.
    """

    seconds: Floats
    penalty: Floats
    node: Indices
    slots: Indices
    variant: Indices
    shares: Indices
    variants: Indices
    available: Floats
    release: Floats
    started: Flags
    upstream: Indices
    downstream: Indices
    size_bytes: Floats
    latency: Floats
    seconds_per_byte: Floats
    byte_penalty: Floats
    model: Indices
    load_seconds: Floats
    resident: Flags
    weight_bytes: Floats
    working_bytes: Floats
    memory_bytes: Floats
    together: Indices
    apart: Indices
    zone: Indices
    crowding: Floats
    charge: Floats
    store: Floats


class Uplink(NamedTuple):
    """A way that all values share that go from some nodes, by their numbers, to any others, or come to them.

    `up`, `down`: bytes a second from them and to them. `half`: both share `up`, and what goes from one of the nodes to
    another takes it twice, as over a radio's access point; otherwise that does not pass the up-link.
    """

    name: str
    nodes: tuple[int, ...]
    up: float
    down: float
    half: bool = False


class Problem(NamedTuple):
    """Names beside numbers. Make one with `problem`, which checks it. `tiers` [k]: what kind of node each is, by number.

    Tiers say where to look first, and ask for nothing; none where they are not known. `barred` [n, m]: what a stage would
    take where it may not run, infinite where that is not known: to tell what a requirement stands in the way of. `uplinks`:
    that nodes share, as `uplinks.shared` gives them to a problem; other links are taken as free of contention.
    """

    stages: tuple[str, ...]
    places: tuple[Place, ...]
    nodes: tuple[str, ...]
    models: tuple[str, ...]
    arrays: Arrays
    tiers: tuple[int, ...] = ()
    barred: Floats | None = None
    uplinks: tuple[Uplink, ...] = ()

    @property
    def free(self) -> "Problem":
        """The same with all links free of contention, as most that makes plans takes them. Bounds and conflicts of it are bounds and conflicts of this one."""
        return self._replace(uplinks=()) if self.uplinks else self


class Plan(NamedTuple):
    """Where and when each stage runs.

    `place` [n]: index. `start`, `finish` [n], in seconds from now; a finish includes loading. `loads` [n]: whether the
    stage loads its model first. `makespan`: the last finish. `penalty`: of all places and transfers. `method`: what
    found it.
    """

    place: Indices
    start: Floats
    finish: Floats
    loads: Flags
    makespan: float
    penalty: float
    method: str

    @property
    def objective(self) -> float:
        """What the planner makes small, in seconds."""
        return self.makespan + self.penalty


def problem(
    stages: Sequence[str],
    places: Sequence[Place],
    seconds: npt.ArrayLike,
    dependencies: Sequence[tuple[int, int, float]] = (),
    *,
    latency: npt.ArrayLike = 0.0,
    seconds_per_byte: npt.ArrayLike = 0.0,
    byte_penalty: npt.ArrayLike = 0.0,
    penalty: npt.ArrayLike = 0.0,
    available: npt.ArrayLike = 0.0,
    release: npt.ArrayLike = 0.0,
    started: npt.ArrayLike = False,
    models: Sequence[str] = (),
    model: npt.ArrayLike = NO_MODEL,
    load_seconds: npt.ArrayLike = 0.0,
    resident: npt.ArrayLike = False,
    weight_bytes: npt.ArrayLike = 0.0,
    working_bytes: npt.ArrayLike = 0.0,
    memory_bytes: npt.ArrayLike = np.inf,
    together: npt.ArrayLike = -1,
    apart: npt.ArrayLike = -1,
    tiers: Sequence[int] = (),
    zone: npt.ArrayLike = -1,
    crowding: npt.ArrayLike = np.inf,
    charge: npt.ArrayLike = 0.0,
    store: npt.ArrayLike = np.inf,
    variants: npt.ArrayLike = 1,
) -> Problem:
    """A checked problem; single numbers are spread over their shape, and diagonals of links set to zero.

    Of `working_bytes` one number for each stage is that of all its variants. `dependencies`: upstream, downstream, bytes. Raises InvalidInput with every fault: shapes, negative numbers, a
    dependency on no stage or on itself, a cycle.
    """
    nodes = tuple(dict.fromkeys(place.node for place in places))
    n, m, k, w = len(stages), len(places), len(nodes), len(models)
    g, v = int(np.max(apart, initial=-1)) + 1, max((place.variant for place in places), default=0) + 1
    firsts: dict[tuple[str, str], int] = {}
    shares = [firsts.setdefault((place.node, place.target), index) for index, place in enumerate(places)]
    working = np.asarray(working_bytes, dtype=np.float64)
    numbers = {name: index for index, name in enumerate(nodes)}
    edges = np.array([(up, down) for up, down, _ in dependencies], dtype=np.int32).reshape(-1, 2)
    troubles: list[Trouble] = []

    def fill(name: str, value: npt.ArrayLike, shape: tuple[int, ...], kind: type) -> npt.NDArray[np.generic]:
        try:
            return np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype=kind), shape)).copy()
        except (ValueError, TypeError) as error:
            troubles.append(Trouble(name, f"does not fit the shape {shape}: {error}"))
            return np.zeros(shape, dtype=kind)

    given = {
        "seconds": (seconds, (n, m), np.float64),
        "penalty": (penalty, (n, m), np.float64),
        "node": ([numbers[place.node] for place in places], (m,), np.int32),
        "slots": ([place.slots for place in places], (m,), np.int32),
        "variant": ([place.variant for place in places], (m,), np.int32),
        "shares": (shares, (m,), np.int32),
        "variants": (variants, (n,), np.int32),
        "available": (available, (m,), np.float64),
        "release": (release, (n,), np.float64),
        "started": (started, (n,), np.bool_),
        "upstream": (edges[:, 0], (len(edges),), np.int32),
        "downstream": (edges[:, 1], (len(edges),), np.int32),
        "size_bytes": ([size for _, _, size in dependencies], (len(edges),), np.float64),
        "latency": (latency, (k, k), np.float64),
        "seconds_per_byte": (seconds_per_byte, (k, k), np.float64),
        "byte_penalty": (byte_penalty, (k, k), np.float64),
        "model": (model, (n,), np.int32),
        "load_seconds": (load_seconds, (w, m), np.float64),
        "resident": (resident, (w, k), np.bool_),
        "weight_bytes": (weight_bytes, (w,), np.float64),
        "working_bytes": (working[:, None] if working.ndim == 1 else working, (n, v), np.float64),
        "memory_bytes": (memory_bytes, (k,), np.float64),
        "together": (together, (n,), np.int32),
        "apart": (apart, (n,), np.int32),
        "zone": (zone, (g, k), np.int32),
        "crowding": (crowding, (g,), np.float64),
        "charge": (charge, (n, m), np.float64),
        "store": (store, (k,), np.float64),
    }
    arrays = Arrays(**{name: fill(name, *how) for name, how in given.items()})  # type: ignore[arg-type]
    if not troubles:
        arrays.seconds[arrays.variant[None, :] >= arrays.variants[:, None]] = np.inf
    for links in (arrays.latency, arrays.seconds_per_byte, arrays.byte_penalty):
        np.fill_diagonal(links, 0.0)
    troubles += _faults(arrays, n, w)
    if len(tiers) not in (0, k):
        troubles.append(Trouble("tiers", f"are {len(tiers)}, of {k} nodes; give one for each, or none"))
    if troubles:
        raise InvalidInput(troubles)
    return Problem(tuple(stages), tuple(places), nodes, tuple(models), arrays, tuple(tiers))


def working(arrays: Arrays, place: Indices) -> Floats:
    """[n]: the bytes that each stage takes at its place while it runs."""
    found: Floats = arrays.working_bytes[np.arange(len(place)), arrays.variant[place]]
    return found


def provable(problem: Problem) -> bool:
    """Whether CP-SAT may be asked for the whole job at once: few stages have any choice of a place, or take any time."""
    able = np.isfinite(problem.arrays.seconds)
    asks = (able.sum(axis=1) > 1) | (able & (problem.arrays.seconds > 0)).any(axis=1)
    return int(asks.sum()) <= limits.PLAN_PROVEN_STAGES_MAX


def zones(arrays: Arrays) -> tuple[Indices, Floats]:
    """[g, k]: of each group apart the zone of each node, counted from 0; and [g]: its `crowding`."""
    k = len(arrays.memory_bytes)
    g = max(int(arrays.apart.max(initial=-1)) + 1, len(arrays.zone))
    found, crowding = np.full((g, k), -1, dtype=np.int32), np.full(g, np.inf)
    found[: len(arrays.zone)], crowding[: len(arrays.crowding)] = arrays.zone, arrays.crowding
    alone = int(found.max(initial=-1)) + 1 + np.arange(k, dtype=np.int32)
    for row in range(g):
        found[row] = np.unique(np.where(found[row] < 0, alone, found[row]), return_inverse=True)[1]
    return found, crowding


def crowded(arrays: Arrays, place: Indices) -> float:
    """The penalty of stages that share zones, of those that may, at these places [n], in seconds."""
    zone, crowding = zones(arrays)
    total = 0.0
    for group in np.flatnonzero(np.isfinite(crowding)):
        taken = zone[group, arrays.node[place[arrays.apart == group]]]
        total += float(crowding[group]) * (len(taken) - len(np.unique(taken)))
    return total


def order(arrays: Arrays) -> Indices:
    """The stages with every upstream before its downstreams, lower numbers first. Fewer than n if there is a cycle."""
    waits = np.bincount(arrays.downstream, minlength=len(arrays.seconds))
    heads, follows = successors(arrays)
    found = [int(stage) for stage in np.flatnonzero(waits == 0)]
    for stage in found:
        for edge in follows[heads[stage] : heads[stage + 1]]:
            down = arrays.downstream[edge]
            waits[down] -= 1
            if waits[down] == 0:
                found.append(int(down))
    return np.array(found, dtype=np.int32)


def successors(arrays: Arrays) -> tuple[Indices, Indices]:
    """Dependencies by upstream: those of stage i are `follows[heads[i]:heads[i + 1]]`."""
    return _grouped(arrays.upstream, len(arrays.seconds))


def predecessors(arrays: Arrays) -> tuple[Indices, Indices]:
    """Dependencies by downstream: those of stage i are `leads[heads[i]:heads[i + 1]]`."""
    return _grouped(arrays.downstream, len(arrays.seconds))


def _grouped(ends: Indices, n: int) -> tuple[Indices, Indices]:
    heads = np.zeros(n + 1, dtype=np.int32)
    heads[1:] = np.cumsum(np.bincount(ends, minlength=n))
    return heads, np.argsort(ends, kind="stable").astype(np.int32)


def _faults(arrays: Arrays, n: int, w: int) -> list[Trouble]:
    troubles = []
    for name, values in arrays._asdict().items():
        if values.dtype == np.float64 and (np.isnan(values).any() or (values < 0).any()):
            troubles.append(Trouble(name, "has a number that is negative or none; give seconds and bytes of 0 or more"))
    ends = np.concatenate([arrays.upstream, arrays.downstream])
    if ((ends < 0) | (ends >= n)).any():
        return [*troubles, Trouble("dependencies", f"name a stage beyond the {n} that there are")]
    if ((arrays.model < NO_MODEL) | (arrays.model >= w)).any():
        troubles.append(Trouble("model", f"names a model beyond the {w} that there are"))
    if (arrays.slots < 1).any():
        troubles.append(Trouble("places", "one has no slot; give it 1 or more"))
    if (arrays.slots != arrays.slots[arrays.shares]).any():
        troubles.append(Trouble("places", "two variants of one target differ in slots; give them the same"))
    ordered = order(arrays)
    if len(ordered) < n:
        left = sorted(set(range(n)) - set(ordered.tolist()))
        troubles.append(Trouble("dependencies", f"are a cycle, among stages {left[:8]}; remove one of them"))
    return troubles
