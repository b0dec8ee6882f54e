"""How often a model of the store is right on the held-out questions, by how sure it is: where to set `certainty_min`.

    python -m training.certainty MODEL [--questions N]

One JSON object a threshold: the share of questions that the model answers or refuses by itself, and the share of
those that are right; no torch.
"""

import argparse
import json
import sys

from starloom.agents.language import quality, reading
from starloom.agents.language.model import load
from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken

THRESHOLDS = (-5.0, -1.0, -0.5, -0.4, -0.3, -0.25, -0.2, -0.15, -0.1, -0.05, -0.02)
SECONDS = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--questions", type=int, default=10_000)
    options = parser.parse_args()
    models = SessionPool(ModelStore(), limit=1).for_call(CancelToken())
    model = load(models, options.model)
    found = []
    for asked in quality.held_out()[: options.questions]:
        read = reading.asked(model, asked.question, asked.snippets, CancelToken(), SECONDS)
        found.append((read.certainty, quality.right(read.reply, asked)))
    for threshold in THRESHOLDS:
        sure = [right for certainty, right in found if certainty >= threshold]
        row = {"certainty_min": threshold, "sure": len(sure) / len(found), "right": sum(sure) / max(1, len(sure))}
        sys.stdout.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
