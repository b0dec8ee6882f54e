"""The model store: verified model files on disk, one folder for each version of a model.

    <root>/<name>/<version>-<key>/...files..., record.json

`key` is eight hex digits over the manifest entry, so a folder made for another entry is never used.
A folder appears whole, by a rename; `agents.modelpull` makes them. Nothing here uses the network.
"""

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Final

import msgspec

from starloom.agents.manifest import RECORD_NAME, Manifest, ModelEntry, parse, shipped
from starloom.dag.errors import DigestMismatch, InvalidInput, ModelMissing, NotFound, Problem, StarloomError

USER_MANIFEST_NAME: Final = "user.json"
"""The manifest of the user's own models, beside the folders of the models."""

DEFAULT_FILE: Final = "model.onnx"
"""The file that is meant where a stage names only a model."""

_READ_BYTES = 1024 * 1024


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the store: its name, SHA-256 in hex, and size in bytes."""

    name: str
    sha256: str
    bytes: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What `record.json` says of one model's folder: what was read, and what was made of it.

    `converter` is the manifest's count of the converter's versions; `read` are the source files,
    `stored` all files that the folder holds.
    """

    name: str
    version: str
    key: str
    source: str
    converter: int
    read: tuple[StoredFile, ...]
    stored: tuple[StoredFile, ...]


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `starloom models list`.

    `bytes` is the size of the source files, `stored_bytes` what the model takes in the store (0 when
    absent). `source` is the first of the sources, or the one that it came from once `present`.
    `sha256` is the source file's digest; see `ModelEntry.sha256` for a model of several.
    """

    name: str
    version: str
    kind: str
    bytes: int
    licence: str
    source: str
    sha256: str
    present: bool
    default: bool
    about: str
    stored_bytes: int
    files: tuple[str, ...]


class KeyedLocks:
    """A lock for each key, so that slow work on one key keeps nobody from another."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._locks: dict[Hashable, Lock] = {}

    def of(self, key: Hashable) -> Lock:
        with self._guard:
            return self._locks.setdefault(key, Lock())


def default_root(environment: Mapping[str, str] = os.environ) -> Path:
    """`$STARLOOM_HOME/models`, else `$XDG_CACHE_HOME/starloom/models`, else `~/.cache/starloom/models`."""
    if home := environment.get("STARLOOM_HOME"):
        return Path(home) / "models"
    # The XDG base directory specification has relative paths ignored.
    cache = Path(environment.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "starloom" / "models"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            found.update(block)
    return found.hexdigest()


class ModelStore:
    """Model files by model and name, each verified before its first use in this process.

    `root` is made by the first pull, `default_root()` unless given; `manifest` is the shipped one
    unless given. The user's own models are added to it from `<root>/user.json`. Safe for threads.
    Raises InvalidInput if that file is malformed.
    """

    def __init__(self, root: Path | None = None, manifest: Manifest | None = None) -> None:
        self.root = default_root() if root is None else root
        self._base = shipped() if manifest is None else manifest
        self._locks = KeyedLocks()
        self._verified: dict[Path, tuple[int, int]] = {}
        self._manifest = self._base
        self.reload()

    @property
    def manifest(self) -> Manifest:
        """The shipped models, or those that were given, and the user's."""
        return self._manifest

    def reload(self) -> None:
        """Reads the user's manifest again. Raises InvalidInput if it is malformed."""
        self._manifest = self._base.merged(self.user_manifest(), str(self.root / USER_MANIFEST_NAME))

    def user_manifest(self) -> Manifest:
        """The user's own models, as `<root>/user.json` has them; raises InvalidInput if it is malformed."""
        path = self.root / USER_MANIFEST_NAME
        try:
            return parse(msgspec.json.decode(path.read_bytes()), str(path))
        except FileNotFoundError:
            return Manifest()
        except msgspec.DecodeError as error:
            raise InvalidInput([Problem(str(path), f"is no JSON: {error}")], "bad model manifest") from error

    def entry(self, model: str) -> ModelEntry:
        """The model's manifest entry; raises NotFound, listing the known ones."""
        if model not in self._manifest:
            # Somebody may have added it since: an agent outlives many `starloom models add`.
            self.reload()
        return self._manifest.entry(model)

    def folder(self, model: str) -> Path:
        """Where the model's files lie, or will. Raises NotFound."""
        return self.place(self.entry(model))

    def place(self, entry: ModelEntry) -> Path:
        """Where the files of an entry lie, or will."""
        return self.root / entry.name / f"{entry.version}-{entry.key}"

    def file(self, model: str, name: str) -> Path:
        """The path of a file whose SHA-256 is right; it is read again only if its size or time of change differ.

        Raises NotFound for an unknown model or file name, ModelMissing if the model is not in the
        store, DigestMismatch if the bytes are not those of the manifest or of the conversion.
        """
        entry = self.entry(model)
        if name not in entry.stored_names:
            raise NotFound(f"model {model!r} has no file {name!r}; its files: {', '.join(entry.stored_names)}")
        path = self.place(entry) / name
        with self._locks.of(path):
            try:
                stat = path.stat()
            except FileNotFoundError:
                raise _missing(entry, path) from None
            stamp = (stat.st_size, stat.st_mtime_ns)
            if self._verified.get(path) != stamp:
                self._check(entry, path, stat.st_size)
                self._verified[path] = stamp
        return path

    def stored(self, model: str, name: str) -> StoredFile:
        """What is known of a file without reading it. Raises as `file`, but where its bytes differ."""
        found = self._expected(self.entry(model)).get(name)
        if found is None:
            raise NotFound(
                f"model {model!r} has no file {name!r}; its files: {', '.join(self.entry(model).stored_names)}"
            )
        return found

    def present(self, model: str) -> bool:
        """Whether every file of the model is there with its right size; digests are not computed. Raises NotFound."""
        try:
            expected = self._expected(self.entry(model))
            folder = self.folder(model)
            return all((folder / file.name).stat().st_size == file.bytes for file in expected.values())
        except (ModelMissing, DigestMismatch, FileNotFoundError):
            return False

    def models(self) -> list[ModelStatus]:
        """All models of the manifest, in its order."""
        self.reload()
        return [self._status(entry) for entry in self._manifest.values()]

    def verify(self, names: Iterable[str] | None = None) -> list[Problem]:
        """Computes every digest anew; a problem for each bad file. Absent models count only if named.

        Raises NotFound, listing every unknown name.
        """
        self.reload()
        problems = []
        for entry in self._manifest.select(self._manifest if names is None else names):
            if names is None and not self.place(entry).exists():
                continue
            for name in entry.stored_names:
                self._verified.pop(self.place(entry) / name, None)
                try:
                    self.file(entry.name, name)
                except StarloomError as error:
                    problems.append(Problem(f"{entry.name}/{name}", str(error)))
        return problems

    def record(self, model: str) -> Record:
        """What the model's folder says of itself. Raises NotFound, ModelMissing, or DigestMismatch if it is unreadable."""
        path = self.folder(model) / RECORD_NAME
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            raise _missing(self.entry(model), path) from None
        except msgspec.DecodeError as error:
            raise DigestMismatch(f"{path} is damaged: {error}; run `starloom models pull --again {model}`") from error

    def _expected(self, entry: ModelEntry) -> dict[str, StoredFile]:
        """The stored files by name: kept ones as the manifest fixes them, made ones as they were recorded."""
        recorded = {file.name: file for file in self.record(entry.name).stored if file.name in entry.outputs}
        kept = {file.name: StoredFile(name=file.name, sha256=file.sha256, bytes=file.bytes) for file in entry.kept}
        if lost := [name for name in entry.outputs if name not in recorded]:
            where = self.place(entry) / RECORD_NAME
            raise DigestMismatch(f"{where} lacks {', '.join(lost)}; run `starloom models pull --again {entry.name}`")
        return recorded | kept

    def _check(self, entry: ModelEntry, path: Path, size: int) -> None:
        expected = self._expected(entry)[path.name]
        found = sha256_of(path)
        if (found, size) != (expected.sha256, expected.bytes):
            raise DigestMismatch(
                f"model {entry.name} {entry.version}: {path} has SHA-256 {found} ({size} bytes), expected "
                f"{expected.sha256} ({expected.bytes} bytes); run `starloom models pull --again {entry.name}`"
            )

    def _status(self, entry: ModelEntry) -> ModelStatus:
        present = self.present(entry.name)
        record = self.record(entry.name) if present else None
        return ModelStatus(
            name=entry.name,
            version=entry.version,
            kind=entry.kind,
            bytes=sum(file.bytes for file in entry.files),
            licence=entry.licence,
            source=record.source if record else str(entry.sources[0]),
            sha256=entry.sha256,
            present=present,
            default=entry.default,
            about=entry.about,
            stored_bytes=sum(file.bytes for file in record.stored) if record else 0,
            files=entry.stored_names,
        )


def _missing(entry: ModelEntry, path: Path) -> ModelMissing:
    what = "is not in the model store" if not path.parent.exists() else f"lacks its file {path.name}"
    return ModelMissing(
        f"model {entry.name} {entry.version} {what} ({path.parent}); run `starloom models pull {entry.name}`"
    )
