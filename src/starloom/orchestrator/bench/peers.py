"""The peers that Starloom is measured beside, from the side of the one who asks."""

import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

import msgspec

from starloom.dag import limits
from starloom.dag.errors import StarloomError
from starloom.orchestrator.bench.peerhost import Ask, Reply
from starloom.orchestrator.bench.shapes import Form, Pace, Work


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A peer: the module here that runs it, what it is, and what it can do."""

    module: str
    about: str
    forms: frozenset[Form] = frozenset(Form)
    pins: frozenset[int] = frozenset({0, 1, 2})
    """Over how many pinned workers it can spread a graph; 0: over those that it chooses."""
    paced: bool = False
    """Whether it takes jobs at a pace."""


PEERS: Final[Mapping[str, Peer]] = {
    "dask": Peer(
        module="daskpeer",
        about="dask.distributed, four worker processes of one thread; futures, but one graph for jobs at once, which was faster; "
        "results are in the workers' memory, and made again if a worker dies; nothing outlives the scheduler",
        paced=True,
    ),
    "ray-tasks": Peer(
        module="raypeer",
        about="Ray tasks on four CPUs, by reference; Ray chooses the processes; a task of a worker that dies runs again; "
        "nothing outlives the driver",
        pins=frozenset({0, 1}),
        paced=True,
    ),
    "ray-actors": Peer(
        module="raypeer",
        about="four Ray actors, by reference; calls to one that dies fail; nothing outlives the driver",
        paced=True,
    ),
    "ray-compiled": Peer(
        module="raypeer",
        about="Ray compiled graphs of the chains, on actors of their own; compiled before, which takes seconds and is not "
        "counted; the graph is fixed, and one actor's death ends it",
        forms=frozenset({Form.CHAIN}),
        pins=frozenset({1, 2}),
    ),
    "grpc-stream": Peer(
        module="streampeer",
        about="a message a stage, to and fro on one bidirectional gRPC stream between two processes; neither graph nor state nor promise",
        forms=frozenset({Form.CHAIN}),
        pins=frozenset({2}),
    ),
    "floor": Peer(
        module="floorpeer", about="asyncio tasks in one process; neither state nor promise", pins=frozenset({0, 1})
    ),
}
"""The peers, by the names that rows have."""


class PeerContender:
    """A peer as a contender; `host` is the process that it runs in, shared with the others of its module."""

    def __init__(self, name: str, host: "Host") -> None:
        self.name = name
        self._host = host

    def does(self, work: Work) -> bool:
        """Whether the peer can do work of this form, pinned like this."""
        peer = PEERS[self.name]
        return work.form in peer.forms and work.workers in peer.pins

    def seconds(self, work: Work) -> float:
        """Does the work once, as the peer times it. Raises StarloomError if the peer fails."""
        return self._host.ask(Ask(peer=self.name, work=work))[0]

    @property
    def paced(self) -> bool:
        """Whether it takes jobs at a pace."""
        return PEERS[self.name].paced

    def latencies(self, pace: Pace) -> Sequence[float]:
        """The seconds from when each job was due until the peer knew that it had ended."""
        return self._host.ask(Ask(peer=self.name, pace=pace))


class Host:
    """A peer's process. Raises StarloomError, with the file of its log, if it ends or answers with an error."""

    def __init__(self, module: str, log: Path) -> None:
        self._module = module
        self._log = log
        with log.open("wb") as written:
            # A group of its own: Ctrl-C reaches the benchmark alone, which ends its peers in order.
            self._process = subprocess.Popen(
                (sys.executable, "-m", "starloom.orchestrator.bench.peerhost", module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                process_group=0,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asks: Final = self._process.stdin
        self._replies: Final = self._process.stdout

    def wait_ready(self) -> None:
        """Waits until the peers are up."""
        self._reply()

    def ask(self, ask: Ask) -> tuple[float, ...]:
        """The seconds that a piece of work took, or of each job."""
        try:
            self._asks.write(msgspec.json.encode(ask) + b"\n")
            self._asks.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._reply().seconds

    def stop(self) -> None:
        """Ends the process in order; kills it if it has not ended after the grace."""
        _close(self._asks)
        try:
            self._process.wait(limits.STOP_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _close(self._replies)

    def _reply(self) -> Reply:
        line = self._replies.readline()
        if not line:
            raise self._ended()
        reply = msgspec.json.decode(line, type=Reply)
        if reply.error:
            raise StarloomError(f"the peer {self._module} failed: {reply.error}")
        return reply

    def _ended(self) -> StarloomError:
        self._process.wait()
        log = self._log.read_text("utf-8", "replace").splitlines()
        return StarloomError(f"the peer {self._module} ended by itself; its log ends: {' / '.join(log[-5:])}")


@contextmanager
def open_peers(names: Iterable[str], logs: Path) -> Iterator[list[PeerContender]]:
    """Starts the peers named, at the same time; leaving the context ends them. `logs`: the folder of their logs."""
    chosen = list(names)
    with ExitStack() as stack:
        hosts: dict[str, Host] = {}
        for module in dict.fromkeys(PEERS[name].module for name in chosen):
            hosts[module] = Host(module, logs / f"{module}.log")
            stack.callback(hosts[module].stop)
        for host in hosts.values():
            host.wait_ready()
        yield [PeerContender(name, hosts[PEERS[name].module]) for name in chosen]


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        # What was not written yet cannot be any more; the process has ended.
        return
