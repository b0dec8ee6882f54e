"""The client without `await`: the asynchronous one, run by one background thread for all clients of a process.

with Client() as client:
    job = client.submit(constellation, {"audio": Path("question.wav"), "image": Path("photo.jpg")})
    print(job.result(timeout=60)["answer"])
"""

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from starloom.dag.constellation import Constellation
from starloom.dag.edit import Edit
from starloom.dag.errors import Problem
from starloom.dag.facts import StreamOptions
from starloom.dag.ids import JobId, Revision
from starloom.dag.kinds import KindCatalog
from starloom.dag.patch import Patch
from starloom.dag.values import ValueRef
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientjob import AsyncJob
from starloom.orchestrator.effects import Patched, Stopped
from starloom.orchestrator.infos import ClusterInfo, Event, JobInfo, NodeInfo, StreamItem

Result = TypeVar("Result")


class _Background:
    """An event loop in a daemon thread, started when it is first needed."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Waits for a coroutine to end on the loop; stops it if this thread is interrupted meanwhile."""
        future: Future[Result] = asyncio.run_coroutine_threadsafe(work, self._running())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[Result, None]) -> Iterator[Result]:
        """The items of an asynchronous generator, one by one."""
        # A step that was interrupted may still be on its way out when the generator is to be closed.
        one_at_a_time = asyncio.Lock()

        async def step() -> tuple[Result] | None:
            async with one_at_a_time:
                try:
                    return (await anext(items),)
                except StopAsyncIteration:
                    return None

        async def close() -> None:
            async with one_at_a_time:
                await items.aclose()

        try:
            while found := self.run(step()):
                yield found[0]
        finally:
            self._end(close)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._guard:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="starloom-client", daemon=True)
                self._thread.start()
            return self._loop

    def _end(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Closes a generator, also where it is collected as garbage: in the loop's own thread, or at the process's end."""
        if sys.is_finalizing():
            return
        if threading.current_thread() is self._thread:
            asyncio.run_coroutine_threadsafe(close(), self._running())
        else:
            self.run(close())


_background = _Background()


class Client:
    """See `AsyncClient`: the same methods, without `await`. Safe for threads."""

    def __init__(self, address: str | None = None, token: str | None = None) -> None:
        self._client = AsyncClient(address, token)
        self.address = self._client.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """See `AsyncClient.close`."""
        _background.run(self._client.close())

    def submit(
        self,
        constellation: Constellation,
        inputs: Mapping[str, Any] | None = None,
        key: str = "",
        priority: int = 0,
        max_parallel: int = 0,
        labels: Mapping[str, str] | None = None,
        deadline_seconds: float = 0.0,
        streams: Mapping[str, StreamOptions] | None = None,
    ) -> "Job":
        """See `AsyncClient.submit`."""
        options = (key, priority, max_parallel, labels, deadline_seconds, streams)
        return Job(_background.run(self._client.submit(constellation, inputs, *options)))

    def job(self, id_or_key: str) -> "Job":
        """See `AsyncClient.job`."""
        return Job(_background.run(self._client.job(id_or_key)))

    def info(self, id_or_key: str, revision: int = 0) -> JobInfo:
        """See `AsyncClient.info`."""
        return _background.run(self._client.info(id_or_key, revision))

    def jobs(self, limit: int = 0) -> list[JobInfo]:
        """See `AsyncClient.jobs`."""
        return _background.run(self._client.jobs(limit))

    def nodes(self) -> list[NodeInfo]:
        """See `AsyncClient.nodes`."""
        return _background.run(self._client.nodes())

    def cluster(self) -> ClusterInfo:
        """See `AsyncClient.cluster`."""
        return _background.run(self._client.cluster())

    def kinds(self) -> KindCatalog:
        """See `AsyncClient.kinds`."""
        return _background.run(self._client.kinds())

    def problems(self, constellation: Constellation) -> list[Problem]:
        """See `AsyncClient.problems`."""
        return _background.run(self._client.problems(constellation))

    def events(self, after: int = 0, follow: bool = True) -> Iterator[Event]:
        """See `AsyncClient.events`."""
        return _background.iterate(self._client.events(after, follow))

    def fetch(self, job: JobId, name: str, ref: ValueRef) -> Any:
        """See `AsyncClient.fetch`."""
        return _background.run(self._client.fetch(job, name, ref))


class Job:
    """See `AsyncJob`: the same methods, without `await`."""

    def __init__(self, job: AsyncJob) -> None:
        self._job = job

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    @property
    def id(self) -> JobId:
        return self._job.id

    @property
    def revision(self) -> Revision:
        return self._job.revision

    @property
    def existing(self) -> bool:
        return self._job.existing

    def status(self) -> JobInfo:
        """See `AsyncJob.status`."""
        return _background.run(self._job.status())

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """See `AsyncJob.result`."""
        return _background.run(self._job.result(timeout))

    @overload
    def stream(self) -> Iterator[tuple[str, Any]]: ...

    @overload
    def stream(self, port: str) -> Iterator[Any]: ...

    def stream(self, port: str = "") -> Iterator[Any]:
        """See `AsyncJob.stream`."""
        return _background.iterate(self._job.stream(port) if port else self._job.stream())

    def chunks(self, port: str, after: int = 0) -> Iterator[StreamItem]:
        """See `AsyncJob.chunks`."""
        return _background.iterate(self._job.chunks(port, after))

    def send(self, port: str, value: Any, at: float | None = None, generation: int = 0) -> int:
        """See `AsyncJob.send`."""
        return _background.run(self._job.send(port, value, at, generation))

    def flush(self, port: str) -> int:
        """See `AsyncJob.flush`."""
        return _background.run(self._job.flush(port))

    def close(self, port: str) -> int:
        """See `AsyncJob.close`."""
        return _background.run(self._job.close(port))

    def events(self, after: int = 0, follow: bool = True) -> Iterator[Event]:
        """See `AsyncJob.events`."""
        return _background.iterate(self._job.events(after, follow))

    def cancel(self, reason: str = "") -> Stopped:
        """See `AsyncJob.cancel`."""
        return _background.run(self._job.cancel(reason))

    def edit(self, if_revision: int = 0, restart: bool = False, why: str = "") -> "JobEdit":
        """See `AsyncJob.edit`; with a plain `with`."""
        return JobEdit(self, if_revision=if_revision, restart=restart, why=why)

    def patch(self, patch: Patch) -> Patched:
        """See `AsyncJob.patch`."""
        return _background.run(self._job.patch(patch))

    def undo(self, revision: int, restart: bool = False, why: str = "") -> Patched:
        """See `AsyncJob.undo`."""
        return _background.run(self._job.undo(revision, restart, why))


class JobEdit(Edit):
    """Changes of a job, made together at the end of a `with` block; see `AsyncJob.edit`."""

    def __init__(self, job: Job, *, if_revision: int, restart: bool, why: str) -> None:
        super().__init__(if_revision=if_revision, restart=restart, why=why)
        self._job = job
        #: the answer, after the block
        self.patched: Patched | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.patched = self._job.patch(self.patch())
