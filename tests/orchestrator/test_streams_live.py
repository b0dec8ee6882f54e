"""Streams from a client through stages on agents and back to clients: order, gaps, repeats, bounds."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.orchestrator.live import Cluster
from tests.orchestrator.streamkit import KINDS, Processes, agent, counted, fed, paced

from starloom import Client, Graph
from starloom.dag import limits
from starloom.dag.document import dump
from starloom.dag.errors import Cancelled, Conflict, InvalidInput, JobFailed, NotFound
from starloom.dag.facts import StreamOptions
from starloom.dag.values import Full, PortType
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientjob import AsyncJob
from starloom.orchestrator.clientlink import ADDRESS_VARIABLE, TOKEN_VARIABLE

SECONDS = 60
SPOOLED = {"mic": StreamOptions(spool=True)}


@pytest.fixture
async def streaming(tmp_path: Path) -> AsyncIterator[Cluster]:
    """An orchestrator and two agents with one slot each."""
    made = Cluster(tmp_path / "orchestrator")
    await made.up()
    try:
        async with agent(made.address, "a"), agent(made.address, "b"):
            yield made
    finally:
        await made.down()


@pytest.fixture
async def client(streaming: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(streaming.address, "secret") as made:
        yield made


async def take(stream: Any, count: int) -> list[Any]:
    """The next so many items."""
    async with asyncio.timeout(SECONDS):
        return [await anext(stream) for _ in range(count)]


async def rest(stream: Any) -> list[Any]:
    """All that is still to come."""
    async with asyncio.timeout(SECONDS):
        return [item async for item in stream]


async def feed(job: AsyncJob, numbers: range, port: str = "mic") -> None:
    for number in numbers:
        await job.send(port, [number])


async def feed_all(job: AsyncJob, numbers: range) -> None:
    await feed(job, numbers)
    await job.flush("mic")


async def test_each_chunk_is_there_before_the_next_is_sent(client: AsyncClient) -> None:
    job = await client.submit(fed(second="b"))
    async with aclosing(job.stream("answer")) as answer:
        for number in range(20):
            assert await job.send("mic", [number]) == number
            assert await take(answer, 1) == [[4 * number]]
        assert (await job.status()).status == "running"
        assert await job.close("mic") == 20
        assert await rest(answer) == []
    outputs = await job.result(SECONDS)
    assert outputs == {"answer": [[4 * number] for number in range(20)], "total": 4 * sum(range(20))}


async def test_a_reader_that_is_behind_when_its_stream_ends_gets_the_rest_by_the_same_call(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, calls = client._link.data, list[Any]()

    def counted_data() -> Any:
        calls.append(data())
        return calls[-1]

    job = await client.submit(fed())
    await feed_all(job, range(1))
    monkeypatch.setattr(client._link, "data", counted_data)
    async with aclosing(job.stream("answer")) as answer:
        assert await take(answer, 1) == [[0]]
        assert len(calls) == 1
        await feed_all(job, range(1, 4))
        await job.close("mic")
        # The end has come by the same connection before this does, and the reader has not said that it has the first chunk.
        assert (await job.result(SECONDS))["total"] == 4 * sum(range(4))
        del calls[1:]
        assert await rest(answer) == [[4], [8], [12]]
    assert len(calls) == 1


async def test_what_goes_with_a_chunk_comes_through(client: AsyncClient) -> None:
    job = await client.submit(fed(total=False))
    await job.send("mic", [1], at=12.5)
    async with aclosing(job.chunks("answer")) as chunks:
        first = (await take(chunks, 1))[0]
        assert (first.offset, first.value, first.generation, first.at) == (0, [4], 0, 12.5)
        await job.send("mic", [2], generation=3)
        second = (await take(chunks, 1))[0]
        assert (second.value, second.generation, second.at) == ([8], 3, None)
        await job.close("mic")


async def test_a_stream_that_has_ended_is_read_from_any_offset_and_by_many(client: AsyncClient) -> None:
    job = await client.submit(counted(300))
    await job.result(SECONDS)
    found = await rest(job.chunks("answer", after=295))
    assert [(item.offset, item.value[0]) for item in found] == [(offset, 2 * offset) for offset in range(295, 300)]
    both = await asyncio.gather(*(rest(job.stream("answer")) for _ in range(2)))
    assert both == [[[2 * number, ""] for number in range(300)]] * 2
    assert await rest(job.chunks("answer", after=300)) == []
    info = await job.status()
    assert info.outputs["answer"].stream
    assert info.outputs["answer"].meta["chunks"] == 300


async def test_a_client_that_does_not_read_keeps_nothing_back_but_a_window(client: AsyncClient) -> None:
    job = await client.submit(counted(2_000))
    async with aclosing(job.chunks("answer")) as chunks:
        assert (await take(chunks, 1))[0].offset == 0
        # The job ends though its reader stands still: what is declared is kept on the disk.
        await job.result(SECONDS)
        assert [item.offset for item in await rest(chunks)] == list(range(1, 2_000))


async def test_a_reader_that_stands_still_costs_bounded_memory_and_no_chunk(
    streaming: Cluster, client: AsyncClient
) -> None:
    """The producer could give 200 MB while its reader stands still, and gives what its bound lets it."""
    job = await client.submit(paced(2_000, size=100_000))
    async with aclosing(job.chunks("answer")) as answer:
        await feed(job, range(1), "go")
        assert (await take(answer, 1))[0].value[0] == 0
        before = psutil.Process().memory_info().rss
        for number in range(1, 150):
            await job.send("go", [number])
            assert (await take(answer, 1))[0].value[0] == number
        assert psutil.Process().memory_info().rss < before + 60_000_000
    await job.cancel()


async def test_slow_stages_slow_the_one_who_feeds_them(client: AsyncClient) -> None:
    job = await client.submit(fed(total=False, second="b"))
    sent = 0

    async def send_on() -> None:
        nonlocal sent
        while True:
            await job.send("mic", [sent, "x" * 500_000])
            sent += 1

    async with aclosing(job.chunks("answer")) as chunks:
        sending = asyncio.create_task(send_on())
        got = [item.value[0] for item in await take(chunks, 30)]
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert got == [4 * number for number in range(30)]
    await job.cancel()


async def test_the_synchronous_client_streams_as_well(streaming: Cluster) -> None:
    def work() -> tuple[list[Any], dict[str, Any]]:
        with Client(streaming.address, "secret") as client:
            job = client.submit(fed(), streams=SPOOLED)
            for number in range(5):
                job.send("mic", [number])
            assert job.flush("mic") == 5
            answer = job.stream("answer")
            first = next(answer)
            job.close("mic")
            chunks = list(job.chunks("answer", after=3))
            return [first, *answer, [chunk.offset for chunk in chunks]], job.result(SECONDS)

    found, outputs = await asyncio.to_thread(work)
    assert found == [[0], [4], [8], [12], [16], [3, 4]]
    assert outputs["total"] == 40


async def test_another_client_goes_on_where_the_first_stopped_and_the_first_is_told(
    streaming: Cluster, client: AsyncClient
) -> None:
    job = await client.submit(fed())
    await feed(job, range(3))
    await job.flush("mic")
    async with AsyncClient(streaming.address, "secret") as other:
        mine = await other.job(job.id)
        assert await mine.send("mic", [3]) == 3
        await mine.flush("mic")
        with pytest.raises(Conflict, match="another client"):
            await feed_all(job, range(3, 40))
        await mine.close("mic")
    assert (await job.result(SECONDS))["total"] == 4 * 6


async def test_a_closed_stream_takes_no_more_and_closing_again_is_fine(client: AsyncClient) -> None:
    job = await client.submit(fed())
    await feed(job, range(2))
    assert await job.close("mic") == 2
    assert await job.close("mic") == 2
    with pytest.raises(Conflict, match="was closed"):
        await job.send("mic", [2])
    await job.result(SECONDS)
    again = await client.job(job.id)
    with pytest.raises(Conflict, match="takes no more"):
        await again.send("mic", [2])


async def test_names_and_values_that_do_not_fit_are_told(client: AsyncClient) -> None:
    job = await client.submit(fed())
    with pytest.raises(NotFound, match="no input stream 'mike'; it has mic"):
        await job.send("mike", [1])
    with pytest.raises(InvalidInput, match=r"inputs.mic\[0\]: is no json"):
        await job.send("mic", object())
    with pytest.raises(InvalidInput, match=r"inputs.mic\[0\]: has the generation -1"):
        await job.send("mic", [1], generation=-1)
    assert await job.send("mic", [1]) == 0, "what was refused has taken no place"
    with pytest.raises(NotFound, match="no output 'answers'; its outputs: answer, total"):
        await anext(job.stream("answers"))
    with pytest.raises(NotFound, match="no stream among its outputs that is called 'total'"):
        await anext(job.stream("total"))
    await job.cancel()


async def test_a_job_that_ends_without_the_stream_says_why(client: AsyncClient) -> None:
    job = await client.submit(fed(kind="test.broken", total=False))
    await job.send("mic", [1])
    answer = job.stream("answer")
    assert await take(answer, 1) == [[2]]
    await job.send("mic", [2])
    with pytest.raises(JobFailed, match="no more of this"):
        await rest(answer)
    other = await client.submit(fed())
    await other.send("mic", [1])
    answer = other.stream("answer")
    assert await take(answer, 1) == [[4]]
    await other.cancel()
    with pytest.raises(Cancelled):
        await rest(answer)


async def test_a_stage_that_has_enough_lets_the_job_end_and_the_feeder_know(client: AsyncClient) -> None:
    graph = Graph("enough")
    mic = graph.input("mic", PortType.JSON, stream=True)
    graph.output("answer", graph.stage("first", "test.first", numbers=mic, params={"last": 4})["numbers"])
    job = await client.submit(graph.build(KINDS))
    await feed(job, range(5))
    assert (await job.result(SECONDS))["answer"] == [[number] for number in range(5)]
    with pytest.raises(Conflict, match="takes no more: job"):
        await feed_all(job, range(5, 50))


async def test_an_input_that_drops_never_slows_its_feeder(client: AsyncClient) -> None:
    graph = Graph("live")
    mic = graph.input("mic", PortType.JSON, stream=True, full=Full.OLDEST)
    first = graph.stage("first", "test.twice", numbers=mic)
    graph.output("answer", first["numbers"])
    job = await client.submit(graph.build(KINDS))
    count = 4 * limits.STREAM_BUFFER_CHUNKS
    await feed(job, range(count))
    await job.close("mic")
    found = [value[0] // 2 for value in (await job.result(SECONDS))["answer"]]
    assert found == sorted(set(found)), "what comes is in order, and comes once"
    assert found[-1] == count - 1


async def test_streams_go_on_over_a_restart_of_the_orchestrator(streaming: Cluster, client: AsyncClient) -> None:
    for options in (SPOOLED, None):
        job = await client.submit(fed(second="b"), streams=options)
        async with aclosing(job.stream("answer")) as answer:
            await feed(job, range(5))
            await job.flush("mic")
            assert await take(answer, 5) == [[4 * number] for number in range(5)]
            await streaming.down()
            await streaming.up()
            await feed(job, range(5, 9))
            await job.close("mic")
            assert await rest(answer) == [[4 * number] for number in range(5, 9)]
        assert (await job.result(SECONDS))["total"] == 4 * sum(range(9))


class TestShell:
    @pytest.fixture
    def starloom(
        self, streaming: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> Callable[..., Any]:
        """Runs a command with `--json` in a thread; gives its exit status and its lines."""
        monkeypatch.setenv(ADDRESS_VARIABLE, streaming.address)
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")

        async def run(*argv: object, people: bool = False) -> tuple[int, list[Any]]:
            capfd.readouterr()
            code = await asyncio.to_thread(main, [*map(str, argv), *([] if people else ["--json"])])
            said = capfd.readouterr()
            sys.stderr.write(said.err)
            return code, said.out.splitlines() if people else [json.loads(line) for line in said.out.splitlines()]

        return run

    async def test_a_file_is_fed_and_the_chunks_of_an_output_are_printed(
        self, starloom: Callable[..., Any], tmp_path: Path, client: AsyncClient
    ) -> None:
        (tmp_path / "numbers.jsonl").write_text("".join(f"[{number}]\n" for number in range(5)))
        document = tmp_path / "fed.yaml"
        document.write_text(dump(fed()))
        mic = f"mic={tmp_path / 'numbers.jsonl'}"
        code, [row] = await starloom("submit", document, "--stream", mic, "--spool", "--watch", "--key", "one")
        assert (code, row["status"]) == (0, "succeeded")
        assert row["outputs"]["total"] == 40
        assert row["outputs"]["answer"]["meta"] == {"stream": True, "chunks": 5}
        assert (await client.info("one")).status == "succeeded"
        code, rows = await starloom("watch", "one", "--port", "answer", "--after", 2)
        assert code == 0
        assert [(each["offset"], each["value"], each["generation"], each["at"]) for each in rows] == [
            (2, [8], 0, None),
            (3, [12], 0, None),
            (4, [16], 0, None),
        ]
        assert await starloom("watch", "one", "--port", "answer", people=True) == (0, [f"[{4 * n}]" for n in range(5)])
        assert (await starloom("watch", "one", "--port", "total"))[1][0]["value"] == 40
        code, [row] = await starloom("get", "one", "--output", "answer", "-o", tmp_path / "out.jsonl")
        assert code == 0
        assert (tmp_path / "out.jsonl").read_text() == "".join(f"[{4 * number}]\n" for number in range(5))

    async def test_what_cannot_be_fed_is_said_before_the_job_is_handed_in(
        self, starloom: Callable[..., Any], tmp_path: Path, client: AsyncClient
    ) -> None:
        document = tmp_path / "fed.yaml"
        document.write_text(dump(fed()))
        code, [row] = await starloom("submit", document, "--stream", "mike=x", "--stream", f"mic={tmp_path / 'no'}")
        assert code == 2
        assert [problem["place"] for problem in row["error"]["problems"]] == ["inputs.mike", "inputs.mic"]
        assert (await starloom("submit", document, "--spool"))[0] == 2
        assert await client.jobs() == []


class TestKilled:
    @pytest.fixture
    async def processes(self, tmp_path: Path) -> AsyncIterator[Processes]:
        async with Processes(tmp_path / "cluster") as made:
            await asyncio.gather(made.agent("a"), made.agent("b"))
            yield made

    @pytest.mark.parametrize("victim", ["a", "b", "orchestrator"])
    async def test_the_clients_chunks_have_no_gap_and_no_repeat(self, processes: Processes, victim: str) -> None:
        """`a` has the producer, `b` its reader."""
        client = await processes.client()
        job = await client.submit(counted(400, size=2_000, producer="a", consumer="b"))
        async with aclosing(job.chunks("answer")) as chunks:
            got = await take(chunks, 30)
            await processes.kill(victim)
            await (processes.orchestrator() if victim == "orchestrator" else processes.agent(victim))
            got += await rest(chunks)
        assert [(item.offset, item.value[0]) for item in got] == [(number, 2 * number) for number in range(400)]
        await job.result(SECONDS)

    @pytest.mark.parametrize("victim", ["b", "orchestrator"])
    async def test_what_is_spooled_is_fed_once_and_read_again(self, processes: Processes, victim: str) -> None:
        client = await processes.client()
        job = await client.submit(fed(second="b"), streams=SPOOLED)
        async with aclosing(job.stream("answer")) as answer:
            await feed(job, range(50))
            assert await job.flush("mic") == 50
            got = await take(answer, 20)
            await processes.kill(victim)
            await asyncio.gather(
                processes.orchestrator() if victim == "orchestrator" else processes.agent(victim),
                feed(job, range(50, 100)),
            )
            await job.close("mic")
            got += await rest(answer)
        assert got == [[4 * number] for number in range(100)]
        assert (await job.result(SECONDS))["total"] == 4 * sum(range(100))

    async def test_what_is_not_spooled_and_lost_is_said(self, processes: Processes) -> None:
        client = await processes.client()
        job = await client.submit(fed(second="b"))
        await feed(job, range(200))
        async with aclosing(job.stream("answer")) as answer:
            await take(answer, 200)
            await processes.kill("b")
            await processes.agent("b")
            with pytest.raises(JobFailed, match="submit the job with this input spooled"):
                await rest(answer)
