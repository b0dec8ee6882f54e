"""Writes the golden snapshot, of a golden journal, as this version takes it: `python -m tools.golden_snapshot`.

Snapshots are read by the version that took them alone, so there is one, and it is written over. That it differs is to be noticed:
raise `snapshots.FORMAT` where what an earlier snapshot holds would be read, and mean something else.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from tools.golden_journal import FOLDER

from starloom.orchestrator import snapshots
from starloom.orchestrator.records import FILE_NAME

NAME: Final = "growth"
PATH: Final = FOLDER / f"{NAME}.snapshot"


def taken(folder: Path) -> bytes:
    """The snapshot that the golden journal gives, made in an empty folder, with that journal beside it."""
    shutil.copy(FOLDER / f"{NAME}.db", folder / FILE_NAME)
    return snapshots.path_of(folder, snapshots.make(folder)).read_bytes()


def main() -> int:
    """Writes it."""
    with tempfile.TemporaryDirectory() as folder:
        PATH.write_bytes(taken(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
