"""What all plans share: cases one after another on one cluster, each a job that is watched from its submission to its end."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from starloom.dag import facts, limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput, Problem, Unavailable
from starloom.dag.ids import JobId
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.cluster import ONLINE, EmbeddedCluster
from starloom.orchestrator.infos import ClusterInfo, Event
from starloom.orchestrator.trials.case import BROKEN, Case, Kill, Outcome, detected
from starloom.orchestrator.trials.watch import Watch

Note = Callable[[str], None]
Digests = Mapping[str, str]
"""A job's outputs: digests by name."""

LOOK_SECONDS: Final = 0.02


class Trial(ABC):
    """The cases of a plan on a cluster that has nothing else to do. For one event loop and one `run`."""

    def __init__(self, cluster: EmbeddedCluster, note: Note) -> None:
        self.cluster = cluster
        self.client: AsyncClient
        self.watch: Watch
        self._note = note
        self._open: JobId | None = None

    async def run(self, cases: Sequence[Case]) -> tuple[float, list[Outcome]]:
        """Runs all cases; returns how long an undisturbed job takes, in seconds, and the outcomes.

        Raises Unavailable if the cluster cannot go on, and what an undisturbed job's result raises.
        """
        async with AsyncClient(self.cluster.address, self.cluster.token) as client, Watch(client) as watch:
            self.client, self.watch = client, watch
            seconds = await self.prepare()
            self._note(f"undisturbed the job takes {seconds:.2f} s; {len(cases)} cases")
            outcomes = []
            for number, case in enumerate(cases, 1):
                outcome = await self._case(case)
                outcomes.append(outcome)
                self._note(f"{number} of {len(cases)}: {_line(outcome)}")
            return seconds, outcomes

    @abstractmethod
    async def prepare(self) -> float:
        """Warms the cluster up; returns an undisturbed job's seconds."""

    @abstractmethod
    async def disturb(self, case: Case) -> Outcome:
        """Carries one case out; it is given up from outside after TRIAL_SECONDS_MAX."""

    async def everybody(self) -> ClusterInfo:
        """The cluster, once all its nodes are online."""
        while True:
            info = await self.client.cluster()
            if all(node.state == ONLINE for node in info.nodes):
                return info
            await asyncio.sleep(LOOK_SECONDS)

    async def submit(self, what: Constellation, inputs: Mapping[str, Any]) -> JobId:
        """Submits a case's job."""
        job = await self.client.submit(what, inputs)
        self._open = job.id
        return job.id

    async def undisturbed(self, what: Constellation, inputs: Mapping[str, Any]) -> tuple[Digests, float]:
        """A job's outputs and seconds when nothing is done to it."""
        await self.everybody()
        began = time.perf_counter()
        job = await self.client.submit(what, inputs)
        await job.result(limits.TRIAL_SECONDS_MAX)
        return await self.digests(job.id), time.perf_counter() - began

    async def digests(self, job: JobId) -> Digests:
        """The outputs that a job has so far."""
        return {name: ref.digest for name, ref in (await self.client.info(job)).outputs.items()}

    async def over(self, case: Case, job: JobId, kill: Kill, begin: int) -> Sequence[Event]:
        """The events from `begin` on, once the job has ended and the victims' death was told of."""
        await self.watch.until(partial(_ends, job), begin)

        def told(_event: Event) -> bool:
            return detected(case, self.watch.events[begin:], kill) is not None

        await self.watch.until(told, begin)
        self._open = None
        return self.watch.events[begin:]

    async def _case(self, case: Case) -> Outcome:
        try:
            async with asyncio.timeout(limits.TRIAL_SECONDS_MAX):
                return await self.disturb(case)
        except TimeoutError:
            if self.cluster.failure:
                what = f"the cluster cannot go on after the death of {case.victim}: {self.cluster.failure}"
                raise Unavailable(what) from None
        if self._open is not None:
            # It must not stand in the way of the next ones.
            await (await self.client.job(self._open)).cancel("its trial is given up")
            self._open = None
        return unfinished(case, f"not over within TRIAL_SECONDS_MAX = {limits.TRIAL_SECONDS_MAX:g}")


def unfinished(case: Case, what: str) -> Outcome:
    """The outcome of a case that could not be seen to its end."""
    return Outcome(
        victim=case.victim,
        group=case.group,
        stage=case.stage,
        status="open",
        equal=False,
        verdict=BROKEN,
        what=what,
    )


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
    found = [case for case in cases if (not victims or case.victim in victims) and (not stages or case.stage in stages)]
    if not found:
        what = f"no case has {' or '.join(victims)} at {' or '.join(stages)}"
        raise InvalidInput(
            [Problem("--stage", f"{what}; `starloom faults list` has the cases")], "the plan has no such cases"
        )
    return found


def _ends(job: JobId, event: Event) -> bool:
    return isinstance(event.fact, facts.JobEnded) and event.fact.job == job


def _line(outcome: Outcome) -> str:
    seconds = [
        f", {name} {value:.2f} s"
        for name, value in (("detected in", outcome.detect_seconds), ("recovered in", outcome.recover_seconds))
        if value is not None
    ]
    why = f" ({outcome.what})" if outcome.what else ""
    return f"{outcome.victim} at {outcome.stage}: {outcome.verdict}{why}, job {outcome.status}{''.join(seconds)}"
