"""A problem as the compiled code reads it, and the board on which it sets stages out.

Each place is as many lanes as it has slots; a lane runs one stage at a time. What takes no time stands on no lane.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from starloom.orchestrator.planner.problem import (
    Arrays,
    Flags,
    Floats,
    Indices,
    Plan,
    Problem,
    crowded,
    order,
    predecessors,
    successors,
    zones,
)

NONE = -1
Numbers = npt.NDArray[np.int64]
"""Compiled code counts in one width only: with two, each function that takes a stage is compiled twice."""


class Prepared(NamedTuple):
    """What does not change while plans are made. Letters as in `Arrays`.

    `allowed` [n, m]: places that a stage may have, by itself and by the group that it shares a node with. `lanes`,
    `upto` [m]: those of place p are `lanes[p]` up to `upto[p]`; variants of one target share theirs. `lead_*`, `follow_*`: dependencies by downstream and
    by upstream, those of stage i from `heads[i]` to `heads[i + 1]`. `order` [n]: upstreams first. `memory` [k]: bytes,
    infinite where no plan can exceed it. `together`, `apart`: counted from 0; `zone`, `crowding`: of those apart, likewise.
    `charge`, `store`: joules, infinite where no plan can exceed them. `everywhere` [m]: all places.
    `user_*`: the stages of each model, as dependencies. `tier` [k]: of each node, counted from 0; -1 if not known.
    """

    seconds: Floats
    allowed: Flags
    penalty: Floats
    node: Numbers
    lanes: Numbers
    upto: Numbers
    variant: Numbers
    available: Floats
    release: Floats
    started: Flags
    lead_heads: Numbers
    lead_stage: Numbers
    lead_bytes: Floats
    follow_heads: Numbers
    follow_stage: Numbers
    follow_bytes: Floats
    latency: Floats
    per_byte: Floats
    byte_penalty: Floats
    model: Numbers
    load: Floats
    resident: Flags
    weight: Floats
    working: Floats
    memory: Floats
    together: Numbers
    apart: Numbers
    zone: Numbers
    crowding: Floats
    charge: Floats
    store: Floats
    order: Numbers
    everywhere: Flags
    user_heads: Numbers
    user_stage: Numbers
    tier: Numbers


class Board(NamedTuple):
    """Stages as they are set out: overwritten in place.

    `place`, `lane`, `before`, `after` [n]: neighbours on the lane; -1 for none. `start`, `length` [n]: seconds, loading
    included. `first`, `last` [lanes]. `loader` [w, k]: the stage that loads the model there. `users` [w, k]: stages
    that take time with that model there. `held`, `busy` [k]: bytes of models, and of `top`. `top` [lanes]: of each place the largest
    working sets, one for each slot, falling. `group_node`, `group_count` [groups]: of those together. `taken`
    [groups, k]: of those apart, by zone. `drawn` [k]: joules. `there`, `paid` [k]: scratch.
    """

    place: Numbers
    lane: Numbers
    before: Numbers
    after: Numbers
    start: Floats
    length: Floats
    first: Numbers
    last: Numbers
    loader: Numbers
    users: Numbers
    held: Floats
    busy: Floats
    top: Floats
    group_node: Numbers
    group_count: Numbers
    taken: Numbers
    drawn: Floats
    there: Floats
    paid: Floats


def prepare(problem: Problem) -> Prepared:
    """The problem for compiled code. Stages without any place left have an empty row in `allowed`."""
    arrays = problem.arrays
    allowed = _allowed(arrays)
    groups = np.unique(arrays.apart[arrays.apart >= 0])
    zone, crowding = zones(arrays)
    slots = _slots(arrays, allowed)
    # Those that share the lanes of another have none of their own.
    ends = np.cumsum(np.where(arrays.shares == np.arange(len(slots)), slots, 0))[arrays.shares].astype(np.int64)
    lead_heads, leads = predecessors(arrays)
    follow_heads, follows = successors(arrays)
    return Prepared(
        seconds=arrays.seconds,
        allowed=allowed,
        penalty=arrays.penalty,
        node=arrays.node.astype(np.int64),
        lanes=ends - slots,
        upto=ends,
        variant=arrays.variant.astype(np.int64),
        available=arrays.available,
        release=arrays.release,
        started=arrays.started,
        lead_heads=lead_heads.astype(np.int64),
        lead_stage=arrays.upstream[leads].astype(np.int64),
        lead_bytes=arrays.size_bytes[leads],
        follow_heads=follow_heads.astype(np.int64),
        follow_stage=arrays.downstream[follows].astype(np.int64),
        follow_bytes=arrays.size_bytes[follows],
        latency=arrays.latency,
        per_byte=arrays.seconds_per_byte,
        byte_penalty=arrays.byte_penalty,
        model=arrays.model.astype(np.int64),
        load=arrays.load_seconds,
        resident=arrays.resident,
        weight=arrays.weight_bytes,
        working=arrays.working_bytes,
        memory=_memory(arrays, allowed, slots),
        together=_counted(arrays.together),
        apart=_counted(arrays.apart),
        zone=zone[groups].astype(np.int64),
        crowding=crowding[groups],
        charge=arrays.charge,
        store=_store(arrays, allowed),
        order=order(arrays).astype(np.int64),
        everywhere=np.ones(len(arrays.node), dtype=np.bool_),
        user_heads=np.searchsorted(np.sort(arrays.model), np.arange(len(arrays.weight_bytes) + 1)).astype(np.int64),
        user_stage=np.argsort(arrays.model, kind="stable").astype(np.int64),
        tier=_counted(np.array(problem.tiers or [NONE] * len(problem.nodes), dtype=np.int32)),
    )


def board(prepared: Prepared) -> Board:
    """An empty board."""
    (n, _), (w, k), lanes = prepared.seconds.shape, prepared.resident.shape, int(prepared.upto.max(initial=0))
    near, far = (int(groups.max(initial=NONE)) + 1 for groups in (prepared.together, prepared.apart))

    def none(*shape: int) -> Numbers:
        return np.full(shape, NONE, dtype=np.int64)

    return Board(
        place=none(n),
        lane=none(n),
        before=none(n),
        after=none(n),
        start=np.zeros(n),
        length=np.zeros(n),
        first=none(lanes),
        last=none(lanes),
        loader=none(w, k),
        users=np.zeros((w, k), dtype=np.int64),
        held=np.zeros(k),
        busy=np.zeros(k),
        top=np.zeros(lanes),
        group_node=none(near),
        group_count=np.zeros(near, dtype=np.int64),
        taken=np.zeros((far, k), dtype=np.int64),
        drawn=np.zeros(k),
        there=np.zeros(k),
        paid=np.zeros(k),
    )


def copy(source: Board, target: Board) -> None:
    """Overwrites one board with another."""
    pairs: Iterator[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]] = zip(source, target, strict=True)
    for values, into in pairs:
        into[...] = values


def plan_of(problem: Problem, prepared: Prepared, made: Board, method: str) -> Plan:
    """The plan that a board of placed stages stands for."""
    arrays, place, stages = problem.arrays, made.place.astype(np.int32), np.arange(len(made.place))
    nodes = arrays.node[place]
    loads = np.zeros(len(place), dtype=np.bool_)
    loads[made.loader[made.loader != NONE]] = True
    seconds = arrays.seconds[stages, place]
    seconds[loads] += arrays.load_seconds[arrays.model[loads], place[loads]]
    start = made.start.copy()
    finish = start + seconds
    moved = arrays.byte_penalty[nodes[arrays.upstream], nodes[arrays.downstream]] * arrays.size_bytes
    penalty = float(arrays.penalty[stages, place].sum() + moved.sum()) + crowded(arrays, place)
    return Plan(place, start, finish, loads, float(finish.max(initial=0.0)), penalty, method)


def _allowed(arrays: Arrays) -> Flags:
    able = np.isfinite(arrays.seconds) & np.isfinite(arrays.penalty)
    able &= arrays.charge <= arrays.store[arrays.node]
    runs = able & (arrays.seconds > 0)
    has = arrays.model >= 0
    if has.any():
        which = arrays.model[has]
        cold = runs[has] & ~arrays.resident[which][:, arrays.node] & ~arrays.started[has, None]
        able[has] &= ~(cold & ~np.isfinite(arrays.load_seconds[which]))
    resident = arrays.weight_bytes @ arrays.resident if len(arrays.weight_bytes) else np.zeros(len(arrays.memory_bytes))
    needs = np.broadcast_to(resident, (len(able), len(resident))).copy()
    if has.any():
        needs[has] += arrays.weight_bytes[which][:, None] * ~arrays.resident[which]
    needs = needs[:, arrays.node] + arrays.working_bytes[:, arrays.variant]
    able &= ~(runs & (needs > arrays.memory_bytes[arrays.node]))
    for group in np.unique(arrays.together[arrays.together >= 0]):
        members = arrays.together == group
        shared = np.ones(len(arrays.memory_bytes), dtype=np.bool_)
        for row in able[members]:
            shared &= np.bincount(arrays.node[row], minlength=len(shared)) > 0
        able[members] &= shared[arrays.node]
    return able


def _slots(arrays: Arrays, allowed: Flags) -> npt.NDArray[np.int64]:
    """[m]: how many stages may run at one time, as far as there are so many that may."""
    found = np.ones(len(arrays.slots), dtype=np.int64)
    for place in np.unique(arrays.shares):
        here = arrays.shares == place
        found[here] = min(int(arrays.slots[place]), max(1, int(allowed[:, here].any(axis=1).sum())))
    return found


def slots_of(prepared: Prepared, among: Flags) -> int:
    """How many stages may run at one time on these places [m]."""
    return int((prepared.upto - prepared.lanes)[among & _first(prepared, among)].sum())


def _first(prepared: Prepared, among: Flags) -> Flags:
    """Of the places among these that share lanes the first."""
    found = np.zeros(len(among), dtype=np.bool_)
    here = np.flatnonzero(among)
    found[here[np.unique(prepared.lanes[here], return_index=True)[1]]] = True
    return found


def _memory(arrays: Arrays, allowed: Flags, slots: npt.NDArray[np.int64]) -> Floats:
    """Infinite where all models and the largest working sets that may meet on a node fit it."""
    limits = arrays.memory_bytes.copy()
    runs = allowed & (arrays.seconds > 0)
    for node in np.flatnonzero(np.isfinite(limits)):
        here = arrays.node == node
        models = np.unique(arrays.model[runs[:, here].any(axis=1)])
        kept = np.union1d(models[models >= 0], np.flatnonzero(arrays.resident[:, node]))
        most = float(arrays.weight_bytes[kept].sum())
        sizes = np.where(runs[:, here], arrays.working_bytes[:, arrays.variant[here]], 0.0)
        for place in np.unique(arrays.shares[here]):
            largest = sizes[:, arrays.shares[here] == place].max(axis=1, initial=0.0)
            most += float(np.sort(largest)[::-1][: slots[place]].sum())
        if most <= limits[node]:
            limits[node] = np.inf
    return limits


def _store(arrays: Arrays, allowed: Flags) -> Floats:
    """Infinite where all that may stand on a node takes no more than it has."""
    most = np.zeros((len(arrays.seconds), len(arrays.store)))
    for place, node in enumerate(arrays.node):
        most[:, node] = np.maximum(most[:, node], np.where(allowed[:, place], arrays.charge[:, place], 0.0))
    return np.where(most.sum(axis=0) <= arrays.store, np.inf, arrays.store)


def _counted(groups: Indices) -> Numbers:
    names = np.unique(groups[groups >= 0])
    return np.where(groups >= 0, np.searchsorted(names, groups), NONE).astype(np.int64)
