"""The plan `kills`: the demonstration's job, again and again, and each time `kill -9` of somebody amid it.

Each case is a job of its own on one warm cluster, and begins when all nodes are online again.
"""

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from starloom.dag import facts, limits
from starloom.dag.constellation import Constellation
from starloom.dag.ids import JobId
from starloom.orchestrator.cluster import EmbeddedCluster, OrchestratorHost
from starloom.orchestrator.clusterfile import DEFAULT
from starloom.orchestrator.demo import PHOTO, QUESTION, constellation, example
from starloom.orchestrator.infos import Event
from starloom.orchestrator.trials.case import ORCHESTRATOR, Case, Kill, Outcome, judge
from starloom.orchestrator.trials.trial import Digests, Note, Trial

#: Each agent of a tier must have loaded its models, and two runs give both their turn.
_WARM_UPS: Final = 2


def all_cases(nodes: Sequence[str] = (), stages: Sequence[str] = ()) -> list[Case]:
    """Every node and the orchestrator at every stage; and at every stage one pair of nodes, so that each has its turn.

    Nodes are the default cluster's and stages the demonstration's, unless given. Stage by stage, so that nobody is
    killed so often that it counts as one that keeps dying.
    """
    nodes = nodes or [node.name for node in DEFAULT.nodes]
    pairs = list(combinations(nodes, 2))
    found = []
    for number, stage in enumerate(stages or constellation().stages):
        victims: list[tuple[str, ...]] = [(node,) for node in nodes]
        if pairs:
            victims.append(pairs[number % len(pairs)])
        victims.append((ORCHESTRATOR,))
        found += [Case(victims=each, stage=stage) for each in victims]
    return found


def quick_cases() -> list[Case]:
    """The loss of an input's holder, of who decides, and of a whole tier."""
    return [
        Case(victims=("mic-speaker",), stage="hear"),
        Case(victims=(ORCHESTRATOR,), stage="transcribe"),
        Case(victims=("edge-1", "edge-2"), stage="read_odd"),
    ]


def run(folder: Path, host: OrchestratorHost, cases: Sequence[Case], note: Note) -> tuple[float, list[Outcome]]:
    """Runs the cases on a default cluster with its state in `folder`; see `Trial.run`. The models must be there."""
    inputs = {"audio": example() / QUESTION, "image": example() / PHOTO}
    with EmbeddedCluster(DEFAULT, folder, orchestrator=host) as cluster:
        return asyncio.run(_Kills(cluster, note, constellation(), inputs).run(cases))


class _Kills(Trial):
    def __init__(self, cluster: EmbeddedCluster, note: Note, what: Constellation, inputs: Mapping[str, Any]) -> None:
        super().__init__(cluster, note)
        self._what = what
        self._inputs = inputs
        self._expected: Digests = {}
        #: when the orchestrator began to serve, or later
        self._served = time.monotonic()

    async def prepare(self) -> float:
        for _ in range(_WARM_UPS):
            self._expected, seconds = await self.undisturbed(self._what, self._inputs)
        return seconds

    async def disturb(self, case: Case) -> Outcome:
        processes = await self._processes(case)
        begin = len(self.watch.events)
        job = await self.submit(self._what, self._inputs)
        told = await self.watch.until(partial(_tells_of_start, job, case.stage), begin)
        now = time.time_ns()
        for pid, _ in processes.values():
            os.kill(pid, signal.SIGKILL)
        kill = Kill(
            unix_nanos=now,
            moment="started" if isinstance(told.fact, facts.StageStarted) else "committed",
            incarnations={name: incarnation for name, (_, incarnation) in processes.items() if incarnation},
        )
        seen = await self.over(case, job, kill, begin)
        if ORCHESTRATOR in case.victims:
            self._served = time.monotonic()
        return judge(case, job, seen, kill, await self.digests(job), self._expected)

    async def _processes(self, case: Case) -> dict[str, tuple[int, str]]:
        """The victims' processes and incarnations, once everybody is there."""
        info = await self.everybody()
        found = {str(node.name): (node.profile.pid, node.incarnation) for node in info.nodes}
        if ORCHESTRATOR in case.victims:
            # Its supervisor gives up one that dies again and again, which is not what is tried here.
            await asyncio.sleep(max(0.0, self._served + limits.QUICK_DEATH_SECONDS - time.monotonic()))
            found[ORCHESTRATOR] = (info.pid, "")
        return {victim: found[victim] for victim in case.victims}


def _tells_of_start(job: JobId, stage: str, event: Event) -> bool:
    # The start of an attempt that ends within milliseconds is not told.
    match event.fact:
        case facts.StageStarted() | facts.StageCommitted() as fact:
            return fact.job == job and fact.stage == stage
    return False
