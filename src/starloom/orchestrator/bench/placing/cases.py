"""Random problems with everything that a plan may have to keep, feasible ones and ones that cannot be planned.

A feasible one is drawn around a hidden placement that stays allowed: its stages, one after the other, are a plan.
"""

from typing import Any, NamedTuple

import numpy as np

from starloom.orchestrator.planner.problem import NO_MODEL, Flags, Indices, Place, Problem, problem

GIB = 2.0**30


class Case(NamedTuple):
    """`reasons`: by stage, why places are ruled out; `hidden` [n]: the placement that is allowed, if it is feasible."""

    problem: Problem
    reasons: tuple[dict[str, frozenset[int]], ...]
    hidden: Indices


class Shape(NamedTuple):
    """How many stages and nodes are drawn, and how likely each kind of requirement is."""

    stages: tuple[int, int] = (2, 15)
    nodes: tuple[int, int] = (2, 6)
    masks: float = 0.3
    models: float = 0.6
    memory: float = 0.6
    groups: float = 0.5
    running: float = 0.3
    penalties: float = 0.5
    waits: float = 0.3
    variants: float = 0.0


class _Draft:
    """A case in the making: what it draws depends on its generator only."""

    def __init__(self, rng: np.random.Generator, shape: Shape) -> None:
        self.rng, self.shape = rng, shape
        self.n = int(rng.integers(shape.stages[0], shape.stages[1] + 1))
        self.k = int(rng.integers(shape.nodes[0], shape.nodes[1] + 1))
        self.tier = np.sort(rng.integers(0, 3, self.k))
        self.reasons: list[dict[str, frozenset[int]]] = [{} for _ in range(self.n)]
        self.places: list[Place] = []
        for node in range(self.k):
            name = f"{('phone', 'edge', 'cloud')[self.tier[node]]}-{node}"
            self.places.append(Place(name, slots=int(rng.integers(1, 2 + self.tier[node]))))
            if rng.random() < 0.35:
                self.places.append(Place(name, "npu"))
        names = list(dict.fromkeys(place.node for place in self.places))
        self.node = np.array([names.index(place.node) for place in self.places])
        self.m = len(self.places)
        self.hidden = rng.integers(0, self.m, self.n).astype(np.int32)
        self.more: dict[str, Any] = {}

    def likely(self, chance: float) -> bool:
        return bool(self.rng.random() < chance)

    def rule_out(self, stage: int, why: str, places: Flags) -> None:
        """The hidden place stays allowed."""
        barred = frozenset(int(place) for place in np.flatnonzero(places)) - {int(self.hidden[stage])}
        if barred:
            self.reasons[stage][why] = barred

    def run_times(self) -> None:
        rng = self.rng
        speed = np.array([1.0, 4.0, 12.0])[self.tier][self.node] * rng.uniform(0.7, 1.4, self.m)
        speed[[place.target == "npu" for place in self.places]] *= 4
        work = rng.lognormal(1.0, 0.8, self.n)
        self.seconds = work[:, None] / speed * rng.lognormal(0.0, 0.3, (self.n, self.m))

    def dependencies(self) -> None:
        rng, n = self.rng, self.n
        kind = rng.choice(["chain", "tree", "sparse", "dense", "layers"])
        edges = {(max(0, down - 1), down) for down in range(1, n) if kind == "chain" or rng.random() < 0.2}
        if kind == "tree":
            edges = {(int(rng.integers(0, down)), down) for down in range(1, n)}
        if kind in ("sparse", "dense"):
            chance = 1.5 / n if kind == "sparse" else 0.3
            edges |= {(up, down) for down in range(n) for up in range(down) if rng.random() < chance}
        if kind == "layers":
            layer = np.sort(rng.integers(0, 4, n))
            edges |= {(u, v) for v in range(n) for u in range(v) if layer[u] + 1 == layer[v] and rng.random() < 0.6}
        self.edges = sorted(edges)

    def links(self) -> None:
        rng, k = self.rng, self.k
        distance = 1.0 + np.abs(self.tier[:, None] - self.tier[None, :])
        self.more["seconds_per_byte"] = 1e-6 * distance * rng.uniform(0.5, 2.0, (k, k))
        self.more["latency"] = 0.01 * distance
        wanted = rng.choice([0.1, 0.5, 1.0, 5.0]) * float(np.median(self.seconds))
        self.sizes = rng.lognormal(0.0, 1.0, len(self.edges)) * wanted / 2e-6

    def masks(self) -> None:
        npu = np.array([place.target == "npu" for place in self.places])
        far = self.tier[self.node] == 2
        for stage in range(self.n):
            if self.likely(self.shape.masks):
                self.rule_out(stage, "private: device", far)
            if self.likely(self.shape.masks):
                self.rule_out(stage, "its operators are not supported", npu)
            if self.likely(self.shape.masks / 2):
                self.rule_out(stage, "avoid", self.rng.random(self.m) < 0.4)
            if self.likely(self.shape.masks / 3):
                self.rule_out(stage, "pinned", np.ones(self.m, dtype=bool))

    def models(self) -> None:
        rng, w = self.rng, int(self.rng.integers(1, 4))
        more = self.more
        more["models"] = tuple(f"model-{index}" for index in range(w))
        more["model"] = np.where(rng.random(self.n) < 0.5, rng.integers(0, w, self.n), NO_MODEL)
        more["load_seconds"] = rng.uniform(0.1, 3.0, (w, self.m)) * float(np.median(self.seconds))
        more["resident"] = rng.random((w, self.k)) < 0.25
        more["weight_bytes"] = np.floor(rng.uniform(0.5, 4.0, w) * GIB)

    def running(self) -> None:
        """The first stages have ended or run; what they read has come."""
        gone, runs = int(self.rng.integers(0, self.n)), int(self.rng.integers(0, 3))
        started = np.zeros(self.n, dtype=bool)
        busy: dict[int, int] = {}
        for stage in range(gone):
            place = int(self.hidden[stage])
            alone = np.arange(self.m) == place
            if stage < gone - runs or busy.get(place, 0) >= self.places[place].slots:
                self.seconds[stage] = 0.0
                self.rule_out(stage, "it has ended", ~alone)
            else:
                busy[place] = busy.get(place, 0) + 1
                started[stage] = True
                self.seconds[stage] *= self.rng.random()
                self.rule_out(stage, "it runs", ~alone)
        self.more["started"] = started
        self.edges = [edge for edge in self.edges if edge[1] >= gone]
        if "model" in self.more:
            self.more["model"][:gone][~started[:gone]] = NO_MODEL

    def memory(self) -> None:
        rng, nodes = self.rng, self.node[self.hidden]
        working = np.floor(rng.uniform(0.1, 2.0, self.n) * GIB)
        started = self.more.get("started", np.zeros(self.n, dtype=bool))
        bytes_ = np.full(self.k, np.inf)
        for node in range(self.k):
            here = nodes == node
            need = working[here & started].sum() + working[here & ~started].max(initial=0.0)
            if "model" in self.more:
                used = np.isin(np.arange(len(self.more["models"])), self.more["model"][here])
                need += self.more["weight_bytes"][used | self.more["resident"][:, node]].sum()
            if self.likely(0.8):
                bytes_[node] = np.ceil(need * rng.choice([1.0, 1.1, 1.5]))
        self.more |= {"working_bytes": working, "memory_bytes": bytes_}

    def groups(self) -> None:
        nodes = self.node[self.hidden]
        for name in ("together", "apart"):
            groups = np.full(self.n, -1)
            for group in range(int(self.rng.integers(0, 3))):
                free = self.rng.permutation(np.flatnonzero(groups == -1))
                if name == "together" and len(free):
                    groups[free[nodes[free] == nodes[free[0]]][:3]] = group
                elif name == "apart":
                    _, first = np.unique(nodes[free], return_index=True)
                    groups[free[first][:3]] = group
            self.more[name] = groups
        self.zones()

    def zones(self) -> None:
        """Some groups stand apart over zones of several nodes, or share one for a price.

        And some nodes give so much and no more.
        """
        # Of its own, for what else is drawn to stay as it was.
        rng, nodes, apart = self.rng.spawn(1)[0], self.node[self.hidden], self.more["apart"]
        groups = int(apart.max(initial=-1)) + 1
        zone, crowding = np.full((groups, self.k), -1), np.full(groups, np.inf)
        for group in range(groups):
            if rng.random() < 0.5:
                zone[group] = rng.integers(0, self.k, self.k)
                taken = nodes[apart == group]
                zone[group, taken] = self.k + np.arange(len(taken))
            if rng.random() < 0.4:
                zone[group] = rng.integers(-1, 2, self.k)
                crowding[group] = rng.uniform(0.0, 2.0) * float(np.median(self.seconds))
        self.more |= {"zone": zone, "crowding": crowding}
        if rng.random() < 0.3:
            charge = rng.uniform(0.0, 9.0, (self.n, self.m)) * (rng.random((self.n, self.m)) < 0.8)
            needs = np.bincount(nodes, weights=charge[np.arange(self.n), self.hidden], minlength=self.k)
            kept = rng.random(self.k) < 0.6
            self.more |= {"charge": charge, "store": np.where(kept, needs * rng.uniform(1.0, 1.5, self.k), np.inf)}

    def penalties(self) -> None:
        rng, scale = self.rng, float(np.median(self.seconds))
        self.more["penalty"] = rng.uniform(0, scale, (self.n, self.m)) * (rng.random((self.n, self.m)) < 0.5)
        if self.likely(0.6):
            self.more["byte_penalty"] = 1e-7 * rng.uniform(0.0, 1.0, (self.k, self.k))

    def waits(self) -> None:
        scale = float(np.median(self.seconds))
        self.more["release"] = self.rng.uniform(0, 3 * scale, self.n) * (self.rng.random(self.n) < 0.3)
        self.more["available"] = self.rng.uniform(0, 5 * scale, self.m) * (self.rng.random(self.m) < 0.4)

    def variants(self) -> None:
        """Some stages can be computed in several ways, each worse one faster, smaller and dearer."""
        rng = self.rng.spawn(1)[0]
        if rng.random() >= self.shape.variants:
            return
        more, m = self.more, self.m
        settled = (self.seconds.min(axis=1) == 0) | more.get("started", np.zeros(self.n, dtype=bool))
        counts = np.where(settled, 1, rng.integers(1, 4, self.n))
        ways = np.arange(int(counts.max()))
        less = rng.uniform(0.3, 0.9, self.n)[:, None] ** ways[None, :]
        by_place = np.repeat(less, m, axis=1)
        self.seconds = np.tile(self.seconds, len(ways)) * by_place * rng.uniform(0.9, 1.1, by_place.shape)
        loss = rng.uniform(0.0, 1.0, self.n)[:, None] * np.repeat(ways, m)[None, :] * float(np.median(self.seconds))
        more["penalty"] = np.tile(more.get("penalty", np.zeros((self.n, m))), len(ways)) + loss
        if "charge" in more:
            more["charge"] = np.tile(more["charge"], len(ways)) * by_place
        if "working_bytes" in more:
            more["working_bytes"] = np.floor(more["working_bytes"][:, None] * less)
        for name in ("available", "load_seconds"):
            if name in more:
                more[name] = np.tile(more[name], len(ways))
        self.places = [place._replace(variant=int(way)) for way in ways for place in self.places]
        more["variants"] = counts
        for stage, reasons in enumerate(self.reasons):
            for why, places in reasons.items():
                # What is said of a place holds for each of the ways, or for the first alone.
                ruled = ways[: counts[stage]] if rng.random() < 0.7 else ways[:1]
                reasons[why] = frozenset(place + m * int(way) for place in places for way in ruled)
            if counts[stage] > 1 and rng.random() < 0.3:
                reasons["its quality is too low"] = frozenset(
                    range(m * (int(counts[stage]) - 1), m * int(counts[stage]))
                )

    def case(self) -> Case:
        self.variants()
        seconds = self.seconds.copy()
        for stage, reasons in enumerate(self.reasons):
            for places in reasons.values():
                seconds[stage, list(places)] = np.inf
        edges = [(up, down, float(size)) for (up, down), size in zip(self.edges, self.sizes, strict=True)]
        names = [f"s{stage}" for stage in range(self.n)]
        return Case(problem(names, self.places, seconds, edges, **self.more), tuple(self.reasons), self.hidden)


ANY = Shape()


def feasible(seed: int, shape: Shape = ANY) -> Case:
    """A case that can be planned."""
    draft = _Draft(np.random.default_rng(seed), shape)
    draft.run_times()
    draft.dependencies()
    draft.masks()
    for chance, step in (
        (shape.models, draft.models),
        (shape.running, draft.running),
        (shape.memory, draft.memory),
        (shape.groups, draft.groups),
        (shape.penalties, draft.penalties),
        (shape.waits, draft.waits),
    ):
        if draft.likely(chance):
            step()
    draft.links()
    return draft.case()


def infeasible(seed: int, shape: Shape = ANY) -> Case:
    """A case with at least one contradiction, of any kind, put into a feasible one."""
    case, rng = feasible(seed, shape), np.random.default_rng([seed, 1])
    ways = [_nowhere, _starved, _torn, _crowded, _overrun, _cut]
    for _ in range(int(rng.integers(1, 3))):
        for way in rng.permutation(len(ways)):
            broken = ways[way](case, rng)
            if broken is not None:
                case = broken
                break
    return case


def _with(case: Case, **arrays: Any) -> Case:
    return case._replace(problem=case.problem._replace(arrays=case.problem.arrays._replace(**arrays)))


def _barring(case: Case, stage: int, reasons: dict[str, frozenset[int]]) -> Case:
    seconds = case.problem.arrays.seconds.copy()
    for places in reasons.values():
        seconds[stage, list(places)] = np.inf
    said = list(case.reasons)
    said[stage] = said[stage] | reasons
    return _with(case, seconds=seconds)._replace(reasons=tuple(said))


def _nowhere(case: Case, rng: np.random.Generator) -> Case | None:
    """A stage without a place: two reasons leave none."""
    stage, m = int(rng.integers(0, len(case.problem.stages))), len(case.problem.places)
    split = rng.random(m) < 0.5
    parts = {"not in the building": split, "too old": ~split | (rng.random(m) < 0.2)}
    barred = {why: frozenset(np.flatnonzero(places).tolist()) for why, places in parts.items() if places.any()}
    return _barring(case, stage, barred)


def _starved(case: Case, rng: np.random.Generator) -> Case | None:
    """A stage whose memory no node has."""
    arrays = case.problem.arrays
    stage = int(rng.integers(0, len(arrays.seconds)))
    if arrays.seconds[stage].min() == 0:
        return None
    memory = np.where(np.isfinite(arrays.memory_bytes), arrays.memory_bytes, 8 * GIB)
    working = arrays.working_bytes.copy()
    working[stage] = memory.max() + GIB
    return _with(case, memory_bytes=memory, working_bytes=working)


def _torn(case: Case, rng: np.random.Generator) -> Case | None:
    """Two stages that have to share a node, and have none in common."""
    arrays = case.problem.arrays
    n, k = len(arrays.seconds), len(case.problem.nodes)
    free = np.flatnonzero((arrays.together < 0) & ~arrays.started)
    if len(free) < 2 or k < 2:
        return None
    one, other = rng.permutation(free)[:2].tolist()
    side = rng.random(k) < 0.5
    side[:2] = True, False
    together = arrays.together.copy()
    together[[one, other]] = n
    case = _with(case, together=together)
    for stage, nodes in ((one, side), (other, ~side)):
        case = _barring(case, stage, {"not here": frozenset(np.flatnonzero(nodes[arrays.node]).tolist())})
    return case


def _crowded(case: Case, rng: np.random.Generator) -> Case | None:
    """More stages that stand apart than there are nodes."""
    arrays = case.problem.arrays
    k = len(case.problem.nodes)
    free = np.flatnonzero(arrays.apart < 0)
    if len(free) <= k:
        return None
    apart = arrays.apart.copy()
    apart[rng.permutation(free)[: k + 1]] = len(apart)
    return _with(case, apart=apart)


def _overrun(case: Case, rng: np.random.Generator) -> Case | None:
    """More stages that run already than a place has slots."""
    arrays = case.problem.arrays
    waiting = np.isin(np.arange(len(arrays.seconds)), arrays.downstream)
    free = np.flatnonzero(~waiting & ~arrays.started & (arrays.seconds.min(axis=1) > 0))
    place = int(arrays.shares[np.argmin(arrays.slots)])
    if len(free) <= arrays.slots[place]:
        return None
    started = arrays.started.copy()
    for stage in rng.permutation(free)[: arrays.slots[place] + 1].tolist():
        started[stage] = True
        seconds = case.problem.arrays.seconds.copy()
        seconds[stage, place] = 1.0
        others = frozenset(range(len(case.problem.places))) - {place}
        case = _barring(_with(case, seconds=seconds), stage, {"it runs": others})
    return _with(case, started=started)


def _cut(case: Case, rng: np.random.Generator) -> Case | None:
    """A dependency between stages that stand on nodes with no link."""
    arrays = case.problem.arrays
    edges = np.flatnonzero(arrays.node[case.hidden[arrays.upstream]] != arrays.node[case.hidden[arrays.downstream]])
    if not len(edges):
        return None
    edge = int(rng.choice(edges))
    ends = int(arrays.upstream[edge]), int(arrays.downstream[edge])
    latency = arrays.latency.copy()
    latency[arrays.node[case.hidden[ends[0]]], arrays.node[case.hidden[ends[1]]]] = np.inf
    case = _with(case, latency=latency)
    for stage in ends:
        others = frozenset(range(len(case.problem.places))) - {int(case.hidden[stage])}
        case = _barring(case, stage, {"pinned": others})
    return case
