"""The baseline for perplexity: an interpolated Kneser-Ney model over the same tokens, on the same held-out text.

    python -m training.ngram [ORDERS]         such as 3,4,5

It is counted on the plain rows of the training side's text, all of it once.
"""

import json
import math
import sys
from collections import defaultdict

from starloom.agents.language import prompt, quality
from training.prepare import LENGTH, plain_texts, tokenizer
from training.sources import WORK, entries

DISCOUNT = 0.75
VOCABULARY = 2048


class KneserNey:
    """Interpolated, one discount; the counts of lower orders are of distinct words before."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.counts: list[dict[tuple[int, ...], int]] = [defaultdict(int) for _ in range(order + 1)]
        self.totals: list[dict[tuple[int, ...], int]] = []
        self.kinds: list[dict[tuple[int, ...], int]] = []

    def add(self, ids: list[int]) -> None:
        highest = self.counts[self.order]
        for at in range(1, len(ids)):
            highest[tuple(ids[max(0, at - self.order + 1) : at + 1])] += 1

    def finish(self) -> None:
        """Counts of the lower orders, and what each context sums up to."""
        for size in range(self.order, 1, -1):
            for gram in self.counts[size]:
                if len(gram) > 1:
                    self.counts[size - 1][gram[1:]] += 1
        for size in range(self.order + 1):
            totals: dict[tuple[int, ...], int] = defaultdict(int)
            kinds: dict[tuple[int, ...], int] = defaultdict(int)
            for gram, count in self.counts[size].items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]] += 1
            self.totals.append(totals)
            self.kinds.append(kinds)

    def probability(self, context: tuple[int, ...], token: int) -> float:
        chance = 1 / VOCABULARY
        for size in range(1, self.order + 1):
            before = context[len(context) - size + 1 :] if size > 1 else ()
            if size - 1 > len(context):
                break
            total = self.totals[size].get(before, 0)
            if total:
                count = self.counts[size].get((*before, token), 0)
                left = DISCOUNT * self.kinds[size][before] / total
                chance = max(count - DISCOUNT, 0) / total + left * chance
        return chance


def main(arguments: list[str]) -> int:
    orders = [int(one) for one in (arguments[0] if arguments else "3,4,5").split(",")]
    reader = tokenizer()
    end = prompt.MARKS.index(prompt.END)
    texts = plain_texts([entry for entry in entries() if not entry.held_out], False)
    training = [[end, *one.ids, end] for one in reader.encode_batch([f" {text}" for text in texts])]
    held = quality.held_out_text()
    lines = ""
    for order in orders:
        model = KneserNey(order)
        for ids in training:
            model.add(ids)
        model.finish()
        loss, tokens = 0.0, 0
        for ids in quality.windows(reader, held):
            for at in range(1, len(ids)):
                loss -= math.log(model.probability(tuple(ids[max(0, at - order + 1) : at]), ids[at]))
            tokens += len(ids) - 1
        figures = {
            "order": order,
            "training_tokens": sum(map(len, training)),
            "perplexity": math.exp(loss / tokens),
            "bits_per_byte": loss / math.log(2) / quality.text_bytes(held),
        }
        lines += json.dumps(figures) + "\n"
    (WORK / "ngram.jsonl").write_text(lines)
    sys.stdout.write(lines)
    assert LENGTH == quality.WINDOW
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
