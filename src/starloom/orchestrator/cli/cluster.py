"""`starloom up`, `down` and `agent`: a cluster on this machine, and nodes that join one. `demo` has a module of its own."""

import argparse
import asyncio
import gc
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from starloom.dag import limits
from starloom.dag.errors import Conflict, DeadlineExceeded, InvalidInput, Problem, StarloomError, Unavailable
from starloom.orchestrator import statefolder
from starloom.orchestrator.cli import demo
from starloom.orchestrator.cli.output import Commands, Exit, Output, Parser, add_command, problem_rows
from starloom.orchestrator.cli.views import cluster_row

if TYPE_CHECKING:
    from starloom.agents.agent import AgentConfig
    from starloom.orchestrator.clusterfile import ClusterSpec

LOG_NAME: Final = "cluster.log"
FAULTS_ALLOWED_VARIABLE: Final = "STARLOOM_FAULTS_ALLOWED"
_LOOK_SECONDS = 1.0


def add_parsers(commands: Commands) -> None:
    """Adds `demo`, `up`, `down` and `agent`."""
    demo.add_parsers(commands)
    up = add_command(commands, "up", run_up, "start a cluster on this machine; returns when every node is online")
    up.add_argument(
        "file", nargs="?", type=Path, metavar="CLUSTER.yaml", help="its nodes; five on three tiers unless given"
    )
    up.add_argument(
        "--foreground", action="store_true", help="hold the cluster in this process until Ctrl-C or SIGTERM"
    )
    up.add_argument(
        "--orchestrator",
        choices=("process", "actor"),
        default="process",
        help="where it runs: in a process under a supervisor, or in a detached actor that Ray restarts (%(default)s)",
    )
    demo.add_planner(up)
    _add_faults_allowed(up)
    up.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    add_command(commands, "down", run_down, "stop the cluster that runs on this machine")
    agent = add_command(commands, "agent", run_agent, "make this machine a node of a cluster, until Ctrl-C or SIGTERM")
    agent.add_argument("--join", required=True, metavar="HOST:PORT", help="the orchestrator's address")
    agent.add_argument("--token", default="", help="the cluster's token; $STARLOOM_TOKEN unless given")
    agent.add_argument("--tier", required=True, help="device, edge or cloud")
    agent.add_argument("--name", default=os.uname().nodename, help="the node's name (default: %(default)s)")
    agent.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="a label of the node")
    agent.add_argument(
        "--uplink",
        action="append",
        default=[],
        metavar="NAME,mbit=N",
        help="an up-link that it shares with other nodes, which plans count, in the words of a fleet file: "
        "hall-wifi,mbit=40,duplex=half or shop-dsl,mbit=50,up_mbit=10; each on the way out",
    )
    agent.add_argument("--target", action="append", default=[], help="what it computes on: cpu (the default), npu, ...")
    agent.add_argument(
        "--slots", type=int, default=0, metavar="N", help="stages at one time; by the cores unless given"
    )
    _add_faults_allowed(agent)
    agent.add_argument("--host", default="127.0.0.1", help="the address at which other nodes reach this one")


def _add_faults_allowed(parser: Parser) -> None:
    parser.add_argument(
        "--faults-allowed",
        action="store_true",
        default=os.environ.get(FAULTS_ALLOWED_VARIABLE) == "1",
        help=f"let `starloom faults` make things go wrong, for trials; {FAULTS_ALLOWED_VARIABLE}=1 says so as well",
    )


@contextmanager
def ends_in_order() -> Iterator[None]:
    """Lets SIGTERM end this process as Ctrl-C does: by an exception, so that what was started is stopped."""

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_up(args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.clusterfile import DEFAULT, read_file

    demo.require_extras()
    spec = read_file(args.file) if args.file else DEFAULT
    folder = statefolder.state_folder()
    if args.foreground:
        with ends_in_order():
            return _hold(spec, folder, args, out)
    statefolder.prepare(folder)
    if (pid := statefolder.holder(folder)) is not None:
        raise Conflict(f"a cluster runs in {folder} already (process {pid}); stop it with `starloom down`")
    out.note(f"starting a cluster of {len(spec.nodes)} nodes")
    return _start(args, folder, out)


def _hold(spec: "ClusterSpec", folder: Path, args: argparse.Namespace, out: Output) -> int:
    """Holds the cluster in this process, until it is told to stop."""
    from starloom.orchestrator.cluster import EmbeddedCluster, OrchestratorHost

    ready: int | None = args.ready_fd
    host = OrchestratorHost(args.orchestrator)
    try:
        with EmbeddedCluster(
            spec,
            folder,
            orchestrator=host,
            faults_allowed=args.faults_allowed,
            plans_live=args.planner == demo.LIVE,
        ) as cluster:
            assert cluster.info is not None
            row = cluster_row(cluster.info, cluster.address)
            try:
                # Whoever reads this may end the process at once, and that is an end in order already.
                if ready is None:
                    _show(row, out)
                else:
                    _answer(ready, row)
                while not cluster.wait(_LOOK_SECONDS):
                    pass
            except (KeyboardInterrupt, SystemExit):
                return Exit.DONE
            # Said before the cluster is stopped: where Ray has died, that may end this process at once.
            out.note(f"starloom: {cluster.failure}")
            return Exit.FAILED
    except StarloomError as error:
        if ready is not None:
            problems = error.problems if isinstance(error, InvalidInput) else ()
            what = error.what if isinstance(error, InvalidInput) else str(error)
            _answer(ready, {"error": what, "problems": problem_rows(problems)})
        raise


def _answer(ready: int, row: dict[str, Any]) -> None:
    # Whoever waited may be gone, or have its answer already.
    with suppress(OSError):
        os.write(ready, msgspec.json.encode(row))
        os.close(ready)


def _start(args: argparse.Namespace, folder: Path, out: Output) -> int:
    """Starts a process in the background that holds the cluster, and waits until it says that it is there."""
    ready, given = os.pipe()
    command = [sys.executable, "-m", "starloom.orchestrator.cli.main", "up", "--foreground", "--ready-fd", str(given)]
    command += ["--orchestrator", args.orchestrator, "--planner", args.planner]
    command += ["--faults-allowed"] if args.faults_allowed else []
    log = folder / statefolder.LOGS_NAME / LOG_NAME
    with statefolder.writing(log):
        opened = log.open("ab")
    with opened as stream:
        child = subprocess.Popen(
            [*command, *([str(args.file)] if args.file else [])],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            pass_fds=(given,),
            start_new_session=True,
        )
    os.close(given)
    try:
        with os.fdopen(ready, "rb") as stream:
            answer = stream.read()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if not answer:
        raise Unavailable(f"the cluster's process ended with status {child.wait()}; see {log}")
    row = msgspec.json.decode(answer)
    if "error" in row:
        child.wait()
        problems = [Problem(**problem) for problem in row["problems"]]
        raise InvalidInput(problems, row["error"]) if problems else Unavailable(row["error"])
    _show(row, out)
    return Exit.DONE


def _show(row: dict[str, Any], out: Output) -> None:
    from starloom.orchestrator.cli.jobs import show_cluster

    show_cluster(row, out)
    out.text("`starloom submit` hands in a job, `starloom down` ends the cluster")


def run_down(args: argparse.Namespace, out: Output) -> int:
    from starloom.agents.sharedmemory import sweep

    folder = statefolder.state_folder()
    pid = statefolder.holder(folder)
    if pid is None:
        statefolder.forget_cluster(folder)
        sweep()
        out.json({"stopped": False, "pid": None})
        out.text(f"no cluster runs in {folder}")
        return Exit.DONE
    _end(pid)
    statefolder.forget_cluster(folder)
    sweep()
    out.json({"stopped": True, "pid": pid})
    out.text(f"the cluster in {folder} is down (process {pid})")
    return Exit.DONE


def _end(pid: int) -> None:
    """Ends a cluster's process and waits for its end. Raises DeadlineExceeded if not even SIGKILL ends it."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, seconds in ((signal.SIGTERM, limits.DOWN_SECONDS), (signal.SIGKILL, limits.STOP_GRACE_SECONDS)):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if select.select([process], [], [], seconds)[0]:
                return
    finally:
        os.close(process)
    raise DeadlineExceeded(
        f"process {pid} is there {limits.STOP_GRACE_SECONDS:g} s after SIGKILL; look into it by hand"
    )


def run_agent(args: argparse.Namespace, out: Output) -> int:
    from starloom.agents.agent import AgentConfig
    from starloom.orchestrator.clientlink import find_cluster
    from starloom.orchestrator.clusterfile import read_node

    address, token = find_cluster(args.join, args.token)
    node, uplinks = read_node(
        {
            "name": args.name,
            "tier": args.tier,
            "targets": args.target or ["cpu"],
            "labels": _labels(args.label),
            "slots": args.slots,
        },
        _uplinks(args.uplink),
    )
    config = AgentConfig(
        name=node.name,
        tier=node.tier,
        targets=node.targets,
        labels=node.labels,
        uplinks=uplinks,
        slots=node.slots,
        orchestrator=address,
        token=token,
        host=args.host,
        faults_allowed=args.faults_allowed,
    )
    return asyncio.run(_run_agent(config, out))


def _labels(given: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    problems = []
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            problems.append(Problem("--label", f"{text!r} is not KEY=VALUE"))
        labels[key] = value
    if problems:
        raise InvalidInput(problems, "the command line is not right")
    return labels


def _uplinks(given: Sequence[str]) -> list[dict[str, Any]]:
    """The plain form that a fleet file has of them."""
    forms, problems = [], []
    for text in given:
        name, *more = text.split(",")
        form: dict[str, Any] = {"name": name}
        for each in more:
            key, equals, value = each.partition("=")
            if not key or not equals:
                problems.append(Problem("--uplink", f"{each!r} of {text!r} is not KEY=VALUE"))
            elif key in form:
                problems.append(Problem("--uplink", f"{text!r} says {key} more than once; say it once"))
            form[key] = _number(value)
        forms.append(form)
    if problems:
        raise InvalidInput(problems, "the command line is not right")
    return forms


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


async def _run_agent(config: "AgentConfig", out: Output) -> int:
    from starloom.agents.agent import Agent

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    agent = Agent(config)
    await agent.start()
    # As where Ray hosts an agent.
    gc.freeze()
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    out.json({"name": config.name, "tier": config.tier, "pid": os.getpid(), "address": agent.profile.address})
    out.note(f"node {config.name} joins {config.orchestrator}; Ctrl-C ends it")
    running, stopping = asyncio.create_task(agent.run()), asyncio.create_task(told.wait())
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    await agent.stop()
    await running
    return Exit.DONE
