"""The best plans known, by the digest of their problem: kept with the plan itself, so that each run checks them anew."""

import base64
import heapq
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from starloom.dag.errors import InvalidInput
from starloom.dag.errors import Problem as Trouble
from starloom.orchestrator.bench.placing.instances import Instance, digest
from starloom.orchestrator.planner.check import faults, penalty
from starloom.orchestrator.planner.problem import (
    NO_MODEL,
    Flags,
    Floats,
    Indices,
    Plan,
    Problem,
    predecessors,
)
from starloom.orchestrator.planner.timing import in_order

FILE: Final = Path(__file__).with_name("best.json")

GAIN: Final = 1e-9
"""The share by which a plan must be better to count as such."""

_FILTERS: Final = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
_PLACE, _RANK, _START = "<u2", "<u2", "<f8"


class Known(NamedTuple):
    """A plan as it is kept: what its problem is called, its objective in seconds, what found it, and `packed`.

    `proven`: CP-SAT has shown that none is better.
    """

    name: str
    objective: float
    method: str
    proven: bool
    packed: str


class Best:
    """Known plans by digest."""

    def __init__(self, known: Mapping[str, Known]) -> None:
        self.known = dict(known)

    def plan(self, instance: Instance) -> Plan | None:
        """The best plan known, checked. Raises InvalidInput if what is kept is no valid plan, or not as good as said."""
        found = self.known.get(digest(instance.problem))
        if found is None:
            return None
        plan = unpacked(instance.problem, found)
        wrong = faults(instance.problem, plan)
        if abs(plan.objective - found.objective) > GAIN * found.objective:
            wrong.append(f"its objective is {plan.objective}, not {found.objective}")
        if wrong:
            raise InvalidInput([Trouble(instance.name, fault) for fault in wrong], "a best plan known does not hold")
        return plan

    def offer(self, instance: Instance, plan: Plan, *, proven: bool = False) -> bool:
        """Keeps a valid plan if it is better than what is known, or proven; whether it is better."""
        key = digest(instance.problem)
        before = self.known.get(key)
        better = before is None or plan.objective < before.objective * (1 - GAIN)
        if better:
            packed = pack(instance.problem, plan)
            kept = unpacked(instance.problem, Known("", 0.0, plan.method, False, packed))
            if wrong := faults(instance.problem, kept):
                raise InvalidInput([Trouble(instance.name, fault) for fault in wrong], "a plan does not hold")
            self.known[key] = Known(instance.name, kept.objective, plan.method, proven, packed)
        elif before is not None and proven and plan.objective <= before.objective * (1 + GAIN):
            self.known[key] = before._replace(proven=True)
        return better


def load(path: Path = FILE) -> Best:
    """What is kept; nothing if the file is not there."""
    if not path.exists():
        return Best({})
    return Best({key: Known(**each) for key, each in json.loads(path.read_text("utf-8")).items()})


def save(best: Best, path: Path = FILE) -> None:
    """Writes all, one plan a line, in the order of their names."""
    ordered = sorted(best.known.items(), key=lambda item: (item[1].name, item[0]))
    lines = [f"{json.dumps(key)}: {json.dumps(known._asdict())}" for key, known in ordered]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def pack(problem: Problem, plan: Plan) -> str:
    """Places, order and loads; starts only where following the order does not give a plan as good."""
    order = np.array(in_order(problem, plan.start), dtype=np.int32)
    again = timed(problem, plan.place, order, plan.loads, plan.method)
    parts = [plan.place.astype(_PLACE).tobytes(), order.astype(_RANK).tobytes(), np.packbits(plan.loads).tobytes()]
    if again.objective > plan.objective * (1 + GAIN) or faults(problem, again):
        parts.append(plan.start.astype(_START).tobytes())
    return base64.b85encode(lzma.compress(b"".join(parts), lzma.FORMAT_RAW, filters=_FILTERS)).decode()


def unpacked(problem: Problem, known: Known) -> Plan:
    """The plan that is kept, not checked yet."""
    n = len(problem.stages)
    data = lzma.decompress(base64.b85decode(known.packed), lzma.FORMAT_RAW, filters=_FILTERS)
    place = np.frombuffer(data, _PLACE, n).astype(np.int32)
    order = np.frombuffer(data, _RANK, n, offset=2 * n).astype(np.int32)
    flags = np.frombuffer(data, np.uint8, -(-n // 8), offset=4 * n)
    loads = np.unpackbits(flags, count=n).astype(np.bool_)
    rest = data[4 * n + len(flags) :]
    if rest:
        return _plan(problem, place, np.frombuffer(rest, _START, n).copy(), loads, known.method)
    return timed(problem, place, order, loads, known.method)


def timed(problem: Problem, place: Indices, order: Indices, loads: Flags, method: str) -> Plan:
    """Each stage, in this order, as early as its inputs, its model and a slot let it. Memory is not looked at."""
    arrays, n = problem.arrays, len(place)
    heads, leads = predecessors(arrays)
    free = [[float(opens)] * int(slots) for opens, slots in zip(arrays.available, arrays.slots, strict=True)]
    loaded: dict[tuple[int, int], float] = {}
    start, finish = np.zeros(n), np.zeros(n)
    for stage in order:
        at, model = int(place[stage]), int(arrays.model[stage])
        here = int(arrays.node[at])
        length, soonest = float(arrays.seconds[stage, at]), float(arrays.release[stage])
        for edge in leads[heads[stage] : heads[stage + 1]]:
            up = arrays.upstream[edge]
            there = int(arrays.node[place[up]])
            moved = arrays.latency[there, here] + arrays.size_bytes[edge] * arrays.seconds_per_byte[there, here]
            soonest = max(soonest, finish[up] + float(moved))
        if length > 0:
            if not loads[stage]:
                soonest = max(soonest, loaded.get((model, here), 0.0))
            soonest = max(soonest, heapq.heappop(free[at]))
            if loads[stage] and model != NO_MODEL:
                load = float(arrays.load_seconds[model, at])
                loaded.setdefault((model, here), soonest + load)
                length += load
            heapq.heappush(free[at], soonest + length)
        start[stage], finish[stage] = soonest, soonest + length
    return _plan(problem, place, start, loads, method)


def _plan(problem: Problem, place: Indices, start: Floats, loads: Flags, method: str) -> Plan:
    arrays, stages = problem.arrays, np.arange(len(place))
    run = arrays.seconds[stages, place]
    run[loads] += arrays.load_seconds[arrays.model[loads], place[loads]]
    plan = Plan(place, start, start + run, loads, float((start + run).max(initial=0.0)), 0.0, method)
    return plan._replace(penalty=penalty(problem, plan))
