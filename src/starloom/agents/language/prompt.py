"""The prompt that the language family was trained on: passages, a question, and an answer that names its passage.

    <|passage|> title: text ... <|question|> question<|answer|> title: span<|end|>

The answer first repeats the title of its passage, then copies a span of it; or it is REFUSAL. The family reads
lower-case only (its tokenizer folds case); `restored` gives a span the case that it has in its passage.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

PAD: Final = "<|pad|>"
END: Final = "<|end|>"
PASSAGE: Final = "<|passage|>"
QUESTION: Final = "<|question|>"
ANSWER: Final = "<|answer|>"
MARKS: Final = (PAD, END, PASSAGE, QUESTION, ANSWER)
"""The special tokens, in the order of their numbers from 0."""

REFUSAL: Final = "not in the passages"
"""What the answer says if no passage holds it; a token of its own."""

SNIPPET_CHARACTERS: Final = 200
"""How much of a passage's text the prompt holds, at most: the family reads short prompts."""

_MARK = re.compile(r"<\|[^|<>]{0,40}\|>")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])")
_INNER = re.compile(r"(?<=[^\w\s])(?=\w)")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NOT_WORD = re.compile(r"[^\w\s]|_")


class Snippet(NamedTuple):
    """What the prompt holds of a passage."""

    title: str
    text: str


class Reply(NamedTuple):
    """An answer as the model gave it. `span` is empty if it refused."""

    title: str
    span: str

    @property
    def refused(self) -> bool:
        return not self.span


def plain(text: str) -> str:
    """Text on one line that holds none of the prompt's own marks, whoever wrote it."""
    text = _MARK.sub(" ", text)
    return " ".join(re.sub(re.escape(REFUSAL), "not in them", text, flags=re.IGNORECASE).split())


def snippet(title: str, text: str, characters: int = SNIPPET_CHARACTERS) -> Snippet:
    """A passage's title, and as many whole sentences as fit; at least the first one, cut after a word."""
    title = plain(title.replace(":", " "))
    kept = ""
    for sentence in _SENTENCE.split(plain(text)):
        longer = f"{kept} {sentence}".strip()
        if len(longer) > characters:
            break
        kept = longer
    if not kept:
        head = plain(text)
        kept = head if len(head) <= characters else head[:characters].rsplit(" ", 1)[0]
    return Snippet(title, kept)


def passages(snippets: Sequence[Snippet]) -> str:
    """The first part of a prompt, which questions about the same passages share."""
    return "".join(f"{PASSAGE} {one.title}: {one.text}" for one in snippets)


def question(text: str) -> str:
    """The second part of a prompt, after which the model answers."""
    return f"{QUESTION} {plain(text)}{ANSWER}"


def prompt(snippets: Sequence[Snippet], asked: str) -> str:
    """A whole prompt."""
    return passages(snippets) + question(asked)


def target(reply: Reply) -> str:
    """What the model is to write after the prompt."""
    said = REFUSAL if reply.refused else f" {reply.title}: {reply.span}"
    return said + END


def parse(text: str) -> Reply:
    """What the model wrote, up to its end mark. What has no title and span is a refusal."""
    text = text.split(END, 1)[0]
    title, colon, span = text.partition(": ")
    if REFUSAL in text or not colon:
        return Reply("", "")
    return Reply(title.strip(), span.strip())


class Encoder(Protocol):
    """What is used of a `tokenizers.Tokenizer`."""

    def encode(self, text: str) -> Any: ...


class Copying:
    """Holds an answer to its passage: once it has named one, only words that stand there in a row may follow.

    The title is left free: a model that names what no passage holds is told by `checked`, and has refused.
    """

    def __init__(self, reader: Encoder, snippets: Sequence[Snippet]) -> None:
        self._end = MARKS.index(END)
        self._titles: list[tuple[int, ...]] = []
        self._passages: list[tuple[int, ...]] = []
        for one in snippets:
            # A span that begins after a bracket or quote has a space before it in the answer: other tokens.
            for text in dict.fromkeys((one.text, _INNER.sub(" ", one.text))):
                self._titles.append(tuple(reader.encode(f" {one.title}:").ids))
                self._passages.append(tuple(reader.encode(f" {one.title}: {text}").ids))

    def allowed(self, made: Sequence[int]) -> frozenset[int] | None:
        """The tokens that may come after those of an answer that `made` holds; None if any may."""
        found: set[int] = set()
        named = False
        for title, passage in zip(self._titles, self._passages, strict=True):
            if tuple(made[: len(title)]) != title:
                continue
            named = True
            span = tuple(made[len(title) :])
            if span:
                found.add(self._end)
            for start in range(len(passage) - len(span)):
                if passage[start : start + len(span)] == span:
                    found.add(passage[start + len(span)])
        return frozenset(found) if named else None


def normalised(text: str) -> str:
    """Text for comparison: lower-case, without punctuation and articles, words apart by one space."""
    return " ".join(_ARTICLES.sub(" ", _NOT_WORD.sub(" ", text.lower())).split())


def grounded(reply: Reply, snippets: Sequence[Snippet]) -> bool:
    """Whether the reply names one of the passages and its span stands in that one's title or text."""
    title, span = normalised(reply.title), f" {normalised(reply.span)} "
    return any(
        title == normalised(one.title) and span in f" {normalised(one.title)} {normalised(one.text)} "
        for one in snippets
    )


def checked(reply: Reply, snippets: Sequence[Snippet]) -> Reply:
    """The reply, or a refusal in place of one that no passage bears out: a model this small makes things up."""
    return reply if reply.refused or grounded(reply, snippets) else Reply("", "")


def restored(reply: Reply, snippets: Sequence[Snippet]) -> Reply:
    """The reply with the case that its title and span have in the passage; as it is if they are not found."""
    for one in snippets:
        if normalised(one.title) != normalised(reply.title):
            continue
        text = f"{one.title}: {one.text}"
        at = text.lower().find(reply.span.lower())
        span = text[at : at + len(reply.span)] if at >= 0 else reply.span
        return Reply(one.title, span)
    return reply
