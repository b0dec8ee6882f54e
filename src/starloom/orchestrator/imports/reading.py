"""What all importers share: JSON that is read strictly, scales, names, and the order that tasks must have."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from starloom.dag import limits
from starloom.dag.checks import kind_of, number_fault
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.fieldreader import FieldReader
from starloom.dag.ids import StageId
from starloom.dag.order import cycle_text, find_cycles

WORK: Final = "synthetic.work"
"""The kind of every stage that is imported."""

_BYTES_MAX: Final = 2**62
#: below what a run's seconds can be told apart
_SECONDS_DIGITS: Final = 9


class Scale(NamedTuple):
    """What becomes of a file's numbers: `seconds` and `sizes` are factors. `sleep`: stages keep no core busy."""

    seconds: float = 1.0
    sizes: float = 1.0
    sleep: bool = False

    def scaled_seconds(self, seconds: float) -> float:
        return round(seconds * self.seconds, _SECONDS_DIGITS)

    def scaled_bytes(self, size: float) -> int:
        return round(size * self.sizes)


AS_IT_IS: Final = Scale()


class Imported(NamedTuple):
    """What a file gave; `doubts` are of what it says and the constellation does not, or cannot do."""

    constellation: Constellation
    doubts: tuple[Problem, ...] = ()


class JsonReader(FieldReader):
    """Reads parts of a JSON document, and notes what is wrong with each at its place, such as `tasks[3].id`."""

    def document(self, data: bytes) -> Any:
        """The value of a JSON text; None where it is none, which is noted with line and column."""
        if len(data) > limits.IMPORT_BYTES_MAX:
            self._problem(
                "", f"{len(data)} bytes are over IMPORT_BYTES_MAX = {limits.IMPORT_BYTES_MAX}; split the file"
            )
            return None
        try:
            return json.loads(data.decode("utf-8-sig"), object_pairs_hook=self._pairs, parse_constant=self._no_number)
        except UnicodeDecodeError as error:
            self._problem("", f"byte {error.start} is not UTF-8; save the file as UTF-8")
        except json.JSONDecodeError as error:
            self._problem(f"line {error.lineno}, column {error.colno}", f"is not JSON: {error.msg}")
        except RecursionError:
            self._problem("", f"is nested deeper than DOCUMENT_DEPTH_MAX = {limits.DOCUMENT_DEPTH_MAX}; flatten it")
        except ValueError as error:
            self._problem("", f"is not JSON: {error}")
        return None

    def raise_problems(self, what: str) -> None:
        """Raises InvalidInput, headed by `what`, if anything was noted."""
        if self.problems:
            raise InvalidInput(self.problems, what)

    def check_sizes(self, place: str, tasks: int, arcs: int) -> None:
        """Notes more tasks or dependencies than a job may have."""
        sizes = (("tasks", tasks, "STAGES_PER_JOB_MAX"), ("dependencies", arcs, "DEPENDENCIES_PER_JOB_MAX"))
        for what, count, limit in sizes:
            if count > (most := getattr(limits, limit)):
                self._problem(place, f"{count} {what} are over {limit} = {most}; import a part of it")

    def check_order(self, place: str, arcs: Mapping[str, Sequence[str]]) -> None:
        """Notes cycles in the downstreams of each task."""
        for cycle in find_cycles(arcs):
            self._problem(place, f"tasks wait for each other: {cycle_text(cycle)}; remove one of these dependencies")

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = {key for key, _ in pairs if key in seen or seen.add(key)}  # type: ignore[func-returns-value]
            for key in sorted(twice):
                self._problem("", f"the key {key!r} is given twice in one object; keep one")
        return found

    def _no_number(self, constant: str) -> float:
        self._problem("", f"holds {constant}, which is no number of JSON's; give a number")
        return 0.0

    def _list(self, place: str, value: Any) -> list[Any]:
        if isinstance(value, list):
            return value
        self._problem(place, f"is {kind_of(value)}; write a list")
        return []

    def _texts(self, place: str, value: Any) -> list[tuple[str, str]]:
        """The texts of a list, each with its place; what is none is noted and left out."""
        named = [(f"{place}[{index}]", item) for index, item in enumerate(self._list(place, value))]
        return [(where, item) for where, item in named if self._id(where, item)]

    def _id(self, place: str, value: Any) -> str:
        """Text with something in it; empty, and noted, if it is none."""
        if value == "":
            self._problem(place, "is empty; give a name")
            return ""
        return self._text(place, value)

    def _seconds(self, place: str, value: Any, scale: Scale) -> float:
        """Seconds, not scaled yet; 0, and noted, where they are none, or too many once they are scaled."""
        most = limits.DURATION_SECONDS_MAX
        return self._amount(place, value, "seconds", scale.seconds, most, f"DURATION_SECONDS_MAX = {most:g}")

    def _bytes(self, place: str, value: Any, scale: Scale) -> float:
        """Bytes, likewise. Formats of others have them as numbers with a fraction as well."""
        return self._amount(place, value, "bytes", scale.sizes, _BYTES_MAX, f"{_BYTES_MAX} bytes")

    def _amount(self, place: str, value: Any, unit: str, factor: float, most: float, limit: str) -> float:
        if fault := number_fault(value, unit=unit):
            self._problem(place, fault)
            return 0.0
        if value * factor > most:
            self._problem(place, f"comes to {value * factor:g} {unit}, over {limit}; scale it down")
            return 0.0
        return float(value)


def stage_names(ids: Iterable[str]) -> dict[str, StageId]:
    """A stage's name for each id: the id, with `_` for what a name may not hold, and a number where that is taken."""
    found: dict[str, StageId] = {}
    taken: set[str] = set()
    for each in ids:
        base = _name(each, r"[^A-Za-z0-9_-]", limits.NAME_CHARACTERS_MAX)
        name, count = base, 1
        while name in taken:
            count += 1
            ending = f"_{count}"
            name = base[: limits.NAME_CHARACTERS_MAX - len(ending)] + ending
        taken.add(name)
        found[each] = StageId(name)
    return found


def constellation_name(*wishes: str) -> str:
    """The first wish that holds a letter or digit, as a constellation's name; a file name's `.json` is left out."""
    for wish in map(_stem, wishes):
        if re.search(r"[A-Za-z0-9]", wish):
            return _name(wish, r"[^A-Za-z0-9_.-]", limits.NAME_CHARACTERS_MAX)
    return "imported"


def _stem(text: str) -> str:
    return text.removesuffix(".json")


def words(text: str) -> str:
    """Text that can travel: halves of pairs of code units, which JSON may hold, are replaced."""
    return text.encode("utf-8", "replace").decode()


def _name(text: str, foreign: str, most: int) -> str:
    name = re.sub(foreign, "_", text)[:most]
    return name if re.match(r"[A-Za-z0-9_]", name) else f"_{name}"[:most]
