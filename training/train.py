"""Trains one size: from nothing, from a checkpoint of its own, or from one that grow.py made.

    python -m training.train 1m --minutes 30 [--device cuda --batch 256] [--volumes 0,1,2]

It stops when the minutes are over or the steps are done, and goes on from its last checkpoint when called again. The
rate rises, stays, and falls to nought over the last part of the minutes or steps, whichever end first.
Curves go to out/train/SIZE.csv.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training.model import SIZES, Model, load, save
from training.sources import WORK

WARM_UP = 60
SAVE_SECONDS = 120
PAD = 0
WIDTH_STEP = 128
WEIGHTS = (1.0, 0.1, 1.5)
"""How much a token of each kind counts: plain text and passages, questions, answers."""


class Batches:
    """Batches of one volume after the other, rows of like length together, in an order fixed by the seed."""

    def __init__(self, volumes: list[int], batch: int, seed: int) -> None:
        self.volumes, self.batch, self.seed = volumes, batch, seed
        self.count = 0

    def order(self, lengths: np.ndarray, chance: np.random.Generator) -> list[np.ndarray]:
        shuffled = chance.permutation(len(lengths))
        # Sorted within stretches: little padding, and still another order each time.
        stretches = [shuffled[n : n + 50 * self.batch] for n in range(0, len(shuffled), 50 * self.batch)]
        batches = []
        for stretch in stretches:
            ranked = stretch[np.argsort(lengths[stretch], kind="stable")]
            batches += [ranked[n : n + self.batch] for n in range(0, len(ranked) - self.batch + 1, self.batch)]
        chance.shuffle(batches)
        return batches

    def run(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens and weights, for ever."""
        turn = 0
        while True:
            volume = self.volumes[turn % len(self.volumes)]
            # The first volume is the easy one: once is enough.
            if volume == 0 and turn:
                turn += 1
                continue
            with np.load(WORK / f"volume{volume}.npz") as kept:
                tokens, kinds, lengths = kept["tokens"], kept["kinds"], kept["lengths"]
            starts = np.concatenate(([0], np.cumsum(lengths)))
            for rows in self.order(lengths, np.random.default_rng(self.seed + turn)):
                yield self.padded(tokens, kinds, starts, lengths, rows)
            turn += 1

    @staticmethod
    def padded(tokens: Any, kinds: Any, starts: Any, lengths: Any, rows: Any) -> tuple[Tensor, Tensor]:
        # Few different widths: on a processor torch keeps what it prepared for each shape, gigabytes in an hour.
        width = -(-int(lengths[rows].max()) // WIDTH_STEP) * WIDTH_STEP
        ids = np.full((len(rows), width), PAD, np.int64)
        weights = np.zeros((len(rows), width), np.float32)
        table = np.array(WEIGHTS, np.float32)
        for n, row in enumerate(rows):
            span = slice(starts[row], starts[row] + lengths[row])
            ids[n, : lengths[row]] = tokens[span]
            weights[n, : lengths[row]] = table[kinds[span]]
        return torch.from_numpy(ids), torch.from_numpy(weights)


def optimizers(model: Model, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which learns from fewer tokens; AdamW for the embedding and the norms."""
    matrices = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.dim() != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(steps_now: int, done: float, decay: float) -> float:
    """The share of the full rate: rises over the first steps of a call, and falls over the last `decay` of the whole."""
    return min(1.0, (steps_now + 1) / WARM_UP, max(0.01, (1 - done) / decay))


def loss_of(model: Model, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted loss, and the loss of each token, [batch * (seq - 1)]."""
    _, last = model.features(tokens[:, :-1])
    each = F.cross_entropy(model.logits(last).flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (each * weight).sum() / weight.sum(), each.detach()


def means(each: Tensor, weights: Tensor) -> tuple[float, float]:
    """The mean loss of plain text and passages, and that of answers; nan where a batch has none."""
    kinds = weights[:, 1:].flatten()
    return float(each[kinds == WEIGHTS[0]].mean()), float(each[kinds == WEIGHTS[2]].mean())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--decay", type=float, default=0.4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--volumes", default="0,1,2,3,4,5")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="about 1.2 times as fast, after two minutes")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def begin(options: argparse.Namespace, path: Path) -> tuple[Model, list[torch.optim.Optimizer], int, int]:
    """The model with its optimizers, its step, and the step at which its rate began to rise: from its checkpoint,
    else from a grown one, else new."""
    step = 0
    grown = WORK / f"{options.size}-grown.pt"
    if path.exists():
        model, kept = load(path, options.device)
        step = kept["step"]
    elif grown.exists():
        model, kept = load(grown, options.device)
    else:
        model, kept = Model(SIZES[options.size]).to(options.device), {}
    made = optimizers(model, options.rate)
    for one, state in zip(made, kept.get("optimizers", []), strict=False):
        one.load_state_dict(state)
    # Moments that were kept need no new warm-up.
    return model, made, step, step - (WARM_UP if "optimizers" in kept else 0)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    path = WORK / f"{options.size}.pt"
    model, made, step, first = begin(options, path)
    # Another order after each interruption, so that no row is read more often than others.
    batches = Batches([int(one) for one in options.volumes.split(",")], options.batch, options.seed + 1000 * step).run()
    curve = (WORK / f"{options.size}.csv").open("a", newline="")
    writer = csv.writer(curve)
    if curve.tell() == 0:
        writer.writerow(["step", "tokens", "seconds", "rate", "context_loss", "answer_loss"])
    measured = torch.compile(loss_of, dynamic=False) if options.compile else loss_of
    started = saved = time.monotonic()
    sums, tokens_seen = [], 0
    model.train()
    while (done := max(step / options.steps, (time.monotonic() - started) / 60 / options.minutes)) < 1:
        tokens, weights = (one.to(options.device) for one in next(batches))
        share = schedule(step - first, done, options.decay)
        for one in made:
            for group in one.param_groups:
                group["lr"] = options.rate * share
        with torch.autocast(options.device, torch.bfloat16):
            loss, each = measured(model, tokens, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in made:
            one.step()
            one.zero_grad(set_to_none=True)
        step += 1
        tokens_seen += int((weights > 0).sum())
        sums.append(means(each, weights))
        if step % 50 == 0:
            mean = np.nanmean(np.array(sums), 0)
            seconds = time.monotonic() - started
            writer.writerow(
                [step, tokens_seen, f"{seconds:.0f}", f"{options.rate * share:.2e}", *(f"{m:.4f}" for m in mean)]
            )
            curve.flush()
            sums = []
        if time.monotonic() - saved > SAVE_SECONDS:
            save(model, path, step=step, optimizers=[one.state_dict() for one in made])
            saved = time.monotonic()
    save(model, path, step=step, optimizers=[one.state_dict() for one in made])


if __name__ == "__main__":
    main()
