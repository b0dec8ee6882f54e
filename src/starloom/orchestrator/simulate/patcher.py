"""How a client changes its job while that runs: patch after patch, again if no answer comes, and some of them twice."""

from functools import partial
from typing import TYPE_CHECKING

from starloom.dag.errors import StarloomError
from starloom.dag.ids import JobId
from starloom.devices.faults import FaultKind
from starloom.orchestrator.effects import Patched, Stopped, Submitted
from starloom.orchestrator.inputs import PatchJob
from starloom.orchestrator.simulate.editing import Drawn, Editor

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.clients import Client
    from starloom.orchestrator.simulate.daemon import Orchestrator
    from starloom.orchestrator.simulate.world import World

PATCHES_MAX = 12
PAUSE_SECONDS = (0.05, 0.3, 1.2)
ANSWER_SECONDS = (2.0, 8.0)
LATER_SECONDS = (0.0, 3.0)


class _Sent:
    """A patch that is on its way, until an answer came or none can come any more."""

    def __init__(self, drawn: Drawn) -> None:
        self.patch = drawn.patch
        self.server: Orchestrator | None = None


class Patcher:
    """The patches of one client. Those without an id are sent once: a repeat would be another patch."""

    def __init__(self, world: "World", client: "Client", tiers: int) -> None:
        self._world = world
        self._client = client
        self._loop = world.loop
        self._chance = world.chances.of("patches")
        self._editor = Editor(self._chance, world.chances.of("patches of places"), client.name, tiers)
        self._pause = self._chance.pick(PAUSE_SECONDS)
        self._count = 0
        self._open: dict[str, _Sent] = {}

    @property
    def done(self) -> bool:
        """Whether nothing is asked that could still be answered."""
        return not self._open

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The patches without an answer."""
        return tuple(self._open)

    def begin(self) -> None:
        """The job was accepted."""
        self._loop.after(self._pause * self._chance.between(0, 2), self._next, self._client)

    def server_died(self, server: "Orchestrator") -> None:
        """What was asked there once is not asked again."""
        for why, sent in tuple(self._open.items()):
            if not sent.patch.id and sent.server is server:
                self._over(why)

    def _next(self) -> None:
        """Some patches, now and then at once; one more comes when the job has ended."""
        if self._count >= PATCHES_MAX or self._world.trouble.quiet:
            return
        for _ in range(self._chance.pick((1, 1, 1, 1, 3))):
            if self._world.trouble.fires(FaultKind.CLIENT_PATCHES):
                self._patch()
        if not self._client.ended:
            self._loop.after(self._pause * self._chance.between(0, 2), self._next, self._client)

    def _patch(self) -> None:
        job = self._world.judge.jobs.get(self._client.job or JobId(""))
        if job is None:
            return
        self._count += 1
        drawn = self._editor.draw(job)
        self._world.judge.drawn(drawn)
        self._begin(drawn)
        if drawn.patch.id and self._world.trouble.fires(FaultKind.CLIENT_REPEATS):
            self._loop.after(self._chance.between(*LATER_SECONDS), partial(self._begin, drawn), self._client)

    def _begin(self, drawn: Drawn) -> None:
        self._open[drawn.patch.why] = sent = _Sent(drawn)
        self._send(sent)

    def _send(self, sent: _Sent) -> None:
        """Sends it, until there is an answer."""
        if self._open.get(sent.patch.why) is not sent:
            return
        self._client.later(partial(self._ask, sent))
        if sent.patch.id:
            self._loop.after(self._chance.between(*ANSWER_SECONDS), partial(self._send, sent), self._client)

    def _ask(self, sent: _Sent) -> None:
        server = sent.server = self._world.server()
        if server is None:
            if not sent.patch.id:
                self._over(sent.patch.why)
            return
        job = str(self._client.job)
        reply = self._client.reply(partial(self._answered, sent))
        ask = partial(server.ask, lambda request: PatchJob(request=request, job=job, patch=sent.patch), reply)
        self._loop.after(0, ask, server)

    def _answered(self, sent: _Sent, result: Submitted | Stopped | Patched | StarloomError) -> None:
        if isinstance(result, StarloomError) and result.retryable and sent.patch.id:
            return
        # Of one that has no id, a lost answer is not asked for again.
        if sent.patch.id and self._world.trouble.fires(FaultKind.REPLY_LOST):
            return
        if self._open.get(sent.patch.why) is sent:
            self._over(sent.patch.why)

    def _over(self, why: str) -> None:
        del self._open[why]
        self._world.client_moved(self._client)
