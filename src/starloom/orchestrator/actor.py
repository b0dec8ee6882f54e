"""The orchestrator as the guest of a Ray actor, which Ray starts again on the same address and folder when it dies.

The port is that of the folder's `orchestrator.json`, so whoever starts a cluster takes an old one away before.
"""

import asyncio
from pathlib import Path

import msgspec

from starloom.dag import limits
from starloom.dag.errors import Conflict
from starloom.orchestrator.process import announce, serve, start
from starloom.orchestrator.server import Orchestrator
from starloom.orchestrator.supervisor import ORCHESTRATOR_NAME, Serving

_LOOK_SECONDS = 0.05


class OrchestratorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`folder` is where the state lies, `token_file` a path: the token that every call has to carry.

    `faults_allowed`: whoever has it may make things go wrong. `plans_live`: jobs that run are planned as a whole.
    """

    folder: str
    token_file: str
    name: str = "orchestrator"
    faults_allowed: bool = False
    plans_live: bool = False


class OrchestratorGuest:
    """One orchestrator; `start` and `run` are called once each, in this order."""

    def __init__(self, config: OrchestratorConfig) -> None:
        self._config = config
        self._folder = Path(config.folder)
        self._token_file = Path(config.token_file)
        self._told = asyncio.Event()
        self._ended = asyncio.Event()
        self._orchestrator: Orchestrator

    async def start(self) -> None:
        """Serves; waits for a process that is still giving the folder or the port up.

        Raises Conflict after RESTART_FOLDER_SECONDS, and what `Orchestrator.start` raises.
        """
        token = self._token_file.read_text("ascii").strip()
        before = read_serving(self._folder)
        port = int(before.address.rpartition(":")[2]) if before else 0
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limits.RESTART_FOLDER_SECONDS
        while True:
            self._orchestrator = Orchestrator(
                self._folder,
                port=port,
                token=token,
                faults_allowed=self._config.faults_allowed,
                plans_live=self._config.plans_live,
            )
            try:
                serving = await start(self._orchestrator)
                break
            except Conflict:
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(_LOOK_SECONDS)
        announce(self._folder, serving, self._orchestrator.make_room)

    async def run(self) -> None:
        """Lasts until `stop`."""
        try:
            await serve(self._orchestrator, self._told)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Ends it in order, and waits for that."""
        self._told.set()
        await self._ended.wait()


def read_serving(folder: Path) -> Serving | None:
    """What `orchestrator.json` says; None where there is none."""
    try:
        return msgspec.json.decode((folder / ORCHESTRATOR_NAME).read_bytes(), type=Serving)
    except FileNotFoundError:
        return None
