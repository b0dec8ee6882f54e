"""What a job with stages that grow comes to if nothing goes wrong."""

from collections.abc import Mapping

from starloom.dag.constellation import Constellation, Join
from starloom.dag.ids import StageId
from starloom.dag.validate import problems
from starloom.dag.values import ValueRef
from starloom.orchestrator.simulate.asking import asks
from starloom.orchestrator.simulate.growth import grown
from starloom.orchestrator.simulate.model import KINDS, expected, in_order, whole_params


def undisturbed(constellation: Constellation, inputs: Mapping[str, ValueRef]) -> Constellation | None:
    """The job with all that its stages grow, one after the other; None where that rests on which came first, or is refused.

    Takes time in the job's size for each stage that grows. Bounds are not looked at.
    """
    done: set[StageId] = set()
    while True:
        known = expected(constellation, inputs)
        growing = (name for name in in_order(constellation) if KINDS[constellation.stages[name].kind].grows)
        name = next((each for each in growing if each not in done), None)
        if name is None:
            return constellation
        done.add(name)
        spec, wanted = constellation.stages[name], known[name]
        if wanted is None:
            return None
        asked = asks(spec.kind, whole_params(spec), wanted.digests) if wanted.ran else None
        if asked is None:
            continue
        readers = [arc.downstream for arc in constellation.dependencies if arc.upstream == name]
        if any(constellation.stages[each].join is Join.ANY for each in readers):
            return None
        try:
            constellation = grown(constellation, name, asked, ())
        except LookupError:
            return None
        if problems(constellation, KINDS):
            return None
