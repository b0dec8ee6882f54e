"""Aligns a smaller size's features with a larger one's, and measures how well a larger size goes on from them.

    python -m training.align train 1m 3m --steps 300       goes on training the smaller one against the larger one
    python -m training.align measure 1m 3m                 fits the map that ships, and measures

The map is linear, from the features that the smaller one's lower MIDDLE layers give to those of the larger one's: after
it the larger one's upper layers go on. Training adds to the usual loss the distance of mapped features, middle and
last, and the larger one's predictions as soft targets. Sizes were grown out of one another, so they start aligned.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from starloom.agents.language import prompt, quality
from training.model import Model, load, save
from training.prepare import SHIPPED, tokenizer
from training.sources import WORK
from training.train import Batches, optimizers, schedule

FEATURES = 0.5
SOFT = 0.5
RIDGE = 1e-3


def distance(mapped: Tensor, aim: Tensor) -> Tensor:
    """Squared error, as a share of the aim's own variance."""
    aim = aim.detach()
    return (mapped - aim).square().mean() / aim.var(0).mean()


def aligned_loss(small: Model, large: Model, maps: nn.ModuleList, tokens: Tensor, weights: Tensor) -> Tensor:
    kept = weights[:, 1:] > 0
    middle, last = (one[kept] for one in small.features(tokens[:, :-1]))
    with torch.no_grad():
        large_middle, large_last = (one[kept] for one in large.features(tokens[:, :-1]))
        soft = F.softmax(large.logits(large_last).float(), -1)
    apart = distance(maps[0](middle).float(), large_middle.float()) + distance(
        maps[1](last).float(), large_last.float()
    )
    told = F.log_softmax(small.logits(last).float(), -1)
    weight = weights[:, 1:][kept]
    crossed = (-(soft * told).sum(-1) * weight).sum() / weight.sum()
    usual = (F.nll_loss(told, tokens[:, 1:][kept], reduction="none") * weight).sum() / weight.sum()
    return (1 - SOFT) * usual + SOFT * crossed + FEATURES * apart


def train(options: argparse.Namespace) -> None:
    small, kept = load(WORK / f"{options.small}.pt", options.device)
    large, _ = load(WORK / f"{options.large}.pt", options.device)
    large.requires_grad_(False)
    maps = nn.ModuleList(nn.Linear(small.config.hidden_size, large.config.hidden_size, bias=False) for _ in range(2))
    for one in maps:
        # Where growing put the small features: twice, side by side.
        eye = torch.eye(small.config.hidden_size)
        one.weight.data = eye.repeat(large.config.hidden_size // small.config.hidden_size, 1)
    maps.to(options.device)
    made = [*optimizers(small, options.rate), torch.optim.AdamW(maps.parameters(), lr=options.rate)]
    batches = Batches([int(one) for one in options.volumes.split(",")], options.batch, 99).run()
    started = time.monotonic()
    step = 0
    # The rate falls with the share of steps or minutes that is over, whichever is further.
    while (share := max(step / options.steps, (time.monotonic() - started) / 60 / options.minutes)) < 1:
        tokens, weights = (one.to(options.device) for one in next(batches))
        for one in made:
            for group in one.param_groups:
                group["lr"] = options.rate * schedule(step, share, 1.0)
        with torch.autocast(options.device, torch.bfloat16):
            loss = aligned_loss(small, large, maps, tokens, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        for one in made:
            one.step()
            one.zero_grad(set_to_none=True)
        step += 1
        if step % 25 == 0:
            sys.stderr.write(f"{step} {float(loss):.4f} {time.monotonic() - started:.0f} s\n")
    save(small, WORK / f"{options.small}.pt", step=kept["step"], aligned_steps=step)


@torch.no_grad()
def gathered(small: Model, large: Model, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The middle features of both sizes over the rows."""
    pairs = [(small.lower(ids), large.lower(ids)) for ids in (torch.tensor([row]) for row in rows)]
    return torch.cat([one[0][0] for one in pairs]), torch.cat([one[1][0] for one in pairs])


def fitted(source: Tensor, aim: Tensor) -> Tensor:
    """The linear map [source, aim] of least squares, held a little towards nought."""
    gram = source.T @ source
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, source.T @ aim)


def kernel_alignment(first: Tensor, second: Tensor) -> float:
    """Linear CKA."""
    first, second = first - first.mean(0), second - second.mean(0)
    both = (first.T @ second).norm() ** 2
    return float(both / ((first.T @ first).norm() * (second.T @ second).norm()))


class Continued(nn.Module):
    """The smaller one's lower layers, the map, the larger one's upper layers."""

    def __init__(self, small: Model, large: Model, matrix: Tensor) -> None:
        super().__init__()
        self.small, self.large, self.matrix = small, large, matrix

    def forward(self, tokens: Tensor) -> Tensor:
        return self.large.logits(self.large.upper(self.small.lower(tokens) @ self.matrix))


@torch.no_grad()
def exact_match(model: nn.Module, questions: list[quality.Asked]) -> quality.Quality:
    """As quality.quality measures it, without a cache."""
    reader = tokenizer()
    end = prompt.MARKS.index(prompt.END)
    replies = []
    for asked in questions:
        ids = reader.encode(prompt.prompt(asked.snippets, asked.question)).ids
        made: list[int] = []
        while len(made) < 40:
            token = int(model(torch.tensor([ids + made]))[0, -1].argmax())
            if token == end:
                break
            made.append(token)
        replies.append(prompt.parse(reader.decode(made, skip_special_tokens=False)))
    return quality.measured(questions, replies)


def measure(options: argparse.Namespace) -> None:
    small, _ = load(WORK / f"{options.small}.pt")
    large, _ = load(WORK / f"{options.large}.pt")
    with np.load(WORK / f"volume{options.volumes.split(',')[0]}.npz") as kept:
        ends = np.cumsum(kept["lengths"])[:400]
        rows = [row.tolist() for row in np.split(kept["tokens"][: ends[-1]].astype(np.int64), ends[:-1])]
    reader = tokenizer()
    held = [reader.encode(prompt.prompt(one.snippets, one.question)).ids for one in quality.held_out()[:200]]
    matrix = fitted(*gathered(small, large, rows))
    source, aim = gathered(small, large, held)
    unexplained = (source @ matrix - aim).square().sum() / (aim - aim.mean(0)).square().sum()
    questions = quality.held_out()[: options.questions]
    figures = {
        "from": options.small,
        "to": options.large,
        "cka": kernel_alignment(source, aim),
        "r2": 1 - float(unexplained),
        "questions": len(questions),
    }
    for name, model in (("small", small), ("continued", Continued(small, large, matrix)), ("large", large)):
        found = exact_match(model, questions)
        figures[name] = {"exact_match": found.exact_match, "refused": found.refused}
    np.savez_compressed(SHIPPED / f"map-{options.small}-{options.large}.npz", matrix=matrix.numpy().astype(np.float16))
    (WORK / f"map-{options.small}-{options.large}.json").write_text(json.dumps(figures) + "\n")
    sys.stdout.write(json.dumps(figures) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("small")
    parser.add_argument("large")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--volumes", default="7,6")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--questions", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(5)
    (train if options.what == "train" else measure)(options)


if __name__ == "__main__":
    main()
