"""Writes a checkpoint as ONNX: float32 for comparison, and INT8, which ships.

    python -m training.export 1m [FOLDER]

FOLDER is out/train/export unless given; the shipped sizes lie in src/starloom/agents/data/language/SIZE. Prints how far
float32 is from torch, and incremental decoding from the full pass, over mixed batches and past lengths.
"""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from starloom.agents.language import prompt
from training.graph import Builder
from training.model import Config, Model, load
from training.prepare import TOKENIZER
from training.sources import WORK

SHAPES = ((2, 7, 5), (1, 1, 0), (1, 16, 0), (3, 2, 9), (1, 1, 40), (4, 30, 100))
"""Batch, new tokens, past tokens."""


def configuration(config: Config) -> dict[str, Any]:
    """config.json as Hugging Face's LlamaConfig has it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(config),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "pad_token_id": prompt.MARKS.index(prompt.PAD),
        "bos_token_id": prompt.MARKS.index(prompt.END),
        "eos_token_id": prompt.MARKS.index(prompt.END),
        "use_cache": True,
    }


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def empty_past(config: dict[str, Any], batch: int) -> dict[str, np.ndarray]:
    shape = (batch, config["num_key_value_heads"], 0, config["head_dim"])
    return {
        f"past_key_values.{layer}.{part}": np.zeros(shape, np.float32)
        for layer in range(config["num_hidden_layers"])
        for part in ("key", "value")
    }


def run(made: ort.InferenceSession, ids: np.ndarray, past: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits and the cache after `ids` [batch, seq]."""
    start = next(iter(past.values())).shape[2]
    batch, length = ids.shape
    positions = np.tile(np.arange(start, start + length), (batch, 1))
    mask = np.ones((batch, start + length), np.int64)
    names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    outputs = made.run(names, {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past})
    return outputs[0], dict(zip(past, outputs[1:], strict=True))


def apart(made: ort.InferenceSession, config: dict[str, Any], model: Model | None) -> tuple[float, float]:
    """How far the graph is from torch, and its incremental decoding from its full pass."""
    chance = np.random.default_rng(3)
    from_torch = incremental = 0.0
    for batch, new, before in SHAPES:
        ids = chance.integers(5, config["vocab_size"] - 1, (batch, before + new))
        full, _ = run(made, ids, empty_past(config, batch))
        past = empty_past(config, batch)
        if before:
            _, past = run(made, ids[:, :before], past)
        last, _ = run(made, ids[:, before:], past)
        incremental = max(incremental, float(np.abs(full[:, before:] - last).max()))
        # One token at a time is another kernel, and what is cached adds up.
        for at in range(before, before + new):
            last, past = run(made, ids[:, at : at + 1], past)
            incremental = max(incremental, float(np.abs(full[:, at] - last[:, 0]).max()))
        if model is not None:
            with torch.no_grad():
                from_torch = max(from_torch, float(np.abs(model(torch.from_numpy(ids)).numpy() - full).max()))
    return from_torch, incremental


def export(size: str, folder: Path) -> dict[str, Any]:
    """Writes model.onnx (INT8), the float32 graph beside the working files, and the configurations."""
    model, kept = load(WORK / f"{size}.pt")
    model.eval()
    config = configuration(model.config)
    weights = {name: weight.float().numpy() for name, weight in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    whole = WORK / f"{size}-float32.onnx"
    onnx.save(Builder(config, weights).build(), str(whole))
    small = folder / "model.onnx"
    onnx.save(Builder(config, weights, small=True).build(), str(small))
    # Each folder is whole, as `starloom models add` wants it.
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    from_torch, incremental = apart(session(whole), config, model)
    _, quantised = apart(session(small), config, None)
    return {
        "size": size,
        "step": kept["step"],
        "bytes": small.stat().st_size,
        "float32_from_torch": from_torch,
        "float32_incremental": incremental,
        "int8_incremental": quantised,
    }


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    folder = Path(arguments[1]) if len(arguments) > 1 else WORK / "export" / arguments[0]
    sys.stdout.write(json.dumps(export(arguments[0], folder)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
