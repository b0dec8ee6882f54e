"""Peers in a process of their own: reads work from standard input, answers with the seconds that it took.

    python -m starloom.orchestrator.bench.peerhost MODULE

A line in is an `Ask`, a line out a `Reply`; the first line out says that the peers are ready. The end of
the input ends them and all their processes. So peers need not share a process, an event loop or a Ray
with Starloom, and none of them outlives the benchmark.
"""

import importlib
import os
import sys
import time
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

import msgspec

from starloom.orchestrator.bench.shapes import Shape, Work, shape


class Runner(Protocol):
    """A peer that is up."""

    def run(self, graph: Shape) -> None:
        """Runs a graph of stages that do nothing but pass on their first input; returns when all have ended."""
        ...


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer is asked to do."""

    peer: str
    work: Work


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer answers: the seconds, or why it could not."""

    seconds: float = 0.0
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


def serve(module: str, asks: BinaryIO, replies: BinaryIO) -> None:
    """Serves until the asking ends."""
    with open_peers(module) as runners:
        replies.write(msgspec.json.encode(Reply()) + b"\n")
        for line in asks:
            try:
                ask = msgspec.json.decode(line, type=Ask)
                reply = Reply(seconds=timed(runners[ask.peer], ask.work))
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
