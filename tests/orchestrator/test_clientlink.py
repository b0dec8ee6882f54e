"""The client's repeats: nothing is lost, doubled or waited for without end when the orchestrator goes away."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from grpc import aio

from starloom.agents import status
from starloom.dag import limits
from starloom.dag.constellation import Constellation, StageSpec
from starloom.dag.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    JobFailed,
    NotFound,
    Problem,
    StarloomError,
    Unauthenticated,
    Unavailable,
)
from starloom.dag.facts import (
    Fact,
    JobEnded,
    JobStatus,
    JobSubmitted,
    StageCommitted,
    encode_fact,
)
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId, StageId
from starloom.orchestrator import statefolder
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientjob import OWN_KEY_PREFIX, AsyncJob
from starloom.orchestrator.clientlink import ADDRESS_VARIABLE, TOKEN_VARIABLE, find_cluster
from starloom.v1 import control_pb2 as pb
from starloom.v1 import control_pb2_grpc

TOKEN = "secret"
JOB = JobId("job-1")
ONE = Constellation(name="one", stages={StageId("a"): StageSpec(id=StageId("a"), kind="basic.noop")})


class FakeControl(control_pb2_grpc.ControlServiceServicer):
    """Answers as each test says: `steps` are used up one call at a time, then `GetJob` tells of `info`."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.steps: list[Any] = []
        self.info = pb.Job(job_id=JOB, name="one", status="running", revision=1)

    async def Submit(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._step(request, context)

    async def GetJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.GetJobResponse(job=self.info)

    async def ListNodes(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._step(request, context)

    async def CancelJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._step(request, context)

    async def StreamEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.requests.append(request)
        for item in self.steps.pop(0):
            if isinstance(item, BaseException):
                await fail(context, item)
            if isinstance(item, asyncio.Event):
                await item.wait()
            yield pb.StreamEventsResponse(events=[item])

    async def _step(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            await fail(context, step)
        return step


class BreakError(Exception):
    """The connection broke, in the words that gRPC has for it."""

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, details: str = "Socket closed") -> None:
        self.code = code
        self.details = details


async def fail(context: Any, error: BaseException) -> None:
    if isinstance(error, BreakError):
        await context.abort(error.code, error.details)
    assert isinstance(error, StarloomError)
    await status.abort(context, error)


@pytest.fixture
async def control() -> AsyncIterator[FakeControl]:
    fake = FakeControl()
    server = aio.server(interceptors=[status.TokenCheck(TOKEN)], options=status.server_options())
    control_pb2_grpc.add_ControlServiceServicer_to_server(fake, server)  # type: ignore[no-untyped-call]
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"  # type: ignore[attr-defined]
    await server.start()
    yield fake
    await server.stop(None)


@pytest.fixture
async def client(control: FakeControl) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(control.address, TOKEN) as made:  # type: ignore[attr-defined]
        yield made


class Relay:
    """Passes connections on to a server, after `delay` seconds; those that are there at a `freeze` stay, and carry nothing.

    At most `rate` bytes a second go in each direction.
    """

    def __init__(self, address: str, delay: float = 0.0, rate: float = math.inf) -> None:
        self._delay = delay
        self._rate = rate
        self._host, _, self._port = address.rpartition(":")
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.freeze()
        for writer in self._writers:
            writer.close()

    def freeze(self) -> None:
        for pump in self._pumps:
            pump.cancel()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._delay)
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await asyncio.sleep(len(data) / self._rate)
            sink.write(data)
            await sink.drain()
        sink.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECT_SECONDS", 0.01)
    monkeypatch.setattr(limits, "ORCHESTRATOR_RESTART_SECONDS", 0.01)


def event(offset: int, fact: Fact) -> pb.Event:
    return pb.Event(offset=offset, unix_nanos=offset, fact_json=encode_fact(fact))


SUBMITTED = event(1, JobSubmitted(job=JOB, constellation=ONE))
COMMITTED = event(5, StageCommitted(job=JOB, stage=StageId("a"), token=FencingToken(Epoch(1), Attempt(1))))
SUCCEEDED = event(9, JobEnded(job=JOB, status=JobStatus.SUCCEEDED))


async def job_of(client: AsyncClient) -> AsyncJob:
    return await client.job(JOB)


async def offsets(job: AsyncJob, **how: Any) -> list[int]:
    return [item.offset async for item in job.events(**how)]


async def test_a_submission_whose_answer_was_lost_is_repeated_under_the_same_key(
    control: FakeControl, client: AsyncClient
) -> None:
    control.steps = [BreakError(), pb.SubmitResponse(job_id=JOB, revision=1, existing=True)]
    job = await client.submit(ONE)
    first, second = control.requests
    assert first == second
    assert first.key.startswith(OWN_KEY_PREFIX)
    assert job.id == JOB
    assert not job.existing


async def test_the_callers_key_is_kept_and_an_existing_job_said_so(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [pb.SubmitResponse(job_id=JOB, revision=1, existing=True)]
    job = await client.submit(ONE, key="mine", priority=-3, max_parallel=2, labels={"a": "b"})
    [request] = control.requests
    assert (request.key, request.priority, request.max_parallel, dict(request.labels)) == ("mine", -3, 2, {"a": "b"})
    assert job.existing


async def test_an_error_of_the_orchestrator_is_not_repeated(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [Conflict("the key 'mine' is taken")]
    with pytest.raises(Conflict, match="the key 'mine' is taken"):
        await client.submit(ONE, key="mine")
    assert len(control.requests) == 1


async def test_options_out_of_range_are_refused_before_anything_is_sent(
    control: FakeControl, client: AsyncClient
) -> None:
    with pytest.raises(InvalidInput) as raised:
        await client.submit(ONE, priority=2**40, max_parallel=-1)
    assert [problem.place for problem in raised.value.problems] == ["priority", "max_parallel"]
    assert control.requests == []


@pytest.mark.parametrize(
    "broken",
    [
        BreakError(),
        BreakError(grpc.StatusCode.CANCELLED, "CANCELLED"),
        BreakError(grpc.StatusCode.UNKNOWN, "Stream removed"),
        BreakError(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        Unavailable("the orchestrator is stopping"),
    ],
)
async def test_events_go_on_behind_the_last_one_after_a_break(
    control: FakeControl, client: AsyncClient, broken: Exception
) -> None:
    control.steps = [[SUBMITTED, broken], [broken], [SUBMITTED, COMMITTED, SUCCEEDED]]
    assert await offsets(await job_of(client)) == [1, 5, 9]
    assert [request.after_offset for request in control.requests] == [0, 1, 1]
    assert {request.job_id for request in control.requests} == {JOB}


async def test_a_stream_that_ends_before_its_job_is_asked_for_again(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [[SUBMITTED], [SUCCEEDED]]
    assert await offsets(await job_of(client)) == [1, 9]


async def test_what_was_missed_at_a_jobs_end_is_looked_up_once_more(control: FakeControl, client: AsyncClient) -> None:
    control.info.status = "succeeded"
    control.steps = [[SUBMITTED], [COMMITTED, SUCCEEDED]]
    assert await offsets(await job_of(client)) == [1, 5, 9]


async def test_events_behind_the_jobs_end_are_none(control: FakeControl, client: AsyncClient) -> None:
    control.info.status = "succeeded"
    control.steps = [[], []]
    assert await offsets(await job_of(client), after=9) == []


async def test_events_without_following_end_with_what_is_there(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [[SUBMITTED]]
    assert await offsets(await job_of(client), follow=False) == [1]
    assert not control.requests[0].follow


async def test_an_error_in_a_stream_is_raised(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [[SUBMITTED, NotFound("job-1 is not kept any more")]]
    job = await job_of(client)
    with pytest.raises(NotFound, match="not kept any more"):
        await offsets(job)


async def test_a_fact_of_a_newer_orchestrator_is_told_as_such(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [[pb.Event(offset=7, fact_json=b'{"fact":"stage-levitated"}')]]
    job = await job_of(client)
    with pytest.raises(StarloomError, match=r"event 7 .* newer"):
        await offsets(job)


async def test_waiting_for_the_end_asks_for_the_end_alone(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [[COMMITTED, SUCCEEDED]]
    assert await (await job_of(client)).result() == {}
    assert list(control.requests[0].kinds) == ["job-ended"]


async def test_a_failed_job_lists_every_failed_stage(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [[event(9, JobEnded(job=JOB, status=JobStatus.FAILED, error="2 stages failed"))]]
    control.info.stages.add(stage="a", kind="k", status="failed", reason="no face", node="camera", attempts=3)
    control.info.stages.add(stage="b", kind="k", status="failed", reason="no voice", attempts=1)
    control.info.stages.add(stage="c", kind="k", status="skipped")
    job = await job_of(client)
    with pytest.raises(JobFailed, match=r"job-1 \(one\) failed") as raised:
        await job.result()
    assert raised.value.problems == (
        Problem("stages.a", "no face (on camera, 3 attempts)"),
        Problem("stages.b", "no voice (one attempt)"),
    )


async def test_a_cancelled_job_is_no_failed_one(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [[event(9, JobEnded(job=JOB, status=JobStatus.CANCELLED, error="by hand"))]]
    job = await job_of(client)
    with pytest.raises(Cancelled, match="job-1 was cancelled: by hand"):
        await job.result()


async def test_a_result_that_takes_too_long_leaves_the_job_alone(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [[asyncio.Event()]]
    job = await job_of(client)
    with pytest.raises(DeadlineExceeded, match=r"job-1 did not end within 0\.01 s; it goes on"):
        await job.result(timeout=0.01)
    assert not any(isinstance(request, pb.CancelJobRequest) for request in control.requests)


async def test_a_call_that_is_not_answered_in_time_is_not_repeated(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [BreakError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")]
    with pytest.raises(Unavailable, match="did not answer within 30 s"):
        await client.nodes()
    assert len(control.requests) == 1


async def test_a_call_that_is_not_answered_says_whether_anybody_is_there(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEALTH_SECONDS", 0.1)
    control.steps = [pb.ListNodesResponse()]
    async with Relay(control.address) as path, AsyncClient(path.address, TOKEN) as client:  # type: ignore[attr-defined]
        assert await client.nodes() == []
        path.freeze()
        with pytest.raises(Unavailable, match=r"within 0\.1 s \(ListNodes\), nor a question.*event loop does not turn"):
            await client._link.call("ListNodes", pb.ListNodesRequest(), seconds=0.1)


async def test_a_client_that_stood_still_itself_says_so(control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOP_SLOW_SECONDS", 0.1)
    monkeypatch.setattr(limits, "HEALTH_SECONDS", 0.1)
    control.steps = [pb.ListNodesResponse()]
    async with Relay(control.address) as path, AsyncClient(path.address, TOKEN) as client:  # type: ignore[attr-defined]
        assert await client.nodes() == []
        path.freeze()
        call = asyncio.create_task(client._link.call("ListNodes", pb.ListNodesRequest(), seconds=0.1))
        await asyncio.sleep(0.05)
        time.sleep(0.5)  # noqa: ASYNC251
        with pytest.raises(Unavailable, match=r"noticed \d+\.\d s late, so this process was stopped or busy itself"):
            await call


async def test_a_connection_that_carries_nothing_any_more_is_made_anew(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEEPALIVE_SECONDS", 0.2)
    monkeypatch.setattr(limits, "LINK_SILENT_SECONDS", 0.2)
    control.steps = [pb.ListNodesResponse(), pb.ListNodesResponse()]
    async with Relay(control.address) as path, AsyncClient(path.address, TOKEN) as client:  # type: ignore[attr-defined]
        assert await client.nodes() == []
        path.freeze()
        assert await client.nodes() == []
    assert len(control.requests) == 2


async def test_a_stream_over_a_slow_link_is_not_taken_for_one_that_carries_nothing(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEEPALIVE_SECONDS", 0.2)
    monkeypatch.setattr(limits, "LINK_SILENT_SECONDS", 0.2)
    bulk = event(5, JobEnded(job=JOB, status=JobStatus.SUCCEEDED, error="x" * 2**20))
    control.steps = [[SUBMITTED, bulk]]
    async with Relay(control.address, rate=2**20) as path, AsyncClient(path.address, TOKEN) as client:  # type: ignore[attr-defined]
        assert await offsets(await job_of(client)) == [1, 5]
    assert len(control.requests) == 1


async def test_a_call_is_repeated_where_the_connection_of_streams_carries_nothing_either(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEEPALIVE_SECONDS", 0.2)
    monkeypatch.setattr(limits, "LINK_SILENT_SECONDS", 0.2)
    control.steps = [[SUBMITTED], pb.ListNodesResponse()]
    async with Relay(control.address) as path, AsyncClient(path.address, TOKEN) as client:  # type: ignore[attr-defined]
        assert await offsets(await job_of(client), follow=False) == [1]
        path.freeze()
        found = await asyncio.wait_for(client._link.call("ListNodes", pb.ListNodesRequest(), seconds=2), 30)
    assert found == pb.ListNodesResponse()


async def test_an_answer_over_a_slow_link_is_not_taken_for_silence(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEEPALIVE_SECONDS", 0.2)
    monkeypatch.setattr(limits, "LINK_SILENT_SECONDS", 0.2)
    monkeypatch.setattr(limits, "CONNECT_SECONDS", 5.0)
    control.info.name = "x" * 2**20
    async with Relay(control.address, rate=2**20) as path, AsyncClient(path.address, TOKEN) as client:  # type: ignore[attr-defined]
        assert len((await asyncio.wait_for(client.info(JOB), 20)).name) == 2**20


async def test_an_orchestrator_that_is_slow_to_say_hello_is_reached(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECONNECT_LAST_SECONDS", 0.1)
    control.steps = [pb.ListNodesResponse()]
    async with Relay(control.address, delay=0.5) as path, AsyncClient(path.address, TOKEN) as client:  # type: ignore[attr-defined]
        assert await client.nodes() == []


async def test_cancel_is_repeated_and_says_what_became_of_the_job(control: FakeControl, client: AsyncClient) -> None:
    control.steps = [BreakError(), pb.CancelJobResponse(status="cancelled", seconds=0.25)]
    stopped = await (await job_of(client)).cancel("enough")
    assert (stopped.job, stopped.status, stopped.seconds) == (JOB, JobStatus.CANCELLED, 0.25)
    assert [request.reason for request in control.requests] == ["enough", "enough"]


async def test_an_orchestrator_that_was_reached_is_waited_for_whatever_it_is_asked(
    control: FakeControl, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECT_SECONDS", 0.0)
    control.steps = [BreakError()]
    with pytest.raises(Unavailable):
        await client.nodes()
    control.steps = [pb.ListNodesResponse(), BreakError(), BreakError(), pb.ListNodesResponse()]
    assert await client.nodes() == []
    assert await client.nodes() == []
    assert control.steps == []


@pytest.mark.usefixtures("impatient")
async def test_nobody_there_is_unavailable_in_the_end(unused_tcp_port: int) -> None:
    async with AsyncClient(f"127.0.0.1:{unused_tcp_port}", TOKEN) as client:
        with pytest.raises(Unavailable, match=f"127.0.0.1:{unused_tcp_port} cannot be reached.*starloom up"):
            await client.jobs()


@pytest.mark.usefixtures("impatient")
async def test_a_follower_says_that_it_waits_and_gives_up_in_the_end(
    control: FakeControl, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    control.steps = [[SUBMITTED, BreakError()], *([BreakError()] for _ in range(100))]
    job = await job_of(client)
    seen: list[int] = []

    async def follow() -> None:
        async for item in job.events():
            seen.append(item.offset)  # noqa: PERF401  what came before the error is wanted as well

    with pytest.raises(Unavailable, match="Socket closed"):
        await follow()
    assert seen == [1]
    [record] = caplog.records
    assert "waiting up to 0.01 s for it to come back" in record.getMessage()


async def test_a_wrong_token_is_told(control: FakeControl) -> None:
    async with AsyncClient(control.address, "wrong") as client:  # type: ignore[attr-defined]
        with pytest.raises(Unauthenticated):
            await client.nodes()


async def test_a_closed_client_says_so(control: FakeControl, client: AsyncClient) -> None:
    await client.close()
    with pytest.raises(StarloomError, match="closed"):
        await client.jobs()


def test_the_given_address_comes_first_then_the_environment(tmp_path: Path) -> None:
    environment = {ADDRESS_VARIABLE: "b:2", TOKEN_VARIABLE: "t", "STARLOOM_HOME": str(tmp_path)}
    assert find_cluster("a:1", "s", environment) == ("a:1", "s")
    assert find_cluster("a:1", None, environment) == ("a:1", "t")
    assert find_cluster(None, None, environment) == ("b:2", "t")


def test_without_either_the_cluster_of_this_machine_is_meant(tmp_path: Path) -> None:
    environment = {"STARLOOM_HOME": str(tmp_path)}
    with pytest.raises(Unavailable, match="starloom up"):
        find_cluster(environment=environment)
    folder = tmp_path / "cluster"
    statefolder.prepare(folder)
    token = statefolder.make_token(folder)
    lock = statefolder.FolderLock(folder)
    record = statefolder.ClusterRecord(
        address="127.0.0.1:7", token_file=str(folder / statefolder.TOKEN_NAME), pid=1, orchestrator_pid=2
    )
    statefolder.write_cluster(folder, record)
    try:
        assert find_cluster(environment=environment) == ("127.0.0.1:7", token)
        assert find_cluster("127.0.0.1:7", environment=environment) == ("127.0.0.1:7", token)
        with pytest.raises(Unauthenticated, match=f"no token for 10.0.0.1:7; give it with {TOKEN_VARIABLE}"):
            find_cluster("10.0.0.1:7", environment=environment)
    finally:
        lock.release()


@pytest.mark.parametrize("address", ["here", ":1", "host:", "host:0", "host:65536", "host:x"])
def test_an_address_that_is_none_is_refused_with_its_place(address: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        find_cluster(environment={ADDRESS_VARIABLE: address, TOKEN_VARIABLE: "t"})
    assert raised.value.problems == (Problem(ADDRESS_VARIABLE, f"{address!r} is no host:port"),)
