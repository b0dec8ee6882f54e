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

import onnxruntime as ort
from tokenizers import Tokenizer

from starloom.agents.language import prompt, quality
from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken
from starloom.agents.stages import answer


def decoder(path: Path) -> quality.Decoder:
    beside = path.parent / "config.json"
    size = path.name.split("-")[0]
    config = json.loads((beside if beside.exists() else quality.FOLDER / size / "config.json").read_text())
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return quality.Decoder(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), config)


def extractive(questions: list[quality.Asked]) -> dict[str, Any]:
    """What text.answer would say: the best sentence, or that it found none; and whether it contains the span."""
    models = SessionPool(ModelStore(), limit=1).for_call(CancelToken())
    exact = contains = refused = answerable = 0
    for asked in questions:
        passages = [{"title": one.title, "text": one.text} for one in asked.snippets]
        ranked = answer.scored(models, asked.question, answer.candidates("", passages))
        sure = bool(ranked) and ranked[0].score >= 0.55
        if asked.reply.refused:
            refused += not sure
            continue
        answerable += 1
        said, span = prompt.normalised(ranked[0].sentence if sure else ""), prompt.normalised(asked.reply.span)
        whole = prompt.normalised(f"{ranked[0].title} {ranked[0].sentence}") if sure else ""
        exact += said == span
        contains += f" {span} " in f" {whole} "
    return {
        "extractive_exact_match": exact / answerable,
        "extractive_contains": contains / answerable,
        "extractive_refused": refused / (len(questions) - answerable),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--extractive", action="store_true")
    parser.add_argument("--free", action="store_true", help="also without holding answers to their passages")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers")
    options = parser.parse_args()
    reader = Tokenizer.from_file(str(quality.FOLDER / "tokenizer.json"))
    questions = quality.held_out()[: options.questions]
    texts = quality.held_out_text()
    for path in options.files:
        started, made = time.monotonic(), decoder(path)
        replies = [prompt.checked(quality.answered(made, reader, asked), asked.snippets) for asked in questions]
        figures: dict[str, Any] = {"file": path.name, **quality.measured(questions, replies)._asdict()}
        figures["seconds"] = time.monotonic() - started
        figures["perplexity"], figures["bits_per_byte"] = quality.perplexity(made, reader, texts)
        if options.free:
            free = [quality.answered(made, reader, asked, copied=False) for asked in questions]
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
