"""What outlives the orchestrator's process: the journal's batches, the epoch, and the job store."""

from starloom.dag.errors import Fenced, StarloomError
from starloom.dag.facts import AnyFact, Fact, decode_fact, encode_fact
from starloom.dag.ids import Epoch
from starloom.orchestrator.simulate.loop import Chance

HEADROOM_RECORDS = 200
"""Records that still fit on a full disk."""


class DiskFullError(StarloomError):
    """Nothing can be written any more."""


class Disk:
    """One folder. Batches are written whole or not at all, as a transaction is."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self.epoch = Epoch(0)
        self.lines: list[bytes] = []
        #: digests in the job store
        self.values: set[str] = set()
        self.full = False
        self.headroom = HEADROOM_RECORDS

    def open(self) -> Epoch:
        """A process takes the journal over."""
        self.epoch = Epoch(self.epoch + 1)
        return self.epoch

    def is_of(self, epoch: Epoch) -> bool:
        """Whether no other process has taken it over since."""
        return epoch == self.epoch

    def facts(self) -> list[AnyFact]:
        """All that was journaled, read back."""
        return [decode_fact(line) for line in self.lines]

    def has_room(self) -> bool:
        """Whether new jobs may be accepted."""
        return not self.full and self.headroom == HEADROOM_RECORDS

    def make_room(self) -> None:
        self.full, self.headroom = False, HEADROOM_RECORDS

    def append(self, facts: list[Fact], epoch: Epoch) -> list[bytes]:
        """Writes a batch. Raises Fenced for a writer that was replaced, DiskFullError if nothing fits any more."""
        if not self.is_of(epoch):
            raise Fenced(f"epoch {epoch} was replaced by {self.epoch}")
        if self.full:
            if self.headroom < len(facts):
                raise DiskFullError("the disk is full")
            self.headroom -= len(facts)
        lines = [encode_fact(fact) for fact in facts]
        self.lines += lines
        return lines

    def torn(self, facts: list[Fact], epoch: Epoch) -> list[bytes]:
        """The process died while it wrote: the batch is there, or it is torn or lost, which is the same once it is cut off."""
        if not self.is_of(epoch) or self.full or self._chance.happens(0.6):
            return []
        return self.append(facts, epoch)
