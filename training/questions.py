"""What can be asked about an entry: facts, each a span of the entry's text or its title, and the ways to ask for it.

Every fact is found by a fixed rule, so that the same rule tells the right answer on entries never trained on.
"""

import random
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from starloom.agents.language.prompt import Snippet, snippet
from training.sources import Entry

SPAN_WORDS = 14
"""An answer of more words is not asked for."""
READ_TITLE = "picture"
"""The title of a passage that was read off a picture: the name of the thing then stands in its text."""
READ_SHARE = 0.06

_CLAUSE_END = re.compile(r"[,;:.!?(\"]|\s(?:that|which|who|whose|whom|where|when)\b")
_GENUS_END = re.compile(
    r"[,;:.!?(\"]|\s(?:that|which|who|whose|whom|where|when|used|for|from|by|to|with|designed|developed|written|having|"
    r"containing|consisting|made|based|in|on|at|as|between|or|and|using|under|into)\b"
)
_BY = re.compile(
    r"\b(designed|developed|written|created|invented|implemented|introduced|proposed|discovered|founded|published|"
    r"produced|built|defined|sold|made|isolated|identified)(?: (?:first|originally|jointly|mainly))? by "
    r"((?:the )?[A-Z][\w.'&-]*(?:(?: and| of| de| von| van|,? &)? [A-Z][\w.'&-]*){0,5})"
)
_YEAR = re.compile(r"\b(1[0-9]\d\d|20[0-2]\d)\b")
_LIVED = re.compile(r"\(((?:circa |born )?\d{3,4})(?:-(\d{3,4}))?\)")
_LOCATED = re.compile(
    r"\b(?:city|town|port|river|mountain|mountains|lake|island|islands|village|university|peak|capital|state|country|"
    r"province|region|resort|battle|volcano|desert|peninsula|bay|park|district|kingdom|republic|range)\b[^;,.(]{0,40}?"
    r"\b(?:in|of) ((?:the )?(?:north |south |west |east |central |northern |southern |western |eastern |northeastern |"
    r"northwestern |southeastern |southwestern |northwest |northeast |southeast |southwest |north central |south central "
    r"|east central |west central )*[A-Z][\w.'-]*(?: [A-Z][\w.'-]*){0,3})"
)
_AT = re.compile(r"\bat ((?:the )?(?:University of )?[A-Z][\w.'&-]*(?:(?: of)? [A-Z][\w.'&-]*){0,4})")
_USED = re.compile(r"\bused (for|to|in|as) ([a-z][^,;:.()\"]{3,90}?)(?=[,;:.()\"]| and | that | which |$)")
_FIELD = re.compile(r"\b(Symbol|Atomic number|Atomic weight): \(?([\w.]+?)\)?\. ")


class Fact(NamedTuple):
    """An answer and how to ask for it: `kind` names the templates, `about` is what fills their gap."""

    kind: str
    about: str
    span: str


class Passage(NamedTuple):
    """An entry as a prompt shows it. `body` is its text as cut; the snippet may put `other`, a second name, before it."""

    entry: Entry
    body: str
    snippet: Snippet
    other: str | None


TEMPLATES: Final[dict[str, tuple[str, ...]]] = {
    "define": (
        "What is {}?",
        "What is {}?",
        "What is a {}?",
        "What does {} mean?",
        "What does the word {} mean?",
        "Define {}.",
        "What's the meaning of {}?",
        "Tell me what {} is.",
        "Can you explain {}?",
        "Explain {}.",
        "Do you know what {} is?",
        "What are {}?",
        "What is meant by {}?",
    ),
    "genus": ("What kind of thing is {}?", "What sort of thing is {}?", "{} is what kind of thing?"),
    "name": (
        "Which thing is {}?",
        "What is the name for {}?",
        "What do you call {}?",
        "Which word means {}?",
        "What is {} called?",
    ),
    "expand": (
        "What does {} stand for?",
        "What is {} short for?",
        "What is the long form of {}?",
        "What do the letters {} stand for?",
        "Expand {}.",
    ),
    "abbreviate": ("What is the abbreviation of {}?", "How is {} abbreviated?", "What is {} abbreviated to?"),
    "cloze": ("{}",),
    "who": ("Who {2} {0}?", "Who {2} {0}?", "By whom was {0} {1}?", "Who was {0} {1} by?"),
    "year": ("When was {0} {1}?", "When was {0} {1}?", "In which year was {0} {1}?", "What year is given for {0}?"),
    "born": ("When was {} born?", "In which year was {} born?"),
    "died": ("When did {} die?", "In which year did {} die?"),
    "where": ("Where is {}?", "In which place is {}?", "Where is {} located?"),
    "at": ("Where was {} made?", "At which place was {} made?", "Where does {} come from?"),
    "used for": ("What is {} used for?", "What is the use of {}?", "What is {} good for?"),
    "Symbol": ("What is the symbol of {}?", "What is the chemical symbol for {}?"),
    "Atomic number": ("What is the atomic number of {}?",),
    "Atomic weight": ("What is the atomic weight of {}?",),
}

VERBS: Final = ("designed", "developed", "written", "invented", "made", "introduced", "released", "created", "founded")

LACKING: Final[dict[str, Callable[[str], bool]]] = {
    "year": lambda text: not re.search(r"\d", text),
    "who": lambda text: not re.search(r"\bby\b", text),
    "born": lambda text: not re.search(r"\d", text),
    "used for": lambda text: not re.search(r"\b(us|for)", text),
    "at": lambda text: not re.search(r"\b(at|from|in|of) (the )?[A-Z]", text),
}
"""Kinds that may be asked about an entry that does not say it, and how to see that it does not."""


def words(text: str) -> int:
    return len(text.split())


def first_clause(text: str, end: re.Pattern[str]) -> str | None:
    """The start of a definition up to `end`, if it is a phrase of a fitting length."""
    body = re.sub(r"^\([^()]*\)\s*", "", text)
    found = end.search(body, 2)
    span = (body[: found.start()] if found else body).strip()
    return span if 2 <= words(span) <= SPAN_WORDS and len(span) >= 6 else None


def expands(short: str, full: str) -> bool:
    """Whether a name is made of the letters that begin another's words."""
    letters = "".join(part[0] for part in re.findall(r"[A-Za-z0-9]+", full)).lower()
    return 2 <= len(short) <= 8 and short.isupper() and len(full.split()) >= 2 and letters.startswith(short.lower()[:3])


def facts(entry: Entry, text: str) -> Iterator[Fact]:
    """What can be asked of an entry when its passage holds `text`."""
    title = entry.title
    if entry.source == "vera":
        span = re.split(r"\s*[(,\"]", text)[0].strip()
        if words(span) >= 2 and words(span) <= SPAN_WORDS:
            yield Fact("expand", title, span)
            yield Fact("abbreviate", span, title)
        return
    if found := _FIELD.findall(text):
        yield from (Fact(field, title, value) for field, value in found)
    clause = first_clause(text, _CLAUSE_END)
    if clause and entry.source != "elements":
        yield Fact("define", title, clause)
        if words(clause) >= 4:
            yield Fact("name", re.sub(r"^(?:A|An|The|One)\b", lambda hit: hit.group().lower(), clause), title)
    genus = first_clause(text, _GENUS_END)
    if genus and entry.source != "elements":
        yield Fact("genus", title, genus)
    yield from found_facts(entry, title, text)


def found_facts(entry: Entry, title: str, text: str) -> Iterator[Fact]:
    """The facts that stand anywhere in the text."""
    verb = ""
    if hit := _BY.search(text):
        verb = hit.group(1)
        yield Fact("who", f"{title}\t{verb}", hit.group(2).rstrip("."))
    lived = _LIVED.search(text)
    if lived and title[0].isupper():
        yield Fact("born", title, lived.group(1).split()[-1])
        if lived.group(2):
            yield Fact("died", title, lived.group(2))
    elif (years := _YEAR.findall(text)) and len(set(years)) == 1:
        yield Fact("year", f"{title}\t{verb}", years[0])
    if title[0].isupper() and (hit := _LOCATED.search(text)) and entry.source == "wordnet":
        yield Fact("where", title, hit.group(1))
    if entry.source in ("foldoc", "jargon") and (hit := _AT.search(text)):
        yield Fact("at", title, hit.group(1).rstrip("."))
    if (hit := _USED.search(text)) and words(hit.group(2)) <= SPAN_WORDS:
        yield Fact("used for", title, hit.group(2) if hit.group(1) in ("for", "in", "as") else hit.group(0)[5:])


def cloze(chance: random.Random, text: str) -> Fact | None:
    """A sentence of the passage with one to three words taken out."""
    tokens = text.split()
    if len(tokens) < 8:
        return None
    size = chance.choice((1, 1, 2, 3))
    start = chance.randrange(2, len(tokens) - size - 1)
    span = " ".join(tokens[start : start + size]).strip(".,;:()\"'")
    if len(span) < 3 or not re.search(r"\w", span):
        return None
    before = tokens[max(0, start - chance.randrange(3, 8)) : start]
    after = tokens[start + size : start + size + chance.randrange(1, 5)]
    return Fact("cloze", " ".join([*before, "___", *after]), span)


def ask(chance: random.Random, fact: Fact) -> str:
    """A question for a fact, its words varied as speech and haste vary them."""
    about = fact.about
    roll = chance.random()
    if fact.kind in ("who", "year"):
        title, verb = about.split("\t")
        # Nobody who asks knows the verb that the passage uses.
        verb = verb if verb and chance.random() < 0.7 else chance.choice(VERBS)
        about = f"{title}\t{verb}\t{'wrote' if verb == 'written' else verb}"
    if fact.kind in ("define", "genus", "used for", "year", "at", "expand") and roll < 0.25:
        about = about.lower()
    elif roll < 0.3 and fact.kind in ("define", "used for"):
        about = f"the {about}"
    if roll > 0.95 and fact.kind in ("define", "genus", "where"):
        about = f"{about[0].upper()}{about[1:]}"
    asked = chance.choice(TEMPLATES[fact.kind]).format(*about.split("\t"))
    if chance.random() < 0.1:
        asked = asked.rstrip("?.")
    return asked


def variant(chance: random.Random, entry: Entry) -> Passage:
    """An entry as a passage: under another of its names now and then, its text cut at a length drawn by chance."""
    shown = entry
    if entry.names and chance.random() < 0.15:
        shown = Entry(entry.source, entry.names[0], (entry.title, *entry.names[1:]), entry.text)
    body = snippet(shown.title, shown.text, chance.choice((100, 150, 200, 200)))
    shown = shown._replace(title=body.title)
    other = next((name for name in shown.names if expands(name, shown.title) or expands(shown.title, name)), None)
    if other and chance.random() < 0.6:
        return Passage(shown, body.text, Snippet(body.title, f"{other}. {body.text}"), other)
    if chance.random() < READ_SHARE:
        told = chance.choice(("{}: {}", "{} - {}", "{} is {}")).format(shown.title, body.text)
        return Passage(shown, body.text, Snippet(READ_TITLE, told), None)
    return Passage(shown, body.text, body, None)


def usable(chance: random.Random, passage: Passage) -> list[Fact]:
    """The facts whose span stands in the passage."""
    entry, title = passage.entry, passage.entry.title
    found = list(facts(entry, passage.body))
    if (extra := cloze(chance, passage.body)) is not None:
        found.append(extra)
    if passage.other:
        kind = "expand" if expands(title, passage.other) else "abbreviate"
        found.append(Fact(kind, title, passage.other))
    whole = f"{passage.snippet.title}: {passage.snippet.text}"
    return [fact for fact in found if fact.span in whole]


def lacking(chance: random.Random, passage: Passage) -> Fact | None:
    """A question about the entry that its passage does not answer; None if every kind might be answered."""
    entry = passage.entry
    kinds = [kind for kind, lacks in LACKING.items() if lacks(f"{entry.title} {entry.text}")]
    if not kinds:
        return None
    kind = chance.choice(kinds)
    return Fact(kind, f"{entry.title}\t" if kind in ("who", "year") else entry.title, "")
