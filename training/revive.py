"""Makes a checkpoint out of a shipped size, so that training can go on where the working files are gone.

    python -m training.revive 1m

The weights are those of the INT8 file, as ONNX Runtime computes with them.
"""

import sys

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from training.model import SIZES, Model, save
from training.prepare import SHIPPED
from training.sources import WORK


def revive(size: str) -> Model:
    graph = onnx.load(SHIPPED / size / "model.onnx").graph
    found = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    model = Model(SIZES[size])
    state = {}
    for name, weight in model.state_dict().items():
        stored = found[name].astype(np.float32)
        if f"{name}.scales" in found:
            # The embedding lies as [rows, columns], the others turned, each with its scales beside it.
            stored = stored * found[f"{name}.scales"]
            stored = stored if name == "model.embed_tokens.weight" else stored.T
        state[name] = torch.from_numpy(np.ascontiguousarray(stored)).view(weight.shape)
    model.load_state_dict(state)
    return model


def main(arguments: list[str]) -> int:
    for size in arguments:
        save(revive(size), WORK / f"{size}.pt", step=0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
