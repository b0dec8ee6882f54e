"""What a plan is to make small, as documents say it: one measure, several in order, or all of them weighed.

    objective: energy                                     # and of plans that take as much, the fastest
    objective: [{by: latency, within: 10%}, price]        # the cheapest of those at most a tenth slower than the fastest
    objective: {latency: 1, energy: 0.2}                  # seconds, and joules that count 0.2 s each

    objective: [{by: latency, within: 10%}, quality]      # the best variants of those; and {latency: 1, quality: 30} weighs them

Latency is in seconds, energy in joules, price in whatever the fleet's prices are in; of quality, what each stage's variant lacks of
1 is added up. Without any of it, plans are fast. Where quality is not named it comes first: no variant is worse than it has to be.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from starloom.dag import limits
from starloom.dag.checks import kind_of, number_fault, suggestion
from starloom.dag.constellation import Goal, Measure
from starloom.dag.errors import Problem

_HOW = f"give one of {', '.join(Measure)}, a list of them, or a weight for each, such as {{latency: 1, energy: 0.2}}"


def read(value: Any, place: str = "objective") -> tuple[tuple[Goal, ...], list[Problem]]:
    """The goals in a document's plain form, as far as they can be read, and what cannot."""
    problems: list[Problem] = []
    goals: list[Goal] = []
    if isinstance(value, dict) and "by" not in value:
        for name, weight in value.items():
            if fault := _fault(name) or number_fault(weight):
                problems.append(Problem(f"{place}.{name}", fault))
            else:
                goals.append(Goal(by=Measure(name), weight=float(weight)))
        return tuple(goals), problems
    listed = value if isinstance(value, list | tuple) else [value]
    for index, each in enumerate(listed):
        at = f"{place}[{index}]" if isinstance(value, list | tuple) else place
        part = each if isinstance(each, dict) else {"by": each}
        problems += [
            Problem(f"{at}.{key}", f"there is no such key here{suggestion(str(key), ('by', 'within'))}")
            for key in part
            if key not in ("by", "within")
        ]
        within, fault = _share(part.get("within", 0.0))
        if fault:
            problems.append(Problem(f"{at}.within", fault))
        if fault := _fault(part.get("by")):
            problems.append(Problem(at, fault))
        else:
            goals.append(Goal(by=Measure(part["by"]), within=within))
    return tuple(goals), problems


def to_json(goals: tuple[Goal, ...]) -> Any:
    """What stands under `objective`; nothing for none."""
    if any(goal.weight for goal in goals):
        return {str(goal.by): goal.weight for goal in goals}
    listed = [{"by": str(goal.by), "within": goal.within} if goal.within else str(goal.by) for goal in goals]
    return listed[0] if len(listed) == 1 else listed


def shorthand(text: str) -> Any:
    """The plain form of what a command line says: `energy`, `latency+10%,price`, or `latency=1,energy=0.2`."""
    parts = [part.strip() for part in text.split(",")]
    if all("=" in part for part in parts):
        weights = [part.partition("=") for part in parts]
        # Twice the same is told as that, which a mapping cannot.
        if len({name for name, _, _ in weights}) == len(weights):
            return {name.strip(): _number(weight.strip()) for name, _, weight in weights}
    return [
        {"by": name.strip(), "within": share.strip()} if plus else part
        for part, (name, plus, share) in ((part, part.partition("+")) for part in parts)
    ]


def objective_problems(goals: tuple[Goal, ...], place: str = "objective") -> Iterator[Problem]:
    """Everything wrong with what a plan is to make small."""
    for name, count in Counter(goal.by for goal in goals).items():
        if count > 1:
            yield Problem(place, f"{name} is given {count} times; say it once")
    weighed = [goal for goal in goals if goal.weight]
    if weighed and len(weighed) < len(goals):
        yield Problem(place, "has weights for some and none for others; give each a weight above 0, or none")
    for goal in goals:
        if goal.by not in tuple(Measure):
            yield Problem(place, _fault(goal.by))
        least = limits.OBJECTIVE_WEIGHT_MIN if goal.weight else 0.0
        if fault := number_fault(goal.weight, at_least=least, at_most=limits.OBJECTIVE_WEIGHT_MAX):
            yield Problem(f"{place}.{goal.by}", fault)
        if fault := number_fault(goal.within, at_most=limits.OBJECTIVE_WITHIN_MAX):
            yield Problem(f"{place}.{goal.by}.within", fault)


def _fault(name: Any) -> str:
    if not isinstance(name, str):
        return f"is {kind_of(name)} ({name!r}); {_HOW}"
    return "" if name in tuple(Measure) else f"there is no measure {name!r}{suggestion(name, Measure)}; {_HOW}"


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _share(value: Any) -> tuple[float, str]:
    """A share from a number, or from text such as `10%`, and what is wrong with it."""
    if isinstance(value, str) and value.endswith("%"):
        try:
            value = float(value[:-1]) / 100
        except ValueError:
            return 0.0, f"is {value!r}; write a share such as 10% or 0.1"
    if fault := number_fault(value, at_most=limits.OBJECTIVE_WITHIN_MAX):
        return 0.0, f"{fault}, such as 10% or 0.1"
    return float(value), ""
