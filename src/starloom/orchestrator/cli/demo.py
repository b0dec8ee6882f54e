"""`starloom demo`: the demonstration's job on a cluster of its own, from nothing to a spoken answer."""

import argparse
import asyncio
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starloom.agents.language.family import LARGEST
from starloom.dag.errors import InvalidInput, Problem, StarloomError
from starloom.orchestrator.cli.files import INLINE_TYPES, output_json, save
from starloom.orchestrator.cli.follow import Progress
from starloom.orchestrator.cli.output import Commands, Exit, Output, Parser, UsageError, add_command, count
from starloom.orchestrator.cli.views import cluster_row, stage_row

if TYPE_CHECKING:
    from starloom.dag.constellation import Constellation
    from starloom.orchestrator.cli.underplan import Work
    from starloom.orchestrator.clientsync import Client
    from starloom.orchestrator.cluster import EmbeddedCluster, StartUp
    from starloom.orchestrator.demo import Measured
    from starloom.orchestrator.infos import NodeInfo

ANSWER_NAME: Final = "answer.wav"
LIVE: Final = "live"
ROUNDS: Final = 5
"""How often the warm job is run: a machine does other things as well, and a single run tells more of them."""
NEEDED: Final = ("ray", "psutil", "onnxruntime", "cv2", "soundfile", "soxr", "tokenizers", "hibari")
"""The modules of the extras `server` and `agent` that nothing here works without."""


def add_parsers(commands: Commands) -> None:
    """Adds `demo`."""
    parser = add_command(
        commands, "demo", run_demo, "ask a spoken question about a photograph, on a cluster of its own"
    )
    parser.add_argument("--audio", type=Path, metavar="FILE", help="a spoken question: WAV, FLAC or Ogg")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a photograph: JPEG or PNG")
    parser.add_argument(
        "--language",
        default=LARGEST,
        metavar="NAME",
        help="what writes the answer: a size of the language family, or `extractive` (default: the largest size)",
    )
    parser.add_argument("--faults", type=Path, metavar="PLAN", help="once more, under a plan of faults from this file")
    parser.add_argument("--seed", type=count, help="what that plan is drawn from; the plan's own, or 1")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="write the spoken answer there, not to a temporary folder"
    )
    add_planner(parser)


def add_planner(parser: Parser) -> None:
    """Adds --planner."""
    parser.add_argument(
        "--planner",
        choices=("none", LIVE),
        default="none",
        help="live: plan each job that runs as a whole, in a process of its own, and place its stages by that, "
        "but for jobs with streams (so at no rate) or max_parallel; none: place each stage when it is ready (%(default)s)",
    )


def run_demo(args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.cli.cluster import ends_in_order

    began = time.perf_counter()
    require_extras()
    check_language(args.language)
    inputs = _inputs(args.audio, args.image)
    work = None
    if args.faults is not None:
        work = _under_faults(args.faults, args.seed, args.language, inputs)
    elif args.seed is not None:
        raise UsageError("--seed is what a plan of faults is drawn from; give one with --faults")
    if args.keep is not None:
        make_folder(args.keep)
    with ends_in_order(), tempfile.TemporaryDirectory(prefix="starloom-demo-") as folder:
        plans_live = args.planner == LIVE
        return _Demo(out, inputs, args.language, args.keep, began, work, plans_live).run(Path(folder) / "cluster")


def _under_faults(file: Path, seed: int | None, language: str, inputs: dict[str, Path]) -> "Work":
    """What is to be run under the plan in a file. Raises InvalidInput."""
    from starloom.orchestrator.cli.underplan import Work, read_live_plan, seed_of
    from starloom.orchestrator.demo import constellation

    plan = read_live_plan(file)
    return Work(plan, seed_of(plan, seed), constellation(language), inputs)


def check_language(name: str) -> None:
    """Raises InvalidInput for a name that nothing which may write the answer has."""
    from starloom.orchestrator.demo import languages

    if name not in languages():
        raise InvalidInput([Problem("--language", f"is {name!r}; use {', '.join(languages())}")], "no such language")


def require_extras() -> None:
    """Raises StarloomError if a module is missing that a cluster needs."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise StarloomError(
            f"a cluster needs {', '.join(missing)}, not installed here; run `pip install 'starloom[server,agent]'`"
        )


def _inputs(audio: Path | None, image: Path | None) -> dict[str, Path]:
    from starloom.orchestrator.demo import PHOTO, QUESTION, example

    given = {"audio": audio or example() / QUESTION, "image": image or example() / PHOTO}
    problems = []
    for name, path in given.items():
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            problems.append(Problem(f"--{name}", f"{path} cannot be read: {error.strerror}"))
    if problems:
        raise InvalidInput(problems, "the inputs are not right")
    return given


def make_folder(folder: Path) -> None:
    """Makes what --keep names. Raises InvalidInput."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput([Problem("--keep", f"{folder} cannot be made: {error.strerror}")], "bad folder") from error


class _Demo:
    """One demonstration: its steps in order, and what they gave."""

    def __init__(
        self,
        out: Output,
        inputs: dict[str, Path],
        language: str,
        keep: Path | None,
        began: float,
        work: "Work | None" = None,
        plans_live: bool = False,
    ) -> None:
        self._plans_live = plans_live
        self._out = out
        self._inputs = inputs
        self._language = language
        self._keep = keep
        self._began = began
        self._work = work
        self._models_seconds = 0.0
        self._nodes: tuple[NodeInfo, ...] = ()
        self._row: dict[str, Any] = {"status": "failed", "outputs": {}, "nodes": [], "stages": []}

    def run(self, folder: Path) -> int:
        """Everything; returns the exit code. The cluster has its state in `folder`."""
        from starloom.orchestrator.cluster import EmbeddedCluster
        from starloom.orchestrator.clusterfile import DEFAULT

        try:
            self._pull_models()
            self._out.note(f"starting a cluster of {len(DEFAULT.nodes)} nodes")
            allowed = self._work is not None
            with EmbeddedCluster(DEFAULT, folder, faults_allowed=allowed, plans_live=self._plans_live) as cluster:
                self._jobs(cluster)
                held = self._work is None or self._survives(cluster, self._work)
        except StarloomError as error:
            return self._out.error(error, **self._row)
        self._out.json(self._row)
        return Exit.DONE if held else Exit.FAILED

    def _pull_models(self) -> None:
        from starloom.orchestrator.demo import pull_models

        began = time.perf_counter()
        pull_models(self._out.note)
        self._models_seconds = time.perf_counter() - began

    def _jobs(self, cluster: "EmbeddedCluster") -> None:
        from starloom.orchestrator.clientsync import Client
        from starloom.orchestrator.demo import constellation, measure

        assert cluster.info is not None
        self._row |= cluster_row(cluster.info, cluster.address)
        self._out.note(start_up_line(cluster.start_up))
        self._nodes = cluster.info.nodes
        what = constellation(self._language)
        with Client(cluster.address, cluster.token) as client:
            cold = measure(client, what, self._inputs, self._progress())
            total = time.perf_counter() - self._began
            self._answer(cold)
            self._cold_start(cluster.start_up, cold, total)
            warm, alone = self._take_turns(client, what)
        self._compare(warm, alone)

    def _survives(self, cluster: "EmbeddedCluster", work: "Work") -> bool:
        """The same job under its plan of faults; whether it came out as if undisturbed."""
        from starloom.orchestrator.cli.underplan import survive, tell

        self._out.note("and once more, under the plan of faults")
        row, survival, _ = asyncio.run(survive(cluster.address, cluster.token, work, self._out.note))
        self._row |= {"status": survival.status, "faults": row}
        self._out.text("")
        tell(survival, work.seed, row["undisturbed_seconds"], self._out)
        return survival.verdict == "held"

    def _progress(self) -> Progress:
        return Progress(self._out, self._nodes)

    def _take_turns(self, client: "Client", what: "Constellation") -> tuple[list["Measured"], list["Measured"]]:
        """ROUNDS runs on the warm cluster, and as many with one stage at a time, in turns."""
        from starloom.orchestrator.demo import Silent, measure

        warm, alone = [], []
        for number in range(ROUNDS):
            self._out.note(
                "the same again, on the warm cluster, and with one stage at a time" if number == 0 else "again"
            )
            warm.append(measure(client, what, self._inputs, Silent() if number else self._progress()))
            alone.append(measure(client, what, self._inputs, Silent(), max_parallel=1))
        return warm, alone

    def _answer(self, cold: "Measured") -> None:
        """Says what the question was answered with, and writes the spoken answer to a file."""
        outputs, refs = cold.outputs, cold.info.outputs
        folder = self._keep or Path(tempfile.mkdtemp(prefix="starloom-answer-"))
        path = save(folder / ANSWER_NAME, refs["speech"], outputs["speech"])
        values = {name: value if refs[name].type in INLINE_TYPES else None for name, value in outputs.items()}
        self._row["outputs"] = {name: output_json(refs[name], value) for name, value in values.items()}
        speech = outputs["speech"]
        self._row["outputs"]["speech"] = output_json(refs["speech"], None, path) | {
            "seconds": speech.seconds,
            "sample_rate_hz": speech.sample_rate_hz,
        }
        for name, text in (
            ("question", outputs["transcript"]),
            ("text read", " / ".join(outputs["text"].splitlines())),
            ("faces", faces_text(outputs["faces"])),
            ("answer", outputs["answer"]),
            ("answered by", answered_by(outputs["details"])),
            ("spoken", f"{path} ({speech.seconds:.1f} s)"),
        ):
            self._out.text(f"{name:<11} {text}")

    def _cold_start(self, start_up: "StartUp", cold: "Measured", total: float) -> None:
        split = {
            "models": self._models_seconds,
            "orchestrator": start_up.orchestrator,
            "ray": start_up.ray,
            "agents": start_up.agents,
            "job": cold.seconds,
            "load": cold.load_seconds,
            "total": total,
        }
        self._row |= {"cold_start": split, "cold_seconds": total}
        self._out.text(
            f"\ncold start {total:.1f} s: models {self._models_seconds:.1f}, Ray {start_up.ray:.1f} (beside it the "
            f"orchestrator {start_up.orchestrator:.1f}), agents {start_up.agents:.1f}, job {cold.seconds:.1f} (in its "
            f"stages, loading models {cold.load_seconds:.1f})"
        )

    def _compare(self, warm: list["Measured"], alone: list["Measured"]) -> None:
        """Says how the best warm run's time was spent, and how it compares to the best with one stage at a time."""
        from starloom.orchestrator.demo import language_row

        best, slow = (min(runs, key=lambda run: run.seconds) for runs in (warm, alone))
        rows = [stage_row(stage) for stage in best.info.stages]
        ratio = slow.seconds / best.seconds
        self._row |= {
            "status": str(best.info.status),
            "wall_seconds": best.seconds,
            "sequential_seconds": slow.seconds,
            "ratio": ratio,
            "parallel_width": best.width,
            "runs": {"wall": [run.seconds for run in warm], "sequential": [run.seconds for run in alone]},
            "stages": rows,
            "language": language_row(warm),
        }
        self._out.text("")
        self._out.table(STAGE_COLUMNS, [stage_cells(row) for row in rows])
        self._out.text(
            f"\nwarm {best.seconds:.2f} s, with one stage at a time {slow.seconds:.2f} s (each the best of {ROUNDS}): "
            f"{ratio:.2f} times as fast; at most {best.width} stages at one time"
        )
        if spoken := speed_line(self._row["language"]):
            self._out.text(spoken)


STAGE_COLUMNS: Final = (
    *("stage", "kind", "node", "tier", "target", "model", "attempts"),
    *("queue s", "transfer s", "load s", "run s"),
)


def stage_cells(row: dict[str, Any]) -> Sequence[str]:
    """A row of the stages' table, under STAGE_COLUMNS, from a stage as JSON has it."""
    emulated = " (emulated)" if row["emulated"] else ""
    seconds = [f"{row['seconds'][part]:.3f}" for part in ("queue", "transfer", "load", "run")]
    where = (row["node"], row["tier"], f"{row['target']}{emulated}")
    return (row["name"], row["kind"], *where, row["model"] or "-", str(row["attempts"]), *seconds)


def start_up_line(start_up: "StartUp") -> str:
    """What the cluster's start took, in a line."""
    return (
        f"the cluster is there after {start_up.total:.1f} s: Ray {start_up.ray:.1f}, agents {start_up.agents:.1f}, "
        f"beside Ray the orchestrator {start_up.orchestrator:.1f}"
    )


def answered_by(details: Mapping[str, Any]) -> str:
    """Who answered the question, from the answer's `details`; and if it was not the language model, why."""
    model, doubt = details.get("model"), details.get("doubt")
    if model is None:
        return "the best sentences"
    # The mean log-probability of its tokens, as a probability: their geometric mean.
    sure = "" if details["certainty"] is None else f" ({math.exp(details['certainty']):.0%} sure of a token)"
    if doubt is not None:
        return f"the best sentences; {model} was not believed: {doubt}{sure}"
    if details["source"] == "none":
        return f"{model}, by saying that no passage holds it{sure}"
    place = "in the picture" if details["source"] == "read" else f"under {details['title']}"
    return f'{model}, which found "{details["span"]}" {place}{sure}'


def speed_line(row: Mapping[str, Any] | None) -> str:
    """How fast the language model was; empty if none was asked."""
    if row is None or row["first_token_ms"] is None:
        return ""
    rate = "" if row["tokens_per_second"] is None else f", then {row['tokens_per_second']:.0f} tokens a second"
    return (
        f"{row['model']}: first token after {row['first_token_ms']:.0f} ms, {row['prompt_tokens']} tokens read"
        f"{rate} (warm, medians of {ROUNDS})"
    )


def faces_text(faces: Sequence[dict[str, Any]]) -> str:
    """The faces found, in a line."""
    count = "one face" if len(faces) == 1 else f"{len(faces)} faces"
    scores = ", ".join(f"{face['score']:.2f}" for face in faces)
    return f"{count}, score {scores}" if faces else "none"
