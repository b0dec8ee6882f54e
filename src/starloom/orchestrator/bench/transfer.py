"""What it costs to pass a value from agent to agent on one host, beside Ray, a raw gRPC stream and one copy."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from starloom.dag.errors import InvalidInput, Problem
from starloom.orchestrator.bench import harness
from starloom.orchestrator.bench.harness import Contender, Pick, Row, Samples
from starloom.orchestrator.bench.ours import OURS, open_ours
from starloom.orchestrator.bench.peers import open_peers
from starloom.orchestrator.bench.plane import MEMCPY, NETWORK, PLANE, RAW_CHUNK_BYTES, STREAM, open_plane
from starloom.orchestrator.bench.report import Note, Report, machine, versions
from starloom.orchestrator.bench.shapes import Form, Work

RAY: Final = "ray-actors"
MEMCPY_AND_HOP: Final = "memcpy-and-hop"
_PACKAGES: Final = ("ray", "grpcio", "protobuf", "numpy", "blake3")
_MILLI = 1_000.0


class Size(NamedTuple):
    """A value's size, and how long the chains are whose difference is its hops."""

    size: int
    long: int
    short: int = 2

    @property
    def works(self) -> list[Work]:
        return [_chain(self.size, self.long), _chain(self.size, self.short), _chain(self.size, 1)]


SIZES: Final[Mapping[str, Size]] = {
    "1kB": Size(1_000, 22),
    "1MB": Size(1_000_000, 22),
    "10MB": Size(10_000_000, 12),
    # Each agent keeps its values until the job ends: longer chains would not fit its arena.
    "100MB": Size(100_000_000, 5),
}


def run(args: argparse.Namespace, note: Note) -> Report:
    """Measures. Raises InvalidInput for sizes that are none, StarloomError if a contender fails."""
    names = _sizes(args.sizes)
    before = machine()
    with tempfile.TemporaryDirectory(prefix="starloom-bench-") as folder:
        note(f"starting {OURS}: an orchestrator and agents; a process with the bare data plane; and Ray")
        with (
            open_ours(Path(folder) / "cluster") as ours,
            open_plane() as plane,
            open_peers([RAY], Path(folder)) as peers,
        ):
            contenders: Sequence[Contender[Work]] = [ours, *peers, *plane]
            works = [work for name in names for work in SIZES[name].works]
            samples = harness.alternate([_Fit(each) for each in contenders], works, args.repeat, note=note)
    return Report(
        bench="transfer",
        rows=rows(names, samples),
        repeat=args.repeat,
        notes=_NOTES,
        machine=before,
        versions=versions(_PACKAGES),
    )


class _Fit:
    """A contender that does either chains or single values, and not both."""

    def __init__(self, contender: Contender[Work]) -> None:
        self.name = contender.name
        self._contender = contender
        self._chains = contender.name in (OURS, RAY)

    def does(self, work: Work) -> bool:
        return self._chains == (work.size > 1) and self._contender.does(work)

    def seconds(self, work: Work) -> float:
        return self._contender.seconds(work)


def rows(names: Sequence[str], samples: Samples[Work]) -> list[Row]:
    """The rows: a hop of a chain by its size alone, the data plane without jobs as `-plane`, its gRPC path as `-network`."""
    found: list[Row] = []
    for name in names:
        pick = _picking(SIZES[name], samples)
        found += harness.rows(name, "ms", OURS, [RAY, STREAM, MEMCPY, MEMCPY_AND_HOP], pick)
        found += harness.rows(f"{name}-plane", "ms", PLANE, [STREAM, MEMCPY, MEMCPY_AND_HOP], pick)
        found += harness.rows(f"{name}-network", "ms", NETWORK, [STREAM], pick)
    return found


def _picking(size: Size, samples: Samples[Work]) -> Pick:
    long, short, one = size.works

    def pick(name: str) -> list[float]:
        if name in (OURS, RAY):
            further = long.size - short.size
            pairs = zip(samples.get((name, long), ()), samples.get((name, short), ()), strict=True)
            return [_MILLI * (whole - beginning) / further for whole, beginning in pairs]
        if name == MEMCPY_AND_HOP:
            hops = samples.get((STREAM, SIZES["1kB"].works[-1]), ())
            copies = samples.get((MEMCPY, one), ())
            return [_MILLI * (hop + copy) for hop, copy in zip(hops, copies, strict=False)]
        return [_MILLI * seconds for seconds in samples.get((name, one), ())]

    return pick


def _chain(size: int, length: int) -> Work:
    return Work(form=Form.CHAIN, size=length, workers=2, value_bytes=size)


def _sizes(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or list(SIZES)
    problems = [Problem("--sizes", f"{name!r} is none of {', '.join(SIZES)}") for name in names if name not in SIZES]
    if problems:
        raise InvalidInput(problems, "no such size")
    return list(dict.fromkeys(names))


_NOTES: Final = (
    f"{OURS}: a stage on one agent makes a tensor, one on another reads it and makes the next; what each adds to a chain",
    f"{RAY}: the same by calls to two actors, results by reference; nothing is journaled or hashed",
    "processes of both copy what is large past the caches, and have the priority of others: Ray's own niceness is 15",
    f"{PLANE}: the same without jobs: asked for by a message, made, written, hashed, found and read by another process",
    f"{NETWORK}: a value that is there, fetched over gRPC on loopback as from another host, and verified",
    f"{STREAM}: a raw gRPC stream between two processes, in chunks of {RAW_CHUNK_BYTES // 1024} KiB, joined; not verified",
    f"{MEMCPY}: one copy in one process, both ends warm; {MEMCPY_AND_HOP}: and a message of 1 kB asked for and given",
    "all contenders are up all the time and take turns; figures are medians, in brackets the quartiles",
)
