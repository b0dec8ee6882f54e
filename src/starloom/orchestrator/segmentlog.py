"""A log of records in segments: files that grow to a size each. Not safe for threads: its user locks."""

import os
from bisect import bisect_right
from io import FileIO
from pathlib import Path
from typing import Final

from starloom.dag import limits
from starloom.orchestrator.jobstore import check_room, no_room, sync_folder
from starloom.orchestrator.spoolrecords import Segment

_SEGMENT: Final = ".seg"


class SegmentLog:
    """The segments in one folder, which is made. What `segments` of an opened log begin with is not known yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _make(folder)
        self.segments = [Segment(path, 0, path.stat().st_size) for path in sorted(folder.glob(f"*{_SEGMENT}"))]
        self._file: FileIO | None = None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self.segments)

    def at(self, offset: int) -> Segment:
        """The segment that a chunk is in, or will be."""
        return self.segments[max(bisect_right(self.segments, offset, key=lambda segment: segment.first) - 1, 0)]

    def append(self, record: bytes, first: int) -> None:
        """Writes a record; a segment that is begun with it has `first`, the offset of its first chunk. Raises Overloaded."""
        last = self.segments[-1] if self.segments else None
        try:
            if last is None or last.size >= limits.STREAM_SEGMENT_BYTES:
                last = self._begin_segment(first)
            if self._file is None:
                self._file = last.path.open("r+b", buffering=0)
                self._file.seek(last.size)
            if self._file.write(record) != len(record):
                raise OSError("the disk took only a part")
        except OSError as error:
            # What was written in part is written over by what comes next.
            self.let_go()
            raise no_room(self.folder, error) from error
        last.size += len(record)

    def _begin_segment(self, first: int) -> Segment:
        check_room(self.folder, limits.STREAM_SEGMENT_BYTES)
        self.sync()
        self.let_go()
        number = int(self.segments[-1].path.stem) + 1 if self.segments else 1
        segment = Segment(self.folder / f"{number:08d}{_SEGMENT}", first)
        self._file = segment.path.open("xb", buffering=0)
        # What is in a file is no more durable than its name.
        sync_folder(self.folder)
        self.segments.append(segment)
        return segment

    def sync(self) -> None:
        """What was written is durable. Raises Overloaded."""
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise no_room(self.folder, error) from error

    def let_go(self) -> None:
        """Closes the file; it is opened again to be written."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def truncate(self, number: int, position: int) -> None:
        """Ends the file of a segment at a position, and takes those after it away."""
        self.let_go()
        # The last one first: what a crash leaves has no hole.
        for segment in reversed(self.segments[number + 1 :]):
            segment.path.unlink()
        del self.segments[number + 1 :]
        segment = self.segments[number]
        os.truncate(segment.path, position)
        segment.size = position


def _make(folder: Path) -> None:
    """Makes a folder, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in reversed(missing):
        sync_folder(path.parent)
