"""UFO³'s TaskConstellations as constellations of synthetic stages.

The format is what its `TaskConstellation.to_dict` writes and its schema reads (github.com/microsoft/UFO, galaxy/
constellation and galaxy/agents/schema.py): `tasks` and `dependencies`, each an object by id or a list. Its tasks are
texts for an agent to act on, which Starloom does not do: each becomes a stage that stands for it, with the text in
`about`, and that lasts as long as the task did, or a second where it has not run. A dependency carries order alone:

| dependency_type | becomes |
|---|---|
| unconditional, completion_only | on: completion |
| success_only | on: success |
| conditional | on: success, and a doubt: the condition is code of a program that the file does not hold |

`target_device_id` becomes the node that is required, and `device_type` without it the node's label `device_type`;
`timeout` and a `retry_count` above 0 become the stage's. Status, results, priorities, tips and times are not taken over.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final

from starloom.dag import limits
from starloom.dag.checks import Suggestions
from starloom.dag.constellation import Constellation, Dependency, On, Policy, Requirements, Retry, StageSpec
from starloom.dag.errors import Problem
from starloom.dag.ids import StageId
from starloom.orchestrator.imports.reading import (
    AS_IT_IS,
    WORK,
    Imported,
    JsonReader,
    Scale,
    constellation_name,
    stage_names,
    words,
)

UNKNOWN_SECONDS: Final = 1.0
"""How long a task is taken to last that has not run."""


class DependencyType(StrEnum):
    """UFO³'s four."""

    UNCONDITIONAL = "unconditional"
    CONDITIONAL = "conditional"
    SUCCESS_ONLY = "success_only"
    COMPLETION_ONLY = "completion_only"


class DeviceType(StrEnum):
    """UFO³'s kinds of devices."""

    WINDOWS = "windows"
    MACOS = "macos"
    LINUX = "linux"
    ANDROID = "android"
    IOS = "ios"
    WEB = "web"
    API = "api"


_ON: Final = {
    DependencyType.UNCONDITIONAL: On.COMPLETION,
    DependencyType.COMPLETION_ONLY: On.COMPLETION,
    DependencyType.SUCCESS_ONLY: On.SUCCESS,
    DependencyType.CONDITIONAL: On.SUCCESS,
}


def read(data: bytes, scale: Scale = AS_IT_IS, *, place: str = "") -> Imported:
    """The constellation of a TaskConstellation; `place` names the source in the error.

    Raises InvalidInput with everything that is wrong: no JSON, unknown tasks, dependency and device types, ids given
    twice, cycles, negative numbers, and what is over a limit.
    """
    reader = _Reader(scale)
    constellation = reader.constellation_of(reader.document(data))
    reader.raise_problems(f"{place or 'the document'} is no TaskConstellation that can be imported")
    return Imported(constellation, tuple(reader.doubts))


class _Reader(JsonReader):
    """Reads the document; `doubts` are of what a constellation cannot say."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.doubts: list[Problem] = []
        self._scale = scale
        self._suggestions = Suggestions()

    def constellation_of(self, document: Any) -> Constellation:
        """The whole. What it gives is of use only if nothing was noted."""
        part = {} if self.problems else self._mapping("", document, needed=("tasks",))
        tasks: dict[str, tuple[str, dict[str, Any]]] = {}
        for place, name, task in self._entries("tasks", part.get("tasks", {}), "task_id"):
            if name in tasks:
                self._problem(place, f"{name!r} is the id of another task as well; ids name one task each")
            tasks[name] = (place, task)
        if "tasks" in part and not tasks and not self.problems:
            self._problem("tasks", "holds no task; a constellation needs at least one stage")
        names = stage_names(tasks)
        stages = {names[name]: self._task(place, names[name], task) for name, (place, task) in tasks.items()}
        dependencies = self._dependencies(part.get("dependencies", {}), names)
        self.check_sizes("tasks", len(tasks), len(dependencies))
        wishes = [words(item) for item in (part.get("name"), part.get("constellation_id")) if isinstance(item, str)]
        return Constellation(
            name=constellation_name(*wishes),
            stages=stages,
            dependencies=tuple(dependencies),
            labels={"imported_from": "UFO3"},
        )

    def _entries(self, place: str, value: Any, key: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """The place, id and mapping of each entry of an object by id, or of a list; ids that are left out are made up."""
        named: list[tuple[str, str, Any]]
        if isinstance(value, list):
            named = [(f"{place}[{index}]", "", item) for index, item in enumerate(value)]
        else:
            named = [(f"{place}.{name}", name, item) for name, item in self._mapping(place, value).items()]
        for number, (where, name, item) in enumerate(named, 1):
            entry = self._mapping(where, item)
            own = self._text(f"{where}.{key}", entry.get(key) or "")
            if own and name and own != name:
                self._problem(f"{where}.{key}", f"is {own!r}, but it is listed as {name!r}; make both the same")
            yield where, own or name or f"{key.removesuffix('_id')}_{number:03d}", entry

    def _task(self, place: str, name: StageId, task: dict[str, Any]) -> StageSpec:
        timeout, retries = task.get("timeout"), task.get("retry_count")
        policy = Policy(
            timeout_seconds=self._seconds(f"{place}.timeout", timeout, AS_IT_IS) if timeout is not None else 0.0,
            retry=Retry(times=self._number(f"{place}.retry_count", retries, 0, whole=True)) if retries else Retry(),
        )
        seconds = UNKNOWN_SECONDS
        if (lasted := task.get("execution_duration")) is not None:
            seconds = self._seconds(f"{place}.execution_duration", lasted, self._scale)
        said = [task.get(key) for key in ("name", "description")]
        params = {
            "seconds": self._scale.scaled_seconds(seconds),
            "work": "sleep" if self._scale.sleep else "",
            "about": words(": ".join(item for item in said if isinstance(item, str) and item)),
        }
        return StageSpec(
            id=name,
            kind=WORK,
            params={key: item for key, item in params.items() if key == "seconds" or item},
            requires=self._device(place, task),
            policy=policy,
        )

    def _device(self, place: str, task: dict[str, Any]) -> Requirements:
        device, kind = task.get("target_device_id"), task.get("device_type")
        kind = self._type(f"{place}.device_type", kind, DeviceType, DeviceType.LINUX) if kind else ""
        if device:
            return Requirements(node=self._text(f"{place}.target_device_id", device))
        return Requirements(labels={"device_type": str(kind)} if kind else {})

    def _dependencies(self, value: Any, names: dict[str, StageId]) -> list[Dependency]:
        found: dict[tuple[str, str], Dependency] = {}
        arcs: dict[str, list[str]] = {name: [] for name in names}
        lines: set[str] = set()
        for place, line, part in self._entries("dependencies", value, "line_id"):
            if line in lines:
                self._problem(place, f"{line!r} is the id of another dependency as well; ids name one each")
            lines.add(line)
            ends = [self._end(f"{place}.{key}", part.get(key), names) for key in ("from_task_id", "to_task_id")]
            given = part.get("dependency_type", DependencyType.UNCONDITIONAL)
            kind = self._type(f"{place}.dependency_type", given, DependencyType, DependencyType.UNCONDITIONAL)
            if not all(ends):
                continue
            upstream, downstream = ends
            if (upstream, downstream) in found:
                self._problem(place, f"{downstream!r} depends on {upstream!r} already; keep one of both")
            if kind is DependencyType.CONDITIONAL:
                self._doubt_condition(place, part)
            found[upstream, downstream] = Dependency(
                upstream=names[upstream], downstream=names[downstream], on=_ON[kind]
            )
            arcs[upstream].append(downstream)
        self.check_order("dependencies", arcs)
        return list(found.values())

    def _end(self, place: str, value: Any, names: dict[str, StageId]) -> str:
        """A task's id; empty, and noted, if there is no such task."""
        name = self._id(place, value)
        if name and name not in names:
            self._problem(place, f"no task has the id {name!r}{self._suggestions.of(name, names)}")
            return ""
        return name

    def _doubt_condition(self, place: str, part: dict[str, Any]) -> None:
        said = part.get("condition_description")
        said = f" ({words(said)[: limits.NAME_CHARACTERS_MAX]!r})" if isinstance(said, str) and said else ""
        what = f"its condition{said} is code that the file does not hold; it is on success"
        self.doubts.append(Problem(f"{place}.dependency_type", f"{what}, and a patch may give it a comparison"))

    def _type(self, place: str, value: Any, choices: Any, otherwise: Any) -> Any:
        """One of UFO³'s names, which it writes in small letters and reads in large ones as well."""
        return self._choice(place, value.lower() if isinstance(value, str) else value, choices, otherwise)
