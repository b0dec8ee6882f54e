"""How other agents' attempts end, as far as own ones await them, and who is told of own ones: between core and peers."""

import time
from collections.abc import Callable, Iterable

from starloom.agents.core import AgentCore, Answer, Ask, Instruction, Unask
from starloom.agents.earlyvalues import EarlyValues
from starloom.agents.messages import Outcome
from starloom.agents.neighbours import Neighbours
from starloom.agents.peers import Peers
from starloom.dag.ids import TaskToken


class Outcomes:
    """`peers.Awaiter` of one agent. For the event loop's thread.

    What follows is for `carry_out`. `pause` lets the loop write before more stages run on it.
    """

    def __init__(
        self,
        core: AgentCore,
        neighbours: Neighbours | None,
        peers: Peers | None,
        carry_out: Callable[[Iterable[Instruction]], None],
        pause: Callable[[], None],
    ) -> None:
        self._core = core
        self._peers = peers
        self._carry_out = carry_out
        self._pause = pause
        self._leaving = False
        self.early_values = EarlyValues(neighbours, self._hashed_here)
        if peers is not None:
            peers.bind(self)

    def answered(self, outcome: Outcome) -> None:
        """Another agent's attempt has succeeded."""
        instructions = self._core.answered(outcome, time.monotonic_ns())
        # None that reads it knows it by a name any more.
        self.early_values.drop(outcome.task)
        self._carry_out(instructions)

    def early(self, outcome: Outcome, address: str) -> None:
        """Another agent's attempt is done, and its outputs are still being hashed."""
        if self.early_values.take(outcome, address):
            self._carry_out(self._core.answered(outcome, time.monotonic_ns()))

    def broke(self, task: TaskToken) -> None:
        """Who told early of an attempt may never tell the rest."""
        self.early_values.hash(task)

    def unreachable(self, task: TaskToken, reason: str) -> None:
        """Another agent cannot be asked for an attempt."""
        self._carry_out(self._core.unreachable(task, reason))

    def subscribed(self, subscriber: int, task: TaskToken) -> None:
        """Another agent awaits an attempt."""
        self._carry_out(self._core.subscribed(subscriber, task))

    def unsubscribed(self, subscriber: int, task: TaskToken | None = None) -> None:
        """Another agent awaits an attempt no more; without one, nothing."""
        self._core.unsubscribed(subscriber, task)

    def obey(self, instruction: Ask | Unask | Answer) -> None:
        """Carries out what the core says of other agents."""
        assert self._peers is not None, "attempts of other agents are awaited, and there is no way to ask"
        match instruction:
            case Ask() as ask:
                if not self._leaving:
                    self._peers.ask(ask)
            case Unask(task):
                self._peers.unask(task)
                self.early_values.drop(task)
            case Answer(subscriber, outcome):
                if not self._peers.answer(subscriber, outcome):
                    # The stream's task has been woken: it writes before more stages run on this loop.
                    self._pause()

    def leave(self) -> None:
        """Asks for nothing more."""
        self._leaving = True
        self.early_values.stop()

    async def stop(self) -> None:
        """Ends the streams between agents."""
        if self._peers is not None:
            await self._peers.stop()

    def _hashed_here(self, outcome: Outcome) -> None:
        instructions = self._core.hashed(outcome, time.monotonic_ns())
        if outcome.task.job in self._core.jobs:
            self.early_values.keep(outcome)
        else:
            self.early_values.drop(outcome.task)
        self._carry_out(instructions)
