"""The client: submits constellations, follows jobs, and fetches what they give.

    async with AsyncClient() as client:
        job = await client.submit(constellation, {"audio": Path("question.wav"), "image": Path("photo.jpg")})
        async for name, value in job.stream():
            ...                                     # each declared output, once its stage has it
        outputs = await job.result(timeout=60)

`starloom.Client` is the same without `await`. Needs neither Ray nor ONNX Runtime.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import uuid4

import msgspec

from starloom.agents import wire
from starloom.agents.transfer import Transfer
from starloom.agents.values import decode
from starloom.dag import limits
from starloom.dag.checks import number_fault, text_fault
from starloom.dag.constellation import Constellation
from starloom.dag.document import to_json
from starloom.dag.edit import Edit
from starloom.dag.errors import Cancelled, DeadlineExceeded, InvalidInput, JobFailed, NotFound, Problem, Unavailable
from starloom.dag.facts import JobEnded, JobStatus, StageCommitted, StageDefaulted
from starloom.dag.ids import JobId, Revision
from starloom.dag.kinds import KindCatalog
from starloom.dag.patch import Patch, between, operations_of
from starloom.dag.patchdoc import patch_to_json
from starloom.dag.stagestate import StageStatus
from starloom.dag.validate import problems
from starloom.dag.validate_stage import label_problems
from starloom.dag.values import ValueRef
from starloom.orchestrator import clientwire
from starloom.orchestrator.clientinputs import Encoded, encode_inputs
from starloom.orchestrator.clientlink import Link, find_cluster
from starloom.orchestrator.effects import Patched, Stopped
from starloom.orchestrator.infos import ClusterInfo, Event, JobInfo, NodeInfo
from starloom.v1 import control_pb2 as pb

OWN_KEY_PREFIX: Final = "auto-"
"""How the keys begin that a client makes up where the caller gave none."""

_OUTPUT_KINDS = ("stage-committed", "stage-defaulted", "job-ended")
_END_KINDS = ("job-ended",)
Result = TypeVar("Result")

_PRIORITY_MAX = 2**31 - 1
_PATCH_SECONDS = limits.PATCH_SETTLE_SECONDS * (limits.PATCHES_WAITING_MAX + 1) + limits.RPC_DEADLINE_SECONDS
_CANCEL_SECONDS = limits.CANCEL_GRACE_SECONDS + limits.RPC_DEADLINE_SECONDS


class AsyncClient:
    """A client for one event loop. Use it as a context manager, or `close` it.

    `address` is the orchestrator's, `host:port`, and `token` the cluster's. Where they are not given,
    `STARLOOM_ADDRESS` and `STARLOOM_TOKEN` are taken, else the cluster that `starloom up` runs here.
    Raises Unavailable if there is none, InvalidInput for an address that is none, Unauthenticated for a
    missing token.

    Any method raises Unavailable after CONNECT_SECONDS without an orchestrator. Once it was reached,
    whoever follows a job waits ORCHESTRATOR_RESTART_SECONDS for a new one, and goes on where it was.
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
        """Ends all that this client and its jobs are doing. The jobs themselves go on."""
        await self._transfer.close()
        await self._link.close()

    async def submit(
        self,
        constellation: Constellation,
        inputs: Mapping[str, Any] | None = None,
        key: str = "",
        priority: int = 0,
        max_parallel: int = 0,
        labels: Mapping[str, str] | None = None,
        deadline_seconds: float = 0.0,
    ) -> "AsyncJob":
        """Hands in a job; returns once it is accepted, which is durable.

        `inputs` are Python values by the port types that the constellation declares (see `agents.values`);
        for a BYTES input also a `pathlib.Path`, whose file is read. `key` is the caller's own name for the
        job: the same key and content again give the same job. Without one the client makes one up, so that
        a repeat after a lost answer cannot make a second job. A greater `priority` goes first;
        `max_parallel` bounds the stages that run at once, 0 is no bound. A job that has not ended after
        `deadline_seconds`, in place of the constellation's deadline, fails; 0 leaves that.

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
        )
        large = [item for item in encoded.values() if item.ref.inline is None]
        await _all([partial(self._put, item.ref, item.data) for item in large])
        answer = await self._link.call("Submit", request)
        job = AsyncJob(self, JobId(answer.job_id), constellation, Revision(answer.revision))
        # Under a key of its own, what is there already is this very submission, whose answer was lost.
        job.existing = bool(key) and answer.existing
        return job

    async def job(self, id_or_key: str) -> "AsyncJob":
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
        """The value of a declared output `name`. Raises NotFound if its job is not kept any more."""
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


class AsyncJob:
    """A submitted job. `existing`: it was there before, under the same key."""

    def __init__(
        self, client: AsyncClient, job_id: JobId, constellation: Constellation | None, revision: Revision
    ) -> None:
        self.id = job_id
        self.revision = revision
        self.existing = False
        self._client = client
        self._constellation = constellation

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def status(self) -> JobInfo:
        """The job as it stands, with its stages."""
        return await self._client.info(self.id)

    async def result(self, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109
        """Waits for the end; returns every declared output by name.

        Raises JobFailed with the error of each failed stage, Cancelled, and DeadlineExceeded after `timeout`
        seconds, when the job goes on.
        """
        try:
            async with asyncio.timeout(timeout):
                ended = await self._end()
                return await self._values(ended.outputs)
        except TimeoutError as error:
            if isinstance(error, DeadlineExceeded):
                raise
            raise DeadlineExceeded(
                f"job {self.id} did not end within {timeout:g} s; it goes on, and `result` may be asked again"
            ) from None

    async def stream(self) -> AsyncGenerator[tuple[str, Any], None]:
        """Yields each declared output, as (name, value), once its stage has it; ends with the job.

        An output comes again where its stage had to run again and gave something else. Raises JobFailed or
        Cancelled at the end of a job that did not succeed.
        """
        sources = await self._sources()
        given: dict[str, str] = {}
        async with aclosing(self._client._link.events(self.id, kinds=_OUTPUT_KINDS)) as events:
            async for event in events:
                match event.fact:
                    case StageCommitted() | StageDefaulted() as fact:
                        there = {
                            name: fact.outputs[port]
                            for port, names in sources.get(fact.stage, {}).items()
                            for name in names
                            if port in fact.outputs
                        }
                    case JobEnded() as fact:
                        there = fact.outputs
                    case _:
                        continue
                for name, ref in there.items():
                    if given.get(name) != ref.digest:
                        given[name] = ref.digest
                        yield name, await self._client.fetch(self.id, name, ref)
                if isinstance(event.fact, JobEnded):
                    await self._raise_unless_succeeded(event.fact)

    def events(self, after: int = 0, follow: bool = True) -> AsyncGenerator[Event, None]:
        """The job's facts after an offset: those that are there, and with `follow` all until it ends."""
        return self._client._link.events(self.id, after, follow=follow)

    async def cancel(self, reason: str = "") -> Stopped:
        """Stops the job; returns once nothing of it runs any more, with what it ended as."""
        request = pb.CancelJobRequest(job_id=self.id, reason=reason)
        answer = await self._client._link.call("CancelJob", request, seconds=_CANCEL_SECONDS)
        return clientwire.stopped_from_wire(answer, self.id)

    def edit(self, if_revision: int = 0, restart: bool = False, why: str = "") -> "AsyncEdit":
        """Changes the job while it runs; the changes are made together, at the end of the block:

            async with job.edit(why="a better one") as edit:
                edit.replace("words", kind="speech.recognise")

        With `if_revision` only if the job is at that revision. Stages that have started are changed only with
        `restart`, and run again, with what is downstream. `edit.patched` is the answer; see `patch` for what it raises.
        """
        return AsyncEdit(self, if_revision=if_revision, restart=restart, why=why)

    async def patch(self, patch: Patch) -> Patched:
        """Changes the job while it runs; returns once that is durable, with the new revision.

        Raises PatchRefused with every reason, and nothing has changed; Conflict for a job that does not run;
        Overloaded. Without an id the client makes one up, so that a repeat after a lost answer changes nothing twice.
        """
        named = patch if patch.id else msgspec.structs.replace(patch, id=f"{OWN_KEY_PREFIX}{uuid4().hex}")
        document = await asyncio.to_thread(lambda: msgspec.json.encode(patch_to_json(named)))
        request = pb.PatchJobRequest(job_id=self.id, patch_json=document)
        answer = await self._client._link.call("PatchJob", request, seconds=_PATCH_SECONDS)
        patched = clientwire.patched_from_wire(answer, self.id)
        self.revision, self._constellation = patched.revision, None
        return patched

    async def undo(self, revision: int, restart: bool = False, why: str = "") -> Patched:
        """Takes back what the patch to a revision changed, by another patch. Raises as `patch`, and NotFound."""
        before, after = [
            (await self._client.info(self.id, number)).constellation for number in (revision - 1, revision)
        ]
        if before is None or after is None:
            raise NotFound(f"job {self.id} has a constellation that no document can say; it cannot be undone from here")
        operations = operations_of(between(after, before))
        return await self.patch(Patch(operations=operations, restart=restart, why=why or f"undo revision {revision}"))

    async def _end(self) -> JobEnded:
        async with aclosing(self._client._link.events(self.id, kinds=_END_KINDS)) as events:
            async for event in events:
                if isinstance(event.fact, JobEnded):
                    await self._raise_unless_succeeded(event.fact)
                    return event.fact
        info = await self.status()
        return JobEnded(job=self.id, status=info.status, outputs=info.outputs, error=info.error)

    async def _raise_unless_succeeded(self, ended: JobEnded) -> None:
        if ended.status is JobStatus.CANCELLED:
            raise Cancelled(f"job {self.id} was cancelled{f': {ended.error}' if ended.error else ''}")
        if ended.status is not JobStatus.SUCCEEDED:
            raise job_failed(await self.status())

    async def _values(self, outputs: Mapping[str, ValueRef]) -> dict[str, Any]:
        values = await _all([partial(self._client.fetch, self.id, name, ref) for name, ref in outputs.items()])
        return dict(zip(outputs, values, strict=True))

    async def _sources(self) -> dict[str, dict[str, list[str]]]:
        """The names of declared outputs, by stage and port."""
        if self._constellation is None:
            self._constellation = (await self.status()).constellation
        sources: dict[str, dict[str, list[str]]] = {}
        for name, output in self._constellation.outputs.items() if self._constellation else ():
            sources.setdefault(output.upstream, {}).setdefault(output.output, []).append(name)
        return sources


class AsyncEdit(Edit):
    """Changes of a job, made together at the end of an `async with` block; see `AsyncJob.edit`."""

    def __init__(self, job: AsyncJob, *, if_revision: int, restart: bool, why: str) -> None:
        super().__init__(if_revision=if_revision, restart=restart, why=why)
        self._job = job
        #: the answer, after the block
        self.patched: Patched | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.patched = await self._job.patch(self.patch())


async def _all(work: Sequence[Callable[[], Awaitable[Result]]]) -> list[Result]:
    """What all of `work` gives, in order; at most TRANSFERS_AT_ONCE_MAX at one time."""
    at_once = asyncio.Semaphore(limits.TRANSFERS_AT_ONCE_MAX)

    async def one(item: Callable[[], Awaitable[Result]]) -> Result:
        async with at_once:
            return await item()

    return await asyncio.gather(*map(one, work))


def _encode(constellation: Constellation, inputs: Mapping[str, Any]) -> tuple[bytes, dict[str, Encoded]]:
    try:
        return msgspec.json.encode(to_json(constellation)), encode_inputs(constellation, inputs)
    except UnicodeEncodeError as error:
        # Where that is, validation finds.
        raise InvalidInput([], f"constellation {constellation.name!r} cannot be sent") from error


def job_failed(info: JobInfo) -> JobFailed:
    """The error of a failed job, with each failed stage's."""
    errors = [
        Problem(f"stages.{stage.name}", f"{stage.reason or 'failed'} ({_where(stage.node, stage.attempts)})")
        for stage in info.stages
        if stage.status is StageStatus.FAILED
    ]
    what = f"job {info.id} ({info.name}) failed"
    return JobFailed(what if errors or not info.error else f"{what}: {info.error}", errors, info.cause)


def _where(node: str, attempts: int) -> str:
    tries = "one attempt" if attempts == 1 else f"{attempts} attempts"
    return f"on {node}, {tries}" if node else tries


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
