"""The orchestrator as an actor's guest, without Ray; `test_cli_cluster` and `test_trials` have it on Ray."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from starloom.dag import limits
from starloom.dag.errors import Conflict
from starloom.orchestrator.actor import OrchestratorConfig, OrchestratorGuest, read_serving
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.server import JOURNAL_NAME


@pytest.fixture
def config(tmp_path: Path) -> OrchestratorConfig:
    (tmp_path / "token").write_text("secret")
    return OrchestratorConfig(folder=str(tmp_path), token_file=str(tmp_path / "token"))


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """The guest has its process to itself, and sets the collector for it."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.enable()
    gc.unfreeze()


async def started(config: OrchestratorConfig) -> tuple[OrchestratorGuest, asyncio.Task[None]]:
    guest = OrchestratorGuest(config)
    await guest.start()
    return guest, asyncio.create_task(guest.run())


async def test_the_next_one_serves_at_the_same_address_with_the_next_epoch(
    config: OrchestratorConfig, tmp_path: Path
) -> None:
    guest, running = await started(config)
    first = read_serving(tmp_path)
    await guest.stop()
    await running
    guest, running = await started(config)
    second = read_serving(tmp_path)
    assert first is not None
    assert second is not None
    assert (second.address, second.epoch) == (first.address, first.epoch + 1)
    async with AsyncClient(second.address, "secret") as client:
        assert (await client.cluster()).epoch == second.epoch
    await guest.stop()
    await running


async def test_it_waits_for_a_folder_that_is_still_held(config: OrchestratorConfig, tmp_path: Path) -> None:
    holder = Journal.open(tmp_path / JOURNAL_NAME)
    guest = OrchestratorGuest(config)
    starting = asyncio.create_task(guest.start())
    done, _ = await asyncio.wait([starting], timeout=0.3)
    assert not done
    holder.close()
    await starting
    running = asyncio.create_task(guest.run())
    await guest.stop()
    await running


async def test_a_folder_that_stays_held_is_told(
    config: OrchestratorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESTART_FOLDER_SECONDS", 0.1)
    holder = Journal.open(tmp_path / JOURNAL_NAME)
    with pytest.raises(Conflict, match="in use by process"):
        await OrchestratorGuest(config).start()
    holder.close()
