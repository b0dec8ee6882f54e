"""Writes files so that whoever reads one finds all of it, of before or of now."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Puts a file in the place of the one at `path`, if there is one, in one step. Raises OSError, and leaves that one then."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        made.write_bytes(data)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
