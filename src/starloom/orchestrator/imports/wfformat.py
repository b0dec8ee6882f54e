"""Executions of workflows in WfFormat 1.5 as constellations of synthetic stages.

WfFormat is WfCommons' JSON schema of workflows that ran (github.com/wfcommons/WfFormat): tasks with parents, children,
input and output files in `workflow.specification`, and their seconds and memory in `workflow.execution`. A task becomes
a stage, and a parent of a task a dependency. Of the files that a task makes, those that one set of tasks reads are one
output port of that many bytes in all; a dependency without a file carries only order. Files that no parent makes are
`entry_bytes`, and those that nobody reads are an output that nobody reads. The working memory is told to planners, and
required of the node, rounded up to MEMORY_STEP_BYTES. Not taken over: machines, cores and their load, the energy, the start times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starloom.dag import limits
from starloom.dag.checks import Suggestions
from starloom.dag.constellation import Constellation, Dependency, Requirements, StageSpec
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

VERSION: Final = "1.5"
MEMORY_STEP_BYTES: Final = 64 * 1024 * 1024
"""Required memory is a multiple of this: stages with equal requirements are placed together."""

UNREAD: Final = "unread"
"""The output port for files that nobody reads."""

_SPEC = "workflow.specification"
_EXECUTION = "workflow.execution"


@dataclass(slots=True)
class _Task:
    """One task. `place`: in the specification. `parents`, also those that only name it as a child, and files, each once."""

    place: str
    id: str
    seconds: float | None = None
    memory_bytes: float = 0.0
    about: str = ""
    parents: dict[str, None] = field(default_factory=dict)
    reads: dict[str, None] = field(default_factory=dict)
    makes: dict[str, None] = field(default_factory=dict)


def read(data: bytes, scale: Scale = AS_IT_IS, *, place: str = "") -> Imported:
    """The constellation of an execution; `place` names the source in the error.

    Raises InvalidInput with everything that is wrong: no JSON, another schema version, unknown parents, children and
    files, cycles, tasks without a run time, negative numbers, and what is over a limit.
    """
    reader = _Reader(scale)
    head, tasks, sizes = reader.execution(reader.document(data))
    reader.raise_problems(f"{place or 'the document'} is no WfFormat {VERSION} execution that can be imported")
    return _Maker(tasks, sizes, scale, reader.doubts).made(head)


class _Reader(JsonReader):
    """Reads the document; `doubts` are of what it says twice and differently."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.doubts: list[Problem] = []
        self._scale = scale
        self._suggestions = Suggestions()
        self._tasks: dict[str, _Task] = {}
        self._sizes: dict[str, float] = {}

    def execution(self, document: Any) -> tuple[str, Mapping[str, _Task], Mapping[str, float]]:
        """The workflow's name, its tasks by id, and the bytes of its files by id."""
        if self.problems:
            return "", {}, {}
        part = self._mapping("", document, needed=("name", "schemaVersion", "workflow"))
        version = part.get("schemaVersion", VERSION)
        if version != VERSION:
            what = f"is {version!r}, and this version reads {VERSION!r}; migrate the file with WfFormat's own tool"
            self._problem("schemaVersion", what)
        name = self._text("name", part.get("name", ""))
        if isinstance(document, dict) and "workflow" in part:
            workflow = self._mapping("workflow", part["workflow"], needed=("specification", "execution"))
            if "specification" in workflow:
                self._specification(workflow["specification"])
                if "execution" in workflow:
                    self._runs(workflow["execution"])
        return name, self._tasks, self._sizes

    def _specification(self, value: Any) -> None:
        part = self._mapping(_SPEC, value, needed=("tasks",))
        self._files(self._list(f"{_SPEC}.files", part.get("files", [])))
        tasks = self._list(f"{_SPEC}.tasks", part.get("tasks", []))
        if "tasks" in part and not tasks:
            self._problem(f"{_SPEC}.tasks", "holds no task; a constellation needs at least one stage")
        parts: dict[str, dict[str, Any]] = {}
        for index, item in enumerate(tasks):
            place = f"{_SPEC}.tasks[{index}]"
            task = self._mapping(place, item, needed=("id", "parents", "children"))
            name = self._id(f"{place}.id", task["id"]) if "id" in task else ""
            if name in self._tasks:
                self._problem(f"{place}.id", f"{name!r} is the id of another task as well; ids name one task each")
            elif name:
                self._tasks[name] = _Task(place, name)
                parts[name] = task
        for name, task in parts.items():
            self._parents_and_files(self._tasks[name], task)
        for name, task in parts.items():
            for where, child in self._texts(f"{self._tasks[name].place}.children", task.get("children", [])):
                if self._is_task(where, child):
                    self._tasks[child].parents[name] = None
        arcs: dict[str, list[str]] = {name: [] for name in self._tasks}
        for found in self._tasks.values():
            for parent in found.parents:
                arcs[parent].append(found.id)
        self.check_sizes(f"{_SPEC}.tasks", len(tasks), sum(map(len, arcs.values())))
        self.check_order(f"{_SPEC}.tasks", arcs)

    def _files(self, files: list[Any]) -> None:
        for index, item in enumerate(files):
            place = f"{_SPEC}.files[{index}]"
            part = self._mapping(place, item, needed=("id", "sizeInBytes"))
            size = self._bytes(f"{place}.sizeInBytes", part.get("sizeInBytes", 0), self._scale)
            name = self._id(f"{place}.id", part["id"]) if "id" in part else ""
            if name and self._sizes.setdefault(name, size) != size:
                self._problem(f"{place}.sizeInBytes", f"{name!r} is listed with another size as well; keep one")

    def _parents_and_files(self, task: _Task, part: dict[str, Any]) -> None:
        for where, parent in self._texts(f"{task.place}.parents", part.get("parents", [])):
            if self._is_task(where, parent):
                task.parents[parent] = None
        for files, key in ((task.reads, "inputFiles"), (task.makes, "outputFiles")):
            for where, file in self._texts(f"{task.place}.{key}", part.get(key, [])):
                if file not in self._sizes:
                    self._problem(where, f"no file is listed as {file!r}{self._suggestions.of(file, self._sizes)}")
                files[file] = None

    def _is_task(self, place: str, name: str) -> bool:
        if name in self._tasks:
            return True
        self._problem(place, f"no task has the id {name!r}{self._suggestions.of(name, self._tasks)}")
        return False

    def _runs(self, value: Any) -> None:
        part = self._mapping(_EXECUTION, value, needed=("tasks",))
        for index, item in enumerate(self._list(f"{_EXECUTION}.tasks", part.get("tasks", []))):
            place = f"{_EXECUTION}.tasks[{index}]"
            run = self._mapping(place, item, needed=("id", "runtimeInSeconds"))
            name = self._id(f"{place}.id", run["id"]) if "id" in run else ""
            if name and self._is_task(f"{place}.id", name):
                self._run(place, self._tasks[name], run)
        for task in self._tasks.values():
            if isinstance(part.get("tasks"), list) and task.seconds is None:
                self._problem(task.place, f"{task.id!r} has no run time: {_EXECUTION}.tasks does not list it")

    def _run(self, place: str, task: _Task, run: dict[str, Any]) -> None:
        if task.seconds is not None:
            self._problem(f"{place}.id", f"{task.id!r} ran already in this execution; keep one of its runs")
        # A run without its time has been noted as such.
        task.seconds = self._seconds(f"{place}.runtimeInSeconds", run.get("runtimeInSeconds", 0), self._scale)
        task.memory_bytes = self._bytes(f"{place}.memoryInBytes", run.get("memoryInBytes", 0), self._scale)
        command = run.get("command")
        program = command.get("program") if isinstance(command, dict) else None
        task.about = words(program) if isinstance(program, str) else ""


class _Maker:
    """Makes the constellation of tasks that were found to be right."""

    def __init__(
        self, tasks: Mapping[str, _Task], sizes: Mapping[str, float], scale: Scale, doubts: list[Problem]
    ) -> None:
        self._tasks = tasks
        self._sizes = sizes
        self._scale = scale
        self._doubts = doubts
        self._names = stage_names(tasks)
        #: by task, the port of each set of its files that is read together
        self._ports: dict[str, dict[frozenset[str], str]] = {name: {} for name in tasks}
        #: by task, the files that it reads and no parent made
        self._entries: dict[str, list[str]] = {name: [] for name in tasks}

    def made(self, name: str) -> Imported:
        """All of it, under this name."""
        makers: dict[str, set[str]] = {}
        for task in self._tasks.values():
            for file in task.makes:
                makers.setdefault(file, set()).add(task.id)
        carried = {task.id: self._carried(task, makers) for task in self._tasks.values()}
        self._name_ports(carried)
        dependencies = [
            self._dependency(task.id, parent, files)
            for task in self._tasks.values()
            for parent, files in carried[task.id].items()
        ]
        stages = {self._names[task.id]: self._stage(number, task) for number, task in enumerate(self._tasks.values())}
        constellation = Constellation(
            name=constellation_name(name),
            stages=stages,
            dependencies=tuple(dependencies),
            labels={"imported_from": f"WfFormat {VERSION}"},
        )
        return Imported(constellation, tuple(self._doubts))

    def _carried(self, task: _Task, makers: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
        """By parent, the files that the task reads of it; what no parent made counts as entry."""
        found: dict[str, set[str]] = {parent: set() for parent in task.parents}
        for file in task.reads:
            made_by = makers.get(file, set())
            parent = next((parent for parent in task.parents if parent in made_by), None)
            if parent is not None:
                found[parent].add(file)
            elif task.id not in made_by:
                self._entries[task.id].append(file)
                if made_by:
                    what = f"reads {file!r} of {', '.join(sorted(made_by))}, which is none of its parents"
                    self._doubts.append(Problem(task.place, f"{what}; the file counts as one that no stage makes"))
        return {parent: frozenset(files) for parent, files in found.items()}

    def _name_ports(self, carried: Mapping[str, Mapping[str, frozenset[str]]]) -> None:
        for parents in carried.values():
            for parent, files in parents.items():
                if files:
                    self._ports[parent].setdefault(files, "")
        for ports in self._ports.values():
            for number, files in enumerate(ports, 1):
                ports[files] = f"data{number}" if len(ports) > 1 else "data"

    def _bytes(self, files: Sequence[str] | frozenset[str]) -> int:
        return self._scale.scaled_bytes(sum(self._sizes[file] for file in files))

    def _dependency(self, task: str, parent: str, files: frozenset[str]) -> Dependency:
        upstream, downstream = self._names[parent], self._names[task]
        if not files:
            return Dependency(upstream=upstream, downstream=downstream)
        return Dependency(
            upstream=upstream, downstream=downstream, output=self._ports[parent][files], input=str(upstream)
        )

    def _stage(self, number: int, task: _Task) -> StageSpec:
        name = self._names[task.id]
        ports = self._ports[task.id]
        outputs = {port: self._bytes(files) for files, port in ports.items()}
        unread = [file for file in task.makes if not any(file in files for files in ports)]
        if unread:
            outputs[UNREAD] = self._bytes(unread)
        for port, size in outputs.items():
            if size > limits.VALUE_BYTES_MAX:
                what = f"{size} bytes are over VALUE_BYTES_MAX = {limits.VALUE_BYTES_MAX}"
                self._doubts.append(
                    Problem(f"stages.{name}.params.outputs.{port}", f"{what}; to run it, scale the bytes down")
                )
        memory = self._scale.scaled_bytes(task.memory_bytes)
        params = {
            "seconds": self._scale.scaled_seconds(task.seconds or 0.0),
            "work": "sleep" if self._scale.sleep else "",
            "outputs": outputs,
            "memory_bytes": memory,
            "entry_bytes": self._bytes(self._entries[task.id]),
            "seed": number,
            "about": task.about,
        }
        return StageSpec(
            id=StageId(name),
            kind=WORK,
            params={key: value for key, value in params.items() if key == "seconds" or value},
            requires=Requirements(memory_bytes=-(-memory // MEMORY_STEP_BYTES) * MEMORY_STEP_BYTES),
        )
