"""The client: submits constellations, follows jobs, and fetches what they give.

    async with AsyncClient() as client:
        job = await client.submit(constellation, {"audio": Path("question.wav"), "image": Path("photo.jpg")})
        async for name, value in job.stream():
            ...                                     # each declared output, once its stage has it
        async for text in job.stream("captions"):
            ...                                     # the chunks of one that is a stream, as they come
        outputs = await job.result(timeout=60)

`starloom.Client` is the same without `await`. Needs neither Ray nor ONNX Runtime.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import msgspec

from starloom.agents import wire
from starloom.agents.transfer import Transfer
from starloom.agents.values import decode
from starloom.dag import limits
from starloom.dag.checks import number_fault, text_fault
from starloom.dag.constellation import Constellation
from starloom.dag.document import to_json
from starloom.dag.errors import InvalidInput, Problem, Unavailable
from starloom.dag.facts import StreamOptions
from starloom.dag.ids import JobId, Revision
from starloom.dag.kinds import KindCatalog
from starloom.dag.validate import problems
from starloom.dag.validate_stage import label_problems
from starloom.dag.values import ValueRef
from starloom.orchestrator import clientwire
from starloom.orchestrator.clientinputs import Encoded, encode_inputs
from starloom.orchestrator.clientjob import OWN_KEY_PREFIX, AsyncJob, all_of
from starloom.orchestrator.clientlink import Link, find_cluster
from starloom.orchestrator.clientstreams import Reading, value_of
from starloom.orchestrator.infos import ClusterInfo, Event, JobInfo, NodeInfo
from starloom.v1 import control_pb2 as pb

Result = TypeVar("Result")

_PRIORITY_MAX = 2**31 - 1


class AsyncClient:
    """A client for one event loop. Use it as a context manager, or `close` it.

    `address` is the orchestrator's, `host:port`, and `token` the cluster's. Where they are not given,
    `STARLOOM_ADDRESS` and `STARLOOM_TOKEN` are taken, else the cluster that `starloom up` runs here.
    Raises Unavailable if there is none, InvalidInput for an address that is none, Unauthenticated for a
    missing token.

    Any method raises Unavailable after CONNECT_SECONDS without an orchestrator, or twice that where its host says nothing
    at all. Once it was reached, whoever follows a job waits ORCHESTRATOR_RESTART_SECONDS for a new one, and goes on where it was.
    """

    def __init__(self, address: str | None = None, token: str | None = None) -> None:
        self.address, found = find_cluster(address, token)
        self._link = Link(self.address, found)
        self._transfer = Transfer(found)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all that this client and its jobs are doing: whoever waits for it gets ClientClosed. The jobs themselves go on."""
        # The link first: it tells why the others' calls end.
        await self._link.close()
        await self._transfer.close()

    async def submit(
        self,
        constellation: Constellation,
        inputs: Mapping[str, Any] | None = None,
        key: str = "",
        priority: int = 0,
        max_parallel: int = 0,
        labels: Mapping[str, str] | None = None,
        deadline_seconds: float = 0.0,
        streams: Mapping[str, StreamOptions] | None = None,
    ) -> AsyncJob:
        """Hands in a job; returns once it is accepted, which is durable.

        `inputs` are Python values by the port types that the constellation declares (see `agents.values`);
        for a BYTES input also a `pathlib.Path`, whose file is read. `key` is the caller's own name for the
        job: the same key and content again give the same job. Without one the client makes one up, so that
        a repeat after a lost answer cannot make a second job. A greater `priority` goes first;
        `max_parallel` bounds the stages that run at once, 0 is no bound; stages that stream into each other start
        together, once one of them may, and are not counted while one of them waits for another stage. A job that
        has not ended after `deadline_seconds`, in place of the constellation's deadline, fails; 0 leaves that.

        Input streams take no value here: they are fed by `AsyncJob.send`. `streams` says of some how they are taken in,
        and names those of the optional ones that are to be open.

        Raises InvalidConstellation, Infeasible or InvalidInput with everything that is wrong, Conflict if
        the key stands for another job, Overloaded, Unavailable.
        """
        _check_options(key, priority, max_parallel, labels or {}, deadline_seconds)
        try:
            document, encoded = await asyncio.to_thread(_encode, constellation, inputs or {})
        except InvalidInput as error:
            found = await self.problems(constellation)
            raise InvalidInput([*found, *error.problems], error.what) from error
        request = pb.SubmitRequest(
            constellation_json=document,
            inputs={name: wire.ref_to_wire(item.ref) for name, item in encoded.items()},
            key=key or f"{OWN_KEY_PREFIX}{uuid4().hex}",
            priority=priority,
            max_parallel=max_parallel,
            labels=labels,
            deadline_seconds=deadline_seconds,
            streams=_stream_options(streams or {}),
        )
        large = [item for item in encoded.values() if item.ref.inline is None]
        await all_of([partial(self._put, item.ref, item.data) for item in large])
        answer = await self._link.call("Submit", request)
        job = AsyncJob(self, JobId(answer.job_id), constellation, Revision(answer.revision))
        # Under a key of its own, what is there already is this very submission, whose answer was lost.
        job.existing = bool(key) and answer.existing
        return job

    async def job(self, id_or_key: str) -> AsyncJob:
        """A job that was submitted before, by anybody. Raises NotFound."""
        info = await self.info(id_or_key)
        return AsyncJob(self, info.id, info.constellation, info.revision)

    async def info(self, id_or_key: str, revision: int = 0) -> JobInfo:
        """One job as it stands, with its constellation as it was at a revision, or is. Raises NotFound."""
        response = await self._link.call("GetJob", pb.GetJobRequest(job_id=id_or_key, revision=revision))
        return clientwire.job_from_wire(response.job)

    async def jobs(self, limit: int = 0) -> list[JobInfo]:
        """The jobs that are kept, the newest first, at most `limit` unless 0; without their stages."""
        response = await self._link.call("ListJobs", pb.ListJobsRequest(limit=limit))
        return [clientwire.job_from_wire(job) for job in response.jobs]

    async def nodes(self) -> list[NodeInfo]:
        """The nodes, as their agents reported them."""
        return list((await self.cluster()).nodes)

    async def cluster(self) -> ClusterInfo:
        """The nodes, and the orchestrator that tells of them."""
        return clientwire.cluster_from_wire(await self._link.call("ListNodes", pb.ListNodesRequest()))

    async def kinds(self) -> KindCatalog:
        """The stage kinds that the nodes can run."""
        return clientwire.kinds_from_wire(await self._link.call("ListKinds", pb.ListKindsRequest()))

    async def problems(self, constellation: Constellation) -> list[Problem]:
        """Everything that is wrong with a constellation, by the kinds that the nodes can run; empty if nothing is."""
        return problems(constellation, await self.kinds())

    def events(self, after: int = 0, follow: bool = True) -> AsyncGenerator[Event, None]:
        """The facts of the journal after an offset: those that are there, and with `follow` all that come, for ever."""
        return self._link.events("", after, follow=follow)

    async def fetch(self, job: JobId, name: str, ref: ValueRef) -> Any:
        """The value of a declared output `name`, of a stream the list of its chunks' values.

        Raises NotFound if its job is not kept any more.
        """
        if ref.stream:
            reading = Reading(self._link, job, name)
            return [value_of(ref.type, chunk, f"outputs.{name}").value async for chunk in reading.chunks()]
        data = await self._reach(partial(self._transfer.fetch, self.address, job, ref))
        return decode(ref.type, data, ref.meta, f"outputs.{name}")

    async def _put(self, ref: ValueRef, data: bytes) -> None:
        await self._reach(partial(self._transfer.put, self.address, ref, data))

    async def _reach(self, transfer: Callable[[], Awaitable[Result]]) -> Result:
        """What a transfer gives, which is repeated as calls are."""
        try:
            return await self._link.patiently(transfer)
        except Unavailable as error:
            raise self._link.unreachable(error) from error


def _encode(constellation: Constellation, inputs: Mapping[str, Any]) -> tuple[bytes, dict[str, Encoded]]:
    try:
        return msgspec.json.encode(to_json(constellation)), encode_inputs(constellation, inputs)
    except UnicodeEncodeError as error:
        # Where that is, validation finds.
        raise InvalidInput([], f"constellation {constellation.name!r} cannot be sent") from error


def _stream_options(streams: Mapping[str, StreamOptions]) -> dict[str, pb.StreamOptions]:
    return {name: pb.StreamOptions(full=each.full or "", spool=each.spool) for name, each in streams.items()}


def _check_options(
    key: str, priority: int, max_parallel: int, labels: Mapping[str, str], deadline_seconds: float
) -> None:
    found = [*label_problems("labels", labels)]
    if fault := text_fault(key):
        found.append(Problem("key", fault))
    if not -_PRIORITY_MAX <= priority <= _PRIORITY_MAX:
        found.append(Problem("priority", f"{priority} is not between -{_PRIORITY_MAX} and {_PRIORITY_MAX}"))
    if not 0 <= max_parallel <= limits.JOB_PARALLEL_MAX:
        found.append(
            Problem("max_parallel", f"{max_parallel} is not 0 to JOB_PARALLEL_MAX = {limits.JOB_PARALLEL_MAX}")
        )
    longest = limits.DURATION_SECONDS_MAX
    if fault := number_fault(deadline_seconds, at_most=longest, unit="seconds, 0 for no bound"):
        found.append(Problem("deadline_seconds", fault))
    if found:
        raise InvalidInput(found, "the job's options are not right")
