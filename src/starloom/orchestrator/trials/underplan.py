"""A job under a plan of faults on a cluster that is there: each fault in its time, and what was seen of them all."""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from starloom.dag import facts, limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import Overloaded, StarloomError
from starloom.dag.ids import FencingToken, JobId
from starloom.devices.faults import AT_ONCE, OF_ORCHESTRATOR, ORCHESTRATOR, FaultPlan, Moment
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.cluster import ONLINE
from starloom.orchestrator.infos import Event
from starloom.orchestrator.trials.injector import AT, HANGS, KILLS, Injector, Place
from starloom.orchestrator.trials.planning import Planned, check_fit, facts_of, plan_faults
from starloom.orchestrator.trials.roster import Roster
from starloom.orchestrator.trials.survival import Injection, Survival, judge
from starloom.orchestrator.trials.watch import Watch

LOOK_SECONDS: Final = 0.05
ANSWER_SECONDS: Final = 2.0
ALONE_SECONDS: Final = 10.0
"""How much longer than planned a fault stands where whoever began it has died."""
WARM_UPS: Final = 2
"""Runs undisturbed: the first one loads models."""

Note = Callable[[str], None]


class UnderPlan:
    """Runs one job undisturbed, and once more under a plan. For one event loop.

    `within`: seconds that the job has to end in. `injector` is another one in tests.
    """

    def __init__(
        self,
        client: AsyncClient,
        injector: Injector,
        note: Note,
        within: float = limits.TRIAL_SECONDS_MAX,
    ) -> None:
        self._client = client
        self._injector = injector
        self._note = note
        self._within = within
        self._run = secrets.token_hex(3)
        self._roster = Roster(client.address)
        self._watch: Watch
        #: set once the job has ended, or is given up
        self._over = asyncio.Event()
        self._begin = 0
        self._injections: dict[str, Injection] = {}

    async def undisturbed(self, what: Constellation, inputs: Mapping[str, Any]) -> tuple[dict[str, str], float]:
        """The outputs' digests when nothing is done to the cluster, and the seconds that takes. Raises what the job ends with."""
        for _ in range(WARM_UPS):
            began = time.perf_counter()
            job = await self._client.submit(what, inputs)
            await job.result(self._within)
            seconds = time.perf_counter() - began
        return await self._digests(job.id), seconds

    async def prepare(self, plan: FaultPlan, seed: int, what: Constellation) -> tuple[Planned, ...]:
        """What is going to happen. Raises InvalidInput where the plan does not fit, Conflict where faults are not allowed."""
        info = await self._client.cluster()
        self._roster.take(info)
        nodes = [facts_of(node.profile) for node in info.nodes if node.state == ONLINE]
        check_fit(plan, nodes, what)
        await self._injector.standing(self._places())
        return plan_faults(plan, seed, nodes)

    async def disturbed(
        self,
        what: Constellation,
        inputs: Mapping[str, Any],
        planned: Sequence[Planned],
        expected: Mapping[str, str],
    ) -> Survival:
        """The job under these faults, compared with outputs' digests; afterwards nothing of the faults is left."""
        self._injections = {fault.id: Injection(planned=fault) for fault in planned}
        async with Watch(self._client) as self._watch:
            await self._caught_up()
            self._begin = len(self._watch.events)
            try:
                for fault in planned:
                    if _is_early(fault):
                        await self._inject(JobId(""), fault)
                job = await self._submit(what, inputs)
                return await self._see_through(job, planned, expected)
            finally:
                await self._heal_all()

    async def _see_through(self, job: JobId, planned: Sequence[Planned], expected: Mapping[str, str]) -> Survival:
        faults = [asyncio.create_task(self._fault(job, fault)) for fault in planned]
        try:
            ended = await self._ended(job)
            # What has not begun will not; what stands is healed, but for what nobody heals.
            self._over.set()
            for fault, task in zip(planned, faults, strict=True):
                if not self._injections[fault.id].unix_nanos or fault.lasts_seconds is None:
                    task.cancel()
            for outcome in await asyncio.gather(*faults, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome
            if not ended:
                await self._give_up(job)
        finally:
            for task in faults:
                task.cancel()
        whole = await self._recovered()
        with suppress(StarloomError):
            await self._caught_up()
        outputs = await self._digests(job) if ended else {}
        return judge(job, self._watch.events[self._begin :], list(self._injections.values()), whole, outputs, expected)

    async def _submit(self, what: Constellation, inputs: Mapping[str, Any]) -> JobId:
        """Submits the job; again for as long as it may last where the orchestrator has no room. Raises what it is refused with."""
        give_up = time.monotonic() + self._within
        while True:
            try:
                return (await self._client.submit(what, inputs)).id
            except Overloaded as error:
                if time.monotonic() > give_up:
                    raise
                self._note(f"the job is not taken yet: {error}")
                await asyncio.sleep(error.retry_after_seconds)

    async def _fault(self, job: JobId, fault: Planned) -> None:
        """One fault from its time to its end."""
        try:
            if _is_early(fault):
                now = fault
            else:
                await self._moment(job, fault)
                now = await self._inject(job, fault)
        except StarloomError as error:
            self._told(fault, why=str(error))
            return
        if fault.lasts_seconds is None:
            await asyncio.Event().wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(fault.lasts_seconds):
                await self._over.wait()
        await self._heal(now)

    async def _moment(self, job: JobId, fault: Planned) -> None:
        """Returns when a fault is due."""
        if fault.at_seconds is not None:
            await asyncio.sleep(fault.at_seconds)
            return
        alike = [each.planned for each in self._injections.values() if each.planned.entry == fault.entry]
        number = alike.index(fault)
        seen: set[FencingToken] = set()

        def comes(event: Event) -> bool:
            fact = event.fact
            # The start of an attempt that ends within milliseconds is not told.
            kinds = (facts.StageStarted, facts.StageCommitted) if fault.on == Moment.START else (facts.StageCommitted,)
            if not isinstance(fact, kinds) or fact.job != job or fact.stage != fault.stage:
                return False
            seen.add(fact.token)
            return len(seen) > number

        await self._watch.until(comes, self._begin)

    async def _inject(self, job: JobId, fault: Planned) -> Planned:
        """Makes it happen; returns it with the node that it happens to. Raises what keeps it from happening."""
        if not fault.node and fault.stage and not fault.nodes:
            fault = msgspec.structs.replace(fault, node=self._runner(job, fault.stage))
        if fault.what in OF_ORCHESTRATOR:
            with suppress(StarloomError, TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    self._roster.take(await self._client.cluster())
        now = time.time_ns()
        # Noted before, as what follows may be seen at once; and taken back if it did not happen.
        places = self._places()
        incarnation = self._roster.incarnation(fault.node)
        self._told(fault, node=fault.node, unix_nanos=now, incarnation=incarnation)
        try:
            await self._injector.begin(self._named(_longer(fault)), places)
        except StarloomError:
            self._told(fault, unix_nanos=0)
            raise
        self._note(f"{fault.id}: {describe(fault)}")
        return fault

    async def _heal(self, fault: Planned) -> None:
        if fault.what not in AT_ONCE:
            try:
                self._told(fault, met=await self._injector.end(self._named(fault), self._places()))
            except StarloomError as error:
                # One that died meanwhile has forgotten its faults.
                self._note(f"{fault.id}: {error}")
        standing = await self._injector.standing(self._places())
        named = self._named(fault).id
        hanging = fault.node if fault.what in HANGS else None
        if any(each.id == named or (hanging == each.node and each.what in HANGS) for each in standing):
            self._told(fault, why="it was healed, and stands")
            return
        self._told(fault, healed_unix_nanos=time.time_ns())

    async def _heal_all(self) -> None:
        """Ends what this run has begun, and nothing else."""
        begun = [each for each in self._injections.values() if each.unix_nanos]
        ids = [f"{self._run}-{each.planned.id}" for each in begun]
        ids += [f"{each.planned.what}{AT}{each.node}" for each in begun if each.planned.what in HANGS]
        if ids:
            await self._injector.heal(ids, self._places())

    async def _ended(self, job: JobId) -> bool:
        """Whether the job ended in time."""
        try:
            async with asyncio.timeout(self._within):
                await self._watch.until(
                    lambda event: isinstance(event.fact, facts.JobEnded) and event.fact.job == job, self._begin
                )
        except TimeoutError:
            return False
        return True

    async def _give_up(self, job: JobId) -> None:
        """Heals everything, so that the job can be stopped, and stops it."""
        self._note(f"the job did not end within {self._within:g} s; it is stopped")
        await self._heal_all()
        with suppress(StarloomError):
            await (await self._client.job(job)).cancel("it did not end under its plan of faults")

    async def _recovered(self) -> set[str]:
        """Who is there, once everybody is, or after FAULTS_RECOVERED_SECONDS."""
        wanted = {ORCHESTRATOR, *(each.node for each in self._injections.values() if each.unix_nanos and each.node)}
        stays = {
            each.node
            for each in self._injections.values()
            if each.unix_nanos and each.planned.lasts_seconds is None and each.node
        }
        deadline = time.monotonic() + limits.FAULTS_RECOVERED_SECONDS
        whole: set[str] = set()
        while not wanted - stays <= whole and time.monotonic() < deadline:
            with suppress(StarloomError, TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    info = await self._client.cluster()
                whole = {ORCHESTRATOR, *(node.name for node in info.nodes if node.state == ONLINE)}
            await asyncio.sleep(LOOK_SECONDS)
        return whole

    async def _caught_up(self) -> None:
        """Returns once all that is journaled now was seen."""
        last = 0
        async for event in self._client.events(self._watch.last, follow=False):
            last = event.offset
        if last:
            await self._watch.until(lambda event: event.offset >= last, 0)

    async def _digests(self, job: JobId) -> dict[str, str]:
        return {name: ref.digest for name, ref in (await self._client.info(job)).outputs.items()}

    def _told(self, fault: Planned, **what: Any) -> None:
        self._injections[fault.id] = msgspec.structs.replace(self._injections[fault.id], **what)

    def _named(self, fault: Planned) -> Planned:
        """The fault under a name that no other run has given."""
        return msgspec.structs.replace(fault, id=f"{self._run}-{fault.id}")

    def _places(self) -> list[Place]:
        """Where everybody is, as far as it was told."""
        if self._begin:
            self._roster.hear(self._watch.events[self._begin :])
        return self._roster.places

    def _runner(self, job: JobId, stage: str) -> str:
        """The node that has a stage, or had it last."""
        placed = [
            event.fact.agent
            for event in self._watch.events[self._begin :]
            if isinstance(event.fact, facts.StagePlaced) and event.fact.job == job and event.fact.stage == stage
        ]
        return placed[-1]


def _is_early(fault: Planned) -> bool:
    """Whether it is there before the job is: what happens to processes waits for it."""
    return fault.at_seconds == 0.0 and fault.what not in (*KILLS, *HANGS)


def _longer(fault: Planned) -> Planned:
    """The fault as it is armed: it ends by itself only where nobody is left to end it."""
    if fault.lasts_seconds is None or fault.what in AT_ONCE:
        return fault
    return msgspec.structs.replace(fault, lasts_seconds=fault.lasts_seconds + ALONE_SECONDS)


def describe(fault: Planned) -> str:
    """A fault in a few words."""
    where = fault.node or ("all nodes" if not fault.nodes else ", ".join(fault.nodes)) or fault.stage
    if fault.stage and not fault.node:
        where = f"the node that has {fault.stage}"
    when = f"at {fault.at_seconds:.2f} s" if fault.at_seconds is not None else f"at the {fault.on} of {fault.stage}"
    peer = f" and {fault.peer}" if fault.peer else ""
    lasts = "until it is healed" if fault.lasts_seconds is None else f"for {fault.lasts_seconds:.2f} s"
    return f"{fault.what} of {where}{peer}, {when}{'' if fault.what in AT_ONCE else f', {lasts}'}"
