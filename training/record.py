"""Measures what ships and writes src/starloom/agents/data/language/record.json, which tests and the model card follow.

    python -m training.record measure SIZE      a size's figures, into out/train; sizes can be measured side by side
    python -m training.record                   the record of all sizes that ship

The record takes in what `measure`, `training.ngram` and `training.align measure` left in out/train.
"""

import gzip
import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starloom.agents.language import quality
from training.evaluate import extractive, model
from training.prepare import SEED, SHIPPED
from training.sources import WORK


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return value


def digest(name: str) -> str:
    return hashlib.sha256(gzip.decompress((SHIPPED / name).read_bytes())).hexdigest()


def measure(size: str) -> dict[str, Any]:
    """A shipped size's figures, and what INT8 costs of exact match against float32."""
    path = SHIPPED / size / "model.onnx"
    questions = quality.held_out()

    def asked(weights: Path, *, copied: bool = True) -> quality.Quality:
        made = model(weights)
        return quality.measured(questions, [quality.answered(made, one, copied=copied) for one in questions])

    with ThreadPoolExecutor(3) as pool:
        usual, free = pool.submit(asked, path), pool.submit(asked, path, copied=False)
        whole = pool.submit(asked, WORK / f"{size}-float32.onnx")
        perplexity, bits = quality.perplexity(model(path), quality.held_out_text())
    return {
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        **usual.result()._asdict(),
        "perplexity": perplexity,
        "bits_per_byte": bits,
        "free_exact_match": free.result().exact_match,
        "free_refused": free.result().refused,
        "float32_exact_match": whole.result().exact_match,
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kept(size: str) -> dict[str, Any]:
    """What `measure` left of a size; raises ValueError if it was of other weights than those that ship."""
    figures: dict[str, Any] = json.loads((WORK / f"record-{size}.json").read_text())
    if figures["sha256"] != sha256(SHIPPED / size / "model.onnx"):
        raise ValueError(f"the figures of {size} are of other weights; run python -m training.record measure {size}")
    return figures


def record() -> dict[str, Any]:
    questions = quality.held_out()
    sizes = sorted((path.parent.name for path in SHIPPED.glob("*/model.onnx")), key=lambda name: int(name[:-1]))
    return {
        "held_out": {
            "seed": SEED,
            "questions": len(questions),
            "questions_sha256": digest(quality.QUESTIONS),
            "text_sha256": digest(quality.TEXT),
            "text_bytes": quality.text_bytes(quality.held_out_text()),
        },
        "sizes": {size: kept(size) for size in sizes},
        "extractive": extractive(questions),
        "ngram": [json.loads(line) for line in (WORK / "ngram.jsonl").read_text().splitlines()],
        "aligned": [json.loads(path.read_text()) for path in sorted(WORK.glob("map-*.json"))],
    }


def main(arguments: list[str]) -> int:
    if arguments:
        _, size = arguments
        (WORK / f"record-{size}.json").write_text(json.dumps(rounded(measure(size))) + "\n")
        return 0
    (SHIPPED / "record.json").write_text(json.dumps(rounded(record()), indent=2) + "\n")
    sys.stdout.write((SHIPPED / "record.json").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
