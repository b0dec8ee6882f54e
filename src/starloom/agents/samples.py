"""The graphs that a node profiles itself with: what each asks, and what the reference machine took for it.

They ship as `data/samples/<name>.onnx`, made by `tools.samples`. Their table is read wherever run times are predicted, so
nothing here needs ONNX Runtime.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from math import exp, log
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3

from starloom.devices.demand import Demand

TABLE_NAME: Final = "samples.json"
_FOLDER: Final = Path(str(files("starloom.agents").joinpath("data", "samples")))


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """The samples in the order in which they are measured.

    `digest` is of their files. `reference`: seconds of one run each on one core of the reference machine. `costs`: what each
    column of `devices.demand` takes of these there, in seconds of a sample with as much of each as the mean, so that they
    add up to one; `noise`: how far such sums are off, relative (root of the mean square).
    """

    digest: str
    names: tuple[str, ...]
    demands: tuple[Demand, ...]
    reference: tuple[float, ...]
    costs: tuple[float, ...]
    noise: float


@cache
def load() -> Samples:
    """The shipped samples."""
    return msgspec.json.decode((_FOLDER / TABLE_NAME).read_bytes(), type=Samples)


def path(name: str) -> Path:
    """The file of a sample."""
    return _FOLDER / f"{name}.onnx"


def speed(seconds: Sequence[float]) -> float | None:
    """How many times as fast as the reference machine, by the samples that were measured; None without any."""
    ratios = [known / each for known, each in zip(load().reference, seconds, strict=False) if each > 0]
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else None


def digest(datas: list[bytes]) -> str:
    """Of the samples' files, in their order: 16 hex digits of BLAKE3."""
    hashed = blake3()
    for data in datas:
        hashed.update(blake3(data).digest())
    return hashed.hexdigest()[:16]
