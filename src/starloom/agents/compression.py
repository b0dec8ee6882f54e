"""Whether what one host sends another is packed on its way. Pure: knows no clock and no codec.

Who fetches a value knows its type, and how fast the link is: it says so in its request, or that nothing is to be packed.
Who holds the value tries it on the first chunk, and goes on as long as that makes the value come sooner.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Final, NamedTuple

from starloom.dag import limits
from starloom.dag.values import PortType

ZSTD: Final = "zstd"

WORTH_TRYING_BELOW: Final[Mapping[PortType, float]] = {
    PortType.AUDIO: 40e6,
    PortType.IMAGE: 32e6,
    PortType.JSON: 60e6,
    PortType.TEXT: 60e6,
    PortType.TENSOR: 15e6,
    PortType.BYTES: 15e6,
}
"""Bytes a second of a link from which on packing is not even tried: half of what a value of that type gained up to at level 1
(docs/performance.md). Bytes are mostly files that are packed already."""

_FAST_LEVEL: Final = 1
_SLOW_LEVEL: Final = 3
_SLOW_LINK_BYTES_PER_SECOND: Final = 10e6
"""Below it level 3, which packs half as fast, and speech to 1/1.82 instead of 1/1.65, makes it come sooner than level 1."""
_BOTH_ENDS: Final = 1.5
"""Packing and unpacking take this many times as long as packing: zstd unpacks more than twice as fast."""
_GAIN_MIN: Final = 0.1
_PASSED_OVER_FIRST: Final = 8
_PASSED_OVER_MAX: Final = 64
_NANOS: Final = 1e9


def level_for(bytes_per_second: float) -> int:
    """The level of zstd for a link."""
    return _SLOW_LEVEL if bytes_per_second < _SLOW_LINK_BYTES_PER_SECOND else _FAST_LEVEL


def pays(plain_bytes: int, packed_bytes: int, seconds: float, bytes_per_second: float) -> bool:
    """Whether bytes come sooner when packed, by at least a tenth, though they be packed, sent and unpacked one after the other.

    `seconds`: what packing them took.
    """
    return packed_bytes / bytes_per_second + _BOTH_ENDS * seconds <= (1 - _GAIN_MIN) * plain_bytes / bytes_per_second


class Trial:
    """Which chunks of one value are packed. Where one did not pay, some are passed over before another is tried."""

    def __init__(self, bytes_per_second: float) -> None:
        """For a link that is known; raises ValueError for one that is not."""
        if bytes_per_second <= 0:
            raise ValueError(
                f"bytes_per_second is {bytes_per_second:g}; of a link that is not known nothing can be told"
            )
        self._bytes_per_second = bytes_per_second
        self.level = level_for(bytes_per_second)
        self._passing_over = 0
        self._pass_over_next = _PASSED_OVER_FIRST

    def tries(self) -> bool:
        """Whether the next chunk is to be packed, to see whether that pays."""
        if self._passing_over:
            self._passing_over -= 1
            return False
        return True

    def tried(self, plain_bytes: int, packed_bytes: int, seconds: float) -> bool:
        """Whether the chunk that was packed, in `seconds`, is sent so."""
        if pays(plain_bytes, packed_bytes, seconds, self._bytes_per_second):
            self._pass_over_next = _PASSED_OVER_FIRST
            return True
        self._passing_over = self._pass_over_next
        self._pass_over_next = min(2 * self._pass_over_next, _PASSED_OVER_MAX)
        return False


class _Link(NamedTuple):
    bytes_per_second: float
    measured: int


def is_loopback(address: str) -> bool:
    """Whether a data service's `host:port` never leaves this host."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class LinkSpeeds:
    """How fast values come from each address, as fetches have shown. Times are monotonic nanoseconds.

    Only what came plain tells: how fast packed bytes come may be how fast they are packed. So a link is measured anew, by
    a fetch of plain bytes, once its measure is LINK_MEASURED_SECONDS old. Where `is_local`, nothing is ever packed.
    """

    def __init__(self, is_local: Callable[[str], bool] = is_loopback) -> None:
        self._is_local = is_local
        self._links: OrderedDict[str, _Link] = OrderedDict()

    def wish(self, address: str, port_type: PortType, now: int) -> int:
        """What to tell of the link when a value of that type is asked for: bytes a second; 0 if none of it is to be packed."""
        link = self._links.get(address)
        if link is None or now - link.measured > limits.LINK_MEASURED_SECONDS * _NANOS or self._is_local(address):
            return 0
        return round(link.bytes_per_second) if link.bytes_per_second < WORTH_TRYING_BELOW[port_type] else 0

    def came(self, address: str, plain_bytes: int, nanos: int, now: int) -> None:
        """So many plain bytes came one after the other, the time to the first of them left out."""
        if plain_bytes < limits.LINK_MEASURE_BYTES_MIN or nanos <= 0:
            return
        speed = max(1.0, plain_bytes / nanos * _NANOS)
        before = self._links.pop(address, None)
        # One fetch may have shared the link, or the processor, with others.
        self._links[address] = _Link(speed if before is None else (before.bytes_per_second + speed) / 2, now)
        if len(self._links) > limits.LINKS_KNOWN_MAX:
            self._links.popitem(last=False)
