"""Several attempts of one kind in one call of their stage, in a worker thread: each has its own inputs, cancel and end."""

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

from starloom.agents.execution import (
    DeferredModels,
    Execution,
    Made,
    ModelsFactory,
    StageLookup,
    execute,
    failure,
    inputs_of,
    made_of,
    params_of,
)
from starloom.agents.stage import CancelToken, Stage, StageCall
from starloom.dag.errors import Cancelled, StageError, StarloomError
from starloom.dag.facts import ErrorInfo

_log = logging.getLogger(__name__)

Result = Made | StarloomError | ErrorInfo


class _Member(NamedTuple):
    """An attempt that goes into the call, and what it measures."""

    run: Execution
    call: StageCall
    told: dict[str, float]


class _AllCancelled:
    """Cancels `token` once every member is cancelled: what they share runs on for the others."""

    def __init__(self, members: Sequence[CancelToken]) -> None:
        self.token = CancelToken()
        self._members = members
        self._forget = [member.on_cancel(self._look) for member in members]

    def forget(self) -> None:
        """Leaves nothing at the members."""
        for forget in self._forget:
            forget()

    def _look(self) -> None:
        if all(member.cancelled for member in self._members):
            self.token.cancel()


def execute_together(runs: Sequence[Execution], stages: StageLookup, models: ModelsFactory, node: str) -> list[Result]:
    """What became of each attempt, in their order, as `execute` has it; all are of one kind and on one target.

    A failure of one is its own. Where the call as a whole fails, or is of one attempt, each runs by itself.
    """
    if len(runs) > 1:
        try:
            return _run(runs, stages, models, node)
        # A stage may raise anything, SystemExit included, and must not end the agent's thread.
        except BaseException as error:
            if not all(run.cancel.cancelled for run in runs):
                _log.warning("%d attempts of %s run one by one: together, %r", len(runs), runs[0].assign.kind, error)
    return [execute(run, stages, models, node) for run in runs]


def _run(runs: Sequence[Execution], stages: StageLookup, models: ModelsFactory, node: str) -> list[Result]:
    began = time.monotonic_ns()
    stage = stages.stage(runs[0].assign.kind)
    assert isinstance(stage, Stage), "stream stages do not gather"
    shared = _AllCancelled([run.cancel for run in runs])
    deferred = DeferredModels(models, shared.token, runs[0].assign.target)
    found: dict[int, Result] = {}
    members: dict[int, _Member] = {}
    try:
        for index, run in enumerate(runs):
            try:
                run.cancel.raise_if_cancelled()
                members[index] = _member(run, stage, deferred)
            except StarloomError as error:
                found[index] = _failed(run, error, node)
        results = stage.run_batch([member.call for member in members.values()])
        if len(results) != len(members):
            raise StageError(f"{stage.spec.name} gave {len(results)} results for {len(members)} calls")
        deferred.close(stage.spec.name)
        for (index, member), result in zip(members.items(), results, strict=True):
            try:
                member.run.cancel.raise_if_cancelled()
                if isinstance(result, Exception):
                    raise result
                found[index] = made_of(member.run, stage.spec, result, node, began, deferred, member.told)
            # What a stage gave for one may be unfit in any way, and is that one's failure.
            except Exception as error:
                found[index] = _failed(member.run, error, node)
    finally:
        shared.forget()
        deferred.close()
    return [found[index] for index in range(len(runs))]


def _member(run: Execution, stage: Stage, models: DeferredModels) -> _Member:
    told: dict[str, float] = {}
    call = StageCall(
        inputs=inputs_of(run, stage.spec),
        params=params_of(run.assign, stage.spec),
        models=models,
        target=run.assign.target,
        make_key=run.key,
        attempt=run.assign.task.token.attempt,
        cancel=run.cancel,
        figure=told.__setitem__,
    )
    return _Member(run, call, told)


def _failed(run: Execution, error: Exception, node: str) -> StarloomError | ErrorInfo:
    if run.cancel.cancelled and isinstance(error, Cancelled):
        return error
    return failure(error, node)
