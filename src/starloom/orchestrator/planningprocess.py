"""The planner of one orchestrator, in a process of its own: `python -m starloom.orchestrator.planningprocess`.

Reads what is wanted from standard input and writes what is planned to standard output, each a JSON document after its
length in four bytes, big-endian; before all that READY. Ends with its input and with the thread that started it, so that
none outlives its orchestrator.
"""

import os
import sys
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO, Final

import msgspec

from starloom.dag import limits
from starloom.dag.errors import Unavailable
from starloom.orchestrator.advice import Planned, PlanWanted
from starloom.orchestrator.withparent import die_with_parent

_HEAD: Final = 4
_NICE: Final = 10
"""Stages and agents on the same machine go first."""
READY: Final = b'"ready"'
"""What it says once it is compiled, or loaded: from then on it is asked."""


def read_frame(source: BinaryIO) -> bytes | None:
    """One document; None at the end, also amid one. Raises Unavailable for one over PLANNER_FRAME_BYTES_MAX."""
    head = source.read(_HEAD)
    if len(head) < _HEAD:
        return None
    size = int.from_bytes(head, "big")
    if size > limits.PLANNER_FRAME_BYTES_MAX:
        raise Unavailable(f"announces {size} bytes, over PLANNER_FRAME_BYTES_MAX = {limits.PLANNER_FRAME_BYTES_MAX}")
    data = source.read(size)
    return data if len(data) == size else None


def write_frame(sink: BinaryIO, data: bytes) -> None:
    """One document, at once. Raises OSError where nobody reads any more."""
    sink.write(len(data).to_bytes(_HEAD, "big") + data)
    sink.flush()


def main() -> None:
    """Plans, one after the other, until nothing more is asked."""
    die_with_parent(os.getppid())
    os.nice(_NICE)
    # What libraries print must not get between the documents.
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asked: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(sys.stdin.buffer, asked), daemon=True).start()
    from starloom.orchestrator.planner.live import advise
    from starloom.orchestrator.planner.warming import warm_up

    warm_up()
    write_frame(sink, READY)
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(PlanWanted).decode
    while True:
        write_frame(sink, encode(_planned(decode(asked.get()), advise)))


def _listen(source: BinaryIO, asked: SimpleQueue[bytes]) -> None:
    try:
        while (data := read_frame(source)) is not None:
            asked.put(data)
    finally:
        # At once: a planner that is being compiled would not look for a minute.
        os._exit(0)


def _planned(wanted: PlanWanted, advise: Callable[[PlanWanted, Callable[[], float]], Planned]) -> Planned:
    since: list[float] = []

    def gone() -> float:
        # The time runs from the first question on: what comes before it has to be done anyway.
        if not since:
            since.append(time.perf_counter())
        return (time.perf_counter() - since[0]) / limits.PLAN_LIVE_BUDGET_SECONDS

    try:
        return advise(wanted, gone)
    # The next job may do better.
    except Exception as error:
        refusal = f"the planner failed, by a defect of Starloom's, please report it: {error!r}"
        return Planned(job=wanted.job, number=wanted.number, refusal=refusal)


if __name__ == "__main__":
    main()
