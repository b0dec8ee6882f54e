"""Copies of outputs end to end: the process that made a value is killed between its stage and the one that reads it."""

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.agents.fakes import no_models
from tests.orchestrator.live import TOKEN, Cluster, Stages, gates

from starloom import Graph
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.catalog import Catalog
from starloom.agents.stage import CancelToken, StageCall
from starloom.agents.stages.basic import MakeBytes
from starloom.dag.constellation import Constellation, Policy, Requirements, Retry
from starloom.dag.facts import Fact, OutputsHeld, StageCommitted, StagePlaced, StageReopened
from starloom.dag.values import PortType
from starloom.orchestrator.cli.views import event_line
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientjob import AsyncJob

SIZE = 3_000_000
MAKER = """
import asyncio, sys
from starloom.agents.agent import Agent, AgentConfig

async def main():
    name, orchestrator, token = sys.argv[1:]
    config = AgentConfig(
        name=name, tier="edge", orchestrator=orchestrator, token=token, kinds=("basic.make_bytes",), measures=False
    )
    agent = Agent(config)
    await agent.start()
    await agent.connected.wait()
    print("there", flush=True)
    await agent.run()

asyncio.run(main())
"""


@asynccontextmanager
async def maker(cluster: Cluster, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with an agent that makes bytes, and that may be killed."""
    command = [sys.executable, "-c", MAKER, name, cluster.address, TOKEN]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"there\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def made_and_read(copies: int) -> Constellation:
    """`make` gives bytes on a node of its own; `read` reads them elsewhere, behind a gate."""
    gates["wait"] = threading.Event()
    graph = Graph("made-and-read")
    policy = Policy(replicate=copies, retry=Retry(times=0))
    make = graph.stage(
        "make",
        "basic.make_bytes",
        params={"size": SIZE, "seed": 7},
        policy=policy,
        require=Requirements(node="a-maker"),
    )
    text = graph.input("text", PortType.TEXT)
    wait = graph.stage("wait", "test.gate", text=text, params={"gate": "wait"}, require=Requirements(node="node"))
    policy = Policy(retry=Retry(times=0))
    read = graph.stage(
        "read", "test.bytes", value=make["data"], after=wait, policy=policy, require=Requirements(node="node")
    )
    graph.output("data", read["value"])
    return graph.build({**Stages().kinds, **Catalog().kinds})


async def seen_until(job: AsyncJob, last: type[Fact]) -> None:
    async for event in job.events():
        if isinstance(event.fact, last) and getattr(event.fact, "stage", "") == "make":
            return


async def test_a_value_whose_maker_was_killed_is_read_from_its_copy(cluster: Cluster) -> None:
    """The node that made it is asked first, for nobody knows yet that it is dead."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(cluster.address, TOKEN))
        config = AgentConfig(
            name="keeper", tier="cloud", orchestrator=cluster.address, token=TOKEN, slots=1, measures=False
        )
        keeper = Agent(config, Stages())
        await keeper.start()
        stack.push_async_callback(keeper.stop)
        await keeper.connected.wait()
        process = await stack.enter_async_context(maker(cluster, "a-maker"))
        job = await client.submit(made_and_read(1), {"text": "x"})
        await seen_until(job, OutputsHeld)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        gates["wait"].set()
        result = await job.result(timeout=60)
        events = [event async for event in job.events()]
    wanted = MakeBytes().run(
        StageCall(inputs={}, params={"size": SIZE, "seed": 7}, models=no_models(CancelToken(), "cpu"))
    )
    assert result["data"] == wanted["data"]
    facts = [event.fact for event in events]
    assert any(event_line(event).endswith("replicated to keeper") for event in events)
    assert [fact.agent for fact in facts if isinstance(fact, OutputsHeld)] == ["keeper"]
    assert not [fact for fact in facts if isinstance(fact, StageReopened)]
    assert sum(isinstance(fact, StagePlaced) and fact.stage == "read" for fact in facts) == 1
    assert sum(isinstance(fact, StageCommitted) and fact.stage == "make" for fact in facts) == 1
