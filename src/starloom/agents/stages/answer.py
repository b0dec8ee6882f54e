"""The answer to a question, in sentences that were read in a picture or retrieved from the corpus.

Extractive: what it says stands in its inputs, but for a few words around it that make it a sentence to be
spoken. Candidates are scored by the cosine of their embeddings with the question's, plus the share of
the question's words that they contain. A language model takes this kind's place with the same ports.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.agents.stages.embed import MODEL, embed, warm
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Port, PortType

OVERLAP_WEIGHT = 0.2
"""How much a candidate gains that contains every word of the question, in units of cosine."""
POINTED_WEIGHT = 0.1
"""How much what was read gains when the question speaks of the page, sign or picture."""
TITLE_WEIGHT = 0.15
"""How far a definition moves up whose title is all that the question asks for. It ranks, and does not count as score."""
SENTENCES_PER_PASSAGE = 2
FULL_LINE = 0.7
"""A line shorter than this share of the longest one ends its paragraph."""

NOTHING_HEARD = "I did not hear a question."
NOTHING_FITS = "I found no answer to that, neither in the picture nor in the dictionary."
NOTHING_READ = "I can read no text in the picture."

_WORD = re.compile(r"[a-z0-9][a-z0-9+#'-]*")
# Words that ask or bind, and say nothing of what is asked for.
_EMPTY_WORDS = frozenset(
    _WORD.findall(
        "a about an and are as at be by call called can could did do does for from has have here how i in is it its me "
        "mean means my name named of on or our please say says tell that the their these they this those to us used "
        "was we were what what's when where which who whom whose why will with would you your"
    )
)
_POINTERS = frozenset(
    _WORD.findall(
        "board book card label letter note page paper paragraph photo photograph picture poster print screen sign text"
    )
)
_READING_WORDS = frozenset(
    _WORD.findall("read reads say says see show shows speak speaks spell word words write writes written")
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence that may answer. `source` is `read` or `corpus`; `title` is the passage's, if it is of one."""

    source: str
    sentence: str
    title: str = ""
    leads: bool = False
    score: float = 0.0

    def details(self) -> dict[str, Any]:
        return {"source": self.source, "title": self.title, "sentence": self.sentence, "score": round(self.score, 4)}


def stems(text: str) -> frozenset[str]:
    """The words of a text that carry meaning, lower-case, plurals folded into singulars."""
    words = (word.removesuffix("'s") for word in _WORD.findall(text.lower()))
    return frozenset(_stem(word) for word in words if word not in _EMPTY_WORDS)


def _stem(word: str) -> str:
    plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if plural else word


def sentences(text: str) -> list[str]:
    """The sentences of running text, on one line each; an ending that the next capital touches ends one as well."""
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(]?[A-Z0-9])|(?<=[a-z][.!?])(?=[A-Z][a-z])", " ".join(text.split()))
    return [part.strip() for part in parts if part.strip()]


def read_sentences(text: str) -> list[str]:
    """The sentences of recognised lines: lines of a paragraph are joined, headings and code stand alone."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    longest = max(map(len, lines), default=0)
    blocks: list[str] = []
    open_block = False
    for line in lines:
        if not open_block or not re.match(r"[\w\"'(]", line):
            blocks.append(line)
        elif blocks[-1].endswith("-") and line[0].islower():
            blocks[-1] = blocks[-1][:-1] + line
        else:
            blocks[-1] += " " + line
        # A short line is a heading, the end of a paragraph, or the lone word of a sign.
        open_block = line.endswith("-") or (len(line) > FULL_LINE * longest and not line.endswith(":"))
    return [sentence for block in blocks for sentence in sentences(block)]


def is_prose(sentence: str) -> bool:
    """Whether a sentence can be spoken: three words or more, and hardly any symbols."""
    plain = sum(character.isalpha() or character.isspace() for character in sentence)
    return len(sentence.split()) >= 3 and plain >= 0.8 * len(sentence)


def candidates(read: str, passages: Sequence[dict[str, Any]]) -> list[Candidate]:
    """Everything that may answer, at most ANSWER_SENTENCES_MAX: what was read first, then passages as they come."""
    found = [Candidate("read", sentence) for sentence in read_sentences(read) if is_prose(sentence)]
    for passage in passages:
        first = sentences(passage["text"])[:SENTENCES_PER_PASSAGE]
        found += [Candidate("corpus", sentence, passage["title"], leads=n == 0) for n, sentence in enumerate(first)]
    return found[: limits.ANSWER_SENTENCES_MAX]


def scored(models: Models, question: str, found: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with their scores, best first; equal ones stay in order."""
    asked, target = stems(question), embed(models, question)
    content, pointed = asked - _POINTERS - _READING_WORDS, bool(asked & _POINTERS)
    result: list[tuple[float, Candidate]] = []
    for candidate in found:
        text = f"{candidate.title}: {candidate.sentence}" if candidate.title else candidate.sentence
        cosine = float(embed(models, text) @ target)
        overlap = len(content & stems(text)) / len(content) if content else 0.0
        bonus = POINTED_WEIGHT if pointed and candidate.source == "read" else 0.0
        score = cosine + OVERLAP_WEIGHT * overlap + bonus
        term = stems(candidate.title) if candidate.leads else frozenset()
        named = len(term) / len(content) if term and term <= content else 0.0
        result.append((score + TITLE_WEIGHT * named, replace(candidate, score=score)))
    return [candidate for _, candidate in sorted(result, key=lambda pair: -pair[0])]


def companion(question: str, best: Candidate, ranked: Sequence[Candidate], score_min: float) -> Candidate | None:
    """A sentence of the other source that belongs to the best one: they share a passage's title.

    To what was read, the definition of a term in it that the question asks for; to a definition, what the
    picture says of that term.
    """
    for other in ranked:
        if other.source == best.source or other.score < score_min:
            continue
        definition, reading = (other, best) if other.source == "corpus" else (best, other)
        term = stems(definition.title)
        if definition.leads and term and term <= stems(reading.sentence) and term <= stems(question):
            return other
    return None


def asks_for_text(question: str) -> bool:
    """Whether the question is only what the picture says, such as "What is written on the sign?"."""
    said = set(_WORD.findall(question.lower()))
    return bool(said & _READING_WORDS) and stems(question) <= _POINTERS | _READING_WORDS


def spoken(candidate: Candidate) -> str:
    """A candidate as a whole sentence that can be said aloud."""
    sentence = candidate.sentence.strip().rstrip(":;,").rstrip()
    ended = sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
    if candidate.source == "read":
        return f"The picture says: {ended}"
    title = candidate.title
    if not candidate.leads or title.lower() in " ".join(sentence.lower().split()[:6]):
        return ended
    first, _, rest = ended.partition(" ")
    if first not in ("A", "An", "The", "Any", "One"):
        return f"Of {title}, the dictionary says: {ended}"
    if not title.islower():
        return f"{title} is {first.lower()} {rest}"
    if first in ("A", "An") and not title.endswith("s"):
        return f"{'An' if title[0] in 'aeiou' else 'A'} {title} is {first.lower()} {rest}"
    return f"{title[0].upper()}{title[1:]} means {first.lower()} {rest}"


def shortened(text: str) -> str:
    """At most ANSWER_CHARACTERS_MAX characters, cut after a sentence, else after a word."""
    if len(text) <= limits.ANSWER_CHARACTERS_MAX:
        return text
    head = text[: limits.ANSWER_CHARACTERS_MAX]
    whole = re.match(r".*[.!?](?=\s)", head, re.DOTALL)
    return whole.group() if whole else head.rsplit(" ", 1)[0] + " ..."


class Answer(Stage):
    """`question`, `read`, `passages` (as text.retrieve gives them) -> `answer`, one or two spoken sentences.

    `details`: {source: read | corpus | none, title, sentence, score, also, considered}. `also` has the same
    keys for a second sentence from the other source, or is null; `considered` counts the candidates. If
    none scores `score_min`, the answer says that nothing was found, and `source` is `none`.
    """

    spec = KindSpec(
        name="text.answer",
        about="Answers a question by the best sentences among what was read and retrieved.",
        inputs={
            "question": Port(PortType.TEXT),
            "read": Port(PortType.TEXT, optional=True),
            "passages": Port(PortType.JSON, optional=True),
        },
        outputs={"answer": Port(PortType.TEXT), "details": Port(PortType.JSON)},
        params={"score_min": Param(type="number", default=0.55, about="The least score of a sentence that answers.")},
        models=(MODEL,),
        tier=Tier.CLOUD,
        cost=Cost(run_seconds=0.03, load_seconds=0.25, memory_bytes=80 * 1024 * 1024),
    )

    def load(self, models: Models, target: str) -> None:
        warm(models)

    def run(self, call: StageCall) -> Outputs:
        question = " ".join(call.inputs["question"].split())
        read = call.inputs.get("read", "")
        if not _WORD.search(question.lower()):
            return _outputs(NOTHING_HEARD, None, None, 0)
        if asks_for_text(question):
            return _recital(read)
        found = candidates(read, call.inputs.get("passages", []))
        ranked = scored(call.models, question, found)
        if not ranked or ranked[0].score < call.params["score_min"]:
            return _outputs(NOTHING_FITS, None, None, len(found))
        best = ranked[0]
        also = companion(question, best, ranked, call.params["score_min"])
        said = [spoken(candidate) for candidate in (best, also) if candidate]
        return _outputs(shortened(" ".join(said)), best, also, len(found))


def _recital(read: str) -> Outputs:
    found = read_sentences(read)
    # Symbols make no speech; a sign of one word is no prose either, but all there is.
    found = [sentence for sentence in found if is_prose(sentence)] or found
    said = " ".join(sentence if sentence[-1] in ".!?:" else f"{sentence}." for sentence in found)
    if not said:
        return _outputs(NOTHING_READ, None, None, 0)
    return _outputs(shortened(f"The picture says: {said}"), Candidate("read", said, score=1.0), None, 1)


def _outputs(answer: str, best: Candidate | None, also: Candidate | None, considered: int) -> Outputs:
    details = (best or Candidate("none", "")).details()
    return {
        "answer": answer,
        "details": {**details, "also": also.details() if also else None, "considered": considered},
    }
