"""A fault plan as YAML or JSON, read and checked: one error tells everything that is wrong, each at its place."""

from typing import Any, Final

from starloom.dag.checks import kind_of, number_fault, suggestion
from starloom.dag.constellation import Tier
from starloom.dag.document import read_document
from starloom.dag.errors import InvalidConstellation, InvalidInput
from starloom.dag.fieldreader import FieldReader
from starloom.dag.limits import DURATION_SECONDS_MAX
from starloom.devices.faults import Fault, FaultKind, FaultPlan, Moment, check_plan, fault_problems

SEED_MAX: Final = 2**63 - 1
_KINDS: Final = tuple(map(str, FaultKind))
_NUMBERS: Final = ("per_minute", "chance", "armed", "factor")
_SECONDS: Final = ("at_seconds", "from_seconds", "to_seconds", "add_seconds", "delay_seconds")
_TEXTS: Final = ("stage", "node", "peer", "kind")


def read_plan(text: str | bytes, place: str = "") -> FaultPlan:
    """The plan in a document; `place` names the source in the error. Raises InvalidInput with everything that is wrong."""
    what = f"{place or 'the document'} is no fault plan"
    reader = _Reader()
    try:
        plan = reader.plan(read_document(text, what))
    except InvalidConstellation as error:
        raise InvalidInput(error.problems, what) from error
    if reader.problems:
        raise InvalidInput(reader.problems, what)
    return check_plan(plan)


class _Reader(FieldReader):
    def plan(self, value: Any) -> FaultPlan:
        part = self._mapping("", value, FaultPlan.__struct_fields__)
        faults = part.get("faults", [])
        if not isinstance(faults, list):
            self._problem("faults", f"is {kind_of(faults)}; write a list of faults")
            faults = []
        seed = part.get("seed")
        if seed is not None and (fault := number_fault(seed, at_most=SEED_MAX, whole=True)):
            self._problem("seed", fault)
            seed = None
        found = [self._fault(f"faults.{index}", each) for index, each in enumerate(faults)]
        return FaultPlan(
            name=self._text("name", part.get("name", "")),
            seed=seed,
            quiet_after_seconds=self._seconds("quiet_after_seconds", part.get("quiet_after_seconds", 0.0), 0.0),
            faults=tuple(fault for fault in found if fault is not None),
        )

    def _fault(self, place: str, value: Any) -> Fault | None:
        before = len(self.problems)
        part = self._mapping(place, value, Fault.__struct_fields__, needed=("what",))
        given: dict[str, Any] = {}
        for name in _NUMBERS:
            if name in part:
                given[name] = self._number(f"{place}.{name}", part[name], 1.0)
        for name in _SECONDS:
            if name in part:
                given[name] = self._seconds(f"{place}.{name}", part[name], None)
        for name in _TEXTS:
            if name in part:
                given[name] = self._text(f"{place}.{name}", part[name])
        if "on" in part:
            given["on"] = self._choice(f"{place}.on", part["on"], Moment, Moment.START)
        if "tier" in part:
            given["tier"] = self._choice(f"{place}.tier", part["tier"], Tier, Tier.DEVICE)
        if "labels" in part:
            given["labels"] = self._labels(f"{place}.labels", part["labels"])
        if "heals" in part:
            given["heals"] = self._flag(f"{place}.heals", part["heals"])
        if "most" in part:
            given["most"] = self._number(f"{place}.most", part["most"], 0, whole=True)
        if "lasts_seconds" in part:
            given["lasts_seconds"] = self._lasts(f"{place}.lasts_seconds", part["lasts_seconds"])
        what = part.get("what")
        if what not in _KINDS:
            if "what" in part:
                self._problem(f"{place}.what", f"there is no fault {what!r}{suggestion(str(what), _KINDS)}")
            return None
        fault = Fault(what=FaultKind(what), **{name: item for name, item in given.items() if item is not None})
        if len(self.problems) == before:
            # What is said in a wrong way already would only seem to be missing.
            self.problems += fault_problems(place, fault)
        return fault

    def _lasts(self, place: str, value: Any) -> tuple[float, float] | None:
        pair = value if isinstance(value, list) else [value, value]
        if len(pair) != 2:
            self._problem(place, f"has {len(pair)} entries; give seconds, or [the least, the most]")
            return None
        before = len(self.problems)
        low, high = (self._seconds(place, each, 0.0) for each in pair)
        return (low, high) if len(self.problems) == before else None

    def _seconds(self, place: str, value: Any, otherwise: Any) -> Any:
        if fault := number_fault(value, at_most=DURATION_SECONDS_MAX, unit="seconds"):
            self._problem(place, fault)
            return otherwise
        return float(value)
