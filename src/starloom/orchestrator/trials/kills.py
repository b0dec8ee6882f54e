"""The plan `kills`: the demonstration's job, again and again, and each time `kill -9` of somebody amid it.

Each case is a job of its own on one warm cluster, and begins when all nodes are online again.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from starloom.dag import facts, limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput, Problem, Unavailable
from starloom.dag.ids import JobId
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.cluster import ONLINE, EmbeddedCluster
from starloom.orchestrator.clusterfile import ClusterSpec
from starloom.orchestrator.infos import ClusterInfo, Event
from starloom.orchestrator.trials.case import BROKEN, ORCHESTRATOR, Case, Kill, Outcome, judge, tells_of
from starloom.orchestrator.trials.watch import Watch

Note = Callable[[str], None]

#: Each agent of a tier must have loaded its models, and two runs give both their turn.
_WARM_UPS: Final = 2
_LOOK_SECONDS: Final = 0.05


def all_cases(nodes: Sequence[str], stages: Sequence[str]) -> list[Case]:
    """Every node and the orchestrator at every stage; and at every stage one pair of nodes, so that each has its turn.

    Stage by stage, so that nobody is killed so often that it counts as one that keeps dying.
    """
    pairs = list(combinations(nodes, 2))
    found = []
    for number, stage in enumerate(stages):
        victims: list[tuple[str, ...]] = [(node,) for node in nodes]
        if pairs:
            victims.append(pairs[number % len(pairs)])
        victims.append((ORCHESTRATOR,))
        found += [Case(victims=each, stage=stage) for each in victims]
    return found


def chosen(cases: Sequence[Case], victims: Sequence[str], stages: Sequence[str]) -> list[Case]:
    """The cases of these victims and stages, of all where none are named. Raises InvalidInput for names that there are not."""
    known = {
        "--victim": (victims, dict.fromkeys(case.victim for case in cases)),
        "--stage": (stages, dict.fromkeys(case.stage for case in cases)),
    }
    problems = [
        Problem(option, f"there is no {name!r}; there are {', '.join(names)}")
        for option, (given, names) in known.items()
        for name in given
        if name not in names
    ]
    if problems:
        raise InvalidInput(problems, "the plan has no such cases")
    return [case for case in cases if (not victims or case.victim in victims) and (not stages or case.stage in stages)]


def run(
    spec: ClusterSpec,
    folder: Path,
    what: Constellation,
    inputs: Mapping[str, Any],
    cases: Sequence[Case],
    note: Note,
) -> tuple[float, list[Outcome]]:
    """Runs the cases on a cluster of its own, with its state in `folder`; returns an undisturbed run's seconds, and the outcomes.

    Raises StarloomError if the cluster does not start, or cannot go on, or an undisturbed job fails.
    """
    with EmbeddedCluster(spec, folder) as cluster:
        return asyncio.run(_Trial(cluster, what, inputs, note).run(cases))


class _Trial:
    """The cases of one cluster."""

    def __init__(self, cluster: EmbeddedCluster, what: Constellation, inputs: Mapping[str, Any], note: Note) -> None:
        self._cluster = cluster
        self._what = what
        self._inputs = inputs
        self._note = note
        self._client: AsyncClient
        self._watch: Watch
        #: when the orchestrator began to serve
        self._served = time.monotonic()

    async def run(self, cases: Sequence[Case]) -> tuple[float, list[Outcome]]:
        """An undisturbed run, and the cases."""
        async with AsyncClient(self._cluster.address, self._cluster.token) as client, Watch(client) as watch:
            self._client, self._watch = client, watch
            for _ in range(_WARM_UPS):
                expected, seconds = await self._undisturbed()
            self._note(f"undisturbed the job takes {seconds:.2f} s; {len(cases)} cases")
            outcomes = []
            for number, case in enumerate(cases, 1):
                outcome = await self._case(case, expected)
                outcomes.append(outcome)
                self._note(f"{number} of {len(cases)}: {_line(outcome)}")
            return seconds, outcomes

    async def _undisturbed(self) -> tuple[dict[str, str], float]:
        began = time.perf_counter()
        job = await self._client.submit(self._what, self._inputs)
        await job.result(limits.TRIAL_SECONDS_MAX)
        return await self._digests(job.id), time.perf_counter() - began

    async def _digests(self, job: JobId) -> dict[str, str]:
        return {name: ref.digest for name, ref in (await self._client.info(job)).outputs.items()}

    async def _case(self, case: Case, expected: Mapping[str, str]) -> Outcome:
        try:
            async with asyncio.timeout(limits.TRIAL_SECONDS_MAX):
                return await self._kill_amid(case, expected)
        except TimeoutError:
            if self._cluster.failure:
                what = f"the cluster cannot go on after the death of {case.victim}: {self._cluster.failure}"
                raise Unavailable(what) from None
        return Outcome(
            victim=case.victim,
            group=case.group,
            stage=case.stage,
            status="open",
            equal=False,
            verdict=BROKEN,
            what=f"not over within TRIAL_SECONDS_MAX = {limits.TRIAL_SECONDS_MAX:g}",
        )

    async def _kill_amid(self, case: Case, expected: Mapping[str, str]) -> Outcome:
        processes = await self._processes(case)
        begin = len(self._watch.events)
        job = await self._client.submit(self._what, self._inputs)
        told = await self._watch.until(partial(_tells_of_start, job.id, case.stage), begin)
        now = time.time_ns()
        for pid, _ in processes.values():
            os.kill(pid, signal.SIGKILL)
        kill = Kill(
            unix_nanos=now,
            moment="started" if isinstance(told.fact, facts.StageStarted) else "committed",
            incarnations={name: incarnation for name, (_, incarnation) in processes.items() if incarnation},
        )
        waited = set(case.victims)
        await self._watch.until(partial(_ends, job.id), begin)
        await self._watch.until(partial(_told_of_all, case, kill, waited), begin)
        if ORCHESTRATOR in case.victims:
            self._served = time.monotonic()
        return judge(case, job.id, self._watch.events[begin:], kill, await self._digests(job.id), expected)

    async def _processes(self, case: Case) -> dict[str, tuple[int, str]]:
        """The victims' processes and incarnations, once everybody is there."""
        info = await self._everybody()
        found = {str(node.name): (node.profile.pid, node.incarnation) for node in info.nodes}
        if ORCHESTRATOR in case.victims:
            # Its supervisor gives up one that dies again and again, which is not what is tried here.
            await asyncio.sleep(max(0.0, self._served + limits.QUICK_DEATH_SECONDS - time.monotonic()))
            found[ORCHESTRATOR] = (info.pid, "")
        return {victim: found[victim] for victim in case.victims}

    async def _everybody(self) -> ClusterInfo:
        while True:
            info = await self._client.cluster()
            if all(node.state == ONLINE for node in info.nodes):
                return info
            await asyncio.sleep(_LOOK_SECONDS)


def _tells_of_start(job: JobId, stage: str, event: Event) -> bool:
    fact = event.fact
    # The start of an attempt that ends within milliseconds is not told.
    is_start = isinstance(fact, facts.StageStarted | facts.StageCommitted)
    return is_start and fact.job == job and fact.stage == stage  # type: ignore[union-attr]


def _ends(job: JobId, event: Event) -> bool:
    return isinstance(event.fact, facts.JobEnded) and event.fact.job == job


def _told_of_all(case: Case, kill: Kill, waited: set[str], event: Event) -> bool:
    """Takes off those whose death the event tells of; whether nobody is left."""
    victim = tells_of(case, kill, event.fact)
    if victim is not None and event.unix_nanos >= kill.unix_nanos:
        waited.discard(victim)
    return not waited


def _line(outcome: Outcome) -> str:
    seconds = [
        f"{name} {value:.2f} s"
        for name, value in (("detected in", outcome.detect_seconds), ("recovered in", outcome.recover_seconds))
        if value is not None
    ]
    why = f" ({outcome.what})" if outcome.what else ""
    return f"{outcome.victim} at {outcome.stage}: {outcome.verdict}{why}, job {outcome.status}, {', '.join(seconds)}"
