"""What sharing calls gains: many jobs' texts embedded by one agent, with and without a batcher, in turns.

Core, runtime and models of one agent with a slot for each core, in this process; nobody takes its reports over a network. So many
clients have one attempt each under way, each of a job of its own, and give the next when it has ended. Prints medians of
the runs: attempts a second, milliseconds of processor time an attempt, and milliseconds from its acceptance to its end.

    python tools/batching.py [clients] [repetitions]
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence

from starloom.agents import values
from starloom.agents.agent import ModelPool
from starloom.agents.catalog import Catalog
from starloom.agents.core import AgentCore
from starloom.agents.holder import Holder
from starloom.agents.language import quality
from starloom.agents.messages import Assign, Finished, Input, Release, Report
from starloom.agents.probe import usable_cores
from starloom.agents.runtime import Runtime
from starloom.agents.stages.embed import EmbedTogether
from starloom.agents.transfer import Transfer
from starloom.dag.facts import Consumed
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.values import PortType, ValueRef

EPOCH = Epoch(1)
FIRST = FencingToken(EPOCH, Attempt(1))
ATTEMPTS = 600
"""Of one run."""
STAGE = StageId("embed")
WAYS = ("one by one", "together")


class Run:
    """ATTEMPTS attempts by so many clients; `kind` either shares calls or does not."""

    def __init__(self, texts: Sequence[str], clients: int, batching: bool, models: ModelPool) -> None:
        self._inputs = [_input(text) for text in texts]
        self._clients = clients
        self._models = models
        spec = EmbedTogether.spec
        assert spec.batch is not None
        self._core = AgentCore(
            AgentId("a"), max(1, int(usable_cores())), batching={spec.name: spec.batch} if batching else {}
        )
        self._began: dict[JobId, float] = {}
        self._given = 0
        self._seconds: list[float] = []
        self._over = asyncio.Event()

    async def measure(self) -> tuple[float, float, list[float]]:
        """Attempts a second, seconds of processor time an attempt, and each one's seconds."""
        transfer = Transfer("token")
        self._runtime = Runtime(self._core, Catalog(points=()), self._models, Holder(), transfer, "", self._told)
        began, busy = time.perf_counter(), time.process_time()
        for _ in range(self._clients):
            self._next()
        await self._over.wait()
        rate, each = ATTEMPTS / (time.perf_counter() - began), (time.process_time() - busy) / ATTEMPTS
        await self._runtime.stop()
        await transfer.close()
        return rate, each, self._seconds

    def _next(self) -> None:
        if self._given == ATTEMPTS:
            return
        job = JobId(f"job-{self._given}")
        inputs = (self._inputs[self._given % len(self._inputs)],)
        self._given += 1
        self._began[job] = time.perf_counter()
        order = Assign(task=TaskToken(job, STAGE, FIRST), kind=EmbedTogether.spec.name, inputs=inputs)
        self._runtime.commands([order], EPOCH)

    def _told(self, report: Report) -> None:
        if not isinstance(report, Finished):
            return
        job = report.task.job
        self._seconds.append(time.perf_counter() - self._began.pop(job))
        # Not within the call that tells.
        asyncio.get_running_loop().call_soon(self._go_on, job)

    def _go_on(self, job: JobId) -> None:
        self._runtime.commands([Release(job=job)], EPOCH)
        self._next()
        if len(self._seconds) == ATTEMPTS:
            self._over.set()


def _input(text: str) -> Input:
    data, meta = values.encode(PortType.TEXT, text)
    ref = ValueRef(type=PortType.TEXT, bytes=len(data), digest=values.digest(data), meta=meta, inline=bytes(data))
    return Input(port="text", ref=ref, consumed=Consumed(StageId("up"), FIRST, ref.digest))


async def main(clients: int, repetitions: int) -> None:
    """Both ways in turns, after a warm-up of each."""
    texts = [question.question for question in quality.held_out()[:256]]
    models = ModelPool("", 1)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for number in range(repetitions + 1):
        for way in WAYS if number % 2 else reversed(WAYS):
            rate, busy, each = await Run(texts, clients, way == "together", models).measure()
            if number:
                costs[way].append(busy)
                rates[way].append(rate)
                seconds[way].append(each)
    for way in WAYS:
        quantiles = [statistics.quantiles(each, n=100) for each in seconds[way]]
        middle, late, last = (1e3 * statistics.median(found[n] for found in quantiles) for n in (49, 94, 98))
        spread = f"{statistics.median(rates[way]):.0f} a second [{min(rates[way]):.0f} to {max(rates[way]):.0f}]"
        cost = f"{1e3 * statistics.median(costs[way]):.2f} ms of processor time each"
        sys.stdout.write(f"{way:<12} {spread}, {cost}; p50 {middle:.1f} ms, p95 {late:.1f}, p99 {last:.1f}\n")
    faster = statistics.median(new / old for old, new in zip(*(rates[way] for way in WAYS), strict=True))
    cheaper = statistics.median(old / new for old, new in zip(*(costs[way] for way in WAYS), strict=True))
    sys.stdout.write(
        f"together over one by one: {faster:.2f}x as many a second, {cheaper:.2f}x a second of processor time\n"
    )


if __name__ == "__main__":
    asyncio.run(main(*(int(given) for given in (sys.argv[1:] + ["32", "7"][len(sys.argv) - 1 :])[:2])))
