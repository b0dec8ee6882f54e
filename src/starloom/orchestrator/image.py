"""The coordinator's state as plain values, and back: what a snapshot holds.

Attributes are taken as they are found, so one that is added later is in the next image without further ado. Only what
would be there twice is left out: what a job's shape is made of, and who has room. Nothing of a stage's story is kept.
Most of an image is of jobs that have ended, so the stages of these are looked at once somebody asks for them.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

import msgspec

from starloom.dag.constellation import Constellation, StageSpec
from starloom.dag.facts import JobSubmitted
from starloom.dag.ids import JobId, StageId
from starloom.dag.job import JobState
from starloom.dag.shape import Shape
from starloom.dag.stagestate import StageState
from starloom.orchestrator.kept import KeptJobs
from starloom.orchestrator.placement import EarliestFinish
from starloom.orchestrator.state import State

_OF_SHAPE: Final = frozenset({"shape", "stages", "upstreams", "downstreams", "bindings", "undecided"})
_OF_ENDED: Final = frozenset({"thawer", "body"})
_OF_STATE: Final = frozenset({"jobs", "open", "fleet", "planner"})
_STORY: Final = frozenset({"spec", "story"})
_ROOTS: Final = ("starloom.",)
_FRESH: Final = StageState(StageSpec(id=StageId(""), kind=""))
_STAGE_FIELDS: Final = tuple(name for name in StageState.__slots__ if name not in _STORY)


class ImageError(ValueError):
    """An image is not of the classes that this version has."""


class JobImage(msgspec.Struct, frozen=True, array_like=True):
    """A job: `body` has what its shape began as, and of each stage what is not as in a new one."""

    attributes: list[Any]
    body: msgspec.Raw


class Image(msgspec.Struct, frozen=True):
    """Plain values for a state and the jobs kept with it. `classes`: the names of each class, and of its fields."""

    classes: list[list[Any]]
    state: dict[str, Any]
    jobs: list[JobImage]
    kept: list[Any]


def take(state: State, kept: KeptJobs) -> Image:
    """The image of a state that a replay made."""
    untouched = next((job for job in state.jobs.values() if type(job) is _Ended), None)
    freezer = _Freezer(untouched.thawer.classes if untouched is not None else ())
    frozen = {
        "state": freezer.attributes(state, _OF_STATE),
        "fleet": freezer.attributes(state.fleet, frozenset({"opened"})),
        "opened": list(state.fleet.opened),
        "planner": [freezer.class_of(type(state.planner)), freezer.attributes(state.planner)],
    }
    jobs = [freezer.job(job) for job in state.jobs.values()]
    attributes = freezer.attributes(kept)
    return Image(classes=freezer.classes(), state=frozen, jobs=jobs, kept=attributes)


def restore(image: Image, state: State, kept: KeptJobs) -> None:
    """Fills a state and the kept jobs, both new, with what an image holds. Raises ImageError, and leaves both unusable."""
    try:
        thawer = _Thawer(image.classes)
        frozen = image.state
        thawer.into(state, frozen["state"])
        thawer.into(state.fleet, frozen["fleet"])
        state.fleet.opened = {name: state.fleet.members[name] for name in frozen["opened"]}
        if type(state.planner) is not thawer.classes[frozen["planner"][0]]:
            raise ImageError(f"it was taken with another planner than {type(state.planner).__name__}")
        thawer.into(state.planner, frozen["planner"][1])
        for each in image.jobs:
            job = thawer.job(each)
            state.jobs[job.id] = job
            if not job.ended:
                state.open[job.id] = job
        thawer.into(kept, image.kept)
    except (LookupError, TypeError, ValueError, AttributeError, ImportError, msgspec.MsgspecError) as error:
        raise ImageError(f"it does not fit this version: {type(error).__name__}: {error}") from error


class _Ended(JobState):
    """A job as it came from an image; it completes itself once it is asked for more than its attributes."""

    thawer: "_Thawer"
    body: bytes

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_SHAPE:
            raise AttributeError(name)
        self.complete()
        return getattr(self, name)

    def complete(self) -> None:
        """From here on it is a job like others."""
        thawer, body = self.thawer, self.body
        del self.thawer, self.body
        self.__class__ = JobState  # type: ignore[assignment]
        thawer.fill(self, body)


class _Freezer:
    """Turns values into lists that begin with a tag; plain ones stay as they are."""

    def __init__(self, classes: Iterable[type]) -> None:
        self._classes: dict[type, int] = {}
        for kind in classes:
            self.class_of(kind)
        self._seen: set[int] = set()

    def classes(self) -> list[list[Any]]:
        return [[f"{kind.__module__}:{kind.__qualname__}", _fields(kind)] for kind in self._classes]

    def class_of(self, kind: type) -> int:
        """The number of a class."""
        found = self._classes.get(kind)
        if found is None:
            found = self._classes[kind] = len(self._classes)
        return found

    def attributes(self, thing: object, without: frozenset[str] = frozenset(), kind: type | None = None) -> list[Any]:
        """An object's attributes: names and values in turns."""
        if id(thing) in self._seen:
            raise ImageError(f"{thing!r} would be in the image twice")
        self._seen.add(id(thing))
        self.class_of(kind or type(thing))
        names = _names(thing)
        return [part for name in names if name not in without for part in (name, self.freeze(getattr(thing, name)))]

    def job(self, job: JobState) -> JobImage:
        """A job; one that was not looked at since it came from an image goes into this one as it was in that."""
        if type(job) is _Ended:
            return JobImage(self.attributes(job, _OF_ENDED, JobState), msgspec.Raw(job.body))
        stages = [[name, *self._stage(stage)] for name, stage in job.stages.items()]
        body = msgspec.json.encode([self.freeze(job.submitted), stages])
        return JobImage(self.attributes(job, _OF_SHAPE), msgspec.Raw(body))

    def _stage(self, stage: StageState) -> Iterator[Any]:
        self.class_of(StageState)
        for name in _STAGE_FIELDS:
            value = getattr(stage, name)
            if value != getattr(_FRESH, name):
                yield name
                yield self.freeze(value)

    def freeze(self, value: Any) -> Any:
        """One value."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if issubclass(kind, msgspec.Struct):
            return ["struct", self.class_of(kind), msgspec.to_builtins(value)]
        if issubclass(kind, Enum):
            return ["enum", self.class_of(kind), value.value]
        if kind in _MAPPINGS:
            return [_MAPPINGS[kind], *(self.freeze(part) for item in value.items() for part in item)]
        if kind in _SETS:
            # In an order that no hash decides: the same state gives the same image.
            return [_SETS[kind], *sorted(map(self.freeze, value), key=msgspec.json.encode)]
        if kind in _SEQUENCES:
            return [_SEQUENCES[kind], *map(self.freeze, value)]
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return ["named", self.class_of(kind), *map(self.freeze, value)]
        if kind.__module__.startswith(_ROOTS):
            return ["object", self.class_of(kind), *self.attributes(value)]
        raise ImageError(f"no image can hold a {kind.__name__}: {value!r}")


class _Thawer:
    """The way back, for classes that have the same fields as when the image was taken."""

    def __init__(self, classes: list[list[Any]]) -> None:
        self.classes = [_class(name, fields) for name, fields in classes]
        self._makers: dict[str, Callable[[list[Any]], Any]] = {
            "struct": lambda parts: msgspec.convert(parts[1], self.classes[parts[0]]),
            "enum": lambda parts: self.classes[parts[0]](parts[1]),
            "named": lambda parts: self.classes[parts[0]](*map(self.thaw, parts[1:])),
            "object": self._object,
            "counter": lambda parts: Counter(self._pairs(parts)),
            "dict": self._pairs,
            **{tag: self._many(kind) for kind, tag in (_SETS | _SEQUENCES).items()},
        }

    def into(self, thing: object, frozen: list[Any]) -> None:
        """Sets an object's attributes."""
        for name, value in zip(frozen[::2], frozen[1::2], strict=True):
            setattr(thing, name, self.thaw(value))

    def job(self, image: JobImage) -> JobState:
        """A job."""
        job = JobState.__new__(_Ended)
        self.into(job, image.attributes)
        job.thawer, job.body = self, bytes(image.body)
        if not job.ended:
            job.complete()
        return job

    def fill(self, job: JobState, body: bytes) -> None:
        """The rest of a job; what is counted and indexed of its stages is made anew."""
        origin, stages = msgspec.json.decode(body)
        job.shape = shape = Shape(self.thaw(origin))
        for patch in job.patches:
            shape.apply(patch.difference)
        job.upstreams, job.downstreams, job.bindings = shape.upstreams, shape.downstreams, shape.bindings
        job.stages = {}
        for name, *parts in stages:
            stage = job.stages[name] = StageState(shape.specs[name])
            self.into(stage, parts)
        job.count()

    def thaw(self, frozen: Any) -> Any:
        """One value."""
        return self._makers[frozen[0]](frozen[1:]) if type(frozen) is list else frozen

    def _many(self, kind: Callable[[Iterable[Any]], Any]) -> Callable[[list[Any]], Any]:
        return lambda parts: kind(map(self.thaw, parts))

    def _pairs(self, parts: list[Any]) -> dict[Any, Any]:
        return {self.thaw(key): self.thaw(value) for key, value in zip(parts[::2], parts[1::2], strict=True)}

    def _object(self, parts: list[Any]) -> Any:
        kind = self.classes[parts[0]]
        thing = kind.__new__(kind)
        self.into(thing, parts[1:])
        return thing


def _class(name: str, fields: list[str]) -> Any:
    module, _, qualified = name.partition(":")
    if not module.startswith(_ROOTS):
        raise ImageError(f"{name} is none of Starloom's classes")
    kind = getattr(import_module(module), qualified)
    if (now := _fields(kind)) != fields:
        raise ImageError(f"{qualified} has other fields than when it was taken: {sorted({*now} ^ {*fields})}")
    return kind


_PLAIN: Final = frozenset({type(None), bool, int, float, str})
_MAPPINGS: Final[dict[type, str]] = {dict: "dict", MappingProxyType: "dict", Counter: "counter"}
_SETS: Final[dict[type, str]] = {set: "set", frozenset: "frozenset"}
_SEQUENCES: Final[dict[type, str]] = {list: "list", tuple: "tuple", deque: "deque"}


def _fields(kind: type) -> list[str]:
    """What a class declares, or else what an object of it has."""
    return _declared(kind) or sorted(vars(_new(kind)))


def _declared(kind: type) -> list[str]:
    if issubclass(kind, msgspec.Struct):
        return list(kind.__struct_fields__)
    if issubclass(kind, Enum):
        return [str(member.value) for member in kind]
    declared: tuple[str, ...] = getattr(kind, "_fields", ()) or getattr(kind, "__slots__", ())
    return sorted(declared)


def _names(thing: object) -> list[str]:
    return _declared(type(thing)) or list(vars(thing))


def _new(kind: type) -> object:
    if kind is JobState:
        return JobState(JobSubmitted(job=JobId(""), constellation=Constellation(name="", stages={})))
    return State(EarliestFinish()) if kind is State else kind()
