"""Values that stages on this agent made, and replicas of others, kept until their job ends, for whoever needs them."""

from collections.abc import AsyncIterator

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, NotFound, Overloaded, Problem
from starloom.dag.ids import JobId


class Holder:
    """Bytes by job and digest, at most `limit_bytes` of them. A value that two jobs made is kept for each.

    Replicas of what other agents made are only taken as long as no more than `replica_bytes` are held.
    All methods are for the event loop's thread.
    """

    def __init__(
        self, limit_bytes: int = limits.AGENT_HELD_BYTES_MAX, replica_bytes: int = limits.AGENT_REPLICA_BYTES_MAX
    ) -> None:
        self._limit_bytes = limit_bytes
        self._replica_bytes = replica_bytes
        self._jobs: dict[JobId, dict[str, bytes]] = {}
        self.held_bytes = 0

    @property
    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that something is kept for."""
        return tuple(self._jobs)

    def keep(self, job: JobId, digest: str, data: bytes) -> None:
        """Keeps a value. Raises Overloaded if it does not fit."""
        values = self._jobs.setdefault(job, {})
        if digest in values:
            return
        if self.held_bytes + len(data) > self._limit_bytes:
            raise Overloaded(
                f"the agent holds {self.held_bytes} bytes for its jobs, and {len(data)} more are over "
                f"AGENT_HELD_BYTES_MAX = {self._limit_bytes}; wait until a job ends, or use more nodes"
            )
        values[digest] = data
        self.held_bytes += len(data)

    def check_replica(self, size_bytes: int) -> None:
        """Raises Overloaded where a replica of that size would take the room that this agent's own values need."""
        if self.held_bytes + size_bytes > self._replica_bytes:
            raise Overloaded(
                f"the agent holds {self.held_bytes} bytes for its jobs, and a replica of {size_bytes} is over "
                f"AGENT_REPLICA_BYTES_MAX = {self._replica_bytes}; use more nodes"
            )

    def has(self, job: JobId, digest: str) -> bool:
        """Whether a value is kept."""
        return digest in self._jobs.get(job, ())

    def get(self, job: JobId, digest: str) -> bytes:
        """A value's bytes. Raises NotFound."""
        try:
            return self._jobs[job][digest]
        except KeyError:
            raise NotFound(f"job {job} has no value {digest[:12]} here; it has ended, or the agent is new") from None

    async def read(self, job: JobId, digest: str, offset: int) -> AsyncIterator[bytes | memoryview]:
        """The bytes from `offset` on, in chunks: `dataservice.ValueSource`."""
        data = self.get(job, digest)
        if offset > len(data):
            raise InvalidInput([Problem("offset", f"is {offset}, but the value ends at {len(data)}")])
        view = memoryview(data)
        for start in range(offset, len(data), limits.CHUNK_BYTES):
            yield view[start : start + limits.CHUNK_BYTES]

    def release(self, job: JobId) -> None:
        """Forgets a job's values."""
        self.held_bytes -= sum(map(len, self._jobs.pop(job, {}).values()))
