"""Peers in a process of their own: reads work from standard input, answers with the seconds that it took.

    python -m starloom.orchestrator.bench.peerhost MODULE

A line in is an `Ask`, a line out a `Reply`; the first line out says that the peers are ready. The end of
the input ends them and all their processes. So peers need not share a process, an event loop or a Ray
with Starloom, and none of them outlives the benchmark.
"""

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import BinaryIO, Protocol, runtime_checkable

import msgspec

from starloom.orchestrator.bench.shapes import Pace, Shape, Work, shape


class Runner(Protocol):
    """A peer that is up."""

    def run(self, graph: Shape) -> None:
        """Runs a graph of stages that do nothing but pass on their first input; returns when all have ended."""
        ...


@runtime_checkable
class Paced(Runner, Protocol):
    """A peer that takes more work while other work is under way."""

    def start(self, graph: Shape, done: Callable[[], None]) -> None:
        """Hands a graph in, and returns at once; `done` is called, from any thread, when all its stages have ended."""
        ...


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer is asked to do: a piece of work, or many small ones at a pace."""

    peer: str
    work: Work | None = None
    pace: Pace | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer answers: the seconds that it took, of each job where there was a pace, or why it could not."""

    seconds: tuple[float, ...] = ()
    error: str = ""


def open_peers(module: str) -> AbstractContextManager[dict[str, Runner]]:
    """Starts the peers of a module, by name; leaving the context ends them, with their processes."""
    opened: AbstractContextManager[dict[str, Runner]] = importlib.import_module(f"{__package__}.{module}").open_peers()
    return opened


def timed(runner: Runner, work: Work) -> float:
    """The seconds that one piece of work takes."""
    graph = shape(work)
    began = time.perf_counter()
    runner.run(graph)
    return time.perf_counter() - began


def paced(runner: Paced, pace: Pace) -> tuple[float, ...]:
    """The seconds from when each job was due until it had ended, in order."""
    graph, ended, left = pace.graph, [0.0] * pace.jobs, threading.Semaphore(0)

    def end(job: int) -> None:
        ended[job] = time.perf_counter()
        left.release()

    began = time.perf_counter()
    for job in range(pace.jobs):
        time.sleep(max(0.0, began + pace.due(job) - time.perf_counter()))
        runner.start(graph, partial(end, job))
    for _ in ended:
        left.acquire()
    return tuple(end - began - pace.due(job) for job, end in enumerate(ended))


def _answer(runner: Runner, ask: Ask) -> tuple[float, ...]:
    if ask.work is not None:
        return (timed(runner, ask.work),)
    assert ask.pace is not None, "one of both is asked for"
    assert isinstance(runner, Paced), "only those are asked that take work at a pace"
    return paced(runner, ask.pace)


def serve(module: str, asks: BinaryIO, replies: BinaryIO) -> None:
    """Serves until the asking ends."""
    with open_peers(module) as runners:
        replies.write(msgspec.json.encode(Reply()) + b"\n")
        for line in asks:
            try:
                ask = msgspec.json.decode(line, type=Ask)
                reply = Reply(seconds=_answer(runners[ask.peer], ask))
            # A peer may raise anything; the benchmark says what it was.
            except Exception as error:
                reply = Reply(error=f"{type(error).__name__}: {error}")
            replies.write(msgspec.json.encode(reply) + b"\n")


def main(module: str) -> None:
    """Serves on standard input and output, which the peers themselves then don't have."""
    asks = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(module, asks, replies)


if __name__ == "__main__":
    main(sys.argv[1])
