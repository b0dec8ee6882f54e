"""One attempt of a stage with streams, on the loop of stream stages: its inputs, its chunks, its end.

A stage waits here and computes in the agent's worker threads, so that a slot is taken for each computation and not
for the stage: a chain of stages longer than the agent has slots goes on.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import Any

import msgspec

from starloom.agents import values
from starloom.agents.execution import (
    DeferredModels,
    Execution,
    Made,
    ModelsFactory,
    StageLookup,
    failure,
    inputs_of,
    made_of,
    params_of,
)
from starloom.agents.fetching import InputsLost
from starloom.agents.stage import Chunk, Grown, Outputs, Stage, StageCall, StreamStage
from starloom.agents.streams.flow import Flow
from starloom.agents.streams.inlet import Inlet
from starloom.agents.streams.records import How, StreamEnd, generation_fault
from starloom.agents.streams.watchdog import RoomWait, Waits
from starloom.agents.transfer import off_loop
from starloom.dag import limits
from starloom.dag.errors import Cancelled, InvalidInput, Problem, StageError, StarloomError, StreamGone
from starloom.dag.facts import Consumed, ErrorInfo
from starloom.dag.ids import AgentId, StageId, TaskToken
from starloom.dag.kinds import KindSpec
from starloom.dag.values import ValueRef

Submit = Callable[[Callable[[], object]], None]
"""Has a function called in one of the agent's worker threads, when one is free."""


class _Call:
    """A function that waits for a worker, or runs, or has run."""

    __slots__ = ("args", "function", "future", "taken")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        self.function = function
        self.args = args
        self.future = future
        #: by a worker, or by whoever wants it no more
        self.taken = Lock()


class Computing:
    """Functions of one attempt in worker threads. `running` is how many have not returned, or wait for a slot."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._loop = asyncio.get_running_loop()
        self._calls: set[_Call] = set()

    @property
    def running(self) -> int:
        return len(self._calls)

    async def __call__(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """What the function returns, or raises. Whoever stops waiting does not stop it."""
        call = _Call(function, args, self._loop.create_future())
        self._calls.add(call)
        call.future.add_done_callback(lambda _: self._calls.discard(call))
        self._submit(partial(self._work, call))
        return await asyncio.shield(call.future)

    async def wait(self) -> None:
        """Waits until none runs any more; what no worker has taken up does not run."""
        for call in tuple(self._calls):
            if call.taken.acquire(blocking=False):
                call.future.cancel()
        while left := [call.future for call in self._calls if not call.future.done()]:
            await asyncio.wait(left)

    def _work(self, call: _Call) -> None:
        if not call.taken.acquire(blocking=False):
            return
        result: Any = None
        error: BaseException | None = None
        try:
            result = call.function(*call.args)
        # A stage may raise anything, SystemExit included, and must not end the agent's thread.
        except BaseException as raised:
            error = raised if isinstance(raised, Exception) else StageError(f"{type(raised).__name__}: {raised}")
        # Where the loop is closed, nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_settle, call.future, result, error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if error is None:
        future.set_result(result)
        return
    # A future cannot carry it.
    future.set_exception(StageError("StopIteration") if isinstance(error, StopIteration) else error)
    # Whoever waited may have been cancelled meanwhile.
    future.exception()


class StreamRun:
    """One attempt; `run` lasts until nothing of it runs any more. `flows` and `inlets` are by port."""

    def __init__(
        self,
        execution: Execution,
        stages: StageLookup,
        models: ModelsFactory,
        agent: AgentId,
        flows: Mapping[str, Flow],
        inlets: Mapping[str, Inlet],
        submit: Submit,
    ) -> None:
        self.assign = execution.assign
        self.flows = flows
        self.inlets = inlets
        self.computing = Computing(submit)
        self._execution = execution
        self._stages = stages
        self._agent = agent
        self._models = DeferredModels(models, execution.cancel, execution.assign.target)
        self._told: dict[str, float] = {}
        self._values: dict[str, Any] = {}
        #: why the attempt is to end, if not by itself
        self._wrong: Exception | None = None
        self._task: asyncio.Task[Any] | None = None

    async def run(self, published: Callable[[], Any]) -> Made | StarloomError | ErrorInfo:
        """What became of it. `published` is awaited after the end of its streams. As `execution.execute` otherwise."""
        began = time.monotonic_ns()
        self._task = asyncio.current_task()
        try:
            made = await self._run(began)
            consumed = await self._consumed()
            await published()
            self._execution.cancel.raise_if_cancelled()
            return msgspec.structs.replace(made, consumed=consumed)
        except BaseException as error:
            found = self._failed(error)
            how = How.CANCELLED if isinstance(found, Cancelled) else How.FAILED
            self._finish(how, found.message if isinstance(found, ErrorInfo) else str(found))
            return found
        finally:
            self._models.close()
            for inlet in self.inlets.values():
                inlet.stop()

    def fail(self, error: Exception) -> None:
        """Ends the attempt with this failure."""
        if self._wrong is None and self._task is not None:
            self._wrong = error
            self._task.cancel()

    def waits(self, attempts: Mapping[StageId, TaskToken]) -> Waits | None:
        """What the stage waits for, if it does nothing else; `attempts` are those of its job on this agent."""
        if self.computing.running:
            return None
        rooms = []
        for port, flow in self.flows.items():
            if (waiting := flow.waiting) is not None:
                names = flow.buffer.blockers()
                stages = (StageId(name.rpartition(".")[0]) for name in names)
                readers = tuple(attempts[stage] for stage in stages if stage in attempts)
                rooms.append(RoomWait(port, readers, names, flow.buffer.kept, flow.buffer.bound, waiting.since))
        producers = [
            attempts.get(inlet.upstream) if inlet.starved else None for inlet in self.inlets.values() if inlet.waiting
        ]
        return Waits(tuple(rooms), tuple(producers)) if rooms or producers else None

    async def _run(self, began: int) -> Made:
        execution = self._execution
        execution.cancel.raise_if_cancelled()
        stage = await self.computing(self._stages.stage, self.assign.kind)
        spec = stage.spec
        call = StageCall(
            inputs={**await asyncio.to_thread(inputs_of, execution, spec), **self.inlets},
            params=params_of(self.assign, spec),
            models=self._models,
            target=self.assign.target,
            make_key=execution.key,
            attempt=self.assign.task.token.attempt,
            cancel=execution.cancel,
            figure=self._told.__setitem__,
            compute=self.computing,
            empty=values.empty_in(execution.room),
        )
        try:
            if isinstance(stage, StreamStage):
                result: Outputs | Grown = await self._drive(stage.stream(call), spec)
            else:
                result = await self._collect(stage, call)
        finally:
            await self.computing.wait()
        for inlet in self.inlets.values():
            if inlet.broken is not None:
                raise inlet.broken
        self._count()
        self._models.close(spec.name)
        made = await asyncio.to_thread(made_of, execution, spec, result, self._agent, began, self._models, self._told)
        return msgspec.structs.replace(made, outputs={**made.outputs, **self._refs(spec, self._finish(How.FINISHED))})

    async def _drive(self, chunks: AsyncGenerator[Chunk, None], spec: KindSpec) -> dict[str, Any]:
        """Passes a stage's chunks on until it has no more, or nobody wants more; its values in the end."""
        try:
            async for chunk in chunks:
                self._execution.cancel.raise_if_cancelled()
                await self._emit(spec, chunk)
                if self._unwanted(spec):
                    break
        finally:
            await chunks.aclose()
        return self._values

    async def _collect(self, stage: Stage, call: StageCall) -> Outputs | Grown:
        """What a one-shot stage gives, which gets its stream inputs in one piece, and runs in a slot."""
        if self.flows:
            raise StageError(f"{stage.spec.name} has stream outputs, which only a StreamStage can give; make it one")
        inputs = dict(call.inputs)
        for port, inlet in self.inlets.items():
            inputs[port] = [received.value async for received in inlet]
            if (size := sum(inlet.bytes for inlet in self.inlets.values())) > limits.STREAM_COLLECTED_BYTES_MAX:
                limit = f"STREAM_COLLECTED_BYTES_MAX = {limits.STREAM_COLLECTED_BYTES_MAX}"
                raise StageError(f"{stage.spec.name} collects its streams, but {size} bytes are over {limit}")
        result: Outputs | Grown = await self.computing(stage.run, msgspec.structs.replace(call, inputs=inputs))
        return result

    async def _emit(self, spec: KindSpec, chunk: Chunk) -> None:
        place = f"stages.{self.assign.task.stage}.out.{chunk.port}"
        port = spec.outputs.get(chunk.port)
        if port is None:
            raise InvalidInput([Problem(place, f"{spec.name} declares no such output port")])
        if wrong := generation_fault(chunk.generation):
            raise InvalidInput([Problem(place, wrong)])
        if not port.stream:
            self._values[chunk.port] = chunk.value
            return
        data, meta = await off_loop(_size(chunk.value), values.encode, port.type, chunk.value, place)
        if chunk.at is not None:
            meta = {**meta, "at": float(chunk.at)}
        await self.flows[chunk.port].append(data, meta, chunk.generation)

    def _unwanted(self, spec: KindSpec) -> bool:
        """Whether nobody wants more of any stream, and the stage has given all its values."""
        if not self.flows or not all(flow.buffer.abandoned for flow in self.flows.values()):
            return False
        return all(port.stream or port.optional or name in self._values for name, port in spec.outputs.items())

    def _finish(self, how: How, message: str = "") -> dict[str, StreamEnd]:
        return {port: flow.finish(how, message) for port, flow in self.flows.items()}

    def _refs(self, spec: KindSpec, ends: Mapping[str, StreamEnd]) -> dict[str, ValueRef]:
        """References to the stream outputs; those that are written to the job store are there."""
        return {
            port: ValueRef(
                type=spec.outputs[port].type,
                bytes=end.bytes,
                digest=end.digest,
                meta={"stream": True, "chunks": end.chunks},
                holder="" if port in self.assign.publish else self._agent,
            )
            for port, end in ends.items()
        }

    async def _consumed(self) -> dict[str, Consumed]:
        """What was read: whoever needs no more of a stream is still told its digest in the end."""
        tokens = {port: awaited.token for awaited in self.assign.awaits for port in awaited.streams}
        found: dict[str, Consumed] = {}
        for port, inlet in self.inlets.items():
            end = await inlet.finished()
            # What a job's input streams gave is no result of a stage.
            if inlet.upstream:
                found[port] = Consumed(inlet.upstream, tokens[port], end.digest)
        return found

    def _count(self) -> None:
        for port, inlet in self.inlets.items():
            for what, count in (("dropped", inlet.dropped), ("stale", inlet.stale)):
                if count and len(self._told) < limits.FIGURES_PER_STAGE_MAX:
                    self._told[f"{port}_{what}_chunks"] = float(count)

    def _failed(self, error: BaseException) -> StarloomError | ErrorInfo:
        if self._execution.cancel.cancelled:
            return Cancelled("the attempt was cancelled")
        if self._wrong is not None:
            return failure(self._wrong, self._agent)
        broken = [inlet for inlet in self.inlets.values() if inlet.broken is not None]
        if broken:
            return _lost(broken)
        if isinstance(error, asyncio.CancelledError):
            return Cancelled("the agent is stopping")
        return failure(error, self._agent)


def _lost(broken: list[Inlet]) -> InputsLost:
    """Of what is not kept any more nothing helps but to make it again."""
    gone = [inlet for inlet in broken if isinstance(inlet.broken, StreamGone)]
    told = gone or broken
    missing: dict[StageId, tuple[AgentId, ...]] = {inlet.upstream: (inlet.agent,) for inlet in gone if inlet.agent}
    reason = "; ".join(f"input {inlet.port}: {inlet.broken}" for inlet in told)
    upstreams = tuple(dict.fromkeys(inlet.upstream for inlet in told))
    return InputsLost(upstreams, reason, gone=bool(gone), missing=missing)


def _size(value: Any) -> int:
    """About how many bytes a value takes, where that tells whether to write it elsewhere."""
    size = getattr(value, "nbytes", 0)
    return size if isinstance(size, int) else 0
