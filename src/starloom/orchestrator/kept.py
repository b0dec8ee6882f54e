"""What the shell remembers of the jobs that the coordinator keeps: their times, and which stored values they name."""

from collections import Counter
from collections.abc import Container, Iterable, KeysView

from starloom.dag import facts
from starloom.dag.facts import Fact
from starloom.dag.ids import JobId
from starloom.dag.values import JOB_STORE, ValueRef


class JobTimes:
    """Unix time in nanoseconds, by the clock of the journal; `ended` is 0 while the job has not."""

    __slots__ = ("ended", "submitted", "values")

    def __init__(self, submitted: int) -> None:
        self.submitted = submitted
        self.ended = 0
        #: digests of values in the job store
        self.values: set[str] = set()


class KeptJobs:
    """Follows the journal's facts; knows only what is journaled."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, JobTimes] = {}
        self._named: Counter[str] = Counter()

    @property
    def digests(self) -> KeysView[str]:
        """Every value that a kept job names in the job store."""
        return self._named.keys()

    def __len__(self) -> int:
        return len(self._jobs)

    def times(self, job: JobId) -> JobTimes | None:
        """None for a job that is not journaled, or not kept any more."""
        return self._jobs.get(job)

    def note(self, fact: Fact, unix_nanos: int) -> list[str]:
        """Takes in one journaled fact; returns the digests that it names in the job store."""
        match fact:
            case facts.JobSubmitted(job=job, inputs=refs):
                self._jobs[job] = JobTimes(unix_nanos)
            case facts.StageCommitted(job=job, outputs=refs) | facts.StageDefaulted(job=job, outputs=refs):
                pass
            case facts.JobEnded(job=job, outputs=refs):
                if known := self._jobs.get(job):
                    known.ended = unix_nanos
            case _:
                return []
        return self._name(job, refs.values())

    def forget(self, kept: Container[JobId]) -> tuple[list[JobId], list[str]]:
        """Forgets the jobs that are not kept; returns them, and the digests that no other job names."""
        gone = [job for job in self._jobs if job not in kept]
        free: list[str] = []
        for job in gone:
            for digest in self._jobs.pop(job).values:
                self._named[digest] -= 1
                if not self._named[digest]:
                    del self._named[digest]
                    free.append(digest)
        return gone, free

    def _name(self, job: JobId, refs: Iterable[ValueRef]) -> list[str]:
        known = self._jobs.get(job)
        if known is None:
            return []
        # Streams are not among the values, and go with their job.
        named = [ref.digest for ref in refs if ref.holder == JOB_STORE and not ref.stream]
        if not named:
            return named
        # In an order that no hash decides: the same facts give the same snapshot.
        fresh = [digest for digest in dict.fromkeys(named) if digest not in known.values]
        known.values.update(fresh)
        self._named.update(fresh)
        return named
