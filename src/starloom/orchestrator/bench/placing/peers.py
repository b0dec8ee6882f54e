"""The peers: published list schedulers, and what people do without one, as the compiled listings have them.

`tests/bench` has the schedulers once more, in plain loops, and holds these against them.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from starloom.dag.constellation import Tier
from starloom.orchestrator.bench.placing.draws import Draws
from starloom.orchestrator.bench.placing.instances import Instance
from starloom.orchestrator.planner import listing
from starloom.orchestrator.planner.listing import Listing, Table
from starloom.orchestrator.planner.prepared import NONE, Numbers, Prepared, board, plan_of, prepare, slots_of
from starloom.orchestrator.planner.problem import Flags, Plan

CLASSICS: Final = ("heft", "heft-last", "peft", "cpop", "min-min", "fastest-places")
"""In the order of `listing.classics`."""

_ALL: Final = {f"all-{tier.value}": tier for tier in Tier}

PEERS: Final = {
    "heft": "HEFT, of places where a stage ends at one time the first, of equal ranks the stage that came first",
    "heft-last": "HEFT, of both the last",
    "peft": "PEFT, with its optimistic cost table",
    "cpop": "CPOP, its critical path on one place",
    "min-min": "of the ready stages always the one that can end first",
    "fastest-places": "each stage where it runs fastest, in HEFT's order",
    "fastest-node": "all on the node that would be done with all work first",
    "all-device": "HEFT among the devices",
    "all-edge": "HEFT among the edge nodes",
    "all-cloud": "HEFT among the clouds",
    "random": "each stage on any place that it may have",
}


def plans(instance: Instance) -> Iterator[tuple[str, Plan | None]]:
    """Each peer's plan; None at a dead end. A stage that may not stand where its peer wants it goes where it ends first.

    Peers of tiers are not there where there are none.
    """
    prepared = prepare(instance.problem)
    made = board(prepared)
    for name, each in _listings(instance, prepared):
        stuck = listing.run(prepared, made, each)
        yield name, None if stuck != NONE else plan_of(instance.problem, prepared, made, name)


def _listings(instance: Instance, prepared: Prepared) -> Iterator[tuple[str, Listing]]:
    table = Table(prepared)
    yield from zip(CLASSICS, listing.classics(table), strict=True)
    heft = table.listing("", table.upward)
    yield "fastest-node", heft._replace(among=prepared.node == _fastest(prepared))
    for name, tier in _ALL.items():
        nodes = np.array([each is tier for each in instance.tiers], dtype=np.bool_)
        if nodes.any():
            yield name, heft._replace(among=nodes[prepared.node])
    yield "random", heft._replace(order=prepared.order, wished=_drawn(prepared.allowed).astype(table.anywhere.dtype))


def _fastest(prepared: Prepared) -> int:
    """The node whose slots are done first with all stages, those that may not stand there where they are fastest."""
    seconds = np.where(prepared.allowed, prepared.seconds, np.inf)
    done = []
    for node in range(len(prepared.memory)):
        here = prepared.node == node
        best = seconds[:, here].min(axis=1)
        work = np.where(np.isfinite(best), best, seconds.min(axis=1)).sum()
        done.append(work / slots_of(prepared, here))
    return int(np.argmin(done))


def _drawn(allowed: Flags) -> Numbers:
    counts = allowed.sum(axis=1)
    nth = np.minimum(Draws(5, len(allowed)).uniform(0.0, 1.0, len(allowed)) * counts, counts - 1).astype(np.int64)
    found: Numbers = (allowed.cumsum(axis=1) > nth[:, None]).argmax(axis=1).astype(np.int64)
    return found
