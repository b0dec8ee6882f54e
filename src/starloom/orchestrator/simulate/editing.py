"""Random patches of a job, as its clients know it: most can be taken, some cannot."""

from typing import NamedTuple

import msgspec

from starloom.dag.patch import Patch, inverse
from starloom.orchestrator.simulate.jobview import JobView
from starloom.orchestrator.simulate.loop import Chance
from starloom.orchestrator.simulate.operations import OperationDrawer, Operations


class Drawn(NamedTuple):
    """A patch, and the revision that it takes back, if it does."""

    patch: Patch
    undoes: int = 0


class Editor:
    """Draws the patches of one client. `aside` and `tiers` are as `OperationDrawer` has them."""

    def __init__(self, chance: Chance, aside: Chance, name: str, tiers: int) -> None:
        self._chance = chance
        self._name = name
        self._operations = OperationDrawer(chance, aside, tiers)
        #: the first patch under each id
        self._first: dict[str, Drawn] = {}

    def draw(self, job: JobView) -> Drawn:
        """The next patch: `why` names it, in this run as no other."""
        self._operations.number += 1
        why = f"{self._name}-{self._operations.number}"
        drawn = self._draw(job, why)
        patch = drawn.patch
        first = self._first.setdefault(patch.id, drawn) if patch.id else drawn
        content = (patch.operations, patch.if_revision, patch.restart)
        # Under an id that is taken, the same content is a repeat.
        return first if content == (first.patch.operations, first.patch.if_revision, first.patch.restart) else drawn

    def _draw(self, job: JobView, why: str) -> Drawn:
        chance = self._chance
        restart = chance.happens(0.35)
        name = "" if chance.happens(0.15) else why
        if name and self._first and chance.happens(0.04):
            name = chance.pick(list(self._first))
        if job.differences and chance.happens(0.12):
            undo = inverse(job.differences[-1], restart=restart, why=why)
            return Drawn(msgspec.structs.replace(undo, id=name, if_revision=job.revision), job.revision)
        operations: Operations = []
        for _ in range(chance.pick((1, 1, 1, 2, 2, 3))):
            operations += self._operations.draw(job)
        if not operations:
            operations = self._operations.replace(job)
        operations += self._operations.beside(job)
        revision = chance.pick((0, 0, 0, job.revision, job.revision, 1 + chance.below(job.revision + 1)))
        return Drawn(Patch(operations=tuple(operations), if_revision=revision, restart=restart, id=name, why=why))
