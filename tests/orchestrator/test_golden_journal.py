"""Journals of earlier versions replay for ever, and lead to the same state."""

import shutil
import typing
from pathlib import Path

import msgspec
import pytest
from tests.orchestrator.rig import Rig
from tools.golden_journal import FOLDER, replayed, story, summary, write

from starloom.dag import facts
from starloom.dag.facts import AnyFact, EpochStarted, decode_fact
from starloom.dag.ids import Epoch
from starloom.orchestrator.journal import Journal
from starloom.v1 import control_pb2 as pb

NAMES = sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def golden_facts(name: str) -> list[AnyFact]:
    return [decode_fact(line) for line in (FOLDER / f"{name}.jsonl").read_bytes().splitlines()]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found = request.param
    assert isinstance(found, str)
    return found


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    """A state folder with a copy of the golden journal."""
    (tmp_path / "journal").mkdir()
    shutil.copy(FOLDER / f"{name}.db", tmp_path / "journal" / "journal.db")
    return tmp_path


def test_every_kind_of_fact_is_in_a_golden_journal() -> None:
    assert NAMES
    known = set(typing.get_args(facts.AnyFact))
    assert {type(fact) for name in NAMES for fact in golden_facts(name)} == known


def test_its_facts_lead_to_the_same_state(name: str) -> None:
    expected = msgspec.json.decode((FOLDER / f"{name}.summary.json").read_bytes())
    coordinator = replayed(golden_facts(name))
    assert msgspec.json.decode(msgspec.json.encode(summary(coordinator))) == expected
    for job in coordinator.jobs.values():
        job.validate()


def test_its_file_holds_the_same_facts_and_takes_more(name: str, folder: Path) -> None:
    expected = golden_facts(name)
    journal = Journal.open(folder / "journal")
    assert [record.fact for record in journal.replay()] == expected
    assert journal.epoch > 1
    fact = EpochStarted(epoch=Epoch(99))
    assert journal.append([fact], 1)[0].offset == len(expected) + 1
    assert [record.fact for record in journal.replay()] == [*expected, fact]
    journal.close()


async def test_an_orchestrator_starts_on_it_and_serves(name: str, folder: Path) -> None:
    expected = msgspec.json.decode((FOLDER / f"{name}.summary.json").read_bytes())["jobs"]
    async with Rig(folder) as rig:
        listed = (await rig.call("ListJobs", pb.ListJobsRequest())).jobs
        assert {job.job_id: job.status for job in listed} == {job: found["status"] for job, found in expected.items()}
        for job in listed:
            whole = (await rig.call("GetJob", pb.GetJobRequest(job_id=job.key or job.job_id))).job
            assert {stage.stage for stage in whole.stages} == set(expected[job.job_id]["stages"])
        events = await rig.call("StreamEvents", pb.StreamEventsRequest())
        assert sum(len(response.events) for response in events) > len(golden_facts(name))


def test_what_this_version_writes_is_read_again_and_never_written_over(tmp_path: Path) -> None:
    world = story()
    write("now", list(world.facts), tmp_path)
    lines = (tmp_path / "now.jsonl").read_bytes().splitlines()
    assert [decode_fact(line) for line in lines] == world.facts
    with pytest.raises(FileExistsError):
        write("now", list(world.facts), tmp_path)
