"""Makes the shipped corpus and its index from FOLDOC, the Free On-line Dictionary of Computing.

    python tools/corpus.py FOLDOC_FOLDER [DESTINATION]

FOLDOC_FOLDER holds `foldoc.dict.dz` and `foldoc.index` of Debian's package dict-foldoc; the embedding model
comes from the model store (`starloom models pull minilm-l6-v2`). Equal inputs give an equal corpus; the index may
differ in last bits from one processor to another.
"""

import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken
from starloom.agents.stages import embed, retrieve

ENTRIES = 6_000
TEXT_CHARACTERS_MIN = 70
TEXT_CHARACTERS_MAX = 700
DICTD_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# What may stand before a definition: its pronunciation, its field, an abbreviation, stray punctuation.
PREFIX = re.compile(r"^(?:(?:(?:or |dot )?/[^/]{1,40}/(?: or)?|<[^<>(]*>?|\((?:[^()]|\([^()]*\)){1,120}\)|[,;.])\s*)+")
NO_DEFINITION = (
    r"(See|Compare|Contrast|Opposite|Synonyms?|Also|E-mail|Home|Usenet|Telephone|Frequently|Not to be confused)\b"
)
ABOUT_ITSELF = {"acknowledgements", "missing definition", "free on-line dictionary of computing"}


class Entry(NamedTuple):
    """A dictionary entry: its headwords, its cleaned text, and the entries that it refers to, lower-case."""

    headwords: tuple[str, ...]
    text: str
    references: frozenset[str]


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        sys.stderr.write(f"{__doc__}")
        return 2
    destination = Path(arguments[1]) if len(arguments) == 2 else retrieve.FOLDER
    write(choose(list(read(Path(arguments[0])))), destination)
    return 0


def read(folder: Path) -> Iterator[Entry]:
    """The entries of a dictd dictionary, in the order in which they lie in the file."""
    data = gzip.decompress((folder / "foldoc.dict.dz").read_bytes())
    spans = set()
    for line in (folder / "foldoc.index").read_text("utf-8").splitlines():
        word, offset, length = line.split("\t")
        if not word.startswith("00-database"):
            spans.add((number(offset), number(length)))
    for start, size in sorted(spans):
        entry = parse(data[start : start + size].decode("utf-8", "replace"))
        if entry:
            yield entry


def number(digits: str) -> int:
    """A number of a dictd index: base 64, most significant digit first."""
    value = 0
    for digit in digits:
        value = value * 64 + DICTD_DIGITS.index(digit)
    return value


def parse(raw: str) -> Entry | None:
    """One entry; None if it has no definition of a fitting length."""
    head, _, body = raw.strip("\n").partition("\n\n")
    headwords = tuple(line.strip() for line in head.splitlines() if line.strip())
    if not headwords or headwords[0].lower() in ABOUT_ITSELF:
        return None
    references = frozenset(" ".join(found.split()).lower() for found in re.findall(r"\{([^{}()]+?)\}", body))
    text = clean(body)
    whole = len(text) >= TEXT_CHARACTERS_MIN and (text[0].isupper() or text[0] == '"')
    return Entry(headwords, text, references) if whole else None


def clean(body: str) -> str:
    """The first sense of a definition as running text, at most TEXT_CHARACTERS_MAX characters, whole sentences."""
    text = " ".join(body.split())
    text = re.sub(r"\{([^{}]*?)\s*\((?:https?|ftp|mailto)?:?[^{}]*\)\}", r"\1", text)
    text = text.replace("{", "").replace("}", "").replace("__", "")
    text = re.sub(r"\s*\[[^\[\]]*\]|\(\d{4}-\d{2}-\d{2}\)", "", text).strip()
    text = PREFIX.sub("", text)
    text = PREFIX.sub("", re.sub(r"^1\.\s+(.*?)\s2\.\s.*$", r"\1", text))
    text = re.sub(r"\s*\((?:Or|From|After|[Ss]ee|or|plural)\b[^()]*\)", "", text)
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"(])", " ".join(text.split())):
        if re.match(NO_DEFINITION, sentence) or (kept and len(sentence.split()) < 3):
            continue
        if sum(map(len, kept)) + len(sentence) > TEXT_CHARACTERS_MAX:
            break
        kept.append(sentence)
    return " ".join(kept)


def choose(entries: list[Entry]) -> list[retrieve.Passage]:
    """The entries that the others refer to most, as passages in alphabetical order; ties go to the shorter title."""
    cited = Counter(reference for entry in entries for reference in entry.references)

    def rank(entry: Entry) -> tuple[int, int, str]:
        return -sum(cited[word.lower()] for word in entry.headwords), len(entry.headwords[0]), entry.headwords[0]

    passages: dict[str, retrieve.Passage] = {}
    for entry in sorted(entries, key=rank):
        title = min(entry.headwords, key=lambda word: -cited[word.lower()])
        name = re.sub(r"[^a-z0-9+#]+", "-", title.lower()).strip("-")
        if name and name not in passages:
            passages[name] = {"id": name, "title": title, "text": entry.text}
        if len(passages) == ENTRIES:
            break
    return [passages[name] for name in sorted(passages)]


def write(passages: list[retrieve.Passage], destination: Path) -> None:
    """Writes the corpus, its index, and the record that ties them together."""
    store = ModelStore()
    models = SessionPool(store, limit=1).for_call(CancelToken())
    destination.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(passage, ensure_ascii=False) + "\n" for passage in passages).encode()
    (destination / retrieve.PASSAGES).write_bytes(gzip.compress(lines, mtime=0))
    rows = np.stack([embed.embed(models, retrieve.embedded_text(passage)) for passage in passages])
    integers, scales = retrieve.quantised(rows)
    np.savez_compressed(destination / retrieve.INDEX, integers=integers, scales=scales)
    record = {
        "model": embed.MODEL,
        "model_version": store.entry(embed.MODEL).version,
        "passages": len(passages),
        "passages_sha256": hashlib.sha256(lines).hexdigest(),
        "source": "dict-foldoc",
        "licence": "GFDL-1.1-no-invariants-or-later",
    }
    (destination / retrieve.RECORD).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
