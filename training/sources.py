"""The texts that the family is trained on, out of Debian packages, as entries: a source, a title, other names, a text.

    python -m training.sources            fetches the packages and unpacks them, without installing, into out/train/data

README.md names the licences. The order and the cleaning are fixed, so equal packages give equal entries.
"""

import gzip
import hashlib
import html
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools import corpus

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "out" / "train"
DATA = WORK / "data"
PACKAGES = ("dict-foldoc", "dict-jargon", "dict-vera", "dict-elements", "wordnet-base", "debian-faq", "debian-handbook")
HELD_OUT_OF = 100
HELD_OUT = 8
"""So many of HELD_OUT_OF titles are never trained on."""


class Entry(NamedTuple):
    """A thing and what a source says of it. `names` are its other names."""

    source: str
    title: str
    names: tuple[str, ...]
    text: str

    @property
    def held_out(self) -> bool:
        """Split by title, so that a thing lies on one side whichever source speaks of it."""
        return held_out(self.title)


def held_out(title: str) -> bool:
    words = " ".join(re.findall(r"[a-z0-9]+", title.lower()))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") % HELD_OUT_OF < HELD_OUT


def fetch() -> None:
    """Downloads and unpacks what is not there yet, by Debian's own client."""
    DATA.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if (DATA / package).exists():
            continue
        subprocess.run(["apt-get", "download", package], cwd=DATA, check=True)
        archive = next(DATA.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=DATA, check=True)


def dictd(package: str, name: str) -> Iterator[str]:
    """The raw entries of a dictd dictionary."""
    folder = DATA / package / "usr/share/dictd"
    data = gzip.decompress((folder / f"{name}.dict.dz").read_bytes())
    spans = set()
    for line in (folder / f"{name}.index").read_text("utf-8", "replace").splitlines():
        word, offset, length = line.split("\t")[:3]
        if not word.lower().startswith(("00-database", "00database")):
            spans.add((corpus.number(offset), corpus.number(length)))
    for start, size in sorted(spans):
        yield data[start : start + size].decode("utf-8", "replace")


def foldoc() -> Iterator[Entry]:
    for entry in corpus.read(DATA / "dict-foldoc/usr/share/dictd"):
        yield Entry("foldoc", entry.headwords[0], entry.headwords[1:], entry.text)


def vera() -> Iterator[Entry]:
    """Abbreviations and what they stand for."""
    for raw in dictd("dict-vera", "vera"):
        lines = [line.strip() for line in raw.splitlines() if line.strip()]
        if len(lines) >= 2 and lines[0] and len(lines[0]) <= 12:
            text = re.sub(r"[\[\]]", "", " ".join(lines[1:]))
            yield Entry("vera", lines[0], (), text)


def elements() -> Iterator[Entry]:
    for raw in dictd("dict-elements", "elements"):
        lines = [line.strip() for line in raw.splitlines() if line.strip()]
        if len(lines) < 4 or not lines[1].startswith("Symbol"):
            continue
        facts = "".join(f"{line}. " for line in lines[1:4] if ":" in line)
        yield Entry("elements", lines[0], (), re.sub(r"[{}]", "", facts + " ".join(lines[4:])))


def jargon() -> Iterator[Entry]:
    for raw in dictd("dict-jargon", "jargon"):
        title, _, body = raw.strip("\n").partition("\n")
        text = " ".join(body.split()).replace("{ ", "{")
        text = re.sub(r"[{}]", "", text)
        text = re.sub(r"^(?:/[^/]*/,?\s*(?:or\s+/[^/]*/,?\s*)?)*(?:[a-z]+\.,?\s*(?:,\s*)?)*(?:obs\.\s*)?", "", text)
        text = re.sub(r"^\[[^\]]*\]\s*", "", text)
        text = re.sub(r"^1\.\s+(?:\[[^\]]*\]\s*)?", "", text)
        text = re.split(r"\s2\.\s| [┌├│]", text)[0]
        if len(text) >= 60 and text[0].isupper() and len(title) < 40:
            yield Entry("jargon", title.strip(), (), text)


def wordnet() -> Iterator[Entry]:
    """A synset's first lemma and its gloss, without the examples; nouns and verbs."""
    for part in ("noun", "verb"):
        for line in (DATA / f"wordnet-base/usr/share/wordnet/data.{part}").read_text("utf-8").splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            count = int(fields[3], 16)
            lemmas = [fields[4 + 2 * n].replace("_", " ") for n in range(count)]
            gloss = re.split(r";\s*\"", gloss.strip())[0].strip()
            if len(gloss) >= 15:
                yield Entry("wordnet", lemmas[0], tuple(lemmas[1:]), gloss)


def sections(package: str) -> Iterator[Entry]:
    """Running text of Debian's documents, a heading and its paragraphs at a time."""
    if package == "debian-faq":
        pages = sorted((DATA / package / "usr/share/doc/debian/FAQ").glob("*.en.html"))
    else:
        pages = sorted((DATA / package / "usr/share/doc/debian-handbook/html/en-US").glob("*.html"))
    for page in pages:
        text = page.read_text("utf-8", "replace")
        text = re.sub(r"(?s)<(script|style|head|pre)\b.*?</\1>", " ", text)
        for part in re.split(r"<h[1-4]\b", text)[1:]:
            heading, _, body = part.partition("</h")
            paragraphs = re.findall(r"(?s)<p\b[^>]*>(.*?)</p>|<div class=\"para\">(.*?)</div>", body)
            said = [untagged("".join(both)) for both in paragraphs]
            whole = " ".join(one for one in said if len(one.split()) > 6)
            if whole:
                yield Entry(package, untagged(heading.partition(">")[2]) or page.stem, (), whole)


def untagged(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).replace("\xa0", " ").split())


def entries() -> list[Entry]:
    """All entries that have a title of a fitting length, each text once."""
    found: dict[str, Entry] = {}
    for source in (foldoc, jargon, elements, vera, wordnet):
        for entry in source():
            title = " ".join(entry.title.replace(":", " ").split())
            text = " ".join(entry.text.split())
            if 1 < len(title) <= 40 and len(text) >= 8:
                found.setdefault(text.lower(), entry._replace(title=title, text=text))
    return list(found.values())


def documents() -> list[Entry]:
    """Running text beside the entries: Debian's handbook and FAQ."""
    return [*sections("debian-faq"), *sections("debian-handbook")]


if __name__ == "__main__":
    fetch()
