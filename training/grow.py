"""Makes a size twice as wide out of a trained one: the same function at first, so that nothing learnt is lost.

    python -m training.grow 1m 3m

Every feature is doubled, [h] -> [h, h]; each matrix becomes four blocks that add up to it, with noise that cancels out,
so that the two halves part ways in training (after HyperCloning, 2024). The last norm's weight is halved,
because the tied embedding counts each feature twice. Features of the sizes thus stay close to one another.
"""

import sys

import torch
from torch import Tensor

from training.model import SIZES, Model, load, save
from training.sources import WORK

NOISE = 0.5
"""The noise on a block, in units of half the matrix's own spread."""


def doubled(name: str, weight: Tensor) -> Tensor:
    if name == "model.norm.weight":
        return torch.cat((weight, weight)) / 2
    if weight.dim() == 1:
        return torch.cat((weight, weight))
    if "embed_tokens" in name:
        return torch.cat((weight, weight), 1)
    rows = []
    for _ in range(2):
        noise = torch.randn_like(weight) * weight.std() * NOISE / 2
        rows.append(torch.cat((weight / 2 + noise, weight / 2 - noise), 1))
    return torch.cat(rows)


def grow(small: Model, size: str) -> Model:
    large = Model(SIZES[size])
    state = {name: doubled(name, weight) for name, weight in small.state_dict().items()}
    large.load_state_dict(state)
    return large


def main(arguments: list[str]) -> int:
    source, size = arguments
    torch.manual_seed(7)
    torch.set_num_threads(1)
    small, kept = load(WORK / f"{source}.pt")
    large = grow(small, size)
    tokens = torch.randint(5, 2000, (2, 64))
    with torch.no_grad():
        apart = float((small(tokens) - large(tokens)).abs().max())
    save(large, WORK / f"{size}-grown.pt", source=source, source_step=kept["step"])
    sys.stdout.write(f"{size} of {source} at step {kept['step']}: logits apart by {apart:.1e}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
