"""Makes the tokenizer, the training volumes and the held-out sets out of the entries.

    python -m training.prepare tokenizer | heldout | volumes [COUNT [ROWS]]

A volume is an .npz of rows: passages with several questions about them, or plain text. `kinds` says of each
token what it is: 0 plain text and passages, 1 question, 2 answer.
"""

import gzip
import hashlib
import json
import random
import re
import sys
from collections import defaultdict
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from starloom.agents.language import prompt
from training import questions
from training.questions import Fact, Passage
from training.sources import ROOT, WORK, Entry, documents, entries, held_out

SHIPPED = ROOT / "src/starloom/agents/data/language"
TOKENIZER = SHIPPED / "tokenizer.json"
VOCABULARY = 2048
LENGTH = 256
SOURCES = {"foldoc": 0.36, "wordnet": 0.42, "vera": 0.08, "jargon": 0.1, "elements": 0.04}
KINDS = {
    "define": 5.0,
    "genus": 1.5,
    "name": 2.5,
    "expand": 3.0,
    "abbreviate": 1.0,
    "cloze": 2.0,
    "who": 10.0,
    "year": 8.0,
    "born": 6.0,
    "died": 5.0,
    "where": 10.0,
    "at": 8.0,
    "used for": 10.0,
}
"""How often each kind is asked where several can be; others count 1."""
RARE = ("who", "year", "born", "where", "at", "used for")
RARE_SHARE = 0.35
"""So many passages are drawn from entries that say something of the RARE kinds."""
UNANSWERABLE = 0.3
LACKING_SHARE = 0.2
PLAIN_SHARE = 0.6
HELD_OUT_QUESTIONS = 1200
HELD_OUT_TEXT_BYTES = 160_000
SEED = 20


class Pool:
    """Entries of one side of the split, to draw from and to find look-alikes in."""

    def __init__(self, found: list[Entry]) -> None:
        self.entries = found
        self.by_source: dict[str, list[int]] = defaultdict(list)
        self.by_word: dict[str, list[int]] = defaultdict(list)
        for number, entry in enumerate(found):
            self.by_source[entry.source].append(number)
            for word in self.words(entry):
                self.by_word[word].append(number)
        self.by_kind: dict[str, list[int]] = defaultdict(list)
        for number, entry in enumerate(found):
            for kind in {fact.kind for fact in questions.facts(entry, entry.text[:180])} & set(RARE):
                self.by_kind[kind].append(number)

    @staticmethod
    def words(entry: Entry) -> list[str]:
        """Words by which an entry resembles others: those of its title, and the long ones that its text begins with."""
        title = re.findall(r"[a-z0-9]{2,}", entry.title.lower())
        start = re.findall(r"[a-z]{5,}", entry.text.lower()[:80])
        return list(dict.fromkeys(title + start[:5]))

    def draw(self, chance: random.Random) -> Entry:
        if chance.random() < RARE_SHARE:
            return self.entries[chance.choice(self.by_kind[chance.choice(RARE)])]
        source = chance.choices(list(SOURCES), list(SOURCES.values()))[0]
        return self.entries[chance.choice(self.by_source[source])]

    def near(self, chance: random.Random, entry: Entry) -> Entry:
        """An entry that shares a word, mostly a rare one or one of the title."""
        words = [word for word in self.words(entry) if len(self.by_word[word]) > 1]
        if not words:
            return self.draw(chance)
        weights = [1 / len(self.by_word[word]) ** 0.5 for word in words]
        return self.entries[chance.choice(self.by_word[chance.choices(words, weights)[0]])]

    def others(self, chance: random.Random, entry: Entry, count: int, kept: list[Entry]) -> list[Entry]:
        """Distractors: entries of other names than those in `kept`, two thirds of them look-alikes."""
        names = {prompt.normalised(name) for one in kept for name in (one.title, *one.names)}
        found: list[Entry] = []
        for _ in range(20 * count):
            roll = chance.random()
            other = self.near(chance, entry) if roll < 0.67 else self.draw(chance)
            own = {prompt.normalised(name) for name in (other.title, *other.names)}
            if not own & names and "" not in own:
                found.append(other)
                names |= own
            if len(found) == count:
                break
        return found


def pick(chance: random.Random, found: list[Fact]) -> Fact:
    return chance.choices(found, [KINDS.get(fact.kind, 1.0) for fact in found])[0]


def absent(chance: random.Random, pool: Pool, shown: list[Passage]) -> str | None:
    """A question that the passages do not answer: about an entry like one of them, or what one of them does not say."""
    if chance.random() < LACKING_SHARE and (fact := questions.lacking(chance, chance.choice(shown))):
        return questions.ask(chance, fact)
    entries_shown = [passage.entry for passage in shown]
    for other in pool.others(chance, chance.choice(entries_shown), 1, entries_shown):
        if found := questions.usable(chance, questions.variant(chance, other)):
            return questions.ask(chance, pick(chance, found))
    return None


def answerable(chance: random.Random, shown: list[Passage]) -> tuple[str, prompt.Reply, str]:
    """A question that one of the passages answers, the answer, and its kind; an empty question if there is none."""
    passage = chance.choice(shown)
    found = questions.usable(chance, passage)
    if not found:
        return "", prompt.Reply("", ""), ""
    fact = pick(chance, found)
    return questions.ask(chance, fact), prompt.Reply(passage.snippet.title, fact.span), fact.kind


def context(chance: random.Random, pool: Pool, most: int) -> list[Passage]:
    """From one to `most` passages, look-alikes of one of them, in any order."""
    anchor = pool.draw(chance)
    kept = [anchor, *pool.others(chance, anchor, chance.randint(1, most) - 1, [anchor])]
    chance.shuffle(kept)
    return [questions.variant(chance, entry) for entry in kept]


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


def train_tokenizer(found: list[Entry], texts: list[str]) -> None:
    """Byte-level BPE over lower-case text of the training side."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=list(prompt.MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # WordNet is much larger than the rest and would drown it.
    sample = [
        f" {entry.title}: {entry.text}" for n, entry in enumerate(found) if entry.source != "wordnet" or n % 3 == 0
    ]
    asked = [
        f" {one.replace('{}', '').replace('{0}', '').replace('{1}', '')}"
        for t in questions.TEMPLATES.values()
        for one in t
    ]
    made.train_from_iterator([*sample, *texts, *(asked * 200)], trainer)
    made.add_tokens([prompt.REFUSAL])
    SHIPPED.mkdir(parents=True, exist_ok=True)
    made.save(str(TOKENIZER), pretty=False)


class Rows:
    """Rows of tokens being gathered, each cut at LENGTH."""

    def __init__(self, reader: Tokenizer) -> None:
        self.reader = reader
        self.tokens: list[np.ndarray] = []
        self.kinds: list[np.ndarray] = []

    def encode(self, text: str) -> list[int]:
        return list(self.reader.encode(text, add_special_tokens=False).ids)

    def add(self, parts: list[tuple[list[int], int]]) -> None:
        tokens = [token for part, _ in parts for token in part]
        kinds = [kind for part, kind in parts for _ in part]
        self.tokens.append(np.array(tokens[:LENGTH], np.uint16))
        self.kinds.append(np.array(kinds[:LENGTH], np.uint8))

    def save(self, path: Any) -> None:
        lengths = np.array([len(row) for row in self.tokens], np.int32)
        np.savez(path, tokens=np.concatenate(self.tokens), kinds=np.concatenate(self.kinds), lengths=lengths)


def question_row(chance: random.Random, pool: Pool, rows: Rows, most: int) -> None:
    """Passages, then as many questions about them as fit, each with its answer."""
    shown = context(chance, pool, most)
    parts = [(rows.encode(prompt.passages([passage.snippet])), 0) for passage in shown]
    while len(parts) > 1 and sum(len(part) for part, _ in parts) > LENGTH - 60:
        parts.pop()
        shown.pop()
    room = LENGTH - sum(len(part) for part, _ in parts)
    # One question of a kind for a passage: else the model would copy its own earlier answer instead.
    asked: set[str] = set()
    for _ in range(2 * len(shown) + 2):
        reply = prompt.Reply("", "")
        if chance.random() < UNANSWERABLE:
            text = key = absent(chance, pool, shown)
        else:
            text, reply, kind = answerable(chance, shown)
            key = f"{kind} {reply.title}"
        if not text or key in asked:
            continue
        asked.add(key)
        question, answer = rows.encode(prompt.question(text)), rows.encode(prompt.target(reply))
        room -= len(question) + len(answer)
        if room < 0:
            break
        parts += [(question, 1), (answer, 2)]
    rows.add(parts)


def plain_rows(chance: random.Random, rows: Rows, texts: list[str], count: int) -> None:
    """Running text, several documents in a row of LENGTH, every document once before any comes again."""
    end = rows.encode(prompt.END)
    left: list[str] = []
    row: list[int] = list(end)
    made = 0
    while made < count:
        if not left:
            left = chance.sample(texts, len(texts))
        row += rows.encode(f" {left.pop()}") + end
        # A row begins with a token of the one before, so that every token is once to be told.
        while len(row) > LENGTH and made < count:
            rows.add([(row[:LENGTH], 0)])
            row = row[LENGTH - 1 :]
            made += 1


def write_volume(number: int, count: int, pool: Pool, texts: list[str]) -> None:
    chance = random.Random(SEED * 1000 + number)
    rows = Rows(tokenizer())
    # The first volume is easy: one passage or two, so that copying is learnt first.
    most = 2 if number == 0 else 4
    for _ in range(int(count * (1 - PLAIN_SHARE))):
        question_row(chance, pool, rows, most)
    plain_rows(chance, rows, texts, count - len(rows.tokens))
    rows.save(WORK / f"volume{number}.npz")


def plain_texts(found: list[Entry], held: bool) -> list[str]:
    """Running text of one side: Debian's documents split by section, the dictionaries' entries by title."""
    long = [one for one in documents() if held_out(one.title) == held]
    texts = [f"{one.title}. {one.text}" for one in long]
    texts += [f"{one.title}: {one.text}" for one in found if one.source in ("foldoc", "jargon")]
    # Glosses are short: several in a piece, so that they are drawn as often as they are long.
    glosses = [f"{one.title}: {one.text}" for one in found if one.source == "wordnet"]
    return texts + [f"{prompt.END} ".join(glosses[n : n + 6]) for n in range(0, len(glosses), 6)]


def write_held_out(pool: Pool, texts: list[str]) -> None:
    """The fixed questions and the fixed text, both from entries never trained on."""
    chance = random.Random(SEED)
    made: list[dict[str, Any]] = []
    reader = tokenizer()
    while len(made) < HELD_OUT_QUESTIONS:
        shown = context(chance, pool, 4)
        snippets = [passage.snippet for passage in shown]
        if len(made) % 10 < UNANSWERABLE * 10:
            text, reply, kind = absent(chance, pool, shown), prompt.Reply("", ""), "absent"
        else:
            text, reply, kind = answerable(chance, shown)
        answer = {"title": reply.title, "span": reply.span, "kind": kind}
        if text and len(reader.encode(prompt.prompt(snippets, text)).ids) <= LENGTH - 40:
            made.append({"question": text, "passages": [list(one) for one in snippets], **answer})
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made).encode()
    (SHIPPED / "heldout.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    chance.shuffle(texts)
    kept: list[str] = []
    while sum(len(one.encode()) for one in kept) < HELD_OUT_TEXT_BYTES:
        kept.append(texts[len(kept)].replace(prompt.END, "")[:1500])
    plain = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept).encode()
    (SHIPPED / "heldout-text.jsonl.gz").write_bytes(gzip.compress(plain, mtime=0))
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in (("questions", lines), ("text", plain))}
    sys.stdout.write(json.dumps({"seed": SEED, "questions": len(made), **digests}, indent=2) + "\n")


def main(arguments: list[str]) -> int:
    found = entries()
    sides = {held: [entry for entry in found if entry.held_out == held] for held in (False, True)}
    if arguments[0] == "tokenizer":
        train_tokenizer(sides[False], plain_texts([], False))
    elif arguments[0] == "heldout":
        write_held_out(Pool(sides[True]), plain_texts(sides[True], True))
    else:
        numbers = [int(one) for one in arguments[1].split(",")]
        pool, texts = Pool(sides[False]), plain_texts(sides[False], False)
        for number in numbers:
            write_volume(number, int(arguments[2]), pool, texts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
