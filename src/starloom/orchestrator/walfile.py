"""The write-ahead log that a killed writer leaves: what of it SQLite will take over, and what it would pass over in silence.

SQLite ends its recovery at the first frame whose checksum is wrong. That is right for the last transaction, which was
being written, and was acknowledged to nobody; anywhere else it would lose what was acknowledged.
Layout: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

import struct
from pathlib import Path
from typing import Final, NamedTuple

from starloom.dag.errors import JournalDamaged
from starloom.orchestrator.records import FILE_NAME

WAL_NAME: Final = f"{FILE_NAME}-wal"
_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_BIG_ENDIAN_SUMS: Final = 0x377F0683

Sum = tuple[int, int]


class Wal(NamedTuple):
    """What a log holds: whole frames up to the last commit, the bytes behind these, and whether those are damage.

    `passed_over` counts transactions that were written after the damage, of which SQLite would take none.
    """

    frames: int = 0
    torn_bytes: int = 0
    passed_over: int = 0


class _Frame(NamedTuple):
    commits: bool
    salts: bytes
    sum: Sum


def scan(folder: Path) -> Wal:
    """What the log in a journal's folder holds; nothing if there is none."""
    try:
        data = (folder / WAL_NAME).read_bytes()
    except FileNotFoundError:
        return Wal()
    return _Scan(data).wal if len(data) > _HEADER else Wal(torn_bytes=len(data))


def refuse_damage(folder: Path) -> Wal:
    """As `scan`. Raises JournalDamaged where acknowledged transactions would be passed over."""
    found = scan(folder)
    if found.passed_over:
        raise JournalDamaged(
            f"{folder / WAL_NAME} is damaged at frame {found.frames + 1}, and at least {found.passed_over} transactions "
            "that were written after it cannot be read; restore a copy, or delete that file to go on without them"
        )
    return found


class _Scan:
    """One pass over a log."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        magic, _, size = struct.unpack_from(">III", data)
        self._order = ">" if magic == _BIG_ENDIAN_SUMS else "<"
        # A damaged header may say anything; the journal has SQLite's own page size.
        self._page = size if size in {1 << bits for bits in range(9, 17)} else 4096
        self._salts = data[16:24]
        self._count = (len(data) - _HEADER) // (_FRAME_HEADER + self._page)
        chain = self._summed((0, 0), 0, _HEADER - 8)
        whole = chain == struct.unpack_from(">II", data, _HEADER - 8)
        committed, bad = self._follow(chain) if whole else (0, 0)
        torn = len(data) - _HEADER - committed * (_FRAME_HEADER + self._page)
        passed_over = self._commits_behind(bad, whole)
        # Frames of an older generation stay behind the newer ones; of theirs both salts differ.
        stale = whole and bad == committed < self._count and not passed_over and self._is_older(self._frame(bad))
        self.wal = Wal(committed, 0 if stale else torn, passed_over)

    def _is_older(self, frame: _Frame) -> bool:
        return frame.salts[:4] != self._salts[:4] and frame.salts[4:] != self._salts[4:]

    def _follow(self, chain: Sum) -> tuple[int, int]:
        """The number of frames up to the last commit, and that of the first frame that does not go on from there."""
        committed = 0
        for number in range(self._count):
            frame = self._frame(number)
            chain = self._frame_sum(chain, number)
            if frame.salts != self._salts or chain != frame.sum:
                return committed, number
            if frame.commits:
                committed = number + 1
        return committed, self._count

    def _commits_behind(self, bad: int, whole: bool) -> int:
        """Transactions behind a frame that is not whole; each frame is summed up from the sum that the one before has.

        One of them may be the bad frame's own, which was being written.
        """
        commits = 0
        salts = self._salts if whole else None
        for number in range(bad + 1, self._count):
            before, frame = self._frame(number - 1), self._frame(number)
            if salts is not None and frame.salts != salts:
                continue
            commits += frame.commits and self._frame_sum(before.sum, number) == frame.sum
        if not commits:
            return 0
        its_own = whole and not self._frame(bad).commits
        return commits - its_own

    def _frame(self, number: int) -> _Frame:
        at = _HEADER + number * (_FRAME_HEADER + self._page)
        commit, one, two = struct.unpack_from(">I8xII", self._data, at + 4)
        return _Frame(commit != 0, self._data[at + 8 : at + 16], (one, two))

    def _frame_sum(self, chain: Sum, number: int) -> Sum:
        at = _HEADER + number * (_FRAME_HEADER + self._page)
        return self._summed(self._summed(chain, at, 8), at + _FRAME_HEADER, self._page)

    def _summed(self, chain: Sum, at: int, size: int) -> Sum:
        one, two = chain
        words = struct.unpack_from(f"{self._order}{size // 4}I", self._data, at)
        for even, odd in zip(words[::2], words[1::2], strict=True):
            one = (one + even + two) & 0xFFFFFFFF
            two = (two + odd + one) & 0xFFFFFFFF
        return one, two
