"""What the demonstration's stages were predicted to take before they first ran, beside what they took: `python -m tools.firstruns`.

In this process, one stage at a time, each behind a run that loads. This machine is profiled anew before, until nothing is
lacking. What counts is the stage's own processor time, which is its run time where it has a core to itself: so the table can
be made on a busy machine, and says nothing of how long stages wait for a core there.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from starloom.agents import samples, selfprofile
from starloom.agents.catalog import Catalog
from starloom.agents.modelstore import ModelStore
from starloom.agents.probe import provider_of
from starloom.agents.selfprofile import Means
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken, Stage, StageCall
from starloom.dag.ids import AgentId
from starloom.orchestrator import demo
from starloom.orchestrator.costs import Costs, Source

_NODE: Final = AgentId("node")
_TARGETS: Final = ("cpu", "npu")
_SESSIONS_MAX: Final = 16


class Runner:
    """Runs stages and measures them."""

    def __init__(self, costs: Costs, repeat: int) -> None:
        self._costs = costs
        self._repeat = repeat
        self._catalog = Catalog(points=())
        self._pool = SessionPool(ModelStore(), _SESSIONS_MAX)
        #: predicted to measured, and hinted to measured, of what was predicted
        self.ratios: list[tuple[float, float]] = []

    def run(self, kind: str, target: str = "cpu", params: dict[str, Any] | None = None, **inputs: Any) -> Any:
        """Prints a line of the table, and returns the outputs."""
        stage = self._catalog.stage(kind)
        assert isinstance(stage, Stage)
        filled = {name: param.default for name, param in stage.spec.params.items()} | (params or {})
        seconds = []
        for _ in range(self._repeat + 1):
            call = StageCall(inputs, filled, self._pool.for_call(CancelToken(), target), target=target)
            began = time.thread_time()
            outputs = stage.run(call)
            seconds.append(time.thread_time() - began)
        middle = statistics.median(seconds[1:])
        told = self._costs.predicted(stage.spec, _NODE, target)
        hint = stage.spec.cost.run_seconds
        held = f"{told.low:.4f} to {told.high:.4f}" if told.source is Source.PREDICTED else ""
        took = f"{middle:.4f} ({min(seconds[1:]):.4f} to {max(seconds[1:]):.4f})"
        shares = f"{told.seconds / middle:.2f} | {hint / middle:.2f}"
        say(f"| {kind}, {target} | {told.source} | {told.seconds:.4f} | {held} | {hint:g} | {took} | {shares} |")
        if told.source is Source.PREDICTED:
            self.ratios.append((told.seconds / middle, hint / middle))
        return outputs


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def profile(folder: Path) -> Costs:
    """Profiles this machine as an agent's first starts would; prints what each took."""
    kinds = list(Catalog(points=()).kinds.values())
    means = Means(folder, {target: provider_of(target) for target in _TARGETS}, 1, kinds, ModelStore())
    while selfprofile.lacking(means):
        began, busy = time.monotonic(), time.thread_time()
        found = selfprofile.complete(means)
        took = f"{time.monotonic() - began:.2f} s, {time.thread_time() - busy:.2f} s of processor time"
        count = sum(each > 0 for each in found.seconds.get("cpu", ())) if found else 0
        say(f"a start: {took}; {count} samples and {len(found.asks) if found else 0} kinds in all")
    costs, known = Costs(), selfprofile.kept(means)
    assert known is not None, "nothing is lacking"
    say(f"speed: {samples.speed(known.seconds['cpu']):.2f} of the reference machine's")
    costs.meet(_NODE, known)
    return costs


def demonstration(runner: Runner) -> None:
    """The demonstration's stages, each on what those before it gave, and faces on both targets."""
    run = runner.run
    sound = run("audio.decode", data=(demo.example() / demo.QUESTION).read_bytes())["audio"]
    speech = run("speech.detect", audio=sound)["audio"]
    question = run("speech.transcribe", audio=speech)["text"]
    image = run("image.decode", data=(demo.example() / demo.PHOTO).read_bytes())["image"]
    for target in _TARGETS:
        run("vision.faces", target, image=image)
    boxes = run("text.detect", image=image)["boxes"]
    odd, even = (
        run("text.recognise", params={"part": part, "parts": 2}, image=image, boxes=boxes)["lines"] for part in (1, 2)
    )
    text = run("text.merge", odd=odd, even=even)["text"]
    passages = run("text.retrieve", embedding=run("text.embed", text=question)["embedding"])["passages"]
    answer = run("language.answer", question=question, read=text, passages=passages)["answer"]
    run("speech.synthesise", text=answer)


def main() -> int:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="runs that are measured, behind one that loads")
    args = parser.parse_args()
    demo.pull_models(lambda said: None)
    say(f"load average before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory(prefix="starloom-firstruns-") as folder:
        runner = Runner(profile(Path(folder) / "profiles"), args.repeat)
    say(
        "| kind, target | source | predicted, s | 90 % | hinted, s | median, s | predicted / median | hinted / median |"
    )
    say("|---|---|---|---|---|---|---|---|")
    demonstration(runner)
    for name, ratios in zip(("predicted", "hinted"), zip(*runner.ratios, strict=True), strict=True):
        off = [max(each, 1 / each) for each in ratios]
        say(
            f"of those predicted, {name} is off by a factor of {statistics.median(off):.2f}, median, {max(off):.2f} at most"
        )
    say(f"n = {args.repeat} runs each; load average after: {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
