"""One attempt in a worker thread: reads inputs, runs the stage, writes outputs, compares. Knows no event loop."""

import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol

import msgspec

from starloom.agents import values
from starloom.agents.late import name_of
from starloom.agents.messages import Assign
from starloom.agents.stage import CancelToken, Grown, Model, Models, Outputs, Stage, StageCall, StreamStage
from starloom.agents.values import Data, Room
from starloom.dag import limits
from starloom.dag.conditions import holds
from starloom.dag.constellation import Comparison
from starloom.dag.errors import Cancelled, InvalidInput, NotFound, Problem, StageError, StarloomError, tellable
from starloom.dag.facts import Consumed, ErrorInfo, figure_fault
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.patch import Patch
from starloom.dag.validate_stage import param_fault
from starloom.dag.values import PortType, ValueRef

_keys = msgspec.json.Encoder(order="sorted")


class StageLookup(Protocol):
    """What of `agents.catalog.Catalog` is needed to run stages."""

    @property
    def kinds(self) -> KindCatalog: ...

    def stage(self, name: str) -> Stage | StreamStage: ...


class CountedModels(Models, Protocol):
    """The models of one call, with what they cost; as `sessions.CallModels` has it."""

    load_seconds: float
    models: list[str]
    targets: list[str]

    @property
    def emulated(self) -> bool: ...

    def close(self, kind: str = "") -> None:
        """The call is over, and its sessions may go; `kind` is what it was of, if all went well."""
        ...


ModelsFactory = Callable[[CancelToken, str], CountedModels]
"""Makes the models of one call, for its target. Raises StageError for an unknown target."""


class DeferredModels:
    """Models of a call that are only made when the stage asks for one: most kinds of glue never do."""

    def __init__(self, make: ModelsFactory, cancel: CancelToken, target: str) -> None:
        self._make = make
        self._cancel = cancel
        self._target = target
        self._made: CountedModels | None = None
        self.import_seconds = 0.0

    @property
    def made(self) -> CountedModels | None:
        """The call's models, if it asked for any."""
        return self._made

    def session(self, model: str, file: str = "model.onnx", *, target: str | None = None) -> Model:
        return self._real().session(model, file, target=target)

    def path(self, model: str, file: str) -> str:
        return self._real().path(model, file)

    def cached(self, model: str, name: str, make: Callable[[], Any]) -> Any:
        return self._real().cached(model, name, make)

    def close(self, kind: str = "") -> None:
        """As `CountedModels.close`."""
        if self._made is not None:
            self._made.close(kind)

    def _real(self) -> CountedModels:
        if self._made is None:
            began = time.monotonic()
            self._made = self._make(self._cancel, self._target)
            self.import_seconds = time.monotonic() - began
        return self._made


@dataclass(slots=True)
class Execution:
    """An attempt that is ready: the bytes of its inputs that are not inline, by port, and how to stop it.

    Large outputs are written to `room`, if it has room. Where it may be `late` with digests, those of
    LATE_DIGEST_BYTES_MIN or more are not hashed there. `whole` is set where digests of inputs are to come: by then to
    the assignment that says them.
    """

    assign: Assign
    inputs: Mapping[str, Data]
    cancel: CancelToken = field(default_factory=CancelToken)
    room: Room | None = None
    late: bool = False
    whole: "Future[Assign] | None" = None

    def key(self) -> str:
        """`idempotency_key`, once the digests of all inputs are known. Raises Cancelled, where they never come as well."""
        if self.whole is None:
            return idempotency_key(self.assign)
        forget = self.cancel.on_cancel(partial(_give_up, self.whole))
        try:
            return idempotency_key(self.whole.result())
        except CancelledError as error:
            raise Cancelled("the attempt was cancelled while it waited for the digest of an input") from error
        finally:
            forget()

    def may_be_late(self, data: Data) -> bool:
        """Whether an output is to be passed on before it is hashed."""
        return self.late and len(data) >= limits.LATE_DIGEST_BYTES_MIN and self.room is not None and self.room.has(data)


def _give_up(whole: "Future[Assign]") -> None:
    whole.cancel()


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a run gave: references and bytes by port, what it changes, and what it took. Times are monotonic nanoseconds.

    Of stream outputs there are only references. `consumed` tells of stream inputs. Outputs that are `late` are not
    hashed yet: `agents.late.name_of` stands for their digests.
    """

    outputs: Mapping[str, ValueRef]
    data: Mapping[str, Data]
    holds: tuple[bool, ...]
    began: int
    ended: int
    load_seconds: float
    models: tuple[str, ...]
    target: str
    emulated: bool
    figures: Mapping[str, float]
    growth: Patch | None = None
    consumed: Mapping[str, Consumed] = {}
    late: tuple[str, ...] = ()


def execute(run: Execution, stages: StageLookup, models: ModelsFactory, node: str) -> Made | StarloomError | ErrorInfo:
    """Runs an attempt. A Cancelled is only returned if its cancel was asked for; an ErrorInfo is its failure."""
    began = time.monotonic_ns()
    try:
        run.cancel.raise_if_cancelled()
        return _run(run, stages, models, node, began)
    # A stage may raise anything, SystemExit included, and must not end the agent's thread.
    except BaseException as error:
        if run.cancel.cancelled and isinstance(error, Cancelled):
            return error
        return failure(error, node)


def failure(error: BaseException, node: str) -> ErrorInfo:
    """An exception as the report of a failure says it, with the end of its traceback.

    Whatever a stage says, its agent can report it: a report that is too large or no text would come up again for ever.
    """
    name = type(error).__name__
    try:
        said = str(error)
    # It is foreign code that says it.
    except Exception as unsaid:
        said = f"its message cannot be had: {type(unsaid).__name__}"
    return ErrorInfo(
        message=tellable(said if isinstance(error, StarloomError) else f"{name}: {said}") or name,
        cause=name,
        transient=_is_transient(error),
        node=node,
        trace=tellable(_trace(error)),
    )


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, StageError):
        return error.transient
    if isinstance(error, StarloomError):
        return error.retryable
    # TimeoutError and ConnectionError are OSErrors.
    return isinstance(error, OSError | MemoryError)


def _trace(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{PurePath(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames]
    return "\n".join(lines[-limits.TRACE_LINES_MAX :])


def _run(run: Execution, stages: StageLookup, models: ModelsFactory, node: str, began: int) -> Made:
    assign = run.assign
    stage = stages.stage(assign.kind)
    if not isinstance(stage, Stage):
        raise StageError(f"kind {assign.kind} is a stream stage, but none of its ports is a stream; make it a Stage")
    spec = stage.spec
    deferred = DeferredModels(models, run.cancel, assign.target)
    told: dict[str, float] = {}
    call = StageCall(
        inputs=inputs_of(run, spec),
        params=params_of(assign, spec),
        models=deferred,
        target=assign.target,
        make_key=run.key,
        attempt=assign.task.token.attempt,
        cancel=run.cancel,
        figure=told.__setitem__,
        empty=values.empty_in(run.room),
    )
    try:
        result = stage.run(call)
        run.cancel.raise_if_cancelled()
        deferred.close(spec.name)
        return made_of(run, spec, result, node, began, deferred, told)
    finally:
        deferred.close()


def made_of(
    run: Execution,
    spec: KindSpec,
    result: Outputs | Grown,
    node: str,
    began: int,
    models: DeferredModels,
    told: Mapping[str, float],
) -> Made:
    """What a run gave, checked and written, apart from streams. Raises InvalidInput and StageError."""
    assign = run.assign
    growth = None
    if isinstance(result, Grown):
        growth = _growth(spec, result.patch)
        result = result.outputs
    refs, data, late = _outputs(run, spec, result, node)
    figures = _figures(assign, told)
    ended = time.monotonic_ns()
    used = models.made
    targets = used.targets if used else []
    return Made(
        outputs=refs,
        data=data,
        holds=tuple(_holds(comparison, refs, data) for comparison in assign.comparisons),
        began=began,
        ended=ended,
        load_seconds=used.load_seconds + models.import_seconds if used else 0.0,
        models=tuple(used.models) if used else (),
        target=assign.target if assign.target in targets or not targets else targets[0],
        emulated=used.emulated if used else False,
        figures=figures,
        growth=growth,
        late=late,
    )


def _growth(spec: KindSpec, patch: Any) -> Patch:
    """What a result is to change of the job. Raises StageError for a kind that may not, and for what is too much."""
    if not spec.grows:
        raise StageError(f"kind {spec.name} changes the job, and does not declare that it grows; say so in its spec")
    if not isinstance(patch, Patch):
        raise StageError(f"kind {spec.name} gave {type(patch).__name__} as its growth; agents.growing makes a Patch")
    size = len(msgspec.json.encode(patch))
    if size > limits.GROWTH_BYTES_MAX:
        what = f"kind {spec.name} grows by {size} bytes of patch, over GROWTH_BYTES_MAX = {limits.GROWTH_BYTES_MAX}"
        raise StageError(f"{what}; add fewer stages, or feed them by their inputs")
    return patch


def idempotency_key(assign: Assign) -> str:
    """Names (job, stage, kind, parameters, inputs), not the attempt: equal for every try of the same work."""
    inputs = {item.port: item.ref.digest for item in assign.inputs}
    named = (assign.task.job, assign.task.stage, assign.kind, assign.params, inputs)
    return values.digest(_keys.encode(named))


def inputs_of(run: Execution, spec: KindSpec) -> dict[str, Any]:
    """The values of one-shot input ports, verified and decoded. Raises InvalidInput with all that does not fit."""
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for item in run.assign.inputs:
        port = spec.input_port(item.port)
        place = f"stages.{run.assign.task.stage}.in.{item.port}"
        if port is None:
            problems.append(Problem(place, f"{spec.name} has no such input port"))
        elif port.type != item.ref.type:
            problems.append(Problem(place, f"is {item.ref.type}, but {spec.name} takes {port.type} there"))
        else:
            data = run.inputs[item.port] if item.ref.inline is None else values.verify(item.ref, item.ref.inline)
            found[item.port] = values.decode(item.ref.type, data, item.ref.meta, place)
    given = {item.port for item in run.assign.inputs}
    given.update(port for awaited in run.assign.awaits for port in awaited.streams)
    for name, port in spec.inputs.items():
        if not port.optional and name not in given:
            place = f"stages.{run.assign.task.stage}.in.{name}"
            problems.append(Problem(place, f"has no value: what feeds it gave none, and {spec.name} requires it"))
    if problems:
        raise InvalidInput(problems, "a stage's inputs do not fit")
    return found


def params_of(assign: Assign, spec: KindSpec) -> dict[str, Any]:
    """The parameters, defaults filled in. Raises InvalidInput with all that does not fit the kind as it is here."""
    if not assign.params and not spec.params:
        return {}
    problems = []
    for name, value in assign.params.items():
        param = spec.params.get(name)
        fault = "is not a parameter of this kind" if param is None else param_fault(param, value)
        if fault:
            problems.append(Problem(f"stages.{assign.task.stage}.params.{name}", fault))
    missing = [name for name, param in spec.params.items() if param.required and name not in assign.params]
    problems += [Problem(f"stages.{assign.task.stage}.params.{name}", "is required") for name in missing]
    if problems:
        raise InvalidInput(problems, f"the parameters do not fit kind {spec.name} as this agent has it")
    return {name: param.default for name, param in spec.params.items()} | assign.params


def _figures(assign: Assign, told: Mapping[str, float]) -> dict[str, float]:
    """What the stage measured, as floats; raises InvalidInput with all that a report cannot say."""
    if not told:
        return {}
    place = f"stages.{assign.task.stage}.figures"
    faults = {name: figure_fault(name, value) for name, value in told.items()}
    problems = [Problem(f"{place}.{name}", fault) for name, fault in faults.items() if fault]
    if len(told) > limits.FIGURES_PER_STAGE_MAX:
        what = f"{len(told)} are over FIGURES_PER_STAGE_MAX = {limits.FIGURES_PER_STAGE_MAX}"
        problems.append(Problem(place, what))
    if problems:
        raise InvalidInput(problems, "what a stage measured cannot be told")
    return {name: float(value) for name, value in told.items()}


def _outputs(
    run: Execution, spec: KindSpec, result: Any, node: str
) -> tuple[dict[str, ValueRef], dict[str, Data], tuple[str, ...]]:
    """References and bytes by port, and the ports that are late with their digests. Raises InvalidInput."""
    place = f"stages.{run.assign.task.stage}.out"
    if not isinstance(result, Mapping):
        raise InvalidInput([Problem(place, f"is {type(result).__name__}, not a mapping of ports to values")])
    ports = spec.output_ports(run.assign.params)
    problems = [
        Problem(f"{place}.{name}", f"{spec.name} declares no such output port")
        for name in result
        if name not in ports or ports[name].stream
    ]
    refs: dict[str, ValueRef] = {}
    data: dict[str, Data] = {}
    late: tuple[str, ...] = ()
    inlined = 0
    for name, port in ports.items():
        if port.stream:
            continue
        if name not in result:
            if not port.optional:
                problems.append(Problem(f"{place}.{name}", f"{spec.name} gave no value for this port"))
            continue
        try:
            data[name], meta = values.encode_into(run.room, port.type, result[name], f"{place}.{name}")
        except InvalidInput as error:
            problems += error.problems
            continue
        is_late = run.may_be_late(data[name])
        ref = values.refer(port.type, data[name], meta, node, name_of(run.assign.task, name) if is_late else "")
        late += (name,) if is_late else ()
        too_much = inlined + ref.bytes > limits.INLINE_VALUES_BYTES_MAX
        if ref.inline is not None and (too_much or run.assign.private):
            # A report, and the fact that it becomes, hold all that is inline.
            ref = msgspec.structs.replace(ref, inline=None)
        inlined += len(ref.inline or b"")
        refs[name] = ref
    if problems:
        raise InvalidInput(problems, "a stage's outputs do not fit")
    return refs, data, late


def _holds(comparison: Comparison, refs: Mapping[str, ValueRef], data: Mapping[str, Data]) -> bool:
    """As `conditions.holds`; of an output that has no value, only `!=` holds."""
    ref = refs.get(comparison.output)
    if ref is None:
        return comparison.operator == "!="
    if ref.type not in (PortType.TEXT, PortType.JSON):
        raise NotFound(f"output {comparison.output} is {ref.type}; only text and json can be compared")
    return holds(comparison, values.decode(ref.type, data[comparison.output], ref.meta))
