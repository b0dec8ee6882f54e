"""The demonstration's job, run and measured: a spoken question about a photograph, answered in speech.

It runs cold, and then in turns warm and warm with one stage at a time, on one cluster.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from starloom.agents.language.family import LARGEST, sizes
from starloom.dag import facts
from starloom.dag.constellation import Constellation
from starloom.dag.document import load
from starloom.dag.facts import Fact
from starloom.dag.ids import FencingToken, StageId
from starloom.orchestrator.clientsync import Client
from starloom.orchestrator.infos import Event, JobInfo

QUESTION: Final = "question.wav"
PHOTO: Final = "photo.jpg"
ANSWER: Final = StageId("answer")
EXTRACTIVE: Final = "extractive"
"""The answer from the best sentences alone, without a language model."""


class Shows(Protocol):
    """Shows a job's events as they come."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *_: object) -> None: ...
    def show(self, event: Event) -> None: ...


class Silent:
    """Shows nothing."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
    def show(self, event: Event) -> None: ...


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One run: the outputs by name, the job as it ended, and what was measured.

    `seconds`: from the submission until every output was here. `width`: the most stages that ran at one time.
    """

    outputs: dict[str, Any]
    info: JobInfo
    seconds: float
    width: int

    @property
    def load_seconds(self) -> float:
        """What the stages spent on loading models, added up over stages that may have run side by side."""
        return sum(stage.seconds.load for stage in self.info.stages)


def example() -> Path:
    """The folder with the constellation and its inputs."""
    return Path(str(files("starloom.orchestrator").joinpath("data", "spoken-question")))


def languages() -> list[str]:
    """What may write the answer."""
    return [LARGEST, *sizes(), EXTRACTIVE]


def constellation(language: str = LARGEST) -> Constellation:
    """The demonstration's constellation, with one of `languages()` to write the answer."""
    made = load((example() / "constellation.yaml").read_text("utf-8"), place="the demonstration's constellation")
    stage = made.stages[ANSWER]
    if language == EXTRACTIVE:
        stage = msgspec.structs.replace(stage, kind="text.answer", params={})
    elif language != LARGEST:
        stage = msgspec.structs.replace(stage, params={"model": language})
    return msgspec.structs.replace(made, stages={**made.stages, ANSWER: stage})


def pull_models(note: Callable[[str], None]) -> None:
    """Brings what the demonstration needs of models into the user's store, with progress told to `note`.

    Raises what `agents.modelpull.pull` raises.
    """
    from starloom.agents.modelpull import pull
    from starloom.agents.modelstore import ModelStore

    store = ModelStore()
    missing = [model.name for model in store.models() if model.default and not model.present]
    if missing:
        pull(store, missing, lambda name, what: note(f"{name}: {what}" if name else what))


def measure(
    client: Client, what: Constellation, inputs: Mapping[str, Any], shows: Shows, *, max_parallel: int = 0
) -> Measured:
    """Runs a job to its end. Raises what the submission and the job's result raise."""
    began = time.perf_counter()
    job = client.submit(what, inputs, max_parallel=max_parallel)
    seen: list[Fact] = []
    with shows:
        for event in job.events():
            seen.append(event.fact)
            shows.show(event)
    outputs = job.result()
    seconds = time.perf_counter() - began
    return Measured(outputs=outputs, info=job.status(), seconds=seconds, width=parallel_width(seen))


def parallel_width(seen: Iterable[Fact]) -> int:
    """The most attempts of one job that ran at one time, by what their agents reported, in the journal's order."""
    running: set[tuple[StageId, FencingToken]] = set()
    width = 0
    for fact in seen:
        match fact:
            case facts.StageStarted():
                running.add((fact.stage, fact.token))
                width = max(width, len(running))
            case facts.StageCommitted() | facts.StageFailed() | facts.StageSuperseded():
                running.discard((fact.stage, fact.token))
            case facts.StageCancelled():
                running = {(stage, token) for stage, token in running if stage != fact.stage}
    return width


def language_row(runs: Sequence[Measured]) -> dict[str, Any] | None:
    """Who answered, and the language model's speed as the median of runs; None without a language model."""
    details = runs[0].outputs["details"]
    if "by" not in details:
        return None
    figures = [stage.figures for run in runs for stage in run.info.stages if stage.name == ANSWER]

    def median(name: str) -> float | None:
        found = [one[name] for one in figures if name in one]
        return statistics.median(found) if found else None

    first, each = median("first_token_seconds"), median("token_seconds")
    kept = ("by", "model", "span", "doubt", "certainty", "prompt_tokens", "tokens")
    return {
        **{name: details[name] for name in kept},
        "first_token_ms": None if first is None else 1_000 * first,
        "tokens_per_second": None if each is None else 1 / each,
    }
