"""What plans bring: drawn jobs in virtual time, by the real coordinator, planner and agents' cores, with and without."""

import heapq
import random
from typing import Any

from tests.orchestrator.harness import SECOND, FakeAgent, World, node
from tests.orchestrator.test_coordinator_patch import constellation

from starloom.agents.core import AgentCore, Start, Tell
from starloom.agents.messages import Load
from starloom.dag.constellation import Constellation
from starloom.dag.facts import Timing
from starloom.dag.ids import AgentId, JobId
from starloom.orchestrator.inputs import AgentHeartbeat, Tick
from starloom.orchestrator.planner.live import advise

SPEEDS = {"a": 1.0, "b": 2.0, "c": 4.0}
PLANNING_SECONDS = 0.06
KEPT_WITHIN = 0.95
"""Of the makespans without plans; it was 0.93 when this was written, for the five jobs together."""


def layered(seed: int) -> Constellation:
    """40 stages in five layers, each of which reads up to three of the layer before; a quarter of them needs the fastest node."""
    chance, lines = random.Random(seed), ["stages:"]
    before: list[str] = []
    for layer in range(5):
        row = []
        for index in range(8):
            ups = chance.sample(before, min(len(before), 1 + chance.randrange(3)))
            reads = ", ".join(f"i{number}: {name}.value" for number, name in enumerate(ups))
            seconds = round(min(20.0, chance.lognormvariate(1.0, 0.9)), 3)
            only = ", require: {node: c}" if index < 2 else ""
            lines.append(f"  s{layer}-{index}: {{kind: t.task, in: {{{reads}}}, params: {{seconds: {seconds}}}{only}}}")
            row.append(f"s{layer}-{index}")
        before = row
    return constellation("\n".join(lines))


class Virtual:
    """One job from its acceptance to its end; runs take what their parameters tell, over a node's speed."""

    def __init__(self, *, guided: bool) -> None:
        self.world = World(*[node(name) for name in SPEEDS], guided=guided)
        for name, speed in SPEEDS.items():
            self.world.coordinator._state.planner.learn("t.task", AgentId(name), "cpu", Timing(run=1 / speed), 1.0)
        self.cores = {name: AgentCore(AgentId(name), 2) for name in SPEEDS}
        self.heard = dict.fromkeys(SPEEDS, 0)
        self.due: list[tuple[int, int, Any]] = []
        self.asked = self.count = 0

    def makespan(self, what: Constellation) -> float:
        """In seconds."""
        w, began = self.world, self.world.now
        job: JobId = w.submit(what)
        while w.status(job) == "running":
            while self._listen():
                pass
            wake = w.coordinator.next_wake()
            times = [w.now + SECOND // 2, *(self.due[0][:1] if self.due else ()), *([] if wake is None else [wake])]
            w.now = max(w.now, min(times))
            if self.due and self.due[0][0] <= w.now:
                heapq.heappop(self.due)[2]()
            else:
                beats = [
                    AgentHeartbeat(agent=a.name, incarnation=a.incarnation, load=Load()) for a in w.agents.values()
                ]
                w.handle(*beats, Tick())
        assert w.status(job) == "succeeded"
        return (w.now - began) / SECOND

    def _at(self, seconds: float, then: Any) -> None:
        self.count += 1
        heapq.heappush(self.due, (self.world.now + round(seconds * SECOND), self.count, then))

    def _listen(self) -> bool:
        """Agents take in what they were told, and the planner what it was asked; whether any was."""
        w, any_heard = self.world, False
        for wanted in w.plans[self.asked :]:
            self._at(PLANNING_SECONDS, lambda wanted=wanted: w.handle(advise(wanted, iterations=200)))
        self.asked = len(w.plans)
        for agent in w.agents.values():
            told, self.heard[agent.name] = agent.log[self.heard[agent.name] :], len(agent.log)
            any_heard = any_heard or bool(told)
            self._follow(agent, self.cores[agent.name].commands(told, w.epoch, w.now))
        return any_heard

    def _follow(self, agent: FakeAgent, instructions: Any) -> None:
        core, w = self.cores[agent.name], self.world
        for each in instructions:
            if isinstance(each, Start):
                assign = each.assign
                seconds = assign.params["seconds"] / SPEEDS[agent.name]
                self._follow(agent, core.began(assign.task, w.now))
                self._at(seconds, lambda a=assign, s=seconds: self._end(agent, a, s))
            elif isinstance(each, Tell):
                w.report(agent, each.report)

    def _end(self, agent: FakeAgent, assign: Any, seconds: float) -> None:
        report = agent.result(self.world.whole(assign), run=seconds)
        self._follow(agent, self.cores[agent.name].ended(assign.task, report, self.world.now))


def test_jobs_end_sooner_with_plans() -> None:
    jobs = [layered(seed) for seed in range(1, 6)]
    without, planned = ([Virtual(guided=guided).makespan(job) for job in jobs] for guided in (False, True))
    assert sum(planned) < KEPT_WITHIN * sum(without), (planned, without)
