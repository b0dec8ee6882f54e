"""Text to tokens and back: a model's tokenizer.json, and text out of single tokens as they come."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem

REPLACEMENT = "\ufffd"
"""What a decoder puts for bytes that are no character, or only the beginning of one."""

HELD_TOKENS_MAX = 64
"""Tokens that are held for bytes that may still become a character; after so many they are taken for none."""

_CONTEXT_TOKENS = 6


class Vocabulary:
    """A `tokenizers.Tokenizer`. `size`: one more than its greatest token. Safe for threads."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """The tokenizer of a tokenizer.json; raises InvalidInput for a file that is none."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        # The library raises a bare Exception.
        except Exception as error:
            what = f"is no tokenizer that can be read: {error}"
            raise InvalidInput([Problem(path.name, what)], "a model's file is unusable") from error

    def encode(self, text: str, *, marked: bool) -> list[int]:
        """Tokens of a text; `marked` adds the marks that the tokenizer sets around a whole text."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=marked).ids
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def spelled(self, tokens: Sequence[int]) -> str:
        """Text of tokens, with the names of special ones."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text

    def token(self, name: str) -> int | None:
        """The number of a token by its exact name."""
        found: int | None = self.tokenizer.token_to_id(name)
        return found

    def mismatch(self, logits: int) -> str:
        """What is wrong, if a decoder with so many logits was made for another tokenizer; else an empty text.

        Decoders may have some more logits than tokens, because matrices of round sizes are faster.
        """
        spare = max(limits.LANGUAGE_VOCABULARY_PADDING, self.size // 16)
        if self.size <= logits <= self.size + spare:
            return ""
        return (
            f"has {self.size} tokens, but the decoder gives {logits} logits: it is not this decoder's tokenizer; "
            "add the tokenizer.json that was exported with it"
        )


class Detokeniser:
    """The text of tokens as they come: each piece is final, and all pieces together are the text of the whole.

    Bytes that may begin a character are held until it is whole. `before` are the tokens in front, which
    decide whether the first word has its space.
    """

    def __init__(self, vocabulary: Vocabulary, before: Sequence[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._tokens = _context(vocabulary, before)
        self._known, self._known_text, self._said = 0, "", 0
        self._begin()

    def push(self, token: int) -> str:
        """The text that the token makes certain; often that of this token, or nothing yet."""
        self._tokens.append(token)
        text = self._text()
        whole = text.rstrip(REPLACEMENT)
        if len(whole) < len(text) and len(self._tokens) - self._known < HELD_TOKENS_MAX:
            said, self._said = whole[self._said :], max(self._said, len(whole))
            return said
        return self._settle(text)

    def flush(self) -> str:
        """What is held at the end: a character that was only begun comes as a replacement character."""
        return self._settle(self._text())

    def _text(self) -> str:
        """The text behind the known one; both are decoded together, since a word's space depends on it."""
        return self._vocabulary.decode(self._tokens)[len(self._known_text) :]

    def _settle(self, text: str) -> str:
        said = text[self._said :]
        if text:
            del self._tokens[: self._known]
            self._begin()
        elif len(self._tokens) - self._known >= HELD_TOKENS_MAX:
            del self._tokens[self._known :]
        return said

    def _begin(self) -> None:
        self._known = len(self._tokens)
        self._known_text = self._vocabulary.decode(self._tokens)
        self._said = 0


def _context(vocabulary: Vocabulary, before: Sequence[int]) -> list[int]:
    """The last tokens of those before; some more of them where the first would be the middle of a character."""
    for count in range(_CONTEXT_TOKENS, 2 * _CONTEXT_TOKENS):
        tokens = list(before[-count:])
        if not vocabulary.decode(tokens).startswith(REPLACEMENT):
            break
    return tokens
