"""Messages to the text that a model was trained on, by the model's own template in Jinja's sandbox.

A template comes with a model, so it is somebody else's code: it can reach nothing but what is passed
in, and cannot change that either.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem

ROLES = ("system", "developer", "user", "assistant", "tool")


class _Generation(Extension):
    """`{% generation %}`, which marks what to train on: its body, as it stands."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template and the special tokens' texts that it may name. Safe for threads.

    Raises InvalidInput for a template that is no Jinja.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _json
        environment.globals["raise_exception"] = _raise
        self._tokens = dict(tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise _unusable(f"is no Jinja template: {error}") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] = (), day: date | None = None
    ) -> str:
        """The prompt for an answer to the messages. A template that prints a date has `day`.

        Raises InvalidInput where the template refuses the messages, or fails on them.
        """
        given: dict[str, Any] = {"messages": messages, "add_generation_prompt": True, **self._tokens}
        if tools:
            given["tools"] = tools
        if day is not None:
            given["strftime_now"] = day.strftime
        pieces, size = [], 0
        try:
            # In pieces, so that a template in an endless loop that prints ends.
            for piece in self._template.generate(given):
                pieces.append(piece)
                size += len(piece)
                if size > limits.CHAT_CHARACTERS_MAX:
                    raise _unusable(f"made over CHAT_CHARACTERS_MAX = {limits.CHAT_CHARACTERS_MAX} characters")
        except InvalidInput:
            raise
        # A template's expressions may raise whatever Python's operators do.
        except Exception as error:
            hint = "; give the stage's parameter date" if "strftime_now" in str(error) else ""
            raise _unusable(f"does not take these messages: {error}{hint}") from error
        return "".join(pieces)


def checked(messages: Any) -> list[dict[str, Any]]:
    """Messages of a JSON value, one at least, each with a known role; raises InvalidInput with all problems."""
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidInput([Problem("messages", "is no list of one message or more")])
    problems = []
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping):
            problems.append(Problem(f"messages[{n}]", f"is {type(message).__name__} instead of an object"))
        elif message.get("role") not in ROLES:
            problems.append(Problem(f"messages[{n}].role", f"is {message.get('role')!r}; use {', '.join(ROLES)}"))
        elif not isinstance(message.get("content"), str | list | tuple) and not message.get("tool_calls"):
            problems.append(Problem(f"messages[{n}].content", "is neither a text nor a list of parts"))
    if problems:
        raise InvalidInput(problems, "these messages cannot be used")
    return [dict(message) for message in messages]


def conversation(inputs: Mapping[str, Any], system: str) -> list[dict[str, Any]]:
    """The messages of a call's input `messages`, before them `system`, and behind them its input `prompt`.

    Raises InvalidInput where there is neither a prompt nor a message.
    """
    found = checked(inputs["messages"]) if "messages" in inputs else []
    if system:
        found.insert(0, {"role": "system", "content": system})
    if "prompt" in inputs:
        found.append({"role": "user", "content": inputs["prompt"]})
    if not any(key in inputs for key in ("messages", "prompt")):
        raise InvalidInput([Problem("prompt", "is not bound, and neither is messages; bind one of them")])
    return found


def read_template(template: Path | None, settings: Mapping[str, Any]) -> ChatTemplate | None:
    """The template of chat_template.jinja, else of tokenizer_config.json's `settings`; None where a model has none.

    Of several named ones in `settings` it is the one called `default`.
    """
    source: Any = template.read_text(encoding="utf-8") if template else settings.get("chat_template")
    if isinstance(source, list):
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    found = {name: special(settings, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return ChatTemplate(source, {name: text for name, text in found.items() if text is not None})


def special(settings: Mapping[str, Any], name: str) -> str | None:
    """A special token's text in tokenizer_config.json, which some files wrap into an object."""
    raw = settings.get(name)
    text = raw.get("content") if isinstance(raw, dict) else raw
    return text if isinstance(text, str) else None


def _json(value: Any, indent: int | None = None, **_: Any) -> str:
    # Jinja's own filter escapes for HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _unusable(what: str) -> InvalidInput:
    return InvalidInput([Problem("chat template", what)], "these messages cannot be made a prompt")
