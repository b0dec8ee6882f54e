"""An OpenAI-compatible endpoint's answer, put together from its JSON: whole, or in pieces. Pure."""

from collections.abc import Iterator
from typing import Any

import msgspec

from starloom.dag import limits
from starloom.dag.errors import StageError

DONE = "[DONE]"


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None


class EventData:
    """The data of server-sent events, out of lines as they come: `push` gives an event's data at its empty line."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def push(self, line: str) -> str | None:
        if line.startswith("data:"):
            self._lines.append(line[5:].removeprefix(" "))
        if line or not self._lines:
            return None
        return self.flush()

    def flush(self) -> str | None:
        """What is left at the end of the stream; some servers leave out the last empty line."""
        data, self._lines = "\n".join(self._lines), []
        return data or None


class Reply:
    """What was answered so far. Times are seconds since the request; `requests` counts those that were sent."""

    def __init__(self) -> None:
        self.finish = ""
        self.model = ""
        self.prompt_tokens: int | None = None
        self.tokens: int | None = None
        self.first_token_seconds: float | None = None
        self.seconds = 0.0
        self.requests = 1
        self._pieces: list[str] = []
        self._calls: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def has_begun(self) -> bool:
        return bool(self._pieces or self._calls)

    def take(self, data: str | bytes) -> Iterator[str]:
        """Adds one JSON object of the endpoint, and gives the pieces in it; a tool call's are empty texts.

        Raises StageError for what is no answer, and with the endpoint's own words where it reports an error.
        """
        try:
            answer = msgspec.json.decode(data, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StageError(f"the endpoint sent what is no answer: {error}") from error
        if answer.error is not None:
            raise StageError(f"the endpoint reported: {_words(answer.error)}")
        self.model = answer.model or self.model
        if answer.usage:
            self.prompt_tokens, self.tokens = answer.usage.prompt_tokens, answer.usage.completion_tokens
        for choice in answer.choices or []:
            message = choice.delta or choice.message
            if message and message.content:
                self._pieces.append(message.content)
                yield message.content
            for call in (message and message.tool_calls) or []:
                self._add(call)
                yield ""
            self.finish = choice.finish_reason or self.finish

    def _add(self, call: _ToolCall) -> None:
        """A tool call, or more of one that has begun: its arguments come in pieces."""
        at = call.index if call.index is not None else len(self._calls) - (0 if call.id else 1)
        if not 0 <= at <= len(self._calls):
            raise StageError(f"the endpoint sent a piece of tool call {at}, but only {len(self._calls)} have begun")
        if at == len(self._calls):
            self._calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        known = self._calls[at]
        known["id"] = call.id or known["id"]
        known["type"] = call.type or known["type"]
        if call.function:
            known["function"]["name"] = call.function.name or known["function"]["name"]
            known["function"]["arguments"] += call.function.arguments or ""

    def details(self) -> dict[str, Any]:
        """As `language.endpoint` gives them."""
        first, tokens = self.first_token_seconds, self.tokens
        measured = first is not None and tokens is not None and tokens > 1 and self.seconds > first
        return {
            "finish": self.finish,
            "tool_calls": self._calls,
            "model": self.model,
            "prompt_tokens": self.prompt_tokens,
            "tokens": tokens,
            "first_token_seconds": first,
            "tokens_per_second": (tokens - 1) / (self.seconds - first) if measured and tokens and first else None,
            "seconds": self.seconds,
            "requests": self.requests,
        }


def _words(error: Any) -> str:
    """The message in an endpoint's error object, or the object."""
    said = error.get("message", error) if isinstance(error, dict) else error
    return str(said)[: limits.ENDPOINT_SAID_CHARACTERS_MAX]
