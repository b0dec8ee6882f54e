"""The values that an agent's process has, as `agents.holder` keeps them: digests by job, with how many bytes each is."""

from collections.abc import Iterable

from starloom.dag.ids import JobId
from starloom.dag.values import ValueRef


class Holder:
    """What others may fetch here is `held`; copies of what others hold serve this process alone."""

    def __init__(self) -> None:
        self.held: dict[JobId, dict[str, int]] = {}
        self._copies: dict[JobId, set[str]] = {}

    @property
    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that values are held for."""
        return tuple(self.held)

    @property
    def keeps(self) -> tuple[JobId, ...]:
        """The jobs that anything is kept for, copies included."""
        return tuple(dict.fromkeys([*self.held, *self._copies]))

    @property
    def held_bytes(self) -> int:
        return sum(sum(values.values()) for values in self.held.values())

    def hold(self, job: JobId, refs: Iterable[ValueRef]) -> None:
        """Values are here, for others as well."""
        self.held.setdefault(job, {}).update((ref.digest, ref.bytes) for ref in refs)

    def copy(self, job: JobId, digest: str) -> None:
        """A value was fetched."""
        self._copies.setdefault(job, set()).add(digest)

    def has_copy(self, job: JobId, digest: str) -> bool:
        """Whether a value was fetched before."""
        return digest in self._copies.get(job, ())

    def forget(self, job: JobId) -> None:
        """Nothing of a job is kept any more."""
        self.held.pop(job, None)
        self._copies.pop(job, None)
