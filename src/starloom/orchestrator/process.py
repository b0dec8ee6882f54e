"""The orchestrator as a process of its own: `python -m starloom.orchestrator.process --folder F --token-file T`.

Runs until SIGTERM or SIGINT, or until whoever started it has ended (--parent-fd). When it serves it writes `<folder>/orchestrator.json` and a byte to --ready-fd.
Exit: 0 stopped in order, 1 it could not go on, 2 bad usage, 3 the port or the folder is in use, 4 another orchestrator
took the folder over.
"""

import argparse
import asyncio
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from starloom.agents.wholefile import write_whole
from starloom.dag.errors import Conflict, Fenced, StarloomError
from starloom.orchestrator.server import Orchestrator
from starloom.orchestrator.supervisor import FENCED, ORCHESTRATOR_NAME, Serving

_log = logging.getLogger(__name__)

_FAILED, _USAGE, _TAKEN = 1, 2, 3

#: The finished jobs that are kept are many objects and no garbage. With Python's own thresholds, walking over them
#: took 16 % of the time, in pauses of 160 ms; references are counted, so only cycles wait for the collector.
_GC_THRESHOLDS = (50_000, 5, 100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one orchestrator; returns the process's exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        token = Path(options.token_file).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        _log.error("the token cannot be read: %s", error)
        return _USAGE
    if not token:
        _log.error("the token in %s is empty, which would let everybody in", options.token_file)
        return _USAGE
    try:
        asyncio.run(_serve(options, token))
    except Conflict as error:
        _log.error("%s", error)
        return _TAKEN
    except (StarloomError, OSError) as error:
        _log.error("the orchestrator ends: %s", error)
        return _FAILED
    return 0


async def _serve(options: argparse.Namespace, token: str) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    if options.parent_fd is not None:
        # Nothing is ever written to it: it becomes readable when its other end is closed, if only by SIGKILL.
        loop.add_reader(options.parent_fd, _parent_ended, loop, options.parent_fd, told)
    orchestrator = Orchestrator(
        options.folder,
        options.host,
        options.port,
        token,
        faults_allowed=options.faults_allowed,
        plans_live=options.plans_live,
    )
    announce(options.folder, await start(orchestrator), orchestrator.make_room)
    if options.ready_fd is not None:
        os.write(options.ready_fd, b"\n")
        os.close(options.ready_fd)
    await serve(orchestrator, told)
    _log.info("stopped")


def _parent_ended(loop: asyncio.AbstractEventLoop, parent: int, told: asyncio.Event) -> None:
    # It stays readable for ever, and the loop would spin.
    loop.remove_reader(parent)
    told.set()


async def start(orchestrator: Orchestrator) -> Serving:
    """Starts an orchestrator that has this process to itself. Raises what `Orchestrator.start` raises."""
    # A replay makes objects that stay: to look through them for garbage again and again takes most of its time.
    gc.disable()
    address = await orchestrator.start()
    gc.freeze()
    gc.enable()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return Serving(address=address, pid=os.getpid(), epoch=orchestrator.epoch)


async def serve(orchestrator: Orchestrator, told: asyncio.Event) -> None:
    """Returns once it was told to stop, and has. Where the orchestrator cannot go on, the process ends at once."""
    try:
        _log.info("serving at %s, epoch %d", orchestrator.address, orchestrator.epoch)
        stopped, failed = asyncio.create_task(told.wait()), asyncio.create_task(orchestrator.failed())
        await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            _give_up(failed.exception())
        failed.cancel()
    finally:
        await orchestrator.stop()


def announce(folder: Path, serving: Serving, make_room: Callable[[], bool]) -> None:
    """Writes `orchestrator.json`, whole or not at all; on a full disk once more, if room could be made. Raises OSError."""
    data = msgspec.json.format(msgspec.json.encode(serving)) + b"\n"
    try:
        write_whole(folder / ORCHESTRATOR_NAME, data)
    except OSError as error:
        if error.errno != errno.ENOSPC or not make_room():
            raise
        write_whole(folder / ORCHESTRATOR_NAME, data)


def _give_up(error: BaseException | None) -> None:
    # What was decided and not journaled must not be told to anybody, so nothing is wound up any more.
    _log.critical("the orchestrator ends at once: %s", error)
    logging.shutdown()
    os._exit(FENCED if isinstance(error, Fenced) else _FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="starloom.orchestrator.process", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the journal and the values lie")
    parser.add_argument("--token-file", required=True, help="a file with the token that every call has to carry")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; only this machine unless given")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--ready-fd", type=int, help="a file descriptor to write a byte to when it serves")
    parser.add_argument("--parent-fd", type=int, help="a file descriptor that is readable when this is to end")
    parser.add_argument(
        "--faults-allowed", action="store_true", help="let whoever has the token make things go wrong, for trials"
    )
    parser.add_argument(
        "--plans-live", action="store_true", help="plan jobs that run as a whole, in a process of its own"
    )
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
