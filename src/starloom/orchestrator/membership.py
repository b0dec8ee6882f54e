"""Agents come, fall silent, come back and are lost: leases, and the reconciliation of what each holds."""

from heapq import heappop, heappush
from typing import Final

import msgspec

from starloom.agents.messages import Cancel
from starloom.dag import limits
from starloom.dag.facts import AgentJoined, AgentLost, JobStatus
from starloom.dag.ids import AgentId, TaskToken
from starloom.dag.kinds import KindSpec
from starloom.devices.node import NodeProfile
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import AgentState, Fleet, Member
from starloom.orchestrator.inputs import AgentGoodbye, AgentHeartbeat, AgentHello, AgentReports
from starloom.orchestrator.resolving import Resolving
from starloom.orchestrator.runs import Run, Waits
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger, State

LEASE_NANOS: Final = round(limits.LEASE_SECONDS * NANOS)
_SUSPECT_NANOS: Final = round(limits.LOST_AFTER_SUSPECT_SECONDS * NANOS)
_LATE_NANOS: Final = round(limits.HEARTBEAT_SECONDS * NANOS)
_FLAP_WINDOW_NANOS: Final = round(limits.AGENT_FLAP_WINDOW_SECONDS * NANOS)
_FLAP_REST_NANOS: Final = round(limits.AGENT_FLAP_REST_SECONDS * NANOS)


class Membership:
    """Keeps the fleet's leases."""

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        waits: Waits,
        endings: Endings,
        settler: Settler,
        resolving: Resolving,
    ) -> None:
        self._fleet: Fleet = state.fleet
        self._ledger = ledger
        self._waits = waits
        self._endings = endings
        self._settler = settler
        self._resolving = resolving
        #: when to look at which agent; its deadline may have moved on since, and only the entry in _watched counts
        self._deadlines: list[tuple[int, AgentId]] = []
        self._watched: dict[AgentId, int] = {}
        self._resting: dict[AgentId, Member] = {}

    @property
    def next_time(self) -> int | None:
        """When a lease may lapse next, or an agent has rested."""
        times = [member.rests_until for member in self._resting.values()]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        return min(times, default=None)

    def boot(self) -> None:
        """After a restart nobody has been heard of: all have one lease to say hello."""
        for member in self._fleet.members.values():
            if member.state is AgentState.ONLINE:
                member.state = AgentState.SUSPECT
                member.heard = self._ledger.now
                self._watch(member, self._ledger.now + LEASE_NANOS)
            else:
                member.lost_at = self._ledger.now

    def hello(self, given: AgentHello) -> None:
        """A session began or went on: a process that is new joins, and what a known one holds is reconciled."""
        if not given.resumed:
            # It was for the session before, perhaps another process: what this one never had it would keep for ever.
            self._ledger.withdraw(given.agent)
        member = self._fleet.members.get(given.agent)
        if member is None or member.state is AgentState.LOST or member.incarnation != given.incarnation:
            if member is not None and member.state is not AgentState.LOST:
                self._lose(member, "another process of that name said hello")
            member = self._join(given.agent, given.incarnation, given.profile, given.kinds)
            self._rest_if_flapping(member)
        elif (member.profile, member.kinds) != (given.profile, given.kinds):
            self._join(given.agent, given.incarnation, given.profile, given.kinds)
        self._heard(member)
        if not given.resumed:
            self._reconcile(member, given)

    def heartbeat(self, given: AgentHeartbeat) -> None:
        """Renews a lease. What the agent has learned of its node meanwhile is joined to its profile."""
        member = self._known(given)
        if member is None:
            return
        measured = given.load.measured
        member.beat(given.load if measured is None else msgspec.structs.replace(given.load, measured=None))
        if measured not in (None, member.profile.measured):
            profile = msgspec.structs.replace(member.profile, measured=measured)
            self._join(member.name, member.incarnation, profile, member.kinds)
        self._heard(member)

    def reported(self, given: AgentReports) -> None:
        """Reports are a sign of life as well."""
        member = self._known(given)
        if member is not None:
            self._heard(member)

    def goodbye(self, given: AgentGoodbye) -> None:
        """The process is gone for certain."""
        member = self._known(given)
        if member is not None:
            self._lose(member, given.reason or "it left")

    def lapse(self) -> None:
        """Leases that are over make agents suspect, then lost. Rests end."""
        now = self._ledger.now
        self._forgive_own_sleep(now)
        while self._deadlines and self._deadlines[0][0] <= now:
            time, name = heappop(self._deadlines)
            if self._watched.get(name) != time:
                continue
            del self._watched[name]
            member = self._fleet.members.get(name)
            if member is None or member.state is AgentState.LOST:
                continue
            if member.deadline > now:
                self._watch(member, member.deadline)
            elif member.state is AgentState.ONLINE:
                member.state = AgentState.SUSPECT
                self._watch(member, now + _SUSPECT_NANOS)
            else:
                silent = (now - member.heard) / NANOS
                self._lose(member, f"not heard of for {silent:.1f} s")
        for member in [member for member in self._resting.values() if member.rests_until <= now]:
            del self._resting[member.name]
            member.rests_until = 0
            self._fleet.opened[member.name] = member

    def _forgive_own_sleep(self, now: int) -> None:
        """If this process itself was stopped, the silence was not the agents': leases start anew."""
        if not self._deadlines or now - self._deadlines[0][0] <= _LATE_NANOS:
            return
        for member in self._fleet.members.values():
            member.deadline = max(member.deadline, now + LEASE_NANOS)

    def _known(self, given: AgentHeartbeat | AgentReports | AgentGoodbye) -> Member | None:
        """The agent, if it is that very process and not lost; one that is has to say hello first."""
        member = self._fleet.members.get(given.agent)
        if member is None or member.incarnation != given.incarnation or member.state is AgentState.LOST:
            return None
        return member

    def _join(self, agent: AgentId, incarnation: str, profile: NodeProfile, kinds: tuple[KindSpec, ...]) -> Member:
        told = msgspec.to_builtins(profile)
        self._ledger.record(AgentJoined(agent=agent, incarnation=incarnation, profile=told, kinds=kinds))
        return self._fleet.members[agent]

    def _rest_if_flapping(self, member: Member) -> None:
        """An agent that dies again and again would take work along each time."""
        now = self._ledger.now
        member.losses = [time for time in member.losses if now - time < _FLAP_WINDOW_NANOS]
        if len(member.losses) >= limits.AGENT_FLAPS_MAX:
            member.rests_until = now + _FLAP_REST_NANOS
            self._resting[member.name] = member

    def _watch(self, member: Member, deadline: int) -> None:
        member.deadline = deadline
        if deadline < self._watched.get(member.name, deadline + 1):
            self._watched[member.name] = deadline
            heappush(self._deadlines, (deadline, member.name))

    def _heard(self, member: Member) -> None:
        member.heard = self._ledger.now
        self._watch(member, self._ledger.now + LEASE_NANOS)
        if member.state is AgentState.SUSPECT:
            member.state = AgentState.ONLINE
            self._fleet.opened[member.name] = member
        self._decide_waiting(member)

    def _lose(self, member: Member, reason: str) -> None:
        """All that the process held is gone: its attempts are superseded, its results made again once needed."""
        now = self._ledger.now
        self._ledger.record(AgentLost(agent=member.name, incarnation=member.incarnation, reason=reason))
        member.lost_at = now
        member.losses.append(now)
        self._resting.pop(member.name, None)
        member.rests_until = 0
        for task in tuple(member.assigned):
            run = self._endings.runs.get(task.job)
            if run is None or task not in member.assigned:
                continue
            # If the node is to blame, another one is not; if the stage is, it shows sooner.
            run.avoid.setdefault(task.stage, set()).add(member.name)
            why = f"{member.name} was lost: {reason}"
            # What awaited others was not at work there.
            death = not run.job.stages[task.stage].awaits or run.streams.reads(task.stage)
            self._give_up(run, task, why, death=death)
        self._resolving.lost(member.name)
        self._decide_waiting(member)

    def _give_up(self, run: Run, task: TaskToken, why: str, *, death: bool = False) -> None:
        try:
            if self._settler.supersede(run, task.stage, task.token, why, death=death):
                self._settler.decide(run, task.stage)
        except Exception as error:
            self._endings.contain(task.job, f"the loss of {task.stage}, token {task.token}", error)

    def _decide_waiting(self, member: Member) -> None:
        """What waited for word from an agent goes on."""
        for run, stage in self._waits.heard(member.name):
            try:
                self._settler.decide(run, stage)
            except Exception as error:
                self._endings.contain(run.job.id, f"{stage}, which waited for {member.name}", error)

    def _reconcile(self, member: Member, given: AgentHello) -> None:
        """Commands may have been lost with the old session: what did not arrive is given out again."""
        held = set(given.held)
        for task in tuple(member.assigned):
            if task not in member.assigned:
                continue
            run = self._endings.runs[task.job]
            if run.job.status is JobStatus.CANCELLING or (task not in held and task.stage not in run.early):
                # For one that never arrived, the tombstone catches the assignment if it is still on its way.
                self._ledger.send(member.name, Cancel(task=task))
            if task in held or task.stage in run.early:
                continue
            why = f"its assignment did not reach {member.name}"
            self._give_up(run, task, why)
        for task in given.held:
            if task not in member.assigned:
                self._ledger.send(member.name, Cancel(task=task))
        for job in dict.fromkeys((*given.jobs, *(task.job for task in given.held))):
            if job in self._endings.runs:
                self._endings.runs[job].keepers[member.name] = None
            else:
                self._endings.release(member.name, job)
