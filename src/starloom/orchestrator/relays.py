"""Values whose holder a reader cannot reach go through the job store.

Nothing of this is journaled: after a restart a reader that cannot reach a holder says so again. What was brought stays in
the job store for UPLOAD_KEPT_SECONDS, as other values do that no job names; where it is gone, it is brought again.
"""

from collections.abc import Iterable

from starloom.agents.messages import Publish, Published
from starloom.dag.ids import AgentId, FencingToken, StageId, TaskToken
from starloom.orchestrator.fleet import AgentState, Fleet
from starloom.orchestrator.runs import Run
from starloom.orchestrator.state import Ledger, State


class Relays:
    """Has holders bring results to the job store, and knows which are there."""

    def __init__(self, state: State, ledger: Ledger) -> None:
        self._fleet: Fleet = state.fleet
        self._ledger = ledger

    def ask(self, run: Run, reader: AgentId, upstreams: Iterable[StageId]) -> bool:
        """A reader cannot reach who holds the results of `upstreams`; whether all are on their way, by the job store.

        Private ones never go there.
        """
        coming = True
        for name in dict.fromkeys(upstreams):
            stage = run.job.stages.get(name)
            if stage is None or stage.committed is None:
                coming = False
                continue
            living = self._fleet.having(stage.holders)
            run.apart.update((reader, holder.name) for holder in living)
            online = (member for member in living if member.state is AgentState.ONLINE and member.name != reader)
            holder = next(online, None)
            private = run.labels.given(name) is not None
            if holder is None or private or run.relays.get(name) == (stage.committed, False):
                # Nobody can bring it, or it could not be brought.
                run.relays.pop(name, None)
                coming = False
                continue
            # Asked again each time: what was asked of a process that is gone, or was brought and has expired, is lost.
            run.relays[name] = (stage.committed, None)
            command = Publish(task=TaskToken(run.job.id, name, stage.committed), values=stage.held)
            self._ledger.send(holder.name, command)
        return coming

    def published(self, run: Run, report: Published) -> None:
        """A holder has brought a result to the job store, or could not."""
        name, token = report.task.stage, report.task.token
        known = run.relays.get(name)
        if known is not None and known[0] == token:
            run.relays[name] = (token, not report.reason)


def relayed(
    run: Run, upstream: StageId, token: FencingToken | None, reader: AgentId, holders: Iterable[AgentId]
) -> bool:
    """Whether a reader is to take a result from the job store first: it is there, and no holder was in its reach."""
    there = token is not None and run.relays.get(upstream) == (token, True)
    return there and all((reader, holder) in run.apart for holder in holders)
