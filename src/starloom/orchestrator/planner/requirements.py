"""What a problem asks for, one requirement after the other, and the problem that is left when all are dropped."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from starloom.orchestrator.planner.problem import NO_MODEL, Arrays, Flags, Floats, Indices, Problem, zones

Reasons = Sequence[Mapping[str, Collection[int]]]
"""For each stage, by index: what is said of places on which it may not run, and which they are."""

NAMES_SHOWN: Final = 8


class Requirement(NamedTuple):
    """Something that a plan has to keep.

    `kind`: "places" (`which`: a stage, which may not have `places`), "memory", "store" (a node), "together", "apart" (a group),
    "slots" (a place), "link" (a dependency), "deadline". `words` say it.
    """

    kind: str
    which: int
    words: str
    places: frozenset[int] = frozenset()


def requirements(problem: Problem, reasons: Reasons, deadline: float | None) -> list[Requirement]:
    """All of them. What no reason rules out, and is ruled out, is one more requirement of the stage.

    Not so a place that runs nothing, and of which nothing is said: that is no wish of anybody's.
    """
    out = shut(problem, reasons)
    closed = barred(problem) & ~out
    found = [
        what
        for stage in range(len(problem.stages))
        for what in _places(problem, stage, reasons, closed[stage], out[stage])
    ]
    found += [*_nodes(problem), *_groups(problem), *_links(problem)]
    if deadline is not None:
        found.append(Requirement("deadline", 0, f"all ends within {deadline:g} s"))
    return found


def barred(problem: Problem) -> Flags:
    """[n, m]: the places that each stage may not have, whatever the others do."""
    arrays = problem.arrays
    able = np.isfinite(arrays.seconds) & np.isfinite(arrays.penalty)
    runs = arrays.seconds > 0
    waits = ~np.isfinite(arrays.available)[None, :] & runs | ~np.isfinite(arrays.release)[:, None]
    able &= ~waits | arrays.started[:, None]
    needs = np.flatnonzero((arrays.model != NO_MODEL) & ~arrays.started)
    if len(needs):
        able[needs] &= ~runs[needs] | _loadable(arrays)[arrays.model[needs]]
    return ~able


def shut(problem: Problem, reasons: Reasons) -> Flags:
    """[n, m]: places that run nothing, and of which no reason speaks, but for stages that had no other; all others of what
    stands nowhere else, as a job's inputs and outputs; and such as stand for variants that a stage does not have.

    Without any `reasons` nobody has told why anything runs where it does, and each place may be somebody's wish.
    """
    closed = barred(problem)
    told = {place for said in reasons for places in said.values() for place in places}
    silent = [place not in told and len(reasons) > 0 for place in range(len(problem.places))]
    nothing = (closed | (problem.arrays.seconds == 0)).all(axis=0) & np.array(silent, dtype=np.bool_)
    arrays = problem.arrays
    ends = ~closed.all(axis=1) & (closed | nothing[None, :]).all(axis=1)
    found: Flags = closed & (nothing[None, :] | ends[:, None]) & ~nothing.all()
    return found | (arrays.variant[None, :] >= arrays.variants[:, None])


def nowhere(problem: Problem, reasons: Reasons) -> dict[int, str]:
    """The stages that may have no place, whatever the others do, with what is said of the places."""
    found, closed = {}, barred(problem)
    for stage in np.flatnonzero(closed.all(axis=1)).tolist():
        told = [f"{_listed(problem, places)}: {text}" for text, places in _said(stage, reasons, closed[stage])]
        found[stage] = "no place may have it" + (f": {'; '.join(told)}" if told else "")
    return found


def part(problem: Problem, stages: Indices) -> Problem:
    """The problem of some stages, by rising index, as if there were no others: if that has no plan, the whole has none."""
    arrays = problem.arrays
    number = np.full(len(problem.stages), -1, dtype=np.int32)
    number[stages] = np.arange(len(stages), dtype=np.int32)
    up, down = number[arrays.upstream], number[arrays.downstream]
    kept = (up >= 0) & (down >= 0)
    of_stages = (
        *("seconds", "penalty", "release", "started", "model", "working_bytes", "together", "apart", "charge"),
        "variants",
    )
    left = arrays._replace(
        **{name: getattr(arrays, name)[stages] for name in of_stages},
        upstream=up[kept],
        downstream=down[kept],
        size_bytes=arrays.size_bytes[kept],
    )
    known = None if problem.barred is None else problem.barred[stages]
    return problem._replace(stages=tuple(problem.stages[stage] for stage in stages), arrays=left, barred=known)


def bare(problem: Problem, open_to_none: Flags, *, timed: bool) -> Problem:
    """The problem with every requirement dropped: each stage may have each place, as fast as is known, or as on its best.

    But for those that are `open_to_none`, as `shut` tells them. Unless `timed`, what takes time takes one second, and
    nothing is waited for but what stages need of each other.
    """
    arrays, closed = problem.arrays, barred(problem)
    best = np.where(closed, np.inf, arrays.seconds).min(axis=1, keepdims=True, initial=np.inf)
    otherwise = np.broadcast_to(np.where(np.isfinite(best), best, 1.0), closed.shape)
    if problem.barred is not None:
        otherwise = np.where(np.isfinite(problem.barred), problem.barred, otherwise)
    seconds = np.where(closed, otherwise, arrays.seconds)
    if not timed:
        seconds = np.minimum(np.ceil(seconds), 1.0)
    seconds[open_to_none] = np.inf
    load = np.where(np.isfinite(arrays.load_seconds), arrays.load_seconds, 0.0)
    waits = ~arrays.started[arrays.downstream]
    left = arrays._replace(
        seconds=seconds,
        load_seconds=load if timed else np.zeros_like(load),
        penalty=np.zeros_like(arrays.penalty),
        byte_penalty=np.zeros_like(arrays.byte_penalty),
        available=_finite(arrays.available) if timed else np.zeros_like(arrays.available),
        release=_finite(arrays.release) if timed else np.zeros_like(arrays.release),
        upstream=arrays.upstream[waits],
        downstream=arrays.downstream[waits],
        size_bytes=arrays.size_bytes[waits] if timed else np.zeros(int(waits.sum())),
        latency=_finite(arrays.latency) if timed else np.zeros_like(arrays.latency),
        seconds_per_byte=_finite(arrays.seconds_per_byte),
    )
    return problem._replace(arrays=left)


def keeping(left: Problem, kept: Collection[Requirement]) -> Problem:
    """A problem that `bare` left, with those again that it was bared of; but for links and a deadline, which are not its own."""
    arrays, seconds = left.arrays, left.arrays.seconds.copy()
    has: dict[str, list[int]] = {}
    for requirement in kept:
        has.setdefault(requirement.kind, []).append(requirement.which)
        if requirement.kind == "places":
            seconds[requirement.which, list(requirement.places)] = np.inf

    def only(kind: str, values: Indices, otherwise: int) -> Indices:
        return np.where(np.isin(values, has.get(kind, [])), values, otherwise).astype(values.dtype)

    def where(kind: str, values: Any, otherwise: float) -> Any:
        return np.where(np.isin(np.arange(len(values)), has.get(kind, [])), values, otherwise).astype(values.dtype)

    again = arrays._replace(
        seconds=seconds,
        memory_bytes=where("memory", arrays.memory_bytes, np.inf),
        store=where("store", arrays.store, np.inf),
        slots=where("slots", arrays.slots, len(left.stages))[arrays.shares],
        together=only("together", arrays.together, -1),
        apart=only("apart", arrays.apart, -1),
    )
    return left._replace(arrays=again)


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, 0.0)


def unlinked(problem: Problem, edge: int) -> Flags:
    """[k, k]: from which nodes to which a dependency's value cannot come; in time, to a stage that runs."""
    arrays = problem.arrays
    size = arrays.size_bytes[edge]
    takes = arrays.latency + (size * arrays.seconds_per_byte if size else 0.0)
    cannot: Flags = takes > 0 if arrays.started[arrays.downstream[edge]] else ~np.isfinite(takes)
    return cannot


def listed(names: Sequence[str]) -> str:
    """Names with commas, the first of many."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _loadable(arrays: Arrays) -> Flags:
    """[w, m]: whether a model is on the place's node, or some place of the node can load it."""
    able = np.isfinite(arrays.load_seconds)
    nodes = arrays.resident.copy()
    for place, node in enumerate(arrays.node):
        nodes[:, node] |= able[:, place]
    found: Flags = nodes[:, arrays.node]
    return found


def _said(stage: int, reasons: Reasons, closed: Flags) -> Iterator[tuple[str, frozenset[int]]]:
    """What is said of places that the stage may not have, and of which; `closed` [m]: those."""
    places_closed = frozenset(np.flatnonzero(closed).tolist())
    for text, places in reasons[stage].items() if stage < len(reasons) else ():
        if here := places_closed & frozenset(places):
            yield text, here


def _listed(problem: Problem, places: Collection[int]) -> str:
    return listed([str(problem.places[place]) for place in sorted(places)])


def _places(problem: Problem, stage: int, reasons: Reasons, closed: Flags, out: Flags) -> Iterator[Requirement]:
    """Of one stage: `closed` [m] are the places that it may not have, without those that are `out` of the question."""
    rest, name = frozenset(np.flatnonzero(closed).tolist()), problem.stages[stage]
    for text, here in _said(stage, reasons, closed):
        rest -= here
        yield Requirement("places", stage, f"{name} may not have {_listed(problem, here)}: {text}", here)
    if rest:
        able = [str(place) for index, place in enumerate(problem.places) if not (index in rest or out[index])]
        words = f"can run only on {listed(able)}" if able else "can run nowhere"
        yield Requirement("places", stage, f"{name} {words}", rest)


def _nodes(problem: Problem) -> Iterator[Requirement]:
    arrays = problem.arrays
    for node in np.flatnonzero(np.isfinite(arrays.memory_bytes)).tolist():
        words = f"{problem.nodes[node]} has {arrays.memory_bytes[node]:.0f} bytes of memory"
        yield Requirement("memory", node, words)
    for node in np.flatnonzero(np.isfinite(arrays.store)).tolist():
        yield Requirement("store", node, f"{problem.nodes[node]} has {arrays.store[node]:g} J")
    for index in np.unique(arrays.shares).tolist():
        place = problem.places[index]
        words = f"{place} runs {place.slots} at a time" if place.slots > 1 else f"{place} runs one stage at a time"
        yield Requirement("slots", index, words)


def _groups(problem: Problem) -> Iterator[Requirement]:
    arrays = problem.arrays
    for group in np.unique(arrays.together[arrays.together >= 0]).tolist():
        names = [problem.stages[stage] for stage in np.flatnonzero(arrays.together == group)]
        yield Requirement("together", group, f"{listed(names)} share a node")
    zone, crowding = zones(arrays)
    for group in np.unique(arrays.apart[arrays.apart >= 0]).tolist():
        if crowding[group] == np.inf:
            names = [problem.stages[stage] for stage in np.flatnonzero(arrays.apart == group)]
            yield Requirement("apart", group, f"{listed(names)} stand {_apart(problem, zone[group])}")


def _apart(problem: Problem, zone: Indices) -> str:
    """What stages apart have to stand in, and which nodes are in one."""
    shared = [np.flatnonzero(zone == which) for which in np.unique(zone)]
    shown = [
        " and ".join(problem.nodes[node] or "the job store" for node in nodes) for nodes in shared if len(nodes) > 1
    ]
    return f"in different zones, where {listed(shown)} are in one" if shown else "on different nodes"


def _links(problem: Problem) -> Iterator[Requirement]:
    arrays = problem.arrays
    for edge, (source, sink) in enumerate(zip(arrays.upstream.tolist(), arrays.downstream.tolist(), strict=True)):
        up, down = problem.stages[source], problem.stages[sink]
        if arrays.started[sink]:
            yield Requirement("link", edge, f"{down} runs already, and has its input from {up}")
        elif unlinked(problem, edge).any():
            yield Requirement("link", edge, f"{down} reads what {up} gives, and not all nodes are linked")
