"""A stand-in for a task that was measured somewhere else: it takes as long, and gives as much."""

import hashlib
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from starloom.agents.stage import Outputs, Stage, StageCall
from starloom.agents.stages.basic import pause, random_bytes
from starloom.agents.values import digest
from starloom.dag import limits
from starloom.dag.checks import number_fault
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.kinds import OUTPUTS_PARAM, Cost, CostParams, KindSpec, Param
from starloom.dag.values import Port, PortType

_BYTES = Port(PortType.BYTES)
_PAGE_BYTES: Final = 4096
# Hashing as much takes well under a millisecond, and lets the agent's other threads run meanwhile.
_BLOCK: Final = bytes(256 * 1024)


class Work(Stage):
    """Works or waits for `seconds`, and gives the outputs that `outputs` names, of so many bytes each.

    `busy` work takes that much processor time of one core, so that it lasts longer where others have the core as well;
    `sleep` ends after that time. What it takes to make the outputs counts, and lasts longer where they are large. Their
    bytes are pseudo-random, by `seed` and port. Inputs are taken, and not looked at. `memory_bytes` and `entry_bytes` are
    told to whoever plans; with `take_memory` the memory is taken as well. Raises InvalidInput with all that cannot be done.
    """

    spec = KindSpec(
        name="synthetic.work",
        about="Stands for a measured task: takes given seconds, gives outputs of given sizes.",
        variadic_input=_BYTES,
        variadic_output=_BYTES,
        params={
            "seconds": Param(type="number", default=1.0, about=f"0 to {limits.DURATION_SECONDS_MAX:g} seconds"),
            "work": Param(
                type="string",
                default="busy",
                choices=("busy", "sleep"),
                about="whether it keeps a core busy, or sleeps",
            ),
            OUTPUTS_PARAM: Param(type="object", default={}, about="bytes of each output port, by the port's name"),
            "memory_bytes": Param(type="integer", default=0, about="working memory, for planners"),
            "take_memory": Param(type="boolean", default=False, about="whether that memory is taken while it runs"),
            "entry_bytes": Param(type="integer", default=0, about="bytes read that no stage made, for planners"),
            "seed": Param(type="integer", default=0, about="of the outputs' bytes"),
            "about": Param(type="string", default="", about="what it stands for, for people"),
        },
        cost=Cost(
            run_seconds=1.0,
            params=CostParams(
                run_seconds="seconds",
                memory_bytes="memory_bytes",
                output_bytes=OUTPUTS_PARAM,
                entry_bytes="entry_bytes",
            ),
        ),
    )

    def run(self, call: StageCall) -> Outputs:
        params = call.params
        _refuse(params)
        clock = time.thread_time if params["work"] == "busy" else time.monotonic
        until = clock() + params["seconds"]
        taken = _memory(params["memory_bytes"]) if params["take_memory"] else None
        outputs = {
            port: random_bytes(call, size, _seed(params["seed"], port)) for port, size in params["outputs"].items()
        }
        if params["work"] == "busy":
            while clock() < until:
                call.cancel.raise_if_cancelled()
                hashlib.blake2b(_BLOCK)
        else:
            pause(call, max(0.0, until - clock()))
        del taken
        return outputs


def _refuse(params: Mapping[str, Any]) -> None:
    """Raises InvalidInput with every parameter that is out of its bounds."""
    size = {"at_most": limits.VALUE_BYTES_MAX, "unit": "bytes"}
    faults = {
        "seconds": number_fault(params["seconds"], at_most=limits.DURATION_SECONDS_MAX, unit="seconds"),
        "memory_bytes": number_fault(params["memory_bytes"], whole=True, unit="bytes"),
        "seed": number_fault(params["seed"], whole=True),
    }
    for port, count in params[OUTPUTS_PARAM].items():
        if fault := number_fault(count, whole=True, **size):  # type: ignore[arg-type]
            faults[f"{OUTPUTS_PARAM}.{port}"] = f"{fault} (VALUE_BYTES_MAX)"
    if problems := [Problem(f"params.{name}", fault) for name, fault in faults.items() if fault]:
        raise InvalidInput(problems, "synthetic.work cannot do that")


def _memory(size: int) -> Any:
    """So many bytes, each page of them written to."""
    taken = np.empty(size, np.uint8)
    taken[::_PAGE_BYTES] = 1
    return taken


def _seed(seed: int, port: str) -> int:
    return int(digest(f"{seed}.{port}".encode())[:16], 16)
