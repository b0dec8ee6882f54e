"""Measures what ships and writes src/starloom/agents/data/language/record.json, which tests and the model card follow.

    python -m training.record

Takes in what `training.ngram` and `training.align measure` left in out/train.
"""

import gzip
import hashlib
import json
import sys
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


def figures_of(size: str, questions: list[quality.Asked]) -> dict[str, Any]:
    """A shipped size's figures, and what INT8 costs of exact match against float32."""
    path = SHIPPED / size / "model.onnx"
    made = model(path)
    found = quality.quality(made, questions)
    free = quality.measured(questions, [quality.answered(made, one, copied=False) for one in questions])
    perplexity, bits = quality.perplexity(made, quality.held_out_text())
    whole = quality.quality(model(WORK / f"{size}-float32.onnx"), questions)
    return {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **found._asdict(),
        "perplexity": perplexity,
        "bits_per_byte": bits,
        "free_exact_match": free.exact_match,
        "free_refused": free.refused,
        "float32_exact_match": whole.exact_match,
    }


def main() -> int:
    questions = quality.held_out()
    sizes = sorted((path.parent.name for path in SHIPPED.glob("*/model.onnx")), key=lambda name: int(name[:-1]))
    record = {
        "held_out": {
            "seed": SEED,
            "questions": len(questions),
            "questions_sha256": digest(quality.QUESTIONS),
            "text_sha256": digest(quality.TEXT),
            "text_bytes": quality.text_bytes(quality.held_out_text()),
        },
        "sizes": {size: figures_of(size, questions) for size in sizes},
        "extractive": extractive(questions),
        "ngram": [json.loads(line) for line in (WORK / "ngram.jsonl").read_text().splitlines()],
        "aligned": [json.loads(path.read_text()) for path in sorted(WORK.glob("map-*.json"))],
    }
    (SHIPPED / "record.json").write_text(json.dumps(rounded(record), indent=2) + "\n")
    sys.stdout.write((SHIPPED / "record.json").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
