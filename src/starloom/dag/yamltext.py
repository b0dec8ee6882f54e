"""YAML text to plain values and back, safely. `dag.document` and cluster files use it, and it alone imports yaml.

Reading goes by the parser's events and never recurses. It differs from yaml.safe_load: scalars follow
the core schema of YAML 1.2, so that `on` and `no` are text; keys are always text; a key given twice is
an error, as are tags, merge keys, more than one document, and aliases that blow a small text up.
"""

import re
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from starloom.dag import limits
from starloom.dag.errors import InvalidConstellation, Problem

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE_OR_NAN = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_INTEGER_DIGITS_MAX = 40
_TOO_DEEP = f"is nested deeper than DOCUMENT_DEPTH_MAX = {limits.DOCUMENT_DEPTH_MAX}; flatten it"
_BASES = {"0o": 8, "0x": 16}


def read_yaml(text: str) -> Any:
    """The plain value of one YAML document: mappings, lists, text, numbers, booleans and None.

    Raises InvalidConstellation with line and column: every key that is given twice, and the first
    thing that ends the reading.
    """
    reader = _Reader()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark, what = error.problem_mark or error.context_mark, error.problem or error.context or ""
        # libyaml looks ahead, and may refuse great depth before its first event.
        reader.stop(mark, _TOO_DEEP if "nesting depth" in what else f"{what}; correct the syntax")
    except yaml.YAMLError as error:
        reader.stop(None, f"{' '.join(str(error).split())}; correct the text")
    if reader.problems:
        raise InvalidConstellation(reader.problems)
    return reader.root


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is being read; `size` and `height` count what is in it, aliases written out."""

    value: list[Any] | dict[str, Any]
    anchor: str | None
    key: str | None = None
    size: int = 1
    height: int = 1


class _Reader:
    """Builds the value from events, with a stack of its own."""

    def __init__(self) -> None:
        self.root: Any = None
        self.problems: list[Problem] = []
        self._documents = 0
        self._frames: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int, int]] = {}

    def stop(self, mark: Any, what: str) -> NoReturn:
        """Raises with all problems so far and this one."""
        raise InvalidConstellation([*self.problems, Problem(_place(mark), what)])

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._take_scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            self._take_alias(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            frame = self._frames.pop()
            self._add(event.start_mark, frame.value, frame.size, frame.height, frame.anchor)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self.stop(event.start_mark, "a second document begins here; give one document only")

    def _take_scalar(self, event: Any) -> None:
        self._refuse_tag(event)
        frame = self._frames[-1] if self._frames else None
        plain = event.style is None or (event.style == "" and event.implicit[0])
        if frame is None or frame.key is not None or isinstance(frame.value, list):
            value = self._scalar(event) if plain else event.value
            self._add(event.start_mark, value, 1, 0, event.anchor)
            return
        if plain and event.value == "<<":
            self.stop(event.start_mark, "merge keys (<<) are not supported; write the keys out")
        if event.value in frame.value:
            self.problems.append(Problem(_place(event.start_mark), f"the key {event.value!r} is given twice; keep one"))
        frame.key = event.value

    def _take_alias(self, event: Any) -> None:
        known = self._anchors.get(event.anchor)
        if known is None:
            self.stop(event.start_mark, f"no complete anchor &{event.anchor} comes before this alias; write it first")
        self._refuse_key(event)
        value, size, height = known
        self._add(event.start_mark, value, size, height, None)

    def _open(self, event: Any) -> None:
        self._refuse_tag(event)
        self._refuse_key(event)
        self._check_depth(event.start_mark, len(self._frames) + 1)
        self._frames.append(_Frame([] if isinstance(event, yaml.SequenceStartEvent) else {}, event.anchor))

    def _add(self, mark: Any, value: Any, size: int, height: int, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = (value, size, height)
        if not self._frames:
            self.root = value
            return
        frame = self._frames[-1]
        frame.size += size
        frame.height = max(frame.height, height + 1)
        if frame.size > limits.DOCUMENT_VALUES_MAX:
            self.stop(
                mark, f"with aliases written out, values are over DOCUMENT_VALUES_MAX = {limits.DOCUMENT_VALUES_MAX}"
            )
        self._check_depth(mark, len(self._frames) + height)
        if isinstance(frame.value, list):
            frame.value.append(value)
        else:
            frame.value[frame.key or ""] = value
            frame.key = None

    def _check_depth(self, mark: Any, depth: int) -> None:
        if depth > limits.DOCUMENT_DEPTH_MAX:
            self.stop(mark, _TOO_DEEP)

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            self.stop(event.start_mark, f"the tag {event.tag!r} is not supported; leave it out")

    def _refuse_key(self, event: Any) -> None:
        if self._frames and isinstance(self._frames[-1].value, dict) and self._frames[-1].key is None:
            self.stop(event.start_mark, "a key must be plain text, not a list, mapping or alias")

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > _INTEGER_DIGITS_MAX:
                self.stop(event.start_mark, f"a whole number has {len(text)} digits; put it in quotes to make it text")
            return int(text, _BASES.get(text[:2], 10))
        if _FLOAT.fullmatch(text):
            return float(text)
        if _INFINITE_OR_NAN.fullmatch(text):
            return float(text.replace(".", "", 1))
        return text


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""


class _Dumper(_DUMPER):  # type: ignore[misc]
    """Puts quotes around text that a reader of YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^(?:{_INTEGER.pattern})$"), list("-+0123456789"))


def write_yaml(value: Any) -> str:
    """YAML text of a plain value, keys in their order; leaves of the tree are written on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120
    )
    return text
