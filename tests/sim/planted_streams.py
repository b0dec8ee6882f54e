"""Bugs of streams for the simulator to find, as those of `planted`: the real buffer or coordinator, with one thing wrong."""

from collections.abc import Sequence

import msgspec

from starloom.agents.messages import Assign, Await
from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import Bound, Credit, StreamBatch
from starloom.dag.ids import Epoch, JobId, StageId
from starloom.dag.values import Full
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.inputs import Input


class SkipsOne(StreamBuffer):
    """A reader that comes back goes on one chunk too late."""

    def open(self, name: str, credit: Credit, full: Full | None = None) -> None:
        late = 0 < credit.acknowledged < self.next
        super().open(name, credit._replace(acknowledged=credit.acknowledged + 1) if late else credit, full)


class RepeatsOne(StreamBuffer):
    """A reader that comes back goes on one chunk too early, where that is still kept."""

    def open(self, name: str, credit: Credit, full: Full | None = None) -> None:
        early = self._gone < credit.acknowledged
        super().open(name, credit._replace(acknowledged=credit.acknowledged - 1) if early else credit, full)


class KeepsEverything(StreamBuffer):
    """The bound is not looked at."""

    def fits(self, size: int, generation: int = 0) -> bool:
        return True

    def _make_room(self, size: int) -> None:
        return


class GivesWithoutCredit(StreamBuffer):
    """A reader's window is not looked at."""

    def open(self, name: str, credit: Credit, full: Full | None = None) -> None:
        super().open(name, credit._replace(window=Bound()), full)

    def credit(self, name: str, credit: Credit) -> None:
        super().credit(name, credit._replace(window=Bound()))


class HearsNoCredit(StreamBuffer):
    """What readers acknowledge is not taken in."""

    def credit(self, name: str, credit: Credit) -> None:
        return


class Spoils(StreamBuffer):
    """One chunk reaches its readers as another."""

    def take(self, name: str, most: Bound | None = None) -> StreamBatch:
        batch = super().take(name, most)
        return batch._replace(chunks=tuple(c._replace(data=b"?") if c.offset == 1 else c for c in batch.chunks))


class ReadsTheFirst(Coordinator):
    """Readers are always told of the first attempt of their producer."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch)
        self._first: dict[tuple[JobId, StageId], Await] = {}

    def handle(self, inputs: Sequence[Input], now: int) -> Decision:
        decision = super().handle(inputs, now)
        for index, (agent, command) in enumerate(decision.commands):
            if isinstance(command, Assign):
                decision.commands[index] = (agent, self._of_the_first(command))
        return decision

    def _of_the_first(self, assign: Assign) -> Assign:
        awaits = []
        for awaited in assign.awaits:
            first = self._first.setdefault((assign.task.job, awaited.upstream), awaited) if awaited.streams else awaited
            where = {"token": first.token, "agent": first.agent, "address": first.address}
            awaits.append(msgspec.structs.replace(awaited, **where) if first.token != awaited.token else awaited)
        return msgspec.structs.replace(assign, awaits=tuple(awaits))


class ChangesWhatStreams(Coordinator):
    """Patches of stages with streams are not refused."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch)
        self._admission.stream_problems = lambda job, difference: iter(())  # type: ignore[method-assign]
