"""Reading files that a user names, which may be pipes and devices without an end."""

from pathlib import Path


def read_at_most(path: Path, size: int) -> bytes:
    """A file's bytes, or the first `size` and one more where it has more. Raises OSError."""
    with path.open("rb") as file:
        return file.read(size + 1)
