"""Inputs from another agent on this host: read in its shared memory where that is proved, fetched where it is not."""

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.agents.fakes import TOKEN, assign, consumed, reference

from starloom.agents import values
from starloom.agents.arena import VALUES_AT
from starloom.agents.dataservice import DataServer
from starloom.agents.fetching import InputFetcher, InputsLost
from starloom.agents.holder import Holder
from starloom.agents.messages import Assign, Held, Input, Replicate, Report, Source
from starloom.agents.neighbours import Neighbours, is_anothers
from starloom.agents.replicator import Replicator
from starloom.agents.sharedmemory import Arena, open_arena
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.errors import Unavailable
from starloom.dag.ids import AgentId, JobId
from starloom.dag.values import PortType, ValueRef

JOB = JobId("j")
ARRAY = np.random.default_rng(3).integers(0, 256, limits.AGENT_ARENA_VALUE_BYTES_MIN, np.uint8)
REF = reference(PortType.TENSOR, ARRAY, holder="maker", inline=False)
ARENA_BYTES = 4 * 1024 * 1024


class Counted(Holder):
    """A holder that counts how often it is read over gRPC."""

    reads = 0

    def read(self, job: JobId, digest: str, offset: int) -> AsyncIterator[bytes | memoryview]:
        self.reads += 1
        return super().read(job, digest, offset)


class Maker:
    """An agent that has made ARRAY for JOB, and serves it at `address`."""

    def __init__(self, arena: Arena | None) -> None:
        self.arena = arena
        self.holder = Counted(arena=arena)
        data, _ = values.encode_into(arena, PortType.TENSOR, ARRAY, "value")
        self.data = data
        self.holder.keep(JOB, REF.digest, data)
        self.address = ""

    def order(self, job: str = JOB, ref: ValueRef = REF) -> Assign:
        return assign(job=job, inputs=(Input(port="value", ref=ref, consumed=consumed(ref), address=self.address),))


@asynccontextmanager
async def making(folder: Path | None) -> AsyncIterator[Maker]:
    """A maker with an arena in the folder, or without one."""
    maker = Maker(open_arena(ARENA_BYTES, folder) if folder is not None else None)
    server = DataServer(maker.holder, TOKEN, arena=maker.arena)
    maker.address = await server.start()
    try:
        yield maker
    finally:
        await server.stop()
        if maker.arena is not None:
            maker.arena.close()


class Reader:
    """Another agent on this host."""

    def __init__(self, transfer: Transfer, folder: Path, verify: bool = False) -> None:
        self.holder = Holder()
        self.neighbours = Neighbours(transfer, verify, folder)
        self.inputs = InputFetcher(AgentId("reader"), self.holder, transfer, "store:1", self.neighbours)

    async def read(self, order: Assign) -> bytes | memoryview:
        return (await self.inputs.remote(self.inputs.others(order), order.task.job))["value"]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


async def reader(stack: AsyncExitStack, folder: Path, verify: bool = False) -> Reader:
    return Reader(await stack.enter_async_context(Transfer(TOKEN)), folder, verify)


async def test_value_on_the_same_host_is_read_where_it_was_written(stack: AsyncExitStack, tmp_path: Path) -> None:
    maker = await stack.enter_async_context(making(tmp_path))
    here = await reader(stack, tmp_path)
    found = await here.read(maker.order())
    assert is_anothers(found)
    assert bytes(found) == ARRAY.tobytes()
    assert maker.holder.reads == 0
    assert maker.arena is not None
    maker.holder.release(JOB)
    del maker.data
    gc.collect()
    assert maker.arena.used_bytes == len(found)
    del found
    await asyncio.sleep(0)
    gc.collect()
    assert maker.arena.used_bytes == 0


async def test_agent_on_another_host_is_asked_over_the_network(stack: AsyncExitStack, tmp_path: Path) -> None:
    maker = await stack.enter_async_context(making(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    other_folder = await reader(stack, tmp_path / "elsewhere")
    other_boot = await reader(stack, tmp_path)
    other_boot.neighbours._boot_id = "another"
    for here in (other_folder, other_boot):
        found = await here.read(maker.order())
        assert not is_anothers(found)
        assert found == ARRAY.tobytes()
    assert maker.holder.reads == 2


async def test_what_fetches_took_is_told_of_the_links_that_they_went_by(stack: AsyncExitStack, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    maker = await stack.enter_async_context(making(tmp_path))
    for folder in (tmp_path, tmp_path / "elsewhere"):
        here = await reader(stack, folder)
        await here.read(maker.order())
        assert here.inputs.links.told(time.monotonic()) == {}, "the first one dials"
        here.inputs.release(JOB)
        del here.inputs._copies, here
        gc.collect()
    near = await reader(stack, tmp_path)
    for _ in range(3):
        await near.read(maker.order())
    told = near.inputs.links.told(time.monotonic())
    assert told.keys() == {"maker"}
    assert (told["maker"].latency_seconds or 0.0) > 0.0


async def test_holder_without_an_arena_is_asked_over_the_network(stack: AsyncExitStack, tmp_path: Path) -> None:
    maker = await stack.enter_async_context(making(None))
    assert await (await reader(stack, tmp_path)).read(maker.order()) == ARRAY.tobytes()
    assert maker.holder.reads == 1


async def test_job_reads_only_what_it_was_given(stack: AsyncExitStack, tmp_path: Path) -> None:
    maker = await stack.enter_async_context(making(tmp_path))
    here = await reader(stack, tmp_path)
    with pytest.raises(InputsLost, match="job k has no value"):
        await here.read(maker.order(job="k"))
    maker.holder.release(JOB)
    with pytest.raises(InputsLost, match="job j has no value"):
        await here.read(maker.order())


@pytest.mark.parametrize("over_network", [False, True])
async def test_corrupt_bytes_are_refused(stack: AsyncExitStack, tmp_path: Path, over_network: bool) -> None:
    maker = await stack.enter_async_context(making(None if over_network else tmp_path))
    if maker.arena is None:
        maker.holder._values[REF.digest] = bytes(len(ARRAY))
    else:
        maker.arena._map[VALUES_AT] ^= 1
    here = await reader(stack, tmp_path, verify=not over_network)
    with pytest.raises(InputsLost, match="arrived as"):
        await here.read(maker.order())


async def test_next_agent_on_an_address_is_met_anew(stack: AsyncExitStack, tmp_path: Path) -> None:
    here = await reader(stack, tmp_path)
    first = await stack.enter_async_context(making(tmp_path))
    assert is_anothers(await here.read(first.order()))
    second = await stack.enter_async_context(making(tmp_path))
    assert first.arena is not None
    first.holder.release(JOB)
    first.arena.close()
    here.neighbours._met[second.address] = here.neighbours._met[first.address]
    assert is_anothers(await here.read(second.order()))
    assert second.holder.reads == 0


async def test_memory_of_a_dead_agent_is_let_go_with_the_next_job_that_ends(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    here = await reader(stack, tmp_path)
    living = await stack.enter_async_context(making(tmp_path))
    dead = await stack.enter_async_context(making(tmp_path))
    for maker in (living, dead):
        assert is_anothers(await here.read(maker.order()))
    assert dead.arena is not None
    mapped = weakref.ref(here.neighbours._met[dead.address])
    dead.arena.close()
    here.inputs.release(JobId("any"))
    await asyncio.sleep(0)
    gc.collect()
    assert mapped() is None
    assert list(here.neighbours._met) == [living.address]


async def test_same_bytes_are_fetched_once_for_all_jobs_that_are_open(stack: AsyncExitStack, tmp_path: Path) -> None:
    maker = await stack.enter_async_context(making(None))
    maker.holder.keep(JobId("k"), REF.digest, maker.data)
    here = await reader(stack, tmp_path)
    first = await here.read(maker.order())
    assert await here.read(maker.order(job="k")) is first
    assert maker.holder.reads == 1
    here.inputs.release(JOB)
    assert await here.read(maker.order(job="k")) is first
    here.inputs.release(JobId("k"))
    await here.read(maker.order(job="k"))
    assert maker.holder.reads == 2


async def test_bytes_that_this_agent_made_for_another_job_are_not_fetched(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    maker = await stack.enter_async_context(making(None))
    here = await reader(stack, tmp_path)
    here.holder.keep(JobId("k"), REF.digest, ARRAY.tobytes())
    assert await here.read(maker.order()) == ARRAY.tobytes()
    assert maker.holder.reads == 0


async def test_replica_is_a_copy_of_its_own(stack: AsyncExitStack, tmp_path: Path) -> None:
    maker = await stack.enter_async_context(making(tmp_path))
    here = await reader(stack, tmp_path)
    told: list[Report] = []
    replicator = Replicator(here.holder, here.inputs, told.append)
    source = Source(agent=AgentId("maker"), address=maker.address)
    command = Replicate(task=maker.order().task, values=(REF,), sources=(source,))
    assert await replicator._fetch(command) == Held(task=command.task)
    assert not is_anothers(here.holder.get(JOB, REF.digest))


async def test_agent_that_does_not_answer_is_a_stranger_for_a_while(stack: AsyncExitStack, tmp_path: Path) -> None:
    here = await reader(stack, tmp_path)
    transfer = here.neighbours._transfer
    asked: list[str] = []

    async def silent(address: str) -> None:
        asked.append(address)
        raise Unavailable("nobody there")

    transfer.arena = silent  # type: ignore[assignment, method-assign]
    for _ in range(2):
        assert await here.neighbours.read("127.0.0.1:1", JOB, REF) is None
    assert asked == ["127.0.0.1:1"]
