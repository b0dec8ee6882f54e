"""A submitted job, as a client has it: followed, changed, cancelled, and its outputs fetched."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload
from uuid import uuid4

import msgspec

from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.edit import Edit
from starloom.dag.errors import Cancelled, DeadlineExceeded, JobFailed, NotFound, Problem
from starloom.dag.facts import JobEnded, JobStatus, StageCommitted, StageDefaulted
from starloom.dag.ids import JobId, Revision
from starloom.dag.patch import Patch, between, operations_of
from starloom.dag.patchdoc import patch_to_json
from starloom.dag.stagestate import StageStatus
from starloom.dag.values import ValueRef
from starloom.orchestrator import clientwire
from starloom.orchestrator.clientfeeds import StreamingJob
from starloom.orchestrator.effects import Patched, Stopped
from starloom.orchestrator.infos import Event, JobInfo
from starloom.v1 import control_pb2 as pb

if TYPE_CHECKING:
    from starloom.orchestrator.client import AsyncClient

OWN_KEY_PREFIX: Final = "auto-"
"""How the keys begin that a client makes up where the caller gave none."""

_OUTPUT_KINDS = ("stage-committed", "stage-defaulted", "job-ended")
_END_KINDS = ("job-ended",)
Result = TypeVar("Result")

_PATCH_SECONDS = limits.PATCH_SETTLE_SECONDS * (limits.PATCHES_WAITING_MAX + 1) + limits.RPC_DEADLINE_SECONDS
_CANCEL_SECONDS = limits.CANCEL_GRACE_SECONDS + limits.RPC_DEADLINE_SECONDS


class AsyncJob(StreamingJob):
    """A submitted job. `existing`: it was there before, under the same key."""

    def __init__(
        self, client: "AsyncClient", job_id: JobId, constellation: Constellation | None, revision: Revision
    ) -> None:
        super().__init__(client, job_id, constellation)
        self.revision = revision
        self.existing = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def status(self) -> JobInfo:
        """The job as it stands, with its stages."""
        return await self._client.info(self.id)

    async def result(self, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109
        """Waits for the end; returns every declared output by name, of a stream the list of its chunks' values.

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

    @overload
    def stream(self) -> AsyncGenerator[tuple[str, Any], None]: ...

    @overload
    def stream(self, port: str) -> AsyncGenerator[Any, None]: ...

    def stream(self, port: str = "") -> AsyncGenerator[Any, None]:
        """Yields each declared output, as (name, value), once its stage has it; ends with the job.

        An output comes again where its stage had to run again and gave something else. Raises JobFailed or
        Cancelled at the end of a job that did not succeed.

        With the name of an output that is a stream: the values of its chunks, as they come; see `chunks`.
        """
        return self._values_of(port) if port else self._outputs()

    async def _end_of(self) -> JobEnded:
        """The job's end, whatever it is."""
        async with aclosing(self._client._link.events(self.id, kinds=_END_KINDS)) as events:
            async for event in events:
                if isinstance(event.fact, JobEnded):
                    return event.fact
        info = await self.status()
        return JobEnded(job=self.id, status=info.status, outputs=info.outputs, error=info.error)

    async def _outputs(self) -> AsyncGenerator[tuple[str, Any], None]:
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
                    await self._refuse(event.fact)

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
        ended = await self._end_of()
        await self._refuse(ended)
        return ended

    async def _raise_unless_succeeded(self) -> None:
        await self._refuse(await self._end_of())

    async def _refuse(self, ended: JobEnded) -> None:
        if ended.status is JobStatus.CANCELLED:
            raise Cancelled(f"job {self.id} was cancelled{f': {ended.error}' if ended.error else ''}")
        if ended.status is not JobStatus.SUCCEEDED:
            raise job_failed(await self.status())

    async def _values(self, outputs: Mapping[str, ValueRef]) -> dict[str, Any]:
        values = await all_of([partial(self._client.fetch, self.id, name, ref) for name, ref in outputs.items()])
        return dict(zip(outputs, values, strict=True))

    async def _sources(self) -> dict[str, dict[str, list[str]]]:
        """The names of declared outputs, by stage and port."""
        sources: dict[str, dict[str, list[str]]] = {}
        for name, output in (await self._known()).outputs.items():
            sources.setdefault(output.upstream, {}).setdefault(output.output, []).append(name)
        return sources

    async def _known(self) -> Constellation:
        if self._constellation is None:
            self._constellation = (await self.status()).constellation
        # Of one that no document can say nothing is told.
        return self._constellation or Constellation(name="unknown", stages={})


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


async def all_of(work: Sequence[Callable[[], Awaitable[Result]]]) -> list[Result]:
    """What all of `work` gives, in order; at most TRANSFERS_AT_ONCE_MAX at one time."""
    at_once = asyncio.Semaphore(limits.TRANSFERS_AT_ONCE_MAX)

    async def one(item: Callable[[], Awaitable[Result]]) -> Result:
        async with at_once:
            return await item()

    return await asyncio.gather(*map(one, work))


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
