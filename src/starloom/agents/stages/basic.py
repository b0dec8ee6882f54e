"""Kinds that need no model: for benchmarks, tests, faults on purpose, and glue between other kinds."""

import threading

import numpy as np

from starloom.agents.growing import Growing
from starloom.agents.stage import Grown, Outputs, Stage, StageCall
from starloom.dag import limits
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, CostParams, KindSpec, Param
from starloom.dag.values import Port, PortType

_FREE = Cost(run_seconds=0.0)
_VALUE = Port(PortType.JSON)
_BLOCK_WORDS = 128 * 1024


class Noop(Stage):
    """Gives its input `value` back, or null where it has none; further inputs only order it behind others."""

    spec = KindSpec(
        name="basic.noop",
        about="Does nothing; passes `value` on.",
        inputs={"value": Port(PortType.JSON, optional=True)},
        outputs={"value": _VALUE},
        variadic_input=_VALUE,
        brief=True,
        cost=_FREE,
    )

    def run(self, call: StageCall) -> Outputs:
        return {"value": call.inputs.get("value")}


class Echo(Stage):
    """Gives its bytes back."""

    spec = KindSpec(
        name="basic.echo",
        about="Passes bytes on.",
        inputs={"data": Port(PortType.BYTES)},
        outputs={"data": Port(PortType.BYTES)},
        brief=True,
        cost=_FREE,
    )

    def run(self, call: StageCall) -> Outputs:
        return {"data": bytes(call.inputs["data"])}


class Add(Stage):
    """The sum of its inputs, all numbers, in the order of their names; 0 without inputs.

    Raises StageError for anything else, a truth value included.
    """

    spec = KindSpec(
        name="basic.add",
        about="Adds numbers.",
        outputs={"value": _VALUE},
        variadic_input=_VALUE,
        brief=True,
        cost=_FREE,
    )

    def run(self, call: StageCall) -> Outputs:
        numbers = sorted(call.inputs.items())
        for name, number in numbers:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise StageError(f"basic.add: input {name!r} is {type(number).__name__}, not a number; bind a number")
        return {"value": sum(number for _, number in numbers)}


class Sleep(Stage):
    """Waits `seconds`, then passes `value` on; a cancel ends the wait at once."""

    spec = KindSpec(
        name="basic.sleep",
        about="Waits, then passes `value` on.",
        inputs={"value": Port(PortType.JSON, optional=True)},
        outputs={"value": _VALUE},
        params={
            "seconds": Param(type="number", default=1.0, about=f"0 to {limits.SLEEP_SECONDS_MAX:g} seconds"),
        },
        variadic_input=_VALUE,
        cost=Cost(run_seconds=1.0, params=CostParams(run_seconds="seconds")),
    )

    def run(self, call: StageCall) -> Outputs:
        seconds = call.params["seconds"]
        if not 0 <= seconds <= limits.SLEEP_SECONDS_MAX:
            raise StageError(
                f"basic.sleep: seconds is {seconds}, not from 0 to SLEEP_SECONDS_MAX = {limits.SLEEP_SECONDS_MAX:g}"
            )
        pause(call, seconds)
        return {"value": call.inputs.get("value")}


def pause(call: StageCall, seconds: float) -> None:
    """Waits so long. Raises Cancelled at once when the call is cancelled."""
    woken = threading.Event()
    forget = call.cancel.on_cancel(woken.set)
    try:
        woken.wait(seconds)
    finally:
        forget()
    call.cancel.raise_if_cancelled()


class Fail(Stage):
    """Fails in attempts up to `times`, then passes `value` on.

    Not deterministic: what it gives depends on the attempt.
    """

    spec = KindSpec(
        name="basic.fail",
        about="Fails on purpose, for as many attempts as `times` says.",
        inputs={"value": Port(PortType.JSON, optional=True)},
        outputs={"value": _VALUE},
        params={
            "message": Param(type="string", default="failed on purpose"),
            "transient": Param(type="boolean", default=False, about="whether the failure asks for a retry"),
            "times": Param(
                type="integer", default=limits.RETRIES_MAX + 1, about="attempts that fail; without it, every one"
            ),
        },
        variadic_input=_VALUE,
        deterministic=False,
        cost=_FREE,
    )

    def run(self, call: StageCall) -> Outputs:
        if call.attempt <= call.params["times"]:
            raise StageError(call.params["message"], transient=call.params["transient"])
        return {"value": call.inputs.get("value")}


class Count(Stage):
    """Adds 1 to `value`, and as long as that is less than `until` adds another round, which is read in its place."""

    spec = KindSpec(
        name="basic.count",
        about="Counts up, a round of a loop for each number.",
        inputs={"value": Port(PortType.JSON, optional=True)},
        outputs={"value": _VALUE},
        params={"until": Param(type="integer", default=1, about="the number to count to")},
        variadic_input=_VALUE,
        grows=True,
        brief=True,
        cost=_FREE,
    )

    def run(self, call: StageCall) -> Outputs | Grown:
        value = call.inputs.get("value", 0)
        if isinstance(value, bool) or not isinstance(value, int):
            raise StageError(f"basic.count: value is {type(value).__name__}, not a whole number; bind one")
        grow = Growing(call)
        if value + 1 < call.params["until"]:
            grow.redirect("value", grow.again(value=grow.own("value"))["value"])
        return grow.result({"value": value + 1})


class MakeBytes(Stage):
    """`size` pseudo-random bytes, the same for the same `seed` on every machine; they do not compress."""

    spec = KindSpec(
        name="basic.make_bytes",
        about="Makes bytes, for transfer to be measured.",
        outputs={"data": Port(PortType.BYTES)},
        params={
            "size": Param(type="integer", default=1024, about="bytes"),
            "seed": Param(type="integer", default=0, about="at least 0"),
        },
        variadic_input=_VALUE,
        cost=Cost(run_seconds=0.001, params=CostParams(output_bytes="size")),
    )

    def run(self, call: StageCall) -> Outputs:
        size, seed = call.params["size"], call.params["seed"]
        if not 0 <= size <= limits.VALUE_BYTES_MAX:
            raise StageError(
                f"basic.make_bytes: size is {size} bytes, not from 0 to VALUE_BYTES_MAX = {limits.VALUE_BYTES_MAX}"
            )
        if seed < 0:
            raise StageError(f"basic.make_bytes: seed is {seed}; give one of at least 0")
        return {"data": random_bytes(call, size, seed)}


def random_bytes(call: StageCall, size: int, seed: int) -> bytes:
    """So many pseudo-random bytes: PCG64's raw output, which numpy keeps the same across versions and machines, little-endian. `seed` is at least 0."""
    generator = np.random.PCG64(seed)
    made = bytearray()
    while len(made) < size:
        call.cancel.raise_if_cancelled()
        words = np.asarray(generator.random_raw(_BLOCK_WORDS), "<u8")
        made += words.tobytes()[: size - len(made)]
    return bytes(made)
