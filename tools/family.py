"""Writes the entries of models.toml for sizes of the language family, from the files that ship.

python tools/family.py 3m 10m >> src/starloom/agents/models.toml
"""

import hashlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "src" / "starloom" / "agents" / "data" / "language"

ENTRY = """
[[model]]
name = "starloom-{size}"
version = "1"
kind = "language"
licence = "Apache-2.0"
about = "Starloom's language family, {size}: answers a question from a few passages, or says that they do not hold it."
default = true
sources = [{{ shipped = "language/{size}" }}]
files = [
{files}
]
"""


def entry(size: str) -> str:
    """The entry of a size that lies in the family's folder; raises FileNotFoundError for one that does not."""
    lines = []
    for path in sorted((FOLDER / size).iterdir()):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        lines.append(f'    {{ path = "{path.name}", name = "{path.name}", sha256 = "{digest}", bytes = {len(data)} }},')
    return ENTRY.format(size=size, files="\n".join(lines))


if __name__ == "__main__":
    sys.stdout.write("".join(map(entry, sys.argv[1:])))
