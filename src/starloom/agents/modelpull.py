"""Brings models into the store: pulled from their sources, verified and converted, or added from the user's own files.

Everything is made in `<root>/.incoming`, and a finished model is moved to its place by a rename. One
process pulls at a time; a second one waits for it.
"""

import fcntl
import hashlib
import importlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from starloom.agents.language.family import LARGEST
from starloom.agents.manifest import RECORD_NAME, Manifest, ModelEntry, ModelFile, Source, check
from starloom.agents.modelsources import Packages, Progress, read_first
from starloom.agents.modelstore import DEFAULT_FILE, USER_MANIFEST_NAME, ModelStore, Record, StoredFile, sha256_of
from starloom.dag.errors import Conflict, DigestMismatch, InvalidInput, ModelMissing, Problem, StarloomError


def _silent(_name: str, _what: str) -> None:
    return None


LANGUAGE: Final = "language"
"""The kind of language models."""

LANGUAGE_FILES: Final = frozenset({"config.json", "tokenizer.json"})
GRAPH_FOLDER: Final = "onnx"
_DECODERS = ("ForCausalLM", "LMHeadModel")


class _Architectures(msgspec.Struct):
    """The names of the classes that a model's config.json was written for."""

    architectures: tuple[str, ...] = ()


def pull(
    store: ModelStore,
    names: Sequence[str] | None = None,
    progress: Progress = _silent,
    *,
    again: bool = False,
    pip_options: Sequence[str] = (),
) -> list[str]:
    """Brings the named models, or all default ones, into the store; returns the names of those that were not there.

    A model that is there and whole is left alone unless `again`. A model that fails keeps no other
    from being pulled: one error at the end names each with its sources, reasons and what to do.
    Raises NotFound for unknown names, DigestMismatch if a source gave other bytes than were named,
    else ModelMissing.
    """
    store.reload()
    pulled: list[str] = []
    failures: list[StarloomError] = []
    entries = store.manifest.select(names)
    with _working(store.root, progress) as incoming:
        packages = Packages(incoming / "packages", pip_options)
        for entry in entries:
            if not again and store.place(entry).exists() and not store.verify([entry.name]):
                progress(entry.name, "is there")
                continue
            try:
                _pull_one(store, entry, incoming, packages, progress)
                pulled.append(entry.name)
            except StarloomError as error:
                progress(entry.name, "failed")
                failures.append(error)
    if failures:
        kind = DigestMismatch if any(isinstance(error, DigestMismatch) for error in failures) else ModelMissing
        raise kind("\n".join(map(str, failures)))
    return pulled


def add(store: ModelStore, path: Path, name: str, kind: str, licence: str, *, about: str = "") -> ModelEntry:
    """Copies a file, or the files right inside a folder except hidden ones, into the store as the user's own model `name`.

    A single `.onnx` file is stored as `model.onnx`. Graphs beside a config.json and a tokenizer.json may lie in a
    folder `onnx`, as exporters put them; if that config is a decoder's, `custom` becomes the kind `language`.
    Of that kind a model is checked whether it can run here. Raises InvalidInput with all problems, Conflict
    if the name stands for another model.
    """
    if name == LARGEST:
        taken = Problem(f"models.{name}", "stands for the largest of the shipped language models; use another name")
        raise InvalidInput([taken], f"{path} cannot be added")
    sources = _user_files(path)
    if kind == "custom" and _is_language(sources):
        kind = LANGUAGE
    if kind == LANGUAGE and (unfit := _language_problems(name, sources)):
        raise InvalidInput(unfit, f"{path} cannot be added")
    folder = path if path.is_dir() else path.parent
    files = tuple(
        ModelFile(
            path=source.relative_to(folder).as_posix(),
            name=stored,
            sha256=sha256_of(source),
            bytes=source.stat().st_size,
        )
        for stored, source in sources.items()
    )
    version = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()[:8]
    entry = ModelEntry(
        name=name,
        version=version,
        kind=kind,
        licence=licence,
        about=about,
        sources=(Source(folder=str(folder.resolve())),),
        files=files,
    )
    if problems := check(entry, f"models.{name}"):
        raise InvalidInput(problems, f"{path} cannot be added")
    with _working(store.root, _silent) as incoming:
        store.reload()
        known = store.manifest.get(name)
        if known is not None and known.key != entry.key:
            raise Conflict(f"model {name!r} is {known.kind} {known.version} already; add {path} under another name")
        _pull_one(store, entry, incoming, Packages(incoming / "packages"), _silent)
        users = {**store.user_manifest(), name: entry}
        _write_user_manifest(store.root, Manifest(users.values()), incoming)
        store.reload()
    return entry


def _user_files(path: Path) -> dict[str, Path]:
    """The files to add, by the name that each gets in the store."""
    if path.is_file():
        return {DEFAULT_FILE if path.suffix == ".onnx" else path.name: path}
    if not path.is_dir():
        raise InvalidInput([Problem(str(path), "is no file and no folder")], "nothing to add")
    found = _seen(path)
    graphs = path / GRAPH_FOLDER
    if graphs in found and {item.name for item in found} >= LANGUAGE_FILES:
        found = [item for item in found if item != graphs] + _seen(graphs)
    names = [item.name for item in found]
    problems = [
        Problem(str(item), "is no plain file; a model's files stand side by side")
        for item in found
        if not item.is_file()
    ]
    problems += [
        Problem(str(item), "stands there twice, in the folder and above it; keep one of them")
        for item in found
        if item.parent == graphs and names.count(item.name) > 1
    ]
    if problems or not found:
        raise InvalidInput(problems or [Problem(str(path), "is empty")], f"{path} cannot be added")
    return {item.name: item for item in found}


def _seen(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if not item.name.startswith("."))


def _is_language(sources: dict[str, Path]) -> bool:
    """Whether the files are a decoder's, by what its config.json calls it."""
    if not sources.keys() >= LANGUAGE_FILES:
        return False
    try:
        found = msgspec.json.decode(sources["config.json"].read_bytes(), type=_Architectures)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return any(name.endswith(_DECODERS) for name in found.architectures)


def _language_problems(name: str, sources: dict[str, Path]) -> list[Problem]:
    """What keeps these files from being a language model; raises ModelMissing where it cannot be checked."""
    try:
        # Needs ONNX Runtime, which most commands on the store do without.
        from starloom.agents.language.checking import problems
    except ImportError as error:
        raise ModelMissing(f"model {name} cannot be checked here: {error}; install starloom[agent]") from error
    return problems(name, sources)


def _write_user_manifest(root: Path, manifest: Manifest, incoming: Path) -> None:
    fresh = incoming / USER_MANIFEST_NAME
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode({"model": list(manifest.values())})))
    os.replace(fresh, root / USER_MANIFEST_NAME)


@contextmanager
def _working(root: Path, progress: Progress) -> Iterator[Path]:
    """An empty folder inside `root`, for one process at a time; it is deleted at the end."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("", "waiting for another pull to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        incoming = root / ".incoming"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        try:
            yield incoming
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


def _pull_one(store: ModelStore, entry: ModelEntry, incoming: Path, packages: Packages, progress: Progress) -> None:
    read = incoming / f"{entry.name}.read"
    source = read_first(entry, read, packages, progress)
    if entry.convert:
        progress(entry.name, "converting")
        made = incoming / f"{entry.name}.made"
        made.mkdir()
        _convert(entry, read, made)
    ready = incoming / f"{entry.name}.ready"
    ready.mkdir()
    for name in entry.outputs:
        os.replace(made / name, ready / name)
    for file in entry.kept:
        os.replace(read / file.name, ready / file.name)
    record = Record(
        name=entry.name,
        version=entry.version,
        key=entry.key,
        source=str(source),
        converter=entry.converter if entry.convert else 0,
        read=tuple(StoredFile(name=file.name, sha256=file.sha256, bytes=file.bytes) for file in entry.files),
        stored=tuple(_stored(ready / name) for name in entry.stored_names),
    )
    (ready / RECORD_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    _move_in(ready, store.place(entry), incoming / f"{entry.name}.old")
    shutil.rmtree(read)
    progress(entry.name, f"pulled from {source}")


def _stored(path: Path) -> StoredFile:
    return StoredFile(name=path.name, sha256=sha256_of(path), bytes=path.stat().st_size)


def _move_in(ready: Path, place: Path, old: Path) -> None:
    """Puts a finished folder in its place; a reader sees the old one, or the new one, whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        os.replace(place, old)
    os.replace(ready, place)


def _convert(entry: ModelEntry, read: Path, made: Path) -> None:
    """Runs the model's converter; raises ModelMissing, saying why, if it does not give every output."""
    module, _, function = entry.convert.partition(":")
    try:
        convert = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ModelMissing(
            f"model {entry.name} {entry.version}: its converter {entry.convert} cannot be imported: {error}; "
            "install starloom[agent]"
        ) from error
    try:
        convert(read, made)
    except Exception as error:
        raise ModelMissing(f"model {entry.name} {entry.version}: {entry.convert} failed: {error!r}") from error
    if lost := [name for name in entry.outputs if not (made / name).is_file()]:
        raise ModelMissing(f"model {entry.name} {entry.version}: {entry.convert} did not write {', '.join(lost)}")
