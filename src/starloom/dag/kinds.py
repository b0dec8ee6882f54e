"""What a stage kind declares of itself. The code behind a kind lives on the nodes; only its name travels."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

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


class Cost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A hint for placement until runs were measured: seconds on one core of the reference machine."""

    run_seconds: float = 0.01
    load_seconds: float = 0.0
    memory_bytes: int = 0


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
    who shares it is not deterministic. `variadic_input`: accepts any further input ports
    of this type. `tier` is where the kind usually runs; a stage's requirements overrule it.
    """

    name: str
    about: str = ""
    inputs: dict[str, Port] = {}
    outputs: dict[str, Port] = {}
    params: dict[str, Param] = {}
    variadic_input: Port | None = None
    targets: tuple[str, ...] = ("cpu",)
    models: tuple[str, ...] = ()
    tier: Tier | None = None
    deterministic: bool = True
    grows: bool = False
    checkpoints: bool = False
    effects: bool = False
    brief: bool = False
    batch: Batch | None = None
    cost: Cost = Cost()

    def input_port(self, name: str) -> Port | None:
        """The port of that name, or None where the kind has none."""
        return self.inputs.get(name, self.variadic_input)


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
