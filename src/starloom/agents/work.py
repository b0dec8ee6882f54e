"""An attempt in its agent's shell, and the reports that it can end with."""

import asyncio
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from starloom.agents.core import AgentCore
from starloom.agents.execution import Execution, Made, failure
from starloom.agents.fetching import InputsLost
from starloom.agents.messages import Assign, Failed, Finished, InputLost, Report, WasCancelled
from starloom.agents.stage import CancelToken
from starloom.agents.values import Data, Room
from starloom.dag.errors import DeadlineExceeded, Unavailable, tellable
from starloom.dag.facts import ErrorInfo, Timing
from starloom.dag.ids import AgentId, TaskToken

_NANOS = 1e9


class Work:
    """What the shell keeps of one attempt that is fetched, run or published. Times in monotonic nanoseconds."""

    __slots__ = ("accepted", "assign", "cancel", "fetched", "fetching", "task", "timed_out", "timer", "whole")

    def __init__(self, assign: Assign) -> None:
        self.assign = assign
        self.cancel = CancelToken()
        self.fetched: dict[str, Data] = {}
        self.accepted = 0
        self.fetching = 0
        #: its fetch or its publication
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.timed_out = False
        #: set where digests of inputs are to come, as `Execution.whole`
        self.whole: Future[Assign] | None = None

    def execution(self, inputs: dict[str, Data], room: Room | None, *, streams: bool) -> Execution:
        """What is to run, with the bytes of all inputs that are not inline. `streams`: whether its kind does."""
        self.fetched = {}
        if any(item.late for item in self.assign.inputs):
            self.whole = Future()
        # What leaves the agent has to have its digest before it does; streams are hashed as they flow.
        late = not (self.assign.private or self.assign.publish or streams)
        return Execution(self.assign, inputs, self.cancel, room, late, self.whole)

    def named(self, assign: Assign) -> None:
        """All digests are known, and `assign` says them."""
        self.assign = assign
        # A stage that waited for them may have given up.
        with suppress(InvalidStateError):
            if self.whole is not None:
                self.whole.set_result(assign)

    def overran(self, agent: AgentId, more: str = "") -> ErrorInfo:
        """The error of one that ran longer than it may."""
        what = f"{self.assign.kind} ran longer than its timeout of {self.assign.timeout_seconds:g} s{more}"
        return ErrorInfo(message=what, cause=DeadlineExceeded.__name__, transient=True, node=agent)

    def finished(self, made: Made, published: tuple[str, ...]) -> Finished:
        """The report of its result, of which some ports go to the job store."""
        run = (made.ended - made.began) / _NANOS
        timing = Timing(
            queue=max(0, made.began - self.accepted - self.fetching) / _NANOS,
            transfer=self.fetching / _NANOS,
            load=made.load_seconds,
            run=max(0.0, run - made.load_seconds),
        )
        return Finished(
            task=self.assign.task,
            outputs=dict(made.outputs),
            consumed={item.port: item.consumed for item in self.assign.inputs} | dict(made.consumed),
            timing=timing,
            models=made.models,
            target=made.target,
            emulated=made.emulated,
            published=published,
            holds=made.holds,
            figures=dict(made.figures),
            growth=made.growth,
        )


def lost_report(task: TaskToken, lost: InputsLost) -> InputLost:
    """The report of inputs that could not be had; of many, not each one's reason fits."""
    reason = tellable(str(lost))
    return InputLost(task=task, upstreams=lost.upstreams, reason=reason, gone=lost.gone, missing=dict(lost.missing))


def unable_report(core: AgentCore, task: TaskToken, done: asyncio.Task[Any]) -> Report | None:
    """What to report of a fetch or a publication that did not succeed. Whatever went wrong is told.

    Asked in a task's callback, which runs even where a cancel came before the task's first step.
    """
    if done.cancelled():
        if core.is_cancelled(task):
            return WasCancelled(task=task)
        error: BaseException | None = Unavailable("a transfer was broken off: the agent is stopping")
    else:
        error = done.exception()
    if error is None:
        return None
    if isinstance(error, InputsLost):
        return lost_report(task, error)
    return Failed(task=task, error=failure(error, core.agent))
