"""How often a job comes, and what is promised of each round, as documents say it.

every: 100ms                  # a job of it is handed in ten times a second
slo: {p95: 250ms}             # and of 100 of them 95 end within 250 ms from when they were due

rate: 30                      # or: 30 chunks a second on the streams of one job, each of which is a round
slo: {p99: 200ms}

every: 2s
slo: {first_token: 1s, token: 60ms}       # of stages that write an answer
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from starloom.dag import limits
from starloom.dag.checks import kind_of, number_fault, suggestion
from starloom.dag.constellation import Constellation, Measure, Slo
from starloom.dag.errors import Problem
from starloom.dag.quantities import read_seconds

FIELDS: Final[Mapping[str, str]] = {
    "p50": "p50_seconds",
    "p95": "p95_seconds",
    "p99": "p99_seconds",
    "first_token": "first_token_seconds",
    "token": "token_seconds",
}
"""What documents say, and the field of `Slo` that has it."""

SHARES: Final[Mapping[str, float]] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
"""The rounds that are to end within the seconds of each."""


def read(value: Any, place: str = "slo") -> tuple[Slo, list[Problem]]:
    """The promises in a document's plain form, as far as they can be read, and what cannot."""
    if not isinstance(value, dict):
        return Slo(), [Problem(place, f"is {kind_of(value)}; write a mapping, such as {{p95: 250ms}}")]
    problems: list[Problem] = []
    found: dict[str, float] = {}
    for name, said in value.items():
        if name not in FIELDS:
            problems.append(Problem(f"{place}.{name}", f"there is no such promise{suggestion(str(name), FIELDS)}"))
            continue
        try:
            found[FIELDS[name]] = read_seconds(said)
        except ValueError as error:
            problems.append(Problem(f"{place}.{name}", str(error)))
            continue
        # As a number 0 stands for no promise, which nobody who writes one means.
        if not found[FIELDS[name]]:
            least = "give more than 0 seconds, such as 250ms, or leave it out"
            problems.append(Problem(f"{place}.{name}", f"is 0 seconds, which no round can keep; {least}"))
    return Slo(**found), problems


def read_every(value: Any) -> tuple[float, str]:
    """Seconds from one job to the next, and what is wrong with them."""
    try:
        seconds = read_seconds(value)
    except ValueError as error:
        return 0.0, str(error)
    # As a number 0 stands for nothing that is said, which nobody who writes it means.
    return seconds, "" if seconds else "is 0 seconds; give how often a job comes, such as 100ms, or leave it out"


def read_rate(value: Any) -> tuple[float, str]:
    """Chunks a second, and what is wrong with them."""
    if fault := _rate_fault(value):
        return 0.0, fault
    return float(value), "" if value else "is 0 chunks a second; give how many come, such as 30, or leave it out"


def _rate_fault(value: Any) -> str:
    return number_fault(value, at_most=limits.STREAM_RATE_MAX, unit="chunks a second")


def shorthand(text: str) -> Any:
    """The plain form of what a command line says: `p95=250ms,token=60ms`. Text that is no such list is given back."""
    parts = [part.partition("=") for part in text.split(",")]
    return {name.strip(): value.strip() for name, _, value in parts} if all(sign for _, sign, _ in parts) else text


def to_json(slo: Slo) -> dict[str, float]:
    """What stands under `slo`, in seconds; nothing for none."""
    return {name: getattr(slo, field) for name, field in FIELDS.items() if getattr(slo, field)}


def slo_problems(constellation: Constellation) -> Iterator[Problem]:
    """Everything wrong with how often a job comes and with what is promised of it."""
    longest = limits.DURATION_SECONDS_MAX
    if fault := number_fault(constellation.every_seconds, at_most=longest, unit="seconds, 0 where it is not known"):
        yield Problem("every", fault)
    elif 0 < constellation.every_seconds < 1 / limits.STREAM_RATE_MAX:
        least = f"give {1 / limits.STREAM_RATE_MAX:g} seconds or more"
        yield Problem("every", f"is {constellation.every_seconds:g} seconds, more often than any stream; {least}")
    if fault := _rate_fault(constellation.rate):
        yield Problem("rate", fault)
    elif 0 < constellation.rate < 1 / longest:
        yield Problem("rate", f"is {constellation.rate:g}, a chunk in over {longest:g} seconds; give more of them")
    if constellation.every_seconds and constellation.rate:
        yield Problem(
            "rate", "is said beside `every`; say how often the job comes, or its chunks, and leave out the other"
        )
    for name, field in FIELDS.items():
        if fault := number_fault(getattr(constellation.slo, field), at_most=longest, unit="seconds, 0 for none"):
            yield Problem(f"slo.{name}", fault)
    asks = [f"slo.{name}" for name in to_json(constellation.slo)]
    asks += ["objective" for goal in constellation.objective if goal.by is Measure.P95]
    if asks and not (constellation.every_seconds or constellation.rate):
        yield Problem(
            asks[0], "is of rounds that follow each other; say `every: 100ms`, or `rate: 30` of a stream's chunks"
        )
