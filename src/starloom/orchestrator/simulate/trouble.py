"""Makes faults happen: those of a plan that this run is armed with, until all is to be quiet."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from starloom.dag.constellation import Tier
from starloom.dag.ids import AgentId
from starloom.devices.faults import Fault, FaultKind, FaultPlan
from starloom.orchestrator.simulate.loop import SECOND, START, Call, Chance, Chances

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.world import World

FLAP_SECONDS = (0.1, 1.5)
UNNOTICED = 0.5
"""How likely a broken stream is not noticed at its other end."""


class Trouble:
    """The faults of one run."""

    def __init__(self, plan: FaultPlan, chances: Chances, quiet_seconds: float) -> None:
        self._chances = chances
        self.quiet_at = START + round(quiet_seconds * SECOND)
        arming = chances.of("arming")
        self.armed = [fault for fault in plan.faults if arming.happens(fault.armed)]
        self._chance_of = {fault.what: (fault, chances.of(fault.what)) for fault in self.armed if fault.chance}
        self.counts: dict[FaultKind, int] = {}
        #: how often each fault of the plan has happened, and the one that happens now
        self._times = dict.fromkeys(map(id, self.armed), 0)
        self._present: Fault
        #: stages that hang, to be woken
        self.hanging: list[Call] = []
        self._world: World

    def begin(self, world: "World") -> None:
        """Faults from now on."""
        self._world = world
        for fault in self.armed:
            if fault.at_seconds is not None and not fault.chance:
                at = START + round(fault.at_seconds * SECOND)
                if at < self.quiet_at:
                    world.loop.at(at, partial(self._happen, fault, self._chances.of(fault.what)))
            elif fault.per_minute:
                self._next(fault, self._chances.of(fault.what), START + round(fault.from_seconds * SECOND))
        world.loop.at(self.quiet_at, self._quiet)

    @property
    def quiet(self) -> bool:
        """Whether all faults are over."""
        return self._world.loop.now >= self.quiet_at

    def fires(self, what: FaultKind) -> bool:
        """Whether a fault happens at this opportunity."""
        known = self._chance_of.get(what)
        if known is None or self.quiet:
            return False
        fault, chance = known
        begin, end = fault.from_seconds, fault.to_seconds
        if fault.at_seconds is not None:
            begin, end = fault.at_seconds, fault.at_seconds + fault.lasts_seconds[1]
        if not begin <= self._world.loop.seconds <= end or not chance.happens(fault.chance):
            return False
        if self._spent(fault):
            return False
        self._count(fault)
        return True

    def _spent(self, fault: Fault) -> bool:
        return 0 < fault.most <= self._times[id(fault)]

    def _count(self, fault: Fault) -> None:
        self.counts[fault.what] = self.counts.get(fault.what, 0) + 1
        self._times[id(fault)] += 1

    def _next(self, fault: Fault, chance: Chance, since: int) -> None:
        time = since + round(chance.between(0, 120 / fault.per_minute) * SECOND)
        if time < min(self.quiet_at, START + round(fault.to_seconds * SECOND)):
            self._world.loop.at(time, partial(self._happen, fault, chance))

    def _happen(self, fault: Fault, chance: Chance) -> None:
        if self._spent(fault):
            return
        lasts = min(chance.between(*fault.lasts_seconds), (self.quiet_at - self._world.loop.now) / SECOND)
        self._count(fault)
        self._present = fault
        _HANDLERS[fault.what](self, chance, lasts)
        if fault.per_minute:
            self._next(fault, chance, self._world.loop.now)

    def _quiet(self) -> None:
        """What hung goes on; everything else was bounded by this time."""
        self._world.disk.make_room()
        for wake in self.hanging:
            wake()
        self.hanging.clear()

    def _agent(self, chance: Chance) -> AgentId:
        return chance.pick(candidates(self._present, self._world.tiers))

    def _crash(self, chance: Chance, lasts: float) -> None:
        self._world.agent_dies(self._agent(chance), lasts, noticed=not chance.happens(UNNOTICED))

    def _flap(self, chance: Chance, lasts: float) -> None:
        self._flap_one(chance, self._agent(chance), self._world.loop.now + round(lasts * SECOND))

    def _flap_one(self, chance: Chance, name: AgentId, until: int) -> None:
        if self._world.loop.now >= until:
            return
        seconds = chance.between(*FLAP_SECONDS)
        self._world.agent_dies(name, seconds, noticed=True)
        again = seconds + chance.between(*FLAP_SECONDS)
        self._world.loop.after(again, partial(self._flap_one, chance, name, until))

    def _hang(self, chance: Chance, lasts: float) -> None:
        process = self._world.processes.get(self._agent(chance))
        if process is not None:
            process.frozen_until = max(process.frozen_until, self._world.loop.now + round(lasts * SECOND))

    def _leave(self, chance: Chance, lasts: float) -> None:
        self._world.agent_leaves(self._agent(chance), lasts)

    def _slow(self, chance: Chance, lasts: float) -> None:
        self._for_a_while(
            self._world.slowness, self._agent(chance), self._present.factor or chance.between(3, 50), lasts
        )

    def _slow_link(self, chance: Chance, lasts: float) -> None:
        seconds = self._present.delay_seconds or chance.between(0.05, 1.5)
        self._for_a_while(self._world.network.slow, self._agent(chance), seconds, lasts)

    def _for_a_while(self, what: dict[AgentId, float], name: AgentId, value: float, lasts: float) -> None:
        what[name] = value
        self._world.loop.after(lasts, partial(what.pop, name, None))  # type: ignore[arg-type]

    def _disk_full(self, chance: Chance, lasts: float) -> None:
        self._world.disk.full = True
        self._world.loop.after(lasts, self._world.disk.make_room)

    def _break(self, chance: Chance, lasts: float) -> None:
        self._world.break_stream(self._agent(chance))

    def _kill(self, chance: Chance, lasts: float) -> None:
        if self._world.current.alive:
            self._world.current.die()

    def _freeze(self, chance: Chance, lasts: float) -> None:
        self._world.current.frozen_until = self._world.loop.now + round(lasts * SECOND)

    def _twice(self, chance: Chance, lasts: float) -> None:
        self._freeze(chance, lasts)
        self._world.replace(self._world.current)

    def _partition(self, *ways: str) -> Callable[[Chance, float], None]:
        def happen(chance: Chance, lasts: float) -> None:
            network, name = self._world.network, self._agent(chance)
            for way in ways:
                blocked: dict[AgentId, int] = getattr(network, f"blocked_{way}")
                network.block(blocked, name)
                self._world.loop.after(lasts, partial(network.heal, blocked, name))

        return happen

    def _drop_values(self, chance: Chance, lasts: float) -> None:
        process = self._world.processes.get(self._agent(chance))
        if process is not None:
            process.holder.held.clear()


def candidates(fault: Fault, tiers: Mapping[AgentId, Tier]) -> Sequence[AgentId]:
    """The nodes that a fault may happen to."""
    if fault.anywhere:
        return tuple(tiers)
    return [name for name, tier in tiers.items() if fault.may_meet(name, tier, {})]


Handler = Callable[[Trouble, Chance, float], None]


def _cut(*ways: str) -> Handler:
    return lambda trouble, chance, lasts: trouble._partition(*ways)(chance, lasts)


_HANDLERS: dict[FaultKind, Handler] = {
    FaultKind.AGENT_CRASH: Trouble._crash,
    FaultKind.AGENT_FLAP: Trouble._flap,
    FaultKind.AGENT_HANG: Trouble._hang,
    FaultKind.AGENT_LEAVE: Trouble._leave,
    FaultKind.AGENT_SLOW: Trouble._slow,
    FaultKind.DISK_FULL: Trouble._disk_full,
    FaultKind.LINK_BREAK: Trouble._break,
    FaultKind.LINK_SLOW: Trouble._slow_link,
    FaultKind.ORCHESTRATOR_CRASH: Trouble._kill,
    FaultKind.ORCHESTRATOR_HANG: Trouble._freeze,
    FaultKind.ORCHESTRATOR_TWICE: Trouble._twice,
    FaultKind.PARTITION: _cut("up", "down", "data"),
    FaultKind.PARTITION_DATA: _cut("data"),
    FaultKind.PARTITION_DOWN: _cut("down"),
    FaultKind.PARTITION_UP: _cut("up"),
    FaultKind.VALUES_LOST: Trouble._drop_values,
}
