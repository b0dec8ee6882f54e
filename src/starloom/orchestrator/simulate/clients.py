"""Clients: each submits one job by a key, again if no answer comes, follows its events, may patch and may cancel it."""

from functools import partial
from typing import TYPE_CHECKING

from starloom.dag.errors import StarloomError
from starloom.dag.ids import JobId
from starloom.devices.faults import FaultKind
from starloom.orchestrator.effects import Patched, Stopped, Submitted
from starloom.orchestrator.inputs import CancelJob, Submit
from starloom.orchestrator.simulate.loop import Call, Process
from starloom.orchestrator.simulate.patcher import Patcher
from starloom.orchestrator.simulate.workload import Work

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.daemon import Orchestrator, Reply
    from starloom.orchestrator.simulate.world import World

LATENCY_SECONDS = (0.0005, 0.005)
ANSWER_SECONDS = 3.0
AGAIN_SECONDS = (0.1, 0.6)
ENDING = b'{"fact":"job-ended"'


class Client(Process):
    """One client's whole life."""

    def __init__(self, world: "World", name: str, work: Work, tiers: int) -> None:
        self._world = world
        self._loop = world.loop
        self._chance = world.chances.of("clients")
        self.name = name
        self.work = work
        self.job: JobId | None = None
        #: what it was told: offsets with their lines
        self.events: list[tuple[int, bytes]] = []
        self.ended = False
        self.patcher = Patcher(world, self, tiers)
        self._cancelling = False
        self._stopped: Stopped | None = None
        self._tries = 0
        #: its present stream of events, by number, and when the last batch of it arrives
        self._stream = 0
        self._server: Orchestrator | None = None
        self._last = 0

    def __repr__(self) -> str:
        return f"<Client {self.name} job={self.job} events={len(self.events)} ended={self.ended}>"

    @property
    def done(self) -> bool:
        return self.ended and self.patcher.done and (self._stopped is not None or not self._cancelling)

    def submit(self) -> None:
        """Submits, until there is an answer."""
        if self.job is not None:
            return
        for _ in range(1 + self._world.trouble.fires(FaultKind.CLIENT_REPEATS)):
            self._tries += 1
            job = JobId(f"{self.name}-{self._tries}")
            self.later(partial(self._submit, job))
        self._loop.after(ANSWER_SECONDS, self.submit, self)

    def _submit(self, job: JobId) -> None:
        world = self._world
        server = world.server()
        if server is None:
            return
        for ref in self.work.inputs.values():
            world.disk.values.add(ref.digest)
        work = self.work
        ask = partial(
            server.ask,
            lambda request: Submit(
                request=request,
                job=job,
                constellation=work.constellation,
                inputs=work.inputs,
                key=self.name,
                options=work.options,
            ),
            self.reply(self._submitted),
        )
        self._loop.after(0, ask, server)

    def _submitted(self, result: Submitted | Stopped | Patched | StarloomError) -> None:
        if self._world.trouble.fires(FaultKind.REPLY_LOST):
            return
        if isinstance(result, Submitted):
            self._world.judge.accepted(self, result)
            if self.job is None:
                self.job = result.job
                self._follow()
                self.patcher.begin()
        elif isinstance(result, StarloomError) and not result.retryable and type(result).__name__ != "Infeasible":
            self._world.judge.refused(self, result)

    def cancel(self) -> None:
        """Cancels, until there is an answer."""
        if self.ended and not self._cancelling:
            return
        if self._stopped is not None:
            return
        if self.job is not None:
            self._cancelling = True
            self.later(self._cancel)
        self._loop.after(ANSWER_SECONDS, self.cancel, self)

    def _cancel(self) -> None:
        server = self._world.server()
        if server is not None:
            job = str(self.job)
            reply = self.reply(self._was_stopped)
            ask = partial(server.ask, lambda request: CancelJob(request=request, job=job), reply)
            self._loop.after(0, ask, server)

    def _was_stopped(self, result: Submitted | Stopped | Patched | StarloomError) -> None:
        if self._world.trouble.fires(FaultKind.REPLY_LOST):
            return
        if isinstance(result, Stopped) and self._stopped is None:
            self._stopped = result
            self._world.client_moved(self)

    def _follow(self) -> None:
        """Reads events, from behind the last that it has."""
        if self.ended or self.job is None:
            return
        self.later(partial(self._connect, self.job))

    def _connect(self, job: JobId) -> None:
        server = self._world.server()
        if server is None:
            self._loop.after(self._chance.between(*AGAIN_SECONDS), self._follow, self)
            return
        self._stream += 1
        self._server = server
        self._last = self._loop.now
        after = self.events[-1][0] if self.events else 0
        self._loop.after(0, partial(server.follow, self, job, after), server)

    def send_events(self, server: "Orchestrator", records: list[tuple[int, bytes]]) -> None:
        """The orchestrator sends what is new."""
        if server is not self._server:
            return
        self._last = max(self._last + 1, self._loop.now + round(self._chance.between(*LATENCY_SECONDS) * 1e9))
        self._loop.at(self._last, partial(self._take, self._stream, server, records), self)

    def server_died(self, server: "Orchestrator") -> None:
        """All that was open there has broken, the stream of events as well."""
        self.patcher.server_died(server)
        self._stream_broke(server)

    def _stream_broke(self, server: "Orchestrator") -> None:
        if server is self._server:
            self._server = None
            self._stream += 1
            self._loop.after(self._chance.between(*AGAIN_SECONDS), self._follow, self)

    def _take(self, stream: int, server: "Orchestrator", records: list[tuple[int, bytes]]) -> None:
        if stream != self._stream:
            return
        if self._world.trouble.fires(FaultKind.CLIENT_DROPS):
            if self.job is not None:
                server.unfollow(self, self.job)
            self._stream_broke(server)
            return
        self.events += records
        if records[-1][1].startswith(ENDING):
            self.ended = True
            self._world.client_moved(self)

    def later(self, call: Call) -> None:
        """Calls once a message has got to the orchestrator."""
        self._loop.after(self._chance.between(*LATENCY_SECONDS), call, self)

    def reply(self, take: "Reply") -> "Reply":
        """Takes an answer after its way back."""

        def reply(result: Submitted | Stopped | Patched | StarloomError) -> None:
            self._loop.after(self._chance.between(*LATENCY_SECONDS), partial(take, result), self)

        return reply
