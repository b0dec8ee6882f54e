"""One attempt of a simulated stage with streams, as `agents.streams.running` has it: chunk by chunk, in no slot."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from starloom.agents.messages import Assign, Failed, InputLost, Report, WasCancelled
from starloom.agents.streams.records import Bound, How, RunningDigest, StreamChunk
from starloom.dag.facts import Consumed, ErrorInfo
from starloom.dag.ids import AgentId, StageId
from starloom.devices.faults import FaultKind
from starloom.orchestrator.simulate.loop import Timer
from starloom.orchestrator.simulate.model import KINDS, Made, content_of, make, mapped, stream_ref, tick
from starloom.orchestrator.simulate.streams import Flow, Inlet

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.agent import AgentProcess

STEPS = 6
"""A stage that runs for its `seconds` takes so many chunks in that time."""
FOREVER_SECONDS = 10_000.0


class StreamRun:
    """Reads whatever has come, gives a chunk when there is room, and is `done` with what it made, or how it ended."""

    def __init__(self, process: "AgentProcess", assign: Assign, done: Callable[[Report | Made], None]) -> None:
        self._process = process
        self._world = process.world
        self._loop = process.loop
        self._assign = assign
        self._done: Callable[[Report | Made], None] | None = done
        self._flows: dict[str, Flow] = {}
        self._inlets: dict[str, Inlet] = {}
        self._read: dict[str, RunningDigest] = {}
        self._given = 0
        #: the chunk for which there is no room, and the end of the present step
        self._pending: bytes | None = None
        self._step: Timer | None = None
        self._timeout: Timer | None = None
        self._error: ErrorInfo | None = None
        self._stopped = False
        self._steps_left = 0
        self._content = ""
        self._salt = ""

    @property
    def consumed(self) -> dict[str, Consumed]:
        """What it read to the end."""
        return {
            port: Consumed(inlet.awaited.upstream, inlet.awaited.token, inlet.end.digest)
            for port, inlet in self._inlets.items()
            if inlet.end is not None
        }

    def begin(self) -> None:
        """The stage begins; one that is to end opens no stream, which would outlast its job."""
        if self._stopped:
            return
        assign, process = self._assign, self._process
        self._error = self._world.misbehaviour.failure(assign)
        self._steps_left = process.chance.below(STEPS)
        self._salt = self._world.misbehaviour.salt(assign)
        inputs = {item.port: item.ref.digest for item in assign.inputs}
        self._content = content_of(assign.kind, assign.params, inputs, self._salt)
        for port, spec in KINDS[assign.kind].outputs.items():
            if spec.stream:
                self._flows[port] = process.streams.add(assign, port, Bound(chunks=spec.chunks), self._wake)
        for awaited in assign.awaits:
            for port in awaited.streams:
                self._read[port] = RunningDigest()
                inlet = self._inlets[port] = Inlet(process, assign, awaited, port, self._wake)
                inlet.dial()
        seconds = assign.timeout_seconds or FOREVER_SECONDS
        self._timeout = self._loop.after(seconds, self._time_out, process)
        if self._step is None and self._world.trouble.fires(FaultKind.STAGE_HANGS):
            self._step = self._loop.after(FOREVER_SECONDS, self._rested, process)
            self._world.trouble.hanging.append(self._rested)
        self._wake()

    def stop(self, seconds: float) -> None:
        """It is to end, and will in so many seconds."""
        self._stopped = True
        if self._step is not None:
            self._step.cancel()
        end = partial(self._end, WasCancelled(task=self._assign.task), How.CANCELLED)
        self._step = self._loop.after(seconds, end, self._process)

    def _wake(self) -> None:
        """Goes on, if there is something to do."""
        if self._done is None or self._step is not None:
            return
        if self._pending is not None and not self._emit(self._pending):
            return
        self._pending = None
        if self._error is not None and not self._steps_left:
            self._end(Failed(task=self._assign.task, error=self._error), How.FAILED)
            return
        self._steps_left -= self._error is not None
        if not self._inlets:
            if self._given < self._assign.params.get("chunks", 0):
                self._compute(partial(self._ticked, self._given))
            else:
                self._finish()
            return
        for inlet in self._inlets.values():
            if inlet.queue:
                chunk = inlet.queue.popleft()
                self._world.judge.received(self._process, self._assign.task, inlet, chunk)
                self._compute(partial(self._took, inlet, chunk))
                return
        if any(inlet.broken for inlet in self._inlets.values()):
            self._end(self._lost(), How.FAILED)
        elif all(inlet.end for inlet in self._inlets.values()):
            self._finish()

    def _compute(self, then: Callable[[], None]) -> None:
        seconds = self._world.run_seconds(self._process, self._assign) / STEPS

        def computed() -> None:
            self._step = None
            then()
            self._wake()

        self._step = self._loop.after(seconds, computed, self._process)

    def _rested(self) -> None:
        """A stage that hung goes on."""
        if self._step is not None:
            self._step.cancel()
            self._step = None
            self._wake()

    def _ticked(self, offset: int) -> None:
        self._pending = tick(self._content, offset)

    def _took(self, inlet: Inlet, chunk: StreamChunk) -> None:
        self._read[inlet.port].add(chunk.offset, chunk.generation, chunk.data)
        if self._flows:
            self._pending = mapped(self._content, chunk.data)
        inlet.acknowledge(chunk.offset + 1)

    def _emit(self, data: bytes) -> bool:
        """Gives a chunk, if all its readers have room for it."""
        for flow in self._flows.values():
            if not flow.buffer.fits(len(data)):
                return False
            flow.append(data)
            self._given += 1
            self._world.judge.kept(self._process, self._assign.task, flow.buffer)
        return True

    def _finish(self) -> None:
        if self._error is not None:
            self._end(Failed(task=self._assign.task, error=self._error), How.FAILED)
            return
        assign, me = self._assign, self._process.name
        for inlet in self._inlets.values():
            assert inlet.end is not None
            self._world.judge.drained(self._process, assign.task, inlet, inlet.end)
        if self._flows:
            ends = {port: flow.finish() for port, flow in self._flows.items()}
            made = Made({p: stream_ref(end.chunks, end.bytes, end.digest, me) for p, end in ends.items()}, {})
        else:
            inputs = {item.port: item.ref.digest for item in assign.inputs}
            inputs |= {port: running.hex() for port, running in self._read.items()}
            made = make(assign.kind, assign.params, inputs, me, self._salt, private=assign.private)
        self._end(made, How.FINISHED)

    def _lost(self) -> InputLost:
        """Of what is not kept any more nothing helps but to make it again."""
        broken = [(inlet, inlet.broken) for inlet in self._inlets.values() if inlet.broken is not None]
        gone = [each for each in broken if each[1].gone]
        told = gone or broken
        upstreams = tuple(dict.fromkeys(inlet.awaited.upstream for inlet, _ in told))
        missing: dict[StageId, tuple[AgentId, ...]] = {
            inlet.awaited.upstream: (inlet.awaited.agent,) for inlet, _ in gone if inlet.awaited.agent
        }
        reason = "; ".join(f"input {inlet.port}: {why.reason}" for inlet, why in told)
        return InputLost(task=self._assign.task, upstreams=upstreams, reason=reason, gone=bool(gone), missing=missing)

    def _time_out(self) -> None:
        if self._assign.timeout_seconds:
            error = ErrorInfo(message="it ran too long", cause="DeadlineExceeded", transient=True)
            self._end(Failed(task=self._assign.task, error=error), How.FAILED)

    def _end(self, made: Report | Made, how: How) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        for timer in (self._step, self._timeout):
            if timer is not None:
                timer.cancel()
        for inlet in self._inlets.values():
            inlet.stop()
        for flow in self._flows.values():
            flow.finish(how, "" if how is How.FINISHED else f"{self._assign.task.stage} did not finish")
        done(made)
