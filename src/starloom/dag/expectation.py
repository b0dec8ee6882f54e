"""What one stage is expected to take and to give, as far as its kind and its parameters tell, before a run was measured.

    expected = expectation(stage, kinds.get(stage.kind))
    expected.run_seconds, expected.memory_bytes, expected.output_bytes.get("data")

A kind says in `Cost.params` which of its parameters tell what a stage of it costs: `basic.sleep` its `seconds`,
`synthetic.work` all there is. What no parameter tells is the kind's own hint. What was measured knows better than both.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from starloom.dag import limits
from starloom.dag.checks import number_fault
from starloom.dag.constellation import StageSpec
from starloom.dag.kinds import Cost, KindSpec
from starloom.dag.variants import told_of_variant

_UNKNOWN = Cost()


class Expectation(NamedTuple):
    """Of one stage: `run_seconds` on one core of the reference machine, without loading; `memory_bytes` while it runs.

    `output_bytes`: by output port, of those whose size is told. `entry_bytes`: what it reads that no stage made.
    """

    run_seconds: float
    memory_bytes: int
    output_bytes: Mapping[str, int]
    entry_bytes: int = 0


def expectation(stage: StageSpec, kind: KindSpec | None) -> Expectation:
    """What the stage is expected to take and give; of an unknown kind, what kinds without a hint are taken for.

    Never raises: a parameter that is no number, is below 0, or is more bytes than BYTES_MAX tells nothing.
    """
    cost = kind.cost if kind is not None else _UNKNOWN
    return Expectation(
        run_seconds=run_seconds(stage, kind),
        memory_bytes=int(_told(stage, kind, cost.params.memory_bytes, cost.memory_bytes, limits.BYTES_MAX)),
        output_bytes=_output_bytes(stage, kind),
        entry_bytes=int(_told(stage, kind, cost.params.entry_bytes, 0, limits.BYTES_MAX)),
    )


def run_seconds(stage: StageSpec, kind: KindSpec | None) -> float:
    """The seconds of `expectation` alone."""
    cost = kind.cost if kind is not None else _UNKNOWN
    return told_of_variant(stage) or _told(stage, kind, cost.params.run_seconds, cost.run_seconds)


def told_seconds(stage: StageSpec, kind: KindSpec | None) -> float | None:
    """The seconds that the stage's parameters, or its variant, tell; None where neither does."""
    if said := told_of_variant(stage):
        return said
    return run_seconds(stage, kind) if kind is not None and kind.cost.params.run_seconds else None


def _told(stage: StageSpec, kind: KindSpec | None, param: str, otherwise: float, at_most: float | None = None) -> float:
    value = _value(stage, kind, param)
    return otherwise if value is None or number_fault(value, at_most=at_most) else value


def _value(stage: StageSpec, kind: KindSpec | None, param: str) -> Any:
    """A parameter's value, or its default; None without either."""
    if kind is None or not param:
        return None
    declared = kind.params.get(param)
    return stage.params.get(param, declared.default if declared is not None else None)


def _output_bytes(stage: StageSpec, kind: KindSpec | None) -> dict[str, int]:
    if kind is None or not kind.cost.params.output_bytes:
        return {}
    value = _value(stage, kind, kind.cost.params.output_bytes)
    ports = kind.output_ports(stage.params)
    sizes = value if isinstance(value, dict) else dict.fromkeys(ports, value)
    return {
        port: int(size)
        for port, size in sizes.items()
        if port in ports and not number_fault(size, at_most=limits.BYTES_MAX)
    }
