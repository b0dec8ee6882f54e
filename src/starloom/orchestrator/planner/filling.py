"""Whether rounds of a placement fit their period: simple, slow, and apart from what makes plans, as `check` is."""

from collections.abc import Iterator

from starloom.orchestrator.planner.check import SLACK, passes
from starloom.orchestrator.planner.problem import NO_MODEL, Indices, Place, Problem, Uplink
from starloom.orchestrator.planner.steady import Pace


def overfull(problem: Problem, place: Indices, pace: Pace) -> Iterator[str]:
    """Everything that rounds keep busy for longer than they may, in words; none for a placement that holds its period."""
    arrays, most = problem.arrays, pace.cap * (1 + SLACK)
    # Variants of a stage are places of their own, on one target.
    targets: dict[tuple[str, str], Place] = {}
    for each in problem.places:
        targets.setdefault((each.node, each.target), each)
    for key, what in targets.items():
        here = [i for i in range(len(place)) if (problem.places[place[i]].node, problem.places[place[i]].target) == key]
        busy = sum(arrays.seconds[i, place[i]] * pace.rate[i] for i in here)
        if busy > most * what.slots:
            slots = f"{what.slots} slots" if what.slots > 1 else "one slot"
            yield f"{what} works {busy:.6g} s for each round on {slots}, and has {pace.cap:.6g} s on each"
        for i in here:
            if pace.alone[i] and arrays.seconds[i, place[i]] * pace.rate[i] > most:
                yield f"{problem.stages[i]} takes {arrays.seconds[i, place[i]]:.6g} s on {what}, one round after the other, and has {pace.cap:.6g} s"
    for node in range(len(problem.nodes)):
        yield from _memory(problem, place, pace, node, most)
    for ends, busy in sorted(_sent(problem, place, pace).items()):
        if busy > most:
            names = [problem.nodes[each] or "the job store" for each in ends]
            yield f"the link from {names[0]} to {names[1]} carries {busy:.6g} s for each round, and has {pace.cap:.6g} s"
    for uplink in problem.uplinks:
        for outward in (True,) if uplink.half else (True, False):
            busy = _carried(problem, place, pace, uplink, outward)
            if busy > most:
                way = "" if uplink.half else ", from its nodes," if outward else ", to its nodes,"
                yield f"the up-link {uplink.name}{way} carries {busy:.6g} s for each round, and has {pace.cap:.6g} s"


def _carried(problem: Problem, place: Indices, pace: Pace, uplink: Uplink, outward: bool) -> float:
    """Seconds of each round that values keep an up-link busy, one way; of a radio both ways."""
    arrays, total = problem.arrays, 0.0
    for edge in range(len(arrays.upstream)):
        up, down = arrays.upstream[edge], arrays.downstream[edge]
        times = passes(uplink, int(arrays.node[place[up]]), int(arrays.node[place[down]]), outward)
        total += times * float(arrays.size_bytes[edge] * pace.rate[up]) / (uplink.up if outward else uplink.down)
    return total


def _sent(problem: Problem, place: Indices, pace: Pace) -> dict[tuple[int, int], float]:
    """Seconds of each round that values keep links busy, each from one node to another."""
    arrays, total = problem.arrays, dict[tuple[int, int], float]()
    for edge in range(len(arrays.upstream)):
        up, down = arrays.upstream[edge], arrays.downstream[edge]
        source, sink = int(arrays.node[place[up]]), int(arrays.node[place[down]])
        if source != sink and arrays.size_bytes[edge] > 0:
            busy = float(arrays.size_bytes[edge] * arrays.seconds_per_byte[source, sink] * pace.rate[up])
            total[source, sink] = total.get((source, sink), 0.0) + busy
    return total


def _memory(problem: Problem, place: Indices, pace: Pace, node: int, most: float) -> Iterator[str]:
    """Bytes that working sets hold for so many seconds of each round, beside models, which stay."""
    arrays = problem.arrays
    here = [i for i in range(len(place)) if arrays.node[place[i]] == node]
    models = {int(arrays.model[i]) for i in here if arrays.model[i] != NO_MODEL}
    models |= {w for w in range(len(problem.models)) if arrays.resident[w, node]}
    free = arrays.memory_bytes[node] - sum(arrays.weight_bytes[w] for w in models)
    held = sum(
        arrays.seconds[i, place[i]] * pace.rate[i] * arrays.working_bytes[i, arrays.variant[place[i]]] for i in here
    )
    if held > most * max(free, 0.0):
        yield (
            f"{problem.nodes[node]} would hold {held / pace.every:.6g} bytes at all times, and has "
            f"{max(free, 0.0) * pace.cap / pace.every:.6g} to fill"
        )
