"""How values get from node to node: as the one that fetches has measured, and as it usually is where it has not."""

from starloom.dag.values import JOB_STORE
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.links import STORE_TIER, Link, link
from starloom.orchestrator.fleet import Member


def path(source: Member | None, sink: Member) -> Link:
    """The link from a node, None for the job store, to another one."""
    usual = link(STORE_TIER if source is None else source.profile.tier, sink.profile.tier)
    measured = _measured(source, sink)
    return usual if measured is None else measured.over(usual)


def fetch_seconds(size_bytes: int, source: Member | None, sink: Member) -> float:
    """How long a value of that size takes, asked for at the sink."""
    return path(source, sink).transfer_seconds(size_bytes)


def _measured(source: Member | None, sink: Member) -> MeasuredLink | None:
    """What the sink told of the path, and where it did not, the source of the same path the other way."""
    there = sink.links.get(JOB_STORE if source is None else source.name)
    back = None if source is None else source.links.get(sink.name)
    return there.filled(back) if there is not None and back is not None else there or back
