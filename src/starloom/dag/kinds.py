"""What a stage kind declares of itself. The code behind a kind lives on the nodes; only its name travels."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.values import Port

ParamType = Literal["string", "integer", "number", "boolean", "object", "array"]

PARAM_TYPES: Mapping[ParamType, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list, tuple),
}


class Param(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A parameter of a kind. Without a default it must be given; `choices` lists all it may be."""

    type: ParamType
    default: Any = None
    required: bool = False
    choices: tuple[Any, ...] = ()
    about: str = ""


OUTPUTS_PARAM: Final = "outputs"
"""The parameter whose keys are a stage's further output ports, of a kind with `variadic_output`."""


class CostParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The parameters that say what one stage of a kind costs, each by its name; empty where none does.

    `run_seconds`: a number. `memory_bytes`: a whole number, taken while it runs. `output_bytes`: a whole number for each
    output, or an object of them by port. `entry_bytes`: a whole number, what it reads that no stage made.
    """

    run_seconds: str = ""
    memory_bytes: str = ""
    output_bytes: str = ""
    entry_bytes: str = ""


class GraphUse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model's graph that a usual run of a kind computes `times` over, for predictions on nodes where it did not run yet.

    `sizes` are those of its inputs' dimensions, by name (`agents.graphreading`). `targets`: on which it does, all if empty.
    """

    model: str
    file: str = "model.onnx"
    sizes: dict[str, int] = {}
    times: float = 1.0
    targets: tuple[str, ...] = ()


class Cost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A hint for placement until runs were measured: seconds on one core of the reference machine.

    `params` names the parameters that know better for one stage; `dag.expectation` reads them. `graphs` are what a usual
    run computes: with what an agent measured of its node they tell the run time there better than `run_seconds`.
    `chunk_seconds`: of one chunk of the streams that it reads or gives; None where its author does not know. `first_token_seconds`,
    `token_seconds`: of a kind that writes an answer, from its run's start to the first token, and from one token to the next; 0 of others.
    """

    run_seconds: float = 0.01
    load_seconds: float = 0.0
    memory_bytes: int = 0
    params: CostParams = CostParams()
    chunk_seconds: float | None = None
    first_token_seconds: float = 0.0
    token_seconds: float = 0.0
    graphs: tuple[GraphUse, ...] = ()


class Batch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Attempts that may run in one call: at most `max`, the first of which waits at most `wait_seconds`, if its agent has others."""

    max: int = 16
    wait_seconds: float = 0.005

    def __post_init__(self) -> None:
        if self.max < 1 or not 0 <= self.wait_seconds <= 1:
            raise ValueError(
                f"a batch of max {self.max} and wait_seconds {self.wait_seconds}: at least 1, and 0 to 1 s"
            )


class KindSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A kind's signature: ports, parameters, targets, and what the runtime may rely on.

    `deterministic`: equal inputs and parameters give equal bytes. `grows`: its result may add
    stages to the job. `checkpoints`: it can resume from a saved state. `effects`: it acts on the
    outside world and takes an idempotency key. `brief`: a run takes well under a millisecond and never waits, so that an
    agent may run it on its event loop. `batch`: attempts of several jobs may share a call; a kind whose outputs depend on
    who shares it is not deterministic. `declassifies`: what it gives may go where what it reads may not, unless its stage
    says otherwise. `variadic_input`: accepts any further input ports
    of this type. `variadic_output`, no stream: a stage has a further output port of this type for each key of its parameter
    OUTPUTS_PARAM, an object. `tier` is where the kind usually runs; a stage's requirements overrule it.
    """

    name: str
    about: str = ""
    inputs: dict[str, Port] = {}
    outputs: dict[str, Port] = {}
    params: dict[str, Param] = {}
    variadic_input: Port | None = None
    variadic_output: Port | None = None
    targets: tuple[str, ...] = ("cpu",)
    models: tuple[str, ...] = ()
    tier: Tier | None = None
    deterministic: bool = True
    grows: bool = False
    checkpoints: bool = False
    effects: bool = False
    brief: bool = False
    batch: Batch | None = None
    declassifies: bool = False
    cost: Cost = Cost()

    def __post_init__(self) -> None:
        if self.variadic_output is not None and self.variadic_output.stream:
            raise ValueError(f"kind {self.name}: variadic_output is a stream; declare streams in outputs")

    def input_port(self, name: str) -> Port | None:
        """The port of that name, or None where the kind has none."""
        return self.inputs.get(name, self.variadic_input)

    def output_ports(self, params: Mapping[str, Any]) -> Mapping[str, Port]:
        """The output ports of a stage with these parameters, by name."""
        if self.variadic_output is None:
            return self.outputs
        named = params.get(OUTPUTS_PARAM)
        return {**dict.fromkeys(named if isinstance(named, dict) else (), self.variadic_output), **self.outputs}


class KindCatalog(Mapping[str, KindSpec]):
    """Kinds by name."""

    def __init__(self, kinds: Iterable[KindSpec] = ()) -> None:
        self._kinds: dict[str, KindSpec] = {}
        for kind in kinds:
            self.add(kind)

    def add(self, kind: KindSpec) -> None:
        """Adds a kind; the same one twice is fine. Raises InvalidInput if the name means another one."""
        known = self._kinds.setdefault(kind.name, kind)
        if known != kind:
            raise InvalidInput(
                [
                    Problem(
                        f"kinds.{kind.name}", "two different signatures under one name; rename one, or run one version"
                    )
                ]
            )

    def get(self, name: str, default: Any = None) -> Any:
        """As a mapping's, which would raise and catch for each name that is not there."""
        return self._kinds.get(name, default)

    def __getitem__(self, name: str) -> KindSpec:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)
