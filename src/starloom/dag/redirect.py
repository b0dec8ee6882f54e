"""Lets a stage read other outputs in place of one."""

from collections.abc import Iterable

import msgspec

from starloom.dag.constellation import Dependency, OutputBinding
from starloom.dag.ids import StageId
from starloom.dag.patch import Redirect, Rewire


def redirected(redirect: Redirect, consumer: StageId, arcs: Iterable[Dependency]) -> Rewire | None:
    """What a redirection comes to for a stage that `arcs` lead into; None where it does not read the output.

    Conditions stay: a comparison with the old output is made with the new one.
    """
    sources = redirect.sources
    if consumer in redirect.but or any(source.upstream == consumer for source in sources):
        return None
    read = [arc for arc in arcs if arc.upstream == redirect.stage and arc.output == redirect.output]
    if not read:
        return None
    found = [
        _moved(arc, source, arc.input if len(sources) == 1 else f"{arc.input}-{index}")
        for arc in read
        for index, source in enumerate(sources)
    ]
    return Rewire(
        stage=consumer, dependencies=tuple(found), unfed=tuple(arc.input for arc in read) if len(sources) > 1 else ()
    )


def _moved(arc: Dependency, source: OutputBinding, port: str) -> Dependency:
    asked = arc.comparison
    if asked is not None and asked.output == arc.output:
        asked = msgspec.structs.replace(asked, output=source.output)
    return msgspec.structs.replace(arc, upstream=source.upstream, output=source.output, input=port, comparison=asked)
