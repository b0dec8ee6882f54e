"""The Control service: what clients ask, checked at the border before the coordinator hears of it."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

from grpc import aio

from starloom.agents.status import principal, reporting
from starloom.agents.values import verify
from starloom.agents.wire import ref_from_wire
from starloom.dag import document, limits, patchdoc
from starloom.dag.checks import number_fault
from starloom.dag.constellation import Constellation
from starloom.dag.errors import DigestMismatch, InvalidInput, NotFound, Overloaded, Problem
from starloom.dag.facts import JobOptions, StreamOptions
from starloom.dag.ids import JobId
from starloom.dag.values import JOB_STORE, Full, ValueRef
from starloom.orchestrator import describe, wire
from starloom.orchestrator.effects import Patched, Stopped, Submitted
from starloom.orchestrator.engine import Engine
from starloom.orchestrator.inputs import CancelJob, PatchJob, Submit
from starloom.orchestrator.jobstore import JobStore
from starloom.orchestrator.records import Record
from starloom.v1 import control_pb2 as pb
from starloom.v1 import control_pb2_grpc, value_pb2

JOB_ID_PREFIX: Final = "job-"
_ID_LETTERS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH: Final = 10

Read = TypeVar("Read")

Context = aio.ServicerContext[Any, Any]


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """Speaks for one engine. Reads are answered once what they show is journaled."""

    def __init__(self, engine: Engine, store: JobStore) -> None:
        self._engine = engine
        self._store = store

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:  # noqa: N802
        async with reporting(context):
            constellation, inputs = await self._checked(request)
            self._require_room()
            options = JobOptions(
                priority=request.priority,
                max_parallel=request.max_parallel,
                labels=dict(request.labels),
                deadline_seconds=request.deadline_seconds,
                streams={name: _stream_options(name, each) for name, each in request.streams.items()},
            )
            submit = partial(
                Submit,
                job=new_job_id(),
                constellation=constellation,
                inputs=inputs,
                key=request.key,
                principal=principal(context),
                options=options,
            )
            answer = await self._engine.ask(lambda number: submit(request=number))
            assert isinstance(answer, Submitted)
            return wire.submitted_to_wire(answer)
        raise AssertionError("reporting ends the call")

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:  # noqa: N802
        async with reporting(context):
            coordinator = self._engine.coordinator
            job = coordinator.find(_named(request.job_id))
            info = await describe.job_info(coordinator, job, self._engine.kept.times(job.id), request.revision)
            await self._engine.commits.settled()
            return pb.GetJobResponse(job=await asyncio.to_thread(wire.job_to_wire, info))
        raise AssertionError("reporting ends the call")

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:  # noqa: N802
        async with reporting(context):
            newest = reversed(tuple(self._engine.coordinator.jobs.values()))
            kept = self._engine.kept
            infos = [describe.job_line(job, kept.times(job.id)) for job in islice(newest, request.limit or None)]
            await self._engine.commits.settled()
            return pb.ListJobsResponse(jobs=[wire.job_to_wire(info) for info in infos])
        raise AssertionError("reporting ends the call")

    async def StreamEvents(  # noqa: N802
        self, request: pb.StreamEventsRequest, context: Context
    ) -> AsyncIterator[pb.StreamEventsResponse]:
        async with reporting(context):
            job = self._engine.coordinator.find(request.job_id).id if request.job_id else None

            def more() -> bool:
                return request.follow and not self._ended(job)

            follow = self._engine.events.follow(job, request.after_offset, more, tuple(request.kinds))
            async with aclosing(follow):
                async for records in follow:
                    for part in _parts(records):
                        yield pb.StreamEventsResponse(events=map(wire.event_to_wire, part))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:  # noqa: N802
        async with reporting(context):
            name, who = _named(request.job_id), principal(context)
            answer = await self._engine.ask(
                lambda number: CancelJob(request=number, job=name, principal=who, reason=request.reason)
            )
            assert isinstance(answer, Stopped)
            return wire.stopped_to_wire(answer)
        raise AssertionError("reporting ends the call")

    async def PatchJob(self, request: pb.PatchJobRequest, context: Context) -> pb.PatchJobResponse:  # noqa: N802
        async with reporting(context):
            name, who = _named(request.job_id), principal(context)
            patch = await _off_loop(patchdoc.load_patch, request.patch_json)
            self._require_room()
            answer = await self._engine.ask(
                lambda number: PatchJob(request=number, job=name, patch=patch, principal=who)
            )
            assert isinstance(answer, Patched)
            return wire.patched_to_wire(answer)
        raise AssertionError("reporting ends the call")

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:  # noqa: N802
        async with reporting(context):
            return wire.cluster_to_wire(describe.cluster_info(self._engine.coordinator, time.monotonic_ns()))
        raise AssertionError("reporting ends the call")

    async def ListKinds(self, request: pb.ListKindsRequest, context: Context) -> pb.ListKindsResponse:  # noqa: N802
        async with reporting(context):
            return wire.kinds_to_wire(self._engine.coordinator.kinds)
        raise AssertionError("reporting ends the call")

    def _ended(self, job: JobId | None) -> bool:
        """Whether the job's end is journaled, or it is not kept any more."""
        if job is None:
            return False
        times = self._engine.kept.times(job)
        return times is None or times.ended > 0

    async def _checked(self, request: pb.SubmitRequest) -> tuple[Constellation, dict[str, ValueRef]]:
        """The request's parts. Raises InvalidInput with all that is wrong; then NotFound for inputs that were not put."""
        problems = list(_option_problems(request))
        data = request.constellation_json
        inputs: dict[str, ValueRef] = {}
        for name, message in request.inputs.items():
            try:
                inputs[name] = _input(name, message)
            except InvalidInput as error:
                problems += error.problems
        total = sum(ref.bytes for ref in inputs.values())
        if total > limits.JOB_INPUT_BYTES_MAX:
            what = f"have {total} bytes together, over JOB_INPUT_BYTES_MAX = {limits.JOB_INPUT_BYTES_MAX}"
            problems.append(Problem("inputs", what))
        try:
            constellation = await _off_loop(document.load, data)
        except InvalidInput as error:
            raise type(error)((*error.problems, *problems), error.what) from error
        if problems:
            raise InvalidInput(problems, "the job cannot be submitted")
        self._require(inputs)
        return constellation, inputs

    def _require_room(self) -> None:
        if not self._engine.has_room():
            raise Overloaded(
                "the orchestrator's disk is full: what was accepted goes on, nothing new is taken; make room there",
                limits.OVERLOADED_RETRY_SECONDS,
            )

    def _require(self, inputs: dict[str, ValueRef]) -> None:
        missing = [
            f"inputs.{name}: value {ref.digest[:12]} of {ref.bytes} bytes"
            for name, ref in inputs.items()
            if ref.inline is None and not (self._store.claim(ref.digest) and self._store.size(ref.digest) == ref.bytes)
        ]
        if missing:
            raise NotFound(f"not in the job store, put first what is not inline: {'; '.join(missing)}")


def new_job_id() -> JobId:
    """A new name for a job; random, so that nobody can guess another's."""
    return JobId(JOB_ID_PREFIX + "".join(_ID_LETTERS[byte % 32] for byte in secrets.token_bytes(_ID_LENGTH)))


async def _off_loop(load: Callable[[bytes], Read], data: bytes) -> Read:
    """What a document says; a large one is read beside the event loop."""
    if len(data) < limits.DOCUMENT_OFF_LOOP_BYTES_MIN:
        return load(data)
    return await asyncio.to_thread(load, data)


def _named(job: str) -> str:
    if not job:
        raise InvalidInput([Problem("job_id", "is empty; name a job by its id or key")])
    return job


def _input(name: str, message: value_pb2.ValueRef) -> ValueRef:
    place = f"inputs.{name}"
    ref = ref_from_wire(message, place)
    if ref.holder != JOB_STORE:
        raise InvalidInput([Problem(f"{place}.holder", f"is {ref.holder!r}; a job's inputs come from the job store")])
    if ref.inline is None:
        return ref
    if ref.bytes > limits.INLINE_VALUE_BYTES_MAX:
        what = f"has {ref.bytes} bytes, over INLINE_VALUE_BYTES_MAX = {limits.INLINE_VALUE_BYTES_MAX}; put it first"
        raise InvalidInput([Problem(f"{place}.inline", what)])
    try:
        verify(ref, ref.inline)
    except DigestMismatch as error:
        raise InvalidInput([Problem(f"{place}.digest", str(error))]) from error
    return ref


def _stream_options(name: str, message: pb.StreamOptions) -> StreamOptions:
    try:
        full = Full(message.full) if message.full else None
    except ValueError:
        what = f"is {message.full[:80]!r}; use {', '.join(Full)}"
        raise InvalidInput([Problem(f"streams.{name[:80]}.full", what)]) from None
    return StreamOptions(full=full, spool=message.spool)


def _option_problems(request: pb.SubmitRequest) -> Iterator[Problem]:
    if len(request.key) > limits.JOB_KEY_CHARACTERS_MAX:
        what = f"has {len(request.key)} characters, over JOB_KEY_CHARACTERS_MAX = {limits.JOB_KEY_CHARACTERS_MAX}"
        yield Problem("key", what)
    if not request.key.isprintable() or request.key != request.key.strip():
        yield Problem("key", f"{request.key[:80]!r} has unprintable characters, or spaces at an end")
    if request.key.startswith(JOB_ID_PREFIX):
        yield Problem("key", f"begins with {JOB_ID_PREFIX!r}, as the ids of jobs do; choose another")
    if request.max_parallel > limits.JOB_PARALLEL_MAX:
        yield Problem(
            "max_parallel",
            f"is {request.max_parallel}, over JOB_PARALLEL_MAX = {limits.JOB_PARALLEL_MAX}; 0 is no bound",
        )
    longest = limits.DURATION_SECONDS_MAX
    if fault := number_fault(request.deadline_seconds, at_most=longest, unit="seconds, 0 for no bound"):
        yield Problem("deadline", fault)
    for name, value in request.labels.items():
        if not 0 < len(name) <= limits.NAME_CHARACTERS_MAX or len(value) > limits.NAME_CHARACTERS_MAX:
            what = (
                f"a label's name and value have at most NAME_CHARACTERS_MAX = {limits.NAME_CHARACTERS_MAX} characters"
            )
            yield Problem(f"labels.{name[:80]}", what)


def _parts(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in parts of at most EVENTS_BYTES_PER_MESSAGE, unless one alone is larger."""
    part: list[Record] = []
    room = limits.EVENTS_BYTES_PER_MESSAGE
    for record in records:
        if part and len(record.line) > room:
            yield part
            part, room = [], limits.EVENTS_BYTES_PER_MESSAGE
        part.append(record)
        room -= len(record.line)
    if part:
        yield part
