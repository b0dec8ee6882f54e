"""Draws the curves of all sizes from training/curves/SIZE.csv into training/curves/curves.png; needs matplotlib.

python -m training.curves         copies the newest curves out of out/train first
"""

import csv
import shutil
import sys

import matplotlib as mpl

from training.model import SIZES
from training.sources import ROOT, WORK

FOLDER = ROOT / "training" / "curves"


def main() -> int:
    mpl.use("Agg")
    from matplotlib import pyplot

    FOLDER.mkdir(exist_ok=True)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), dpi=80)
    for size in SIZES:
        if (newest := WORK / f"{size}.csv").exists():
            shutil.copy(newest, FOLDER / newest.name)
        if not (FOLDER / f"{size}.csv").exists():
            continue
        with (FOLDER / f"{size}.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        steps = [int(row["step"]) for row in rows]
        for axis, what in zip(axes, ("context_loss", "answer_loss"), strict=True):
            axis.plot(steps, [float(row[what]) for row in rows], label=size)
            axis.set(xlabel="step", title=what.replace("_", " "), yscale="log")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(FOLDER / "curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
