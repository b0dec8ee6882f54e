"""What an agent's fetches tell of the links to those it fetched from. Pure: who fetches says how long each took, and when.

    meter.fetched("cloud", size_bytes=4_000_000, seconds=0.4, now=12.0)
    meter.told(now=12.5)["cloud"].bytes_per_second

A fetch tells of a link only if no other one was on its way meanwhile: what shares a path tells of the load, not of the path.
What small ones told, and what large ones did, is forgotten after LINK_KEPT_SECONDS without another of them: who is known to be slow
is asked for nothing, or for nothing large, and would stay so.
"""

from collections import OrderedDict
from math import isfinite
from typing import Final

import msgspec

from starloom.dag import limits
from starloom.devices.links import Link

_NEWEST_SHARE: Final = 0.3
"""Weight of the newest fetch: as of runs (`orchestrator.costs`), so that a link that changes is soon known as it is."""
_BEYOND_MIN: Final = 0.1
"""The share of a large fetch that is taken to be beyond its latency: of one that came sooner than small ones the rest says nothing."""
_SECONDS_MIN: Final = 1e-9
"""What is left of a fetch that took no time by the clock."""


class MeasuredLink(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of the path from another node to this one: None for what no fetch has told yet.

    `latency_seconds`: of a request for few bytes with its answer. `bytes_per_second`: beyond that.
    """

    latency_seconds: float | None = None
    bytes_per_second: float | None = None

    def over(self, usual: Link) -> Link:
        """The link, with what is not known as it usually is."""
        latency, rate = self.latency_seconds, self.bytes_per_second
        return Link(
            latency_seconds=usual.latency_seconds if latency is None else latency,
            bytes_per_second=usual.bytes_per_second if rate is None else rate,
            joules_per_byte=usual.joules_per_byte,
            price_per_byte=usual.price_per_byte,
        )

    def filled(self, other: "MeasuredLink") -> "MeasuredLink":
        """It, with what is not known of it as it is of the `other` way."""
        latency, rate = self.latency_seconds, self.bytes_per_second
        return MeasuredLink(
            latency_seconds=other.latency_seconds if latency is None else latency,
            bytes_per_second=other.bytes_per_second if rate is None else rate,
        )

    def fault(self) -> str:
        """What cannot be meant of it, as a clause; empty for what can."""
        latency, rate = self.latency_seconds, self.bytes_per_second
        if latency is not None and not 0.0 <= latency <= limits.LINK_LATENCY_SECONDS_MAX:
            return f"has a latency of {latency:g} s, not 0 to LINK_LATENCY_SECONDS_MAX = {limits.LINK_LATENCY_SECONDS_MAX:g}"
        if rate is not None and not (rate >= 1.0 and isfinite(rate)):
            return f"has {rate:g} bytes a second; at least 1 are meant"
        return ""


class _Path:
    """One path: sums that forget, so that large fetches tell more of the rate than small ones."""

    def __init__(self) -> None:
        self._latency: float | None = None
        self._bytes = self._seconds = 0.0
        #: when the last small value came, and the last large one
        self._small = self._large = 0.0
        self._met = False

    def fetched(self, size_bytes: int, seconds: float, now: float) -> None:
        if not self._met:
            # The first one dials, or opens the other's memory.
            self._met = True
            return
        self._forget(now)
        if size_bytes <= limits.LINK_SMALL_BYTES_MAX:
            before = seconds if self._latency is None else self._latency
            self._latency, self._small = before + _NEWEST_SHARE * (seconds - before), now
            return
        beyond = max(seconds - (self._latency or 0.0), _BEYOND_MIN * seconds, _SECONDS_MIN)
        self._bytes = (1 - _NEWEST_SHARE) * self._bytes + size_bytes
        self._seconds = (1 - _NEWEST_SHARE) * self._seconds + beyond
        self._large = now

    def told(self, now: float) -> MeasuredLink:
        self._forget(now)
        rate = self._bytes / self._seconds if self._seconds else None
        latency = None if self._latency is None else min(self._latency, limits.LINK_LATENCY_SECONDS_MAX)
        return MeasuredLink(latency_seconds=latency, bytes_per_second=rate and max(1.0, rate))

    def _forget(self, now: float) -> None:
        """Small values tell nothing of the rate, and go on where large ones are kept away by it."""
        if now - self._small > limits.LINK_KEPT_SECONDS:
            self._latency = None
        if now - self._large > limits.LINK_KEPT_SECONDS:
            self._bytes = self._seconds = 0.0


class LinkMeter:
    """The links to the LINKS_MEASURED_MAX nodes that were last fetched from, by name."""

    def __init__(self) -> None:
        self._paths: OrderedDict[str, _Path] = OrderedDict()

    def fetched(self, source: str, size_bytes: int, seconds: float, now: float) -> None:
        """A value has come from that node by `now`, in seconds on any clock, with nothing else on its way here."""
        path = self._paths.get(source)
        if path is None:
            path = self._paths[source] = _Path()
            if len(self._paths) > limits.LINKS_MEASURED_MAX:
                self._paths.popitem(last=False)
        self._paths.move_to_end(source)
        path.fetched(size_bytes, seconds, now)

    def told(self, now: float) -> dict[str, MeasuredLink]:
        """Of each of which something is known, what that is."""
        known = ((source, path.told(now)) for source, path in self._paths.items())
        return {source: link for source, link in known if link != MeasuredLink()}


class Alone:
    """Which fetches had nothing else on its way beside them, from their begin to their end."""

    def __init__(self) -> None:
        self._begun = 0
        self._open = 0

    def begin(self) -> int | None:
        """A fetch begins. What it is given goes to `end`."""
        self._begun += 1
        self._open += 1
        return self._begun if self._open == 1 else None

    def end(self, begun: int | None) -> bool:
        """It is over, however it went; returns whether it was alone."""
        self._open -= 1
        return begun == self._begun
