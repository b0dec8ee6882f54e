"""Replicas on an agent: which are fetched when, what comes of it, and inputs that are read where one holder fails."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from tests.agents.fakes import MemoryStore, assign, given, reference, task
from tests.agents.test_runtime import AGENT, BIG, EPOCH, HeldBack, Rig, finished, rigged, serving

from starloom.agents.core import AgentCore, Forget, Keep, Tell
from starloom.agents.messages import (
    Assign,
    Cancel,
    Held,
    InputLost,
    NotHeld,
    Release,
    Replicate,
    Report,
    Source,
    WasCancelled,
)
from starloom.agents.replicas import ReplicaQueue
from starloom.agents.replicator import Replicator
from starloom.dag import limits
from starloom.dag.errors import Unavailable
from starloom.dag.ids import AgentId, JobId, TaskToken
from starloom.dag.values import PortType, ValueRef

NOWHERE = "127.0.0.1:1"
REF = reference(PortType.BYTES, BIG, inline=False, holder="b")
JOB = JobId("j")


def replicate(stage: str = "up", *sources: str, job: str = "j", values: tuple[ValueRef, ...] = (REF,)) -> Replicate:
    """A command to keep a replica from sources b, c, d... at these addresses."""
    agents = "bcdef"
    found = tuple(Source(agent=AgentId(name), address=address) for name, address in zip(agents, sources, strict=False))
    return Replicate(
        task=task(stage, job=job), values=values, sources=found or (Source(agent=AgentId("b"), address="x"),)
    )


def reading(*addresses: str, stage: str = "s") -> Assign:
    """An attempt that reads BIG, from holders b, c, d... at these addresses."""
    item = given("data", PortType.BYTES, BIG, holder="b", address=addresses[0], inline=False)
    others = tuple(
        Source(agent=AgentId(name), address=address) for name, address in zip("cdef", addresses[1:], strict=False)
    )
    return assign(stage, "basic.echo", inputs=(msgspec.structs.replace(item, others=others),))


class TestQueue:
    def test_a_few_are_fetched_at_once_in_their_order(self) -> None:
        queue = ReplicaQueue()
        commands = [replicate(f"s{index}") for index in range(5)]
        for command in commands:
            queue.ask(command)
        assert queue.begin() == commands[: limits.AGENT_REPLICATIONS_AT_ONCE]
        assert queue.begin() == []
        assert queue.ended(commands[1].task)
        assert queue.begin() == [commands[2]]

    def test_one_that_is_asked_for_again_on_its_way_is_fetched_once(self) -> None:
        queue = ReplicaQueue()
        queue.ask(replicate())
        queue.ask(replicate())
        assert len(queue.begin()) == 1
        assert queue.ended(task("up"))
        assert queue.begin() == []

    @for_all(st.lists(st.tuples(st.sampled_from(["ask", "end", "release"]), st.integers(0, 5), st.integers(0, 2))))
    def test_never_too_many_and_never_one_of_a_released_job(self, steps: list[tuple[str, int, int]]) -> None:
        queue = ReplicaQueue()
        wanted: dict[TaskToken, None] = {}
        fetching: set[TaskToken] = set()
        for what, number, of_job in steps:
            job = f"j{of_job}"
            command = replicate(f"s{number}", job=job)
            if what == "ask":
                queue.ask(command)
                wanted.setdefault(command.task)
            elif what == "end" and command.task in fetching:
                fetching.discard(command.task)
                del wanted[command.task]
                assert queue.ended(command.task)
            elif what == "release":
                queue.release(JobId(job))
                fetching = {each for each in fetching if each.job != job}
                wanted = {each: None for each in wanted if each.job != job}
            begun = [each.task for each in queue.begin()]
            assert not fetching & set(begun)
            fetching |= set(begun)
            assert fetching == set(list(wanted)[: len(fetching)])
            assert len(fetching) == min(len(wanted), limits.AGENT_REPLICATIONS_AT_ONCE)
            assert set(queue.jobs) == {each.job for each in wanted}


class TestCore:
    def core(self) -> AgentCore:
        return AgentCore(AGENT, 2)

    def test_a_replica_is_asked_for_and_told_of(self) -> None:
        core = self.core()
        assert core.commands([replicate()], EPOCH, 0) == [Keep(replicate())]
        assert core.jobs == ("j",)
        assert core.replicated(Held(task=task("up"))) == [Tell(Held(task=task("up")))]
        assert core.idle

    def test_a_release_forgets_it_and_begins_the_next_job_s(self) -> None:
        core = self.core()
        core.commands([replicate(f"s{index}") for index in range(3)], EPOCH, 0)
        other = replicate("t", job="k")
        assert core.commands([other, Release(job=JOB)], EPOCH, 0) == [Forget(JOB), Keep(other)]
        assert core.replicated(Held(task=task("s0"))) == []

    def test_an_older_orchestrator_s_is_not_obeyed(self) -> None:
        core = self.core()
        core.admit(EPOCH)
        core.admit(type(EPOCH)(2))
        assert core.commands([replicate()], EPOCH, 0) == []

    def test_a_kept_report_of_a_replica_is_no_attempt_that_is_held(self) -> None:
        kept: list[Report] = [Held(task=task("up")), NotHeld(task=task("other"), reason="")]
        assert self.core().held(kept) == ()


async def answer(rig: Rig, command: Replicate) -> Any:
    rig.send(command)
    return await rig.told.final(command.task)


class TestReplicator:
    async def test_a_replica_is_fetched_verified_and_kept_until_the_release(self) -> None:
        there = MemoryStore()
        there.add(BIG)
        async with serving(there) as address, rigged() as rig:
            assert await answer(rig, replicate("up", address)) == Held(task=task("up"))
            assert rig.holder.get(JOB, REF.digest) == BIG
            again = await finished(rig, _local())
            assert again.outputs["data"].digest == REF.digest
            assert len(there.reads) == 1
            rig.send(Release(job=JOB))
            assert rig.holder.held_bytes == 0

    async def test_a_source_that_fails_partway_is_followed_by_the_next(self) -> None:
        first, second = MemoryStore(), MemoryStore()
        first.add(BIG)
        second.add(BIG)
        first.part_bytes = second.part_bytes = 1000
        first.breaks = [3, 0]
        async with serving(first) as one, serving(second) as two, rigged() as rig:
            assert await answer(rig, replicate("up", one, two)) == Held(task=task("up"))
        assert [offset for _, offset in first.reads] == [0, 3000]
        assert [offset for _, offset in second.reads] == [0]

    async def test_bytes_that_are_not_what_was_named_are_not_kept(self) -> None:
        there = MemoryStore()
        there.values[REF.digest] = b"x" + BIG[1:]
        async with serving(there) as address, rigged() as rig:
            report = await answer(rig, replicate("up", address))
            assert isinstance(report, NotHeld)
            assert report.missing == ("b",)
            assert rig.holder.held_bytes == 0

    async def test_sources_that_do_not_have_it_are_told(self) -> None:
        empty, there = MemoryStore(), MemoryStore()
        async with serving(empty) as one, serving(there) as two, rigged() as rig:
            report = await answer(rig, replicate("up", one, two))
            assert isinstance(report, NotHeld)
            assert report.missing == ("b", "c")

    async def test_no_source_that_can_be_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "INPUT_PATIENCE_SECONDS", 0.05)
        async with rigged() as rig:
            report = await answer(rig, replicate("up", NOWHERE, NOWHERE))
            assert isinstance(report, NotHeld)
            assert report.missing == ()
            assert NOWHERE in report.reason

    async def test_an_agent_that_is_full_asks_nobody(self) -> None:
        there = MemoryStore()
        async with serving(there) as address, rigged() as rig:
            large = msgspec.structs.replace(REF, bytes=limits.AGENT_REPLICA_BYTES_MAX + 1)
            report = await answer(rig, replicate("up", address, values=(large,)))
            assert isinstance(report, NotHeld)
            assert "AGENT_REPLICA_BYTES_MAX" in report.reason
        assert there.reads == []

    async def test_a_release_breaks_the_fetch_off(self) -> None:
        there = HeldBack()
        async with serving(there) as address, rigged() as rig:
            rig.send(replicate("up", address))
            await there.until_asked()
            rig.send(Release(job=JOB))
            await asyncio.wait_for(there.ended.wait(), 20)
            there.go_on.set()
            assert rig.holder.jobs == ()
            assert rig.told.reports == []

    async def test_what_is_wanted_as_an_input_as_well_is_fetched_once(self) -> None:
        there = HeldBack()
        async with serving(there) as address, rigged() as rig:
            rig.send(replicate("up", address), reading(address))
            await there.until_asked()
            there.go_on.set()
            assert isinstance(await rig.told.final(task("up")), Held)
            await rig.told.final(task("s"))
            assert there.asked == 1

    async def test_a_defect_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def broken(self: Replicator, command: Replicate) -> Any:
            raise ValueError("oh")

        monkeypatch.setattr(Replicator, "_fetch", broken)
        async with rigged() as rig:
            report = await answer(rig, replicate())
            assert isinstance(report, NotHeld)
            assert "oh" in report.reason


def _local(*others: str, stage: str = "local") -> Assign:
    """An attempt that reads BIG where it runs; others, at these addresses, hold it as well."""
    item = given("data", PortType.BYTES, BIG, holder=AGENT, inline=False)
    found = tuple(Source(agent=AgentId(name), address=address) for name, address in zip("bcdef", others, strict=False))
    return assign(stage, "basic.echo", inputs=(msgspec.structs.replace(item, others=found),))


class TestFallover:
    async def until_final(self, rig: Rig, order: Assign) -> Any:
        rig.send(order)
        return await rig.told.final(order.task)

    @pytest.mark.parametrize("first", ["broken", "empty", "damaged", "nowhere"])
    async def test_an_input_is_read_from_another_holder(self, first: str) -> None:
        """Whatever is wrong with the first one, the attempt runs, and no retry is spent."""
        one, two = MemoryStore(), MemoryStore()
        one.part_bytes = 1000
        two.add(BIG)
        if first == "broken":
            one.add(BIG)
            one.breaks = [5, 0]
        elif first == "damaged":
            one.values[REF.digest] = b"x" + BIG[1:]
        async with AsyncExitStack() as stack:
            address = NOWHERE if first == "nowhere" else await stack.enter_async_context(serving(one))
            other = await stack.enter_async_context(serving(two))
            rig = await stack.enter_async_context(rigged())
            report = await finished(rig, reading(address, other))
            assert report.outputs["data"].digest == REF.digest
            assert report.consumed["data"].digest == REF.digest
        assert len(two.reads) == 1

    async def test_holders_that_do_not_have_it_are_named(self) -> None:
        async with serving(MemoryStore()) as one, serving(MemoryStore()) as two, rigged() as rig:
            report = await self.until_final(rig, reading(one, two))
            assert isinstance(report, InputLost)
            assert (report.gone, report.missing) == (True, {"up": ("b", "c")})

    async def test_one_that_cannot_be_reached_may_have_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "INPUT_PATIENCE_SECONDS", 0.05)
        async with serving(MemoryStore()) as one, rigged() as rig:
            report = await self.until_final(rig, reading(one, NOWHERE))
            assert isinstance(report, InputLost)
            assert (report.gone, report.missing) == (False, {"up": ("b",)})

    async def test_all_are_asked_again_while_there_is_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one, two = MemoryStore(), MemoryStore()
        one.closed = two.closed = Unavailable("not yet")
        async with serving(one) as first, serving(two) as second, rigged() as rig:
            rig.send(reading(first, second))
            await one.until(lambda: len(one.reads) >= 2)
            two.closed = None
            two.add(BIG)
            await finished(rig, reading(first, second, stage="t"))
            await rig.told.final(task("s"))

    async def test_an_own_value_that_is_gone_is_told_with_its_holder(self) -> None:
        async with rigged() as rig:
            report = await self.until_final(rig, _local())
            assert isinstance(report, InputLost)
            assert (report.gone, report.missing) == (True, {"up": (AGENT,)})

    async def test_an_own_value_that_is_gone_is_fetched_from_a_replica_and_kept_again(self) -> None:
        there = MemoryStore()
        there.add(BIG)
        async with serving(there) as address, rigged() as rig:
            for stage in ("one", "two"):
                report = await finished(rig, _local(address, stage=stage))
                assert report.outputs["data"].digest == REF.digest
                assert report.consumed["data"].digest == REF.digest
            assert rig.holder.has(JOB, REF.digest)
        assert len(there.reads) == 1

    async def test_where_a_replica_is_gone_as_well_all_are_named(self) -> None:
        async with serving(MemoryStore()) as address, rigged() as rig:
            report = await self.until_final(rig, _local(address))
            assert isinstance(report, InputLost)
            assert (report.gone, report.missing) == (True, {"up": (AGENT, "b")})

    async def test_a_cancel_ends_the_fetch_of_what_was_its_own_and_frees_the_slot(self) -> None:
        there = HeldBack()
        async with serving(there) as address, rigged(slots=1) as rig:
            rig.send(_local(address))
            await there.until_asked()
            rig.send(Cancel(task=task("local")))
            assert isinstance(await rig.told.final(task("local")), WasCancelled)
            await asyncio.wait_for(there.ended.wait(), 20)
            await finished(rig, assign("next", "basic.noop"))

    async def test_a_cancel_ends_the_search(self) -> None:
        there = HeldBack()
        async with serving(there) as address, rigged() as rig:
            rig.send(reading(NOWHERE, address))
            await there.until_asked()
            rig.send(Cancel(task=task("s")))
            await rig.told.final(task("s"))
            await asyncio.wait_for(there.ended.wait(), 20)
