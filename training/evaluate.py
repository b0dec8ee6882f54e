"""Measures exported sizes on the held-out questions and text, beside the extractive answer.

    python -m training.evaluate FILE.onnx [FILE.onnx ...] [--questions N] [--free] [--extractive]

Each FILE lies beside its config.json, or is out/train/SIZE-float32.onnx of a shipped size. One JSON object a line; no torch.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from starloom.agents.language import quality
from starloom.agents.language.model import LanguageModel
from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken


def model(path: Path) -> LanguageModel:
    beside = path.parent / "config.json"
    return quality.opened(path.parent if beside.exists() else quality.FOLDER / path.name.split("-")[0], path)


def extractive(questions: list[quality.Asked]) -> dict[str, Any]:
    """What text.answer would say: the best sentence, or that it found none; and whether it contains the span."""
    models = SessionPool(ModelStore(), limit=1).for_call(CancelToken())
    return {f"extractive_{name}": share for name, share in quality.extractive(models, questions)._asdict().items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--extractive", action="store_true")
    parser.add_argument("--free", action="store_true", help="also without holding answers to their passages")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers")
    options = parser.parse_args()
    questions = quality.held_out()[: options.questions]
    texts = quality.held_out_text()
    for path in options.files:
        started, made = time.monotonic(), model(path)
        replies = [quality.answered(made, asked) for asked in questions]
        figures: dict[str, Any] = {"file": path.name, **quality.measured(questions, replies)._asdict()}
        figures["seconds"] = time.monotonic() - started
        figures["perplexity"], figures["bits_per_byte"] = quality.perplexity(made, texts)
        if options.free:
            free = [quality.answered(made, asked, copied=False) for asked in questions]
            for name, share in quality.measured(questions, free)._asdict().items():
                figures[f"free_{name}"] = share
            figures.pop("free_by_kind")
        sys.stdout.write(json.dumps(figures) + "\n")
        wrong = [(a, r) for a, r in zip(questions, replies, strict=True) if not quality.right(r, a)]
        for asked, reply in wrong[: options.show]:
            sys.stdout.write(f"  {asked.kind}: {asked.question} | {asked.reply} | {reply}\n")
    if options.extractive:
        sys.stdout.write(json.dumps(extractive(questions)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
