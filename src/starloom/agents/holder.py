"""Values that stages on this agent made, and replicas of others, kept until their job ends, for whoever needs them."""

from collections.abc import AsyncIterator

from starloom.agents.sharedmemory import Arena
from starloom.agents.values import Data
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, NotFound, Overloaded, Problem
from starloom.dag.ids import JobId


class Holder:
    """Bytes by job and digest, at most `limit_bytes` of them. A value that two jobs have is kept once, until both end.

    Replicas of what other agents made are only taken as long as no more than `replica_bytes` are held.
    Neighbours find in the `arena` what of it lies there. All methods are for the event loop's thread.
    """

    def __init__(
        self,
        limit_bytes: int = limits.AGENT_HELD_BYTES_MAX,
        replica_bytes: int = limits.AGENT_REPLICA_BYTES_MAX,
        arena: Arena | None = None,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._replica_bytes = replica_bytes
        #: where values of this agent may lie
        self.arena = arena
        self._values: dict[str, Data] = {}
        #: how many jobs each value is kept for
        self._kept_for: dict[str, int] = {}
        self._jobs: dict[JobId, set[str]] = {}
        #: the digests of values that stages were given by a name, by job and name
        self._named: dict[JobId, dict[str, str]] = {}
        self.held_bytes = 0

    @property
    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that something is kept for."""
        return tuple(self._jobs)

    def keep(self, job: JobId, digest: str, data: Data) -> None:
        """Keeps a value. Raises Overloaded if it does not fit."""
        if self.has(job, digest):
            return
        held = self._values.get(digest)
        if held is None and self.held_bytes + len(data) > self._limit_bytes:
            raise Overloaded(
                f"the agent holds {self.held_bytes} bytes for its jobs, and {len(data)} more are over "
                f"AGENT_HELD_BYTES_MAX = {self._limit_bytes}; wait until a job ends, or use more nodes"
            )
        if held is None:
            held = self._values[digest] = data
            self.held_bytes += len(data)
        self._kept_for[digest] = self._kept_for.get(digest, 0) + 1
        self._jobs.setdefault(job, set()).add(digest)
        if self.arena is not None:
            self.arena.add(job, digest, held)

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

    def get(self, job: JobId, digest: str) -> Data:
        """A value's bytes. Raises NotFound."""
        digest = self._named.get(job, {}).get(digest, digest)
        if not self.has(job, digest):
            raise NotFound(f"job {job} has no value {digest[:12]} here; it has ended, or the agent is new")
        return self._values[digest]

    def any(self, digest: str) -> Data | None:
        """A value's bytes, whichever job has it; for one that was given a reference to it. None if no job has."""
        return self._values.get(digest)

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
        self._named.pop(job, None)
        for digest in self._jobs.pop(job, ()):
            self._let_go(job, digest)

    def rename(self, job: JobId, name: str, digest: str) -> None:
        """A value that was kept under a name has a digest now; nothing happens where the job was released meanwhile.

        `get` finds it by both, for stages that were given the name, and begin only now.
        """
        if not self.has(job, name):
            return
        data = self._values[name]
        self._jobs[job].remove(name)
        self._let_go(job, name)
        self.keep(job, digest, data)
        self._named.setdefault(job, {})[name] = digest

    def _let_go(self, job: JobId, digest: str) -> None:
        # First the neighbours' way to it, then the value: what its last reference goes with may be written over.
        if self.arena is not None:
            self.arena.remove(job, digest)
        self._kept_for[digest] -= 1
        if not self._kept_for[digest]:
            del self._kept_for[digest]
            self.held_bytes -= len(self._values.pop(digest))
