"""How well run times on a device that is new are predicted: NAS-Bench-201 networks, devices left out, few samples.

Devices are left out three ways. `kin`: with the device's family (batch sizes on one GPU); `class`: with all of its class
(GPUs, GPUs at batch 256, server processors, telephones); `help`: as in Lee et al., "HELP" (2021), whose nine sources stay.
What is predicted are all other networks; of the new device only the samples' run times are read.

    python -m tools.prediction [--samples 3,5,10,20,50] [--splits class,kin,help] [--offsets 0,4,9]

Prints median relative error, share within 10 %, rank correlation (Spearman's) and what the 90 % intervals hold: a line a
device for ten samples, and the mean of all for each number of them. Each offset lets other networks be sampled.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from starloom.devices.graphs import Graph, Operator
from starloom.orchestrator.planner import predict
from starloom.orchestrator.planner.choosing import choose
from starloom.orchestrator.planner.features import Floats, vocabulary

ROOT: Final = Path(__file__).parent.parent
TABLE: Final = ROOT.parent / "shared" / "data" / "help_nasbench201_latency.npz"
SAMPLE: Final = ROOT / "tests" / "data" / "prediction" / "nasbench201.npz"
"""A small part of the same table, which the tests read."""

_EDGES: Final = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
_NOTHING: Final = "none"
_HELP_TARGETS: Final = ("2080ti", "gold", "titan")
"""What the names of the others begin with."""
_LEARNED: Final = 2_000
_CALIBRATED: Final = 400


class Table(NamedTuple):
    """Networks as graphs and as strings [n]; names of devices [k]; milliseconds [k, n]."""

    graphs: list[Graph]
    cells: list[str]
    devices: list[str]
    milliseconds: Floats

    def features(self) -> Floats:
        """Features of all networks [n, p]."""
        return vocabulary(self.graphs).matrix(self.graphs)


class Score(NamedTuple):
    """On the networks that were not sampled: relative errors (median, share within 10 %), ranks, and the share that
    the 90 % intervals hold. Shares from 0 to 1."""

    median: float
    within: float
    rank: float
    covered: float


def read(path: Path) -> Table:
    """The table of a file: one array a device, and `architectures`."""
    with np.load(path) as file:
        cells = [str(cell) for cell in file["architectures"]]
        devices = [name for name in file.files if name != "architectures"]
        times = np.stack([file[name].astype(np.float64) for name in devices])
    return Table([graph(cell) for cell in cells], cells, devices, times)


def graph(cell: str) -> Graph:
    """A cell of NAS-Bench-201: one operator an edge between four nodes; `none` is no operator."""
    kinds = re.findall(r"(\w+)~\d", cell)
    reached = {3}
    for (source, sink), kind in reversed(list(zip(_EDGES, kinds, strict=True))):
        if kind != _NOTHING and sink in reached:
            reached.add(source)
    found = [
        Operator(kind, used=sink in reached) for (_, sink), kind in zip(_EDGES, kinds, strict=True) if kind != _NOTHING
    ]
    return Graph(tuple(found))


def family(device: str) -> str:
    """Devices of one name are kin: what comes before the batch size or the model's number."""
    return device.split("_")[0]


def class_of(device: str) -> str:
    """What kind of machine it is."""
    if device.startswith(("gold", "silver")):
        return "server"
    if device.startswith(("samsung", "pixel", "essential")):
        return "telephone"
    return "gpu at 256" if device.endswith("256") else "gpu"


def splits(kind: str, devices: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each device that is left out, with the sources that stay."""
    for target in devices:
        if kind == "help":
            if target.startswith(_HELP_TARGETS):
                yield target, [each for each in devices if not each.startswith(_HELP_TARGETS)]
        else:
            same: Callable[[str], str] = class_of if kind == "class" else family
            yield target, [each for each in devices if same(each) != same(target)]


def score(told: predict.Predictions, truth: Floats, samples: Sequence[int]) -> Score:
    """How well the networks were told that are not among the samples."""
    kept = np.setdiff1d(np.arange(len(truth)), samples)
    seconds, real = told.seconds[kept], truth[kept]
    off = np.abs(seconds - real) / real
    held = (told.low[kept] <= real) & (real <= told.high[kept])
    rank = np.corrcoef(_ranks(seconds), _ranks(real))[0, 1]
    return Score(float(np.median(off)), float((off <= 0.1).mean()), float(rank), float(held.mean()))


def learned(table: Table, features: Floats) -> predict.Sources:
    """The costs of all devices, each by its own run times alone."""
    few = np.arange(0, len(features), max(1, len(features) // _LEARNED))
    return predict.learn(features[few], table.milliseconds[:, few], [family(each) for each in table.devices])


def prepared(
    table: Table, features: Floats, costs: predict.Sources, sources: Sequence[str], count: int, offset: int
) -> tuple[predict.Prior, list[int]]:
    """What sources teach: the calibrated prior, and the rows to sample. `costs`: of all devices, as `learned`."""
    rows = [table.devices.index(each) for each in sources]
    kept = costs.only(rows)
    samples = choose(predict.prior(kept), features, count, offset)
    others = np.arange(offset, len(features), max(1, len(features) // _CALIBRATED))
    held = np.concatenate([samples, np.setdiff1d(others, samples)])
    prior = predict.calibrated(kept, features[held], table.milliseconds[rows][:, held], range(count))
    return prior, samples


def evaluate(table: Table, split: str, count: int, offset: int = 0) -> dict[str, Score]:
    """A score for each device of the split, with so many samples; `offset` gives other candidates to sample."""
    features = table.features()
    costs = learned(table, features)
    found: dict[str, Score] = {}
    ready: dict[tuple[str, ...], tuple[predict.Prior, list[int]]] = {}
    for target, sources in splits(split, table.devices):
        if tuple(sources) not in ready:
            ready[tuple(sources)] = prepared(table, features, costs, sources, count, offset)
        prior, samples = ready[tuple(sources)]
        truth = table.milliseconds[table.devices.index(target)]
        device = predict.fit(prior, features[samples], truth[samples])
        found[target] = score(device.predict(features), truth, samples)
    return found


def mean(scores: Sequence[Score]) -> Score:
    """The mean of each figure."""
    return Score(*np.mean(scores, axis=0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default="3,5,10,20,50")
    parser.add_argument("--splits", default="class,kin,help")
    parser.add_argument("--offsets", default="0,4,9")
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args(arguments)
    table = read(args.table)
    offsets = [int(each) for each in args.offsets.split(",")]
    for split in args.splits.split(","):
        for count in (int(each) for each in args.samples.split(",")):
            runs = [evaluate(table, split, count, offset) for offset in offsets]
            if count == predict.SAMPLES:
                for device in runs[0]:
                    sys.stdout.write(_line(f"  {device}", mean([run[device] for run in runs])))
            every = [each for run in runs for each in run.values()]
            sys.stdout.write(_line(f"{split}, {count} samples", mean(every)))
            sys.stdout.flush()
    return 0


def _line(what: str, found: Score) -> str:
    return f"{what:24} {100 * found.median:5.1f} % {100 * found.within:4.0f} % {found.rank:6.3f} {100 * found.covered:5.1f} %\n"


def _ranks(values: Floats) -> Floats:
    """Ranks, those of ties their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count).astype(np.float64)
    ranks: Floats = (last - (count - 1) / 2)[place]
    return ranks


if __name__ == "__main__":
    raise SystemExit(main())
