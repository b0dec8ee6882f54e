"""Makes a golden journal: `python -m tools.golden_journal NAME` writes three files to tests/data/journal.

    NAME.jsonl          the facts, one JSON line each, as this version encodes them
    NAME.db             the journal that holds them, as this version writes it
    NAME.summary.json   what a coordinator that replayed them knows

A golden journal is made once and kept for ever: every later version has to read it, and to come to the same.
When facts or the journal's format change, add another one under a new name.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from tests.orchestrator.harness import KINDS, FakeAgent, World, inline, node, stored

from starloom.agents.messages import Assign, Started
from starloom.dag.constellation import Constellation
from starloom.dag.document import load
from starloom.dag.facts import Fact, encode_fact
from starloom.dag.ids import Epoch, JobId
from starloom.dag.stagestate import StageState
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.journal import Journal

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "journal"
FIRST_UNIX_NANOS = 1_750_000_000_000_000_000
_APPENDED_TOGETHER = 7


def constellation(name: str, text: str) -> Constellation:
    return load(f"api_version: starloom/v1\nname: {name}\n{text}")


EVERYTHING = constellation(
    "everything",
    """
labels: {team: golden}
inputs: {photo: bytes, question: json}
stages:
  see: {kind: t.blob, in: {photo: $photo}, retry: {times: 2, first: 100ms}}
  read: {kind: t.need, in: {data: see.data}, require: {labels: {rack: left}}, timeout: 30s}
  judge: {kind: t.judge, in: {q: $question, r: read.value}, params: {score: 0.25}}
  praise: {kind: t.say, in: {v: {from: judge.value, when: {output: value, is: ">=", value: 0.5, path: score}}}}
  blame: {kind: t.say, in: {v: {from: judge.value, when: {output: value, is: "<", value: 0.5, path: score}}}}
  guess: {kind: t.work, in: {r: read.value}, retry: 0, on_failure: default, defaults: {value: [1, "two", null]}}
  extra: {kind: t.work, in: {r: read.value}, retry: 0, on_failure: skip}
  after: {kind: t.work, in: {e: extra.value}}
  both: {kind: t.work, in: {g: guess.value}, after: [{stage: praise, on: completion}, blame], join: all}
outputs: {verdict: both.value, words: blame.text, photo: see.data}
""",
)
PLAIN = constellation(
    "plain", "stages: {a: {kind: t.work}, b: {kind: t.work, in: {v: a.value}}}\noutputs: {v: b.value}"
)
FRAGILE = constellation("fragile", "stages: {a: {kind: t.work, retry: 1}, b: {kind: t.work, in: {v: a.value}}}")
HURRIED = constellation(
    "hurried",
    """
deadline: 1h
stages:
  b: {kind: t.work}
  c: {kind: t.work, in: {v: b.value}, deadline: 10s, on_failure: default, defaults: {value: 0}}
""",
)
SLOW = constellation(
    "slow", "stages: {crawl: {kind: t.work, straggler: {factor: 2, after: 1s}}}\noutputs: {v: crawl.value}"
)
GROWING = constellation(
    "growing",
    """
stages:
  find: {kind: t.grow, params: {adds: 2}, grow: {stages: 9, generations: 3}}
  round: {kind: t.grow, params: {rounds: 2}}
  tell: {kind: t.work, in: {f: find.value, r: round.value}}
outputs: {found: find.value, told: tell.value}
""",
)
BLOB = constellation(
    "blob", "stages: {make: {kind: t.blob}, use: {kind: t.need, in: {data: make.data}}}\noutputs: {v: use.value}"
)

REPLICATED = constellation(
    "replicated",
    """
stages:
  make: {kind: t.blob, replicate: 2}
  wait: {kind: t.work}
  use: {kind: t.need, in: {data: make.data}, after: [wait]}
""",
)


def story() -> World:
    """A cluster's life in which every kind of fact comes up, with jobs that are open at its end."""
    kinds = [kind for name, kind in KINDS.items() if name not in ("t.stream", "t.heavy")]
    world = World()
    for profile in (node("edge-a", labels={"rack": "left"}), node("edge-b"), node("cam", targets=("cpu", "npu"))):
        world.join(profile, kinds)
    inputs = {"photo": stored("photo"), "question": inline({"ask": "what is it?"})}
    world.submit(EVERYTHING, inputs, job="job-everything", key="the first", priority=3, labels={"by": "hand"})
    world.start("see")
    world.fail("see", "the lens is wet", transient=True)
    world.advance(1)
    world.finish("see", queue=0.001, transfer=0.02, load=1.5, run=0.25)
    reader = world.where("read")
    measured = {"tokens": 12.0, "first_token_seconds": 0.021}
    world.report(reader, msgspec.structs.replace(reader.result(world.assigned("read")), figures=measured))
    world.fail("guess", "no idea")
    world.fail("extra", "not today")
    world.finish("judge", "blame", "both")
    world.submit(FRAGILE, job="job-failed")
    world.fail("a", "broken", transient=True)
    world.advance(1)
    world.fail("a", "broken for good")
    world.submit(PLAIN, job="job-cancelled", key="to be cancelled")
    world.start("a")
    world.cancel("job-cancelled")
    world.acknowledge_cancels()
    _lose_a_value(world)
    _change(world)
    _grow(world)
    _run_out_of_time(world)
    _copy(world)
    _replicate(world)
    world.restart()
    world.submit(PLAIN, job="job-over-restart")
    world.start("a")
    world.restart()
    world.finish("a", "b")
    world.submit(FRAGILE, job="job-waiting", key="open")
    world.fail("a", "cold", transient=True)
    world.submit(BLOB, job="job-open")
    world.start("make")
    world.submit(GROWING, job="job-growing")
    world.finish("find", "round")
    return world


def _lose_a_value(world: World) -> None:
    """The only holder of a value dies before it is used, comes back as another process, and the value is made again."""
    world.submit(BLOB, job="job-reopened")
    world.start("make")
    holder = world.where("make").profile
    world.finish("make")
    world.goodbye(holder.name, "power cut")
    world.join(holder)
    world.finish_all()


def _replicate(world: World) -> None:
    """A value is replicated to two nodes, one of the three does not have it any more, and is asked for another replica."""
    world.submit(REPLICATED, job="job-replicated")
    world.finish("make")
    world.hold()
    world.finish("wait")
    world.lose_input("use", "make", gone=True, missing=[world.stage(JobId("job-replicated"), "make").agent])
    world.hold()


def _change(world: World) -> None:
    """A job is changed while it runs: what was given out is given back, and what has ended runs again."""
    job = world.submit(PLAIN, job="job-patched")
    world.patch(job, "- replace: {stage: a, params: {label: new}}", why="a better one", id="patch-1")
    world.give_back()
    world.finish("a")
    added = "{c: {kind: t.work, in: {v: a.value}, after: [{stage: b, on: completion}]}}"
    world.patch(job, f"- add: {added}\n- move: {{stage: b, require: {{labels: {{rack: left}}}}}}", restart=True)
    world.patch(job, "- replace: {stage: a, params: {label: newest}}\n- outputs: {v: null, w: c.value}", restart=True)
    world.patch(job, "- cancel_stage: b", restart=True)
    world.acknowledge_cancels()
    world.finish_all()


def _grow(world: World) -> None:
    """Results add stages: made again the same, they add nothing, and differently, they take back what they had added."""
    world.submit(GROWING, job="job-grown")
    world.finish("find", "round", "round-r2")
    for salt in ("", "another"):
        world.lose_input("find-0", "find", gone=True)
        world.finish("find", salt=salt)
    world.acknowledge_cancels()
    world.finish_all()


def _run_out_of_time(world: World) -> None:
    """A stage's deadline is over, and another job's, after a restart that some of it has passed before."""
    world.submit(HURRIED, job="job-hurried")
    world.submit(PLAIN, job="job-too-late", deadline_seconds=12.0)
    world.advance(3)
    world.restart()
    world.finish("b")
    world.start("a")
    world.advance(12)
    world.acknowledge_cancels()


def _copy(world: World) -> None:
    """Three stages run too long: the copy of one wins, of another the first attempt; of the last both are open."""
    jobs = [world.submit(SLOW, job=JobId(f"job-copied-{index}")) for index in range(3)]
    for job in jobs:
        for agent, assign in _attempts(world, job):
            world.report(agent, Started(task=assign.task))
    world.advance(3)
    for job, winner in zip(jobs, (1, 0), strict=False):
        agent, assign = _attempts(world, job)[winner]
        world.report(agent, agent.result(assign))
        world.acknowledge_cancels()


def _attempts(world: World, job: str) -> list[tuple[FakeAgent, Assign]]:
    """A job's attempts and who has them, the first first."""
    found = [
        (agent, assign) for agent in world.agents.values() for task, assign in agent.tasks.items() if task.job == job
    ]
    return sorted(found, key=lambda each: each[1].task.token.attempt)


def summary(coordinator: Coordinator) -> dict[str, Any]:
    """What a later version has to come to as well, in words that do not depend on its classes."""
    return {
        "jobs": {
            job.id: {
                "name": job.constellation.name,
                "key": job.key,
                "status": job.status.value,
                "error": job.error,
                "outputs": {name: [ref.digest, ref.bytes, ref.holder] for name, ref in job.outputs.items()},
                "stages": {name: _stage(stage) for name, stage in job.stages.items()},
            }
            for job in coordinator.jobs.values()
        },
        "nodes": {view.name: [view.incarnation, view.profile.tier.value] for view in coordinator.fleet_view()},
        "kinds": sorted(coordinator.kinds),
    }


def _stage(stage: StageState) -> list[Any]:
    found = [stage.status.value, stage.attempt, stage.agent, sorted(map(str, stage.live))]
    # Journals from before there were copies have summaries without them.
    return [*found, sorted(stage.holders.items())] if len(stage.holders) > 1 else found


def replayed(facts: Iterable[Fact]) -> Coordinator:
    """A coordinator that knows these facts and has decided nothing."""
    coordinator = Coordinator(Epoch(1_000))
    coordinator.replay(facts)
    return coordinator


def write(name: str, facts: list[Fact], folder: Path) -> None:
    """Writes the three files. Raises FileExistsError if there is one of that name."""
    with (folder / f"{name}.jsonl").open("xb") as lines:
        lines.writelines(encode_fact(fact) + b"\n" for fact in facts)
    with tempfile.TemporaryDirectory() as made:
        journal = Journal.open(Path(made))
        for start in range(0, len(facts), _APPENDED_TOGETHER):
            journal.append(facts[start : start + _APPENDED_TOGETHER], FIRST_UNIX_NANOS + start)
        journal.close()
        shutil.copy(Path(made) / "journal.db", folder / f"{name}.db")
    found = msgspec.json.encode(summary(replayed(facts)))
    (folder / f"{name}.summary.json").write_bytes(msgspec.json.format(found) + b"\n")


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write(f"usage: {__doc__}")
        return 2
    try:
        write(sys.argv[1], list(story().facts), FOLDER)
    except FileExistsError as error:
        sys.stderr.write(f"{error.filename} is there and stays as it is; choose another name\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
