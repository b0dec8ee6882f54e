"""`starloom faults inject` and `heal`, and what of `list` is about a cluster: faults by hand on the one that runs."""

import argparse
import asyncio
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from starloom.dag.errors import Conflict, InvalidInput, NotFound, Problem, Unavailable
from starloom.devices.faults import (
    AT_ONCE,
    AT_OPPORTUNITIES,
    LIVE,
    OF_KINDS,
    OF_ORCHESTRATOR,
    ORCHESTRATOR,
    Fault,
    FaultKind,
    FaultPlan,
    check_plan,
)
from starloom.orchestrator.cli.output import Commands, Exit, Output, Parser, UsageError, add_command, count, seconds
from starloom.orchestrator.statefolder import read_cluster

if TYPE_CHECKING:
    from starloom.orchestrator.trials.injector import Injector, Place, Standing
    from starloom.orchestrator.trials.planning import NodeFacts, Planned

SHORT: Final = {
    "kill": (FaultKind.AGENT_CRASH, FaultKind.ORCHESTRATOR_CRASH),
    "hang": (FaultKind.AGENT_HANG, FaultKind.ORCHESTRATOR_HANG),
    "slow": (FaultKind.AGENT_SLOW, FaultKind.AGENT_SLOW),
    "delay": (FaultKind.LINK_SLOW, FaultKind.LINK_SLOW),
    "corrupt": (FaultKind.FETCH_DAMAGED, FaultKind.FETCH_DAMAGED),
}
"""Short words for `inject`: what each means of an agent, and of the orchestrator."""

_ID_BYTES: Final = 3


def add_parsers(family: Commands) -> None:
    """Adds `inject` and `heal`."""
    inject = add_command(family, "inject", run_inject, "make something go wrong on the cluster that runs here, now")
    inject.add_argument("what", metavar="KIND", help=f"as `faults list` has them; or short: {', '.join(SHORT)}")
    inject.add_argument("--node", default="", metavar="NAME", help=f"whom it happens to: a node, or `{ORCHESTRATOR}`")
    inject.add_argument("--peer", default="", metavar="NAME", help="the other end of a link; everybody unless given")
    inject.add_argument("--for", type=seconds, dest="lasts", metavar="TIME", help="it ends by itself after so long")
    _add_numbers(inject)
    heal = add_command(family, "heal", run_heal, "end what was injected")
    heal.add_argument("id", nargs="?", default="", metavar="ID", help="as `inject` and `list` give it")
    heal.add_argument("--all", action="store_true", help="everything that stands")


def _add_numbers(inject: Parser) -> None:
    inject.add_argument("--kind", default="", metavar="KIND", help="only stages of this kind")
    inject.add_argument("--factor", type=float, default=0.0, help="agent-slow: stages take so many times as long")
    inject.add_argument("--add", type=seconds, default=0.0, metavar="TIME", help="agent-slow: and so much longer")
    inject.add_argument("--delay", type=seconds, default=0.0, metavar="TIME", help="link-slow: each way")
    inject.add_argument("--chance", type=float, default=1.0, help="at each opportunity, from 0 to 1 (%(default)s)")
    inject.add_argument("--most", type=count, default=0, metavar="N", help="at so many opportunities at most")
    inject.add_argument("--seed", type=count, default=0, help="what chances are drawn from (%(default)s)")


def run_inject(args: argparse.Namespace, out: Output) -> int:
    """Injects one fault, and says under which id it stands."""
    fault = _asked(args)
    return asyncio.run(_inject(fault, args, out))


def run_heal(args: argparse.Namespace, out: Output) -> int:
    """Ends faults. Raises NotFound for an id that does not stand."""
    if bool(args.id) == args.all:
        raise UsageError("say which fault to heal by its id, or --all")
    return asyncio.run(_heal([args.id] if args.id else [], out))


def standing(out: Output) -> "list[Standing] | None":
    """What stands on the cluster that runs here; None where there is none, or faults are not allowed."""
    return asyncio.run(_standing(out))


def rows(found: "Sequence[Standing]") -> list[dict[str, Any]]:
    """What stands, as JSON has it."""
    return [msgspec.to_builtins(each) for each in found]


def _asked(args: argparse.Namespace) -> Fault:
    """The fault of a command line. Raises InvalidInput with everything that is wrong."""
    word = SHORT.get(args.what, (args.what, args.what))[args.node == ORCHESTRATOR]
    if word not in tuple(LIVE):
        known = ", ".join((*LIVE, *SHORT))
        raise InvalidInput(
            [Problem("KIND", f"there is no {args.what!r} on a live cluster; there are {known}")], "no such fault"
        )
    what = FaultKind(word)
    problems = []
    if what in OF_ORCHESTRATOR and args.node not in ("", ORCHESTRATOR):
        problems.append(Problem("--node", f"is {args.node!r}, but {what} happens to the {ORCHESTRATOR}"))
    if what not in OF_ORCHESTRATOR and args.node == ORCHESTRATOR:
        problems.append(Problem("--node", f"{what} happens to nodes; name one"))
    if what not in OF_ORCHESTRATOR and what not in AT_OPPORTUNITIES and not args.node:
        problems.append(Problem("--node", f"is missing: whom does {what} happen to?"))
    if args.lasts is not None and what in AT_ONCE:
        problems.append(Problem("--for", f"{what} is over at once; leave it out"))
    if what is FaultKind.AGENT_SLOW and not (args.factor or args.add):
        problems.append(Problem("--factor", "say by how much: --factor 5, or --add 200ms"))
    if what is FaultKind.LINK_SLOW and not args.delay:
        problems.append(Problem("--delay", "say by how much, such as --delay 200ms"))
    fault = Fault(
        what=what,
        node="" if what in OF_ORCHESTRATOR else args.node,
        peer=args.peer,
        kind=args.kind,
        at_seconds=0.0,
        chance=args.chance if what in AT_OPPORTUNITIES else 0.0,
        lasts_seconds=(args.lasts or 0.0, args.lasts or 0.0),
        heals=args.lasts is not None or what in AT_ONCE,
        factor=args.factor,
        add_seconds=args.add,
        delay_seconds=args.delay,
        most=args.most if what in AT_OPPORTUNITIES else 0,
    )
    try:
        check_plan(FaultPlan(faults=(fault,)))
    except InvalidInput as error:
        problems += [Problem(problem.place.replace("faults.0.", "--"), problem.what) for problem in error.problems]
    if problems:
        raise InvalidInput(problems, "the fault is not right")
    return fault


async def _inject(fault: Fault, args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.trials.injector import HANGS, KILLS, hang_id
    from starloom.orchestrator.trials.wake import wake_later

    injector, places, nodes = await _cluster()
    planned = _planned(fault, args, nodes)
    await injector.standing(places)
    await injector.begin(planned, places)
    if fault.what in HANGS:
        place = next(place for place in places if place.name == planned.node)
        planned = msgspec.structs.replace(planned, id=hang_id(place))
        if args.lasts is not None:
            wake_later(place.pid, args.lasts)
    where = planned.node or ", ".join(planned.nodes)
    out.json(
        {
            "id": planned.id,
            "what": fault.what,
            "node": planned.node or None,
            "nodes": [planned.node] if planned.node else list(planned.nodes),
            "peer": fault.peer or None,
            "kind": fault.kind or None,
            "for_seconds": args.lasts,
            "seed": args.seed,
        }
    )
    over = fault.what in AT_ONCE or fault.what in KILLS
    until = "it is over" if over else f"`starloom faults heal {planned.id}` ends it"
    until = (
        f"it ends in {args.lasts:g} s, or by `starloom faults heal {planned.id}`" if args.lasts is not None else until
    )
    out.text(f"{planned.id}: {fault.what} of {where}; {until}")
    return Exit.DONE


def _planned(fault: Fault, args: argparse.Namespace, nodes: "Sequence[NodeFacts]") -> "Planned":
    from starloom.orchestrator.trials.planning import Planned, kind_fault

    names = [node.name for node in nodes]
    wrong = [
        Problem(f"--{option}", f"there is no node {name!r}; there are {', '.join((*names, ORCHESTRATOR))}")
        for option, name in (("node", fault.node), ("peer", fault.peer))
        if name and name not in (*names, ORCHESTRATOR)
    ]
    if wrong:
        raise InvalidInput(wrong, "no such node")
    if unknown := kind_fault(fault, nodes):
        raise InvalidInput([Problem("--kind", unknown)], "no such stages")
    everywhere = not fault.node and fault.what not in OF_ORCHESTRATOR
    return Planned(
        id=f"{fault.what}-{secrets.token_hex(_ID_BYTES)}",
        what=fault.what,
        node=ORCHESTRATOR if fault.what in OF_ORCHESTRATOR else fault.node,
        nodes=tuple(names) if everywhere else (),
        peer=fault.peer,
        kind=fault.kind if fault.what in OF_KINDS else "",
        lasts_seconds=args.lasts,
        factor=fault.factor,
        add_seconds=fault.add_seconds,
        delay_seconds=fault.delay_seconds,
        chance=fault.chance or 1.0,
        seed=args.seed,
        most=fault.most,
    )


async def _heal(ids: Sequence[str], out: Output) -> int:
    from starloom.orchestrator.trials.injector import hang_id, wake

    woken: list[str] = []
    here = _local_orchestrator()
    if here is not None and (not ids or hang_id(here) in ids):
        # It must go on before it can say where the others are.
        wake(here)
        woken.append(hang_id(here))
    injector, places, _ = await _cluster()
    healed = await injector.heal(ids, places) if not ids or set(ids) - set(woken) else []
    found = [*woken, *(each.id for each in healed)]
    if missing := [each for each in ids if each not in found]:
        raise NotFound(f"no fault {missing[0]!r} stands; `starloom faults list` has those that do")
    # One that has several nodes is one.
    found = list(dict.fromkeys(found))
    out.json({"healed": found})
    out.text(f"healed: {', '.join(found)}" if found else "nothing stood")
    return Exit.DONE


async def _standing(out: Output) -> "list[Standing] | None":
    from starloom.orchestrator.trials.injector import Standing, hang_id

    here = _local_orchestrator()
    if here is not None:
        out.note("the orchestrator hangs, and cannot say what else stands")
        return [Standing(id=hang_id(here), what=FaultKind.ORCHESTRATOR_HANG, node=ORCHESTRATOR)]
    try:
        injector, places, _ = await _cluster()
        return await injector.standing(places)
    except (Unavailable, Conflict) as error:
        out.note(f"{error}")
        return None


def _local_orchestrator() -> "Place | None":
    """The orchestrator of the cluster on this machine, if it hangs."""
    from starloom.orchestrator.trials.injector import Place, hangs

    record = read_cluster()
    if record is None:
        return None
    place = Place(name=ORCHESTRATOR, address=record.address, pid=record.orchestrator_pid)
    return place if hangs(place) else None


async def _cluster() -> "tuple[Injector, list[Place], list[NodeFacts]]":
    """The cluster that the environment or the state folder names, with all who are there or were a moment ago; then its nodes."""
    from starloom.orchestrator.client import AsyncClient
    from starloom.orchestrator.clientlink import find_cluster
    from starloom.orchestrator.trials.injector import Injector, Place, place_of
    from starloom.orchestrator.trials.planning import facts_of

    address, token = find_cluster()
    if _local_orchestrator() is not None:
        raise Unavailable("the orchestrator hangs; `starloom faults heal --all` wakes it")
    async with AsyncClient(address, token) as client:
        info = await client.cluster()
    orchestrator = Place(name=ORCHESTRATOR, address=address, pid=info.pid)
    profiles = [node.profile for node in info.nodes]
    return Injector(token), [orchestrator, *map(place_of, profiles)], [facts_of(profile) for profile in profiles]
