"""How values flow over channels that they share, while stages start and end: the simulation behind `uplinks`. Compiled.

Rates are max-min fair, and stay as they are from one event to the next: the end of a stage or of a transfer.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from starloom.orchestrator.planner.compiled import compiled, inlined, inner
from starloom.orchestrator.planner.problem import Flags, Floats, Indices

ALIKE = 1e-9
"""The share by which rounding may put two rates apart."""

Counts = npt.NDArray[np.int64]


class Ways(NamedTuple):
    """What flows pass: e flows, c channels. `per_byte` [e]: seconds a byte of each one's own link, that is of no other.

    `way`, `times` at `heads[i]:heads[i + 1]`: the channels that flow i passes, and how often; none for what shares nothing.
    `rate` [c]: bytes a second.
    """

    heads: Counts
    way: Counts
    times: Counts
    per_byte: Floats
    rate: Floats


class Asked(NamedTuple):
    """What is simulated. n stages, e dependencies; what belongs to one is `of[heads[i]:heads[i + 1]]`.

    `base`, `run`, `load` [n]: as `timing.Spans` has them. `waits` [n]: for how much each stage waits; counted down. `heads`,
    `follows`: dependencies by `up`; `next`: stages that wait for the end of each, `led`: for what it has loaded. `lag` [e]: of a
    transfer that meets no other; the rest of it in seconds and bytes. `ways`: what each dependency's value passes.
    """

    base: Floats
    run: Floats
    load: Floats
    started: Flags
    waits: Counts
    heads: Indices
    follows: Indices
    up: Indices
    down: Indices
    next_heads: Counts
    next: Counts
    led_heads: Counts
    led: Counts
    lag: Floats
    latency: Floats
    size: Floats
    ways: Ways


class Flows(NamedTuple):
    """Values on their way: `active` [e] the first so many flows; of each [e] what is `left` at `since`, its `speed`, its `end`.

    `many` [e]: as how many each counts where it shares. `met`: whether it ever was slower than its own link. `fixed`, `room` [c],
    `weight` [c]: while rates are found.
    """

    active: Counts
    many: Floats
    left: Floats
    since: Floats
    speed: Floats
    end: Floats
    met: Flags
    fixed: Flags
    room: Floats
    weight: Floats


@inner
def _resolve(q: Asked, ready: Floats, start: Floats, stage: int, at: float, waiting: Counts, count: int) -> int:
    """What a stage waits for is there at that second; how many stages are on the way to their end then."""
    if q.started[stage]:
        return count
    ready[stage] = max(ready[stage], at)
    q.waits[stage] -= 1
    if q.waits[stage] == 0:
        start[stage] = ready[stage]
        waiting[count] = stage
        count += 1
    return count


@inner
def _begun(q: Asked, ready: Floats, start: Floats, waiting: Counts, first: int, count: int) -> int:
    """Lets those go on that wait for what stages load, of the stages from `first` on; how many are on the way then."""
    while first < count:
        stage = waiting[first]
        for index in range(q.led_heads[stage], q.led_heads[stage + 1]):
            count = _resolve(q, ready, start, q.led[index], start[stage] + q.load[stage], waiting, count)
        first += 1
    return count


@inlined
def _set_speed(f: Flows, flow: int, speed: float, now: float) -> None:
    if speed == f.speed[flow]:
        return
    f.left[flow] = max(0.0, f.left[flow] - f.speed[flow] * (now - f.since[flow]))
    f.since[flow], f.speed[flow], f.end[flow] = now, speed, now + f.left[flow] / speed


@inlined
def _fix(w: Ways, f: Flows, flow: int, speed: float, left: int, now: float) -> int:
    f.fixed[flow] = True
    for at in range(w.heads[flow], w.heads[flow + 1]):
        way = w.way[at]
        f.room[way] = max(0.0, f.room[way] - w.times[at] * speed)
        f.weight[way] -= w.times[at] * f.many[flow]
    _set_speed(f, flow, speed, now)
    return left - 1


@inner
def _stop(w: Ways, f: Flows, flows: int, tight: int, share: float, left: int, now: float) -> int:
    """Gives all that pass this channel, and have no rate yet, their share of it; how many are left."""
    for index in range(flows):
        flow, held = f.active[index], False
        for at in range(w.heads[flow], w.heads[flow + 1]):
            held = held or w.way[at] == tight
        if held and not f.fixed[flow]:
            f.met[flow] = True
            left = _fix(w, f, flow, share * f.many[flow], left, now)
    return left


@inner
def _share(w: Ways, f: Flows, flows: int, now: float) -> None:
    """The rates of all values on their way: the slowest channel's share first, as those that it stops leave room to others."""
    for way in range(len(w.rate)):
        f.room[way], f.weight[way] = w.rate[way], 0.0
    for index in range(flows):
        flow = f.active[index]
        f.fixed[flow] = False
        for at in range(w.heads[flow], w.heads[flow + 1]):
            f.weight[w.way[at]] += w.times[at] * f.many[flow]
    left = flows
    while left > 0:
        tight, share = -1, np.inf
        for way in range(len(w.rate)):
            if f.weight[way] > 0.0 and f.room[way] / f.weight[way] < share:
                tight, share = way, f.room[way] / f.weight[way]
        # What its own link holds back further takes less than its share, and leaves the rest to others.
        slow = False
        for index in range(flows):
            flow = f.active[index]
            if not f.fixed[flow] and w.per_byte[flow] * share * f.many[flow] >= 1.0 - ALIKE:
                slow = True
                left = _fix(w, f, flow, 1.0 / w.per_byte[flow], left, now)
        if not slow:
            left = _stop(w, f, flows, tight, share, left, now)


@compiled
def shares(w: Ways, f: Flows, flows: int, now: float) -> float:
    """Has so many flows go on at their rates from that second; when the first of them ends, infinite without any."""
    _share(w, f, flows, now)
    first = _least(f.end, f.active, flows)
    return np.inf if first < 0 else f.end[f.active[first]]


@inner
def _least(values: Floats, among: Counts, count: int) -> int:
    """Which of the first so many has the least value; -1 of none."""
    found = -1
    for index in range(count):
        if found < 0 or values[among[index]] < values[among[found]]:
            found = index
    return found


@inner
def _sent(q: Asked, f: Flows, edge: int, now: float, ended: float) -> float:
    """When a value is there whose last byte has passed: no sooner than without others on its way, and then if it met none."""
    alone: float = ended + q.lag[edge]
    return max(now + q.latency[edge], alone) if f.met[edge] else alone


@inner
def _send(q: Asked, f: Flows, edge: int, flows: int, now: float) -> int:
    """Puts a value on its way; how many are then."""
    f.left[edge], f.since[edge], f.speed[edge] = q.size[edge], now, 0.0
    f.active[flows] = edge
    return flows + 1


@compiled
def simulate(q: Asked, f: Flows, start: Floats, there: Floats, waiting: Counts) -> None:
    """Fills `start` [n], and `there` [e]: when each dependency's value is there. `waiting` [n]: room for stages that have not ended."""
    ready, finish = q.base.copy(), q.base.copy()
    count, known, flows, now, stale = 0, 0, 0, 0.0, False
    for stage in range(len(start)):
        if q.started[stage] or q.waits[stage] == 0:
            start[stage] = 0.0 if q.started[stage] else q.base[stage]
            waiting[count] = stage
            count += 1
    while True:
        count = _begun(q, ready, start, waiting, known, count)
        for index in range(known, count):
            finish[waiting[index]] = start[waiting[index]] + q.run[waiting[index]]
        ending = _least(finish, waiting, count)
        # What ends at the same time is taken in first: rates matter once time goes on.
        if stale and (ending < 0 or finish[waiting[ending]] > now):
            _share(q.ways, f, flows, now)
            stale = False
        sent = -1 if stale else _least(f.end, f.active, flows)
        if ending < 0 and sent < 0:
            return
        if sent >= 0 and (ending < 0 or f.end[f.active[sent]] <= finish[waiting[ending]]):
            edge = f.active[sent]
            now = max(now, f.end[edge])
            flows -= 1
            f.active[sent] = f.active[flows]
            stale, known = flows > 0, count
            there[edge] = _sent(q, f, edge, now, finish[q.up[edge]])
            count = _resolve(q, ready, start, q.down[edge], there[edge], waiting, count)
            continue
        stage = waiting[ending]
        now = max(now, finish[stage])
        count -= 1
        waiting[ending] = waiting[count]
        known = count
        for index in range(q.next_heads[stage], q.next_heads[stage + 1]):
            count = _resolve(q, ready, start, q.next[index], finish[stage], waiting, count)
        for index in range(q.heads[stage], q.heads[stage + 1]):
            edge = q.follows[index]
            if q.ways.heads[edge] < q.ways.heads[edge + 1]:
                flows, stale = _send(q, f, edge, flows, finish[stage]), True
            else:
                there[edge] = finish[stage] + q.lag[edge]
                count = _resolve(q, ready, start, q.down[edge], there[edge], waiting, count)
