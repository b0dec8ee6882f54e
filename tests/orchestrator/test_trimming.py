"""Facts about agents and epochs that no start needs any more go, and every start comes to the same without them."""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.orchestrator.rig import SECONDS, Rig, constellation
from tests.orchestrator.rig import until as wait_until
from tests.orchestrator.test_fsck import change
from tests.orchestrator.test_golden_journal import NAMES, golden_facts
from tests.orchestrator.test_snapshots import NOOP, replayed, simulated, start, until_taken

from starloom.dag import limits
from starloom.dag.errors import JournalDamaged
from starloom.dag.facts import (
    AgentJoined,
    AgentLost,
    EpochStarted,
    Fact,
    JobSubmitted,
    StagePlaced,
    StageSuperseded,
    encode_fact,
)
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.orchestrator import snapshots
from starloom.orchestrator.fsck import check
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.records import Record, RecordReader
from starloom.orchestrator.same import complete, difference
from starloom.orchestrator.state import State
from starloom.orchestrator.trimming import superseded

A, B = AgentId("a"), AgentId("b")


def joined(agent: str, incarnation: str) -> AgentJoined:
    return AgentJoined(agent=AgentId(agent), incarnation=incarnation, profile={"name": agent, "tier": "edge"})


def lost(agent: str, incarnation: str) -> AgentLost:
    return AgentLost(agent=AgentId(agent), incarnation=incarnation, reason="silent")


def records(facts: Sequence[Fact]) -> list[Record]:
    return [Record(at, 1, getattr(fact, "job", JobId("")), encode_fact(fact)) for at, fact in enumerate(facts, 1)]


def trimmed(facts: Sequence[Fact], until: int, agents: Sequence[AgentId]) -> list[Fact]:
    """What is left of facts where those up to a number are trimmed."""
    gone = set(superseded([record for record in records(facts[:until]) if not record.job], agents))
    return [fact for at, fact in enumerate(facts, 1) if at not in gone]


def same(one: State, other: State) -> str:
    """Where two states differ in what decisions rest on."""
    complete(one)
    complete(other)
    return (
        difference(one.jobs, other.jobs, "jobs")
        or difference(list(one.open), list(other.open), "open")
        or difference(one.keys, other.keys, "keys")
        or difference(one.epoch, other.epoch, "epoch")
        or difference(agents(one), agents(other), "agents")
    )


def agents(state: State) -> dict[str, list[object]]:
    members = state.fleet.members
    return {
        name: [m.incarnation, m.state, m.profile, m.kinds, m.offers, list(m.assigned)]
        for name, m in sorted(members.items())
    }


def test_the_last_epoch_stays_and_of_each_known_agent_its_last_joining_and_what_follows() -> None:
    facts = [
        EpochStarted(epoch=Epoch(1)),
        joined("a", "a1"),
        lost("a", "a1"),
        joined("b", "b1"),
        EpochStarted(epoch=Epoch(2)),
        joined("a", "a2"),
        joined("gone", "g1"),
        lost("gone", "g1"),
        lost("a", "a2"),
    ]
    assert superseded(records(facts), {A, B}) == [8, 7, 3, 2, 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_journal_leads_to_the_same_wherever_it_is_trimmed(name: str) -> None:
    facts = golden_facts(name)
    expected = replayed(facts).state
    for until in range(len(facts) + 1):
        found = replayed(trimmed(facts, until, list(expected.fleet.members))).state
        assert same(found, expected) == "", f"trimmed up to {until}"


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(1, 12), until=st.floats(0, 1))
def test_a_journal_full_of_faults_leads_to_the_same_wherever_it_is_trimmed(seed: int, until: float) -> None:
    facts = simulated(seed)
    expected = replayed(facts).state
    left = trimmed(facts, round(until * len(facts)), list(expected.fleet.members))
    assert same(replayed(left).state, expected) == ""


def test_agents_that_were_forgotten_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOST_NODES_KEPT", 1)
    facts = [*simulated(1), *(fact for n in range(5) for fact in (joined(f"n{n}", "i"), lost(f"n{n}", "i")))]
    expected = replayed(facts).state
    known = list(expected.fleet.members)
    assert AgentId("n0") not in known
    for until in (len(facts) - 3, len(facts)):
        found = replayed(trimmed(facts, until, known)).state
        assert same(found, expected) == ""


def test_one_that_was_forgotten_with_what_it_had_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOST_NODES_KEPT", 1)
    job, stage, token = JobId("j"), StageId("a"), FencingToken(Epoch(1), Attempt(1))
    facts = [
        joined("gone", "g1"),
        JobSubmitted(job=job, constellation=constellation(NOOP)),
        StagePlaced(job=job, stage=stage, token=token, agent=AgentId("gone"), incarnation="g1"),
        lost("gone", "g1"),
        StageSuperseded(job=job, stage=stage, token=token, reason="its agent was lost", death=True),
        *(fact for name in ("n1", "n2", "n3") for fact in (joined(name, "i"), lost(name, "i"))),
    ]
    expected = replayed(facts).state
    for until in range(len(facts) + 1):
        found = replayed(trimmed(facts, until, list(expected.fleet.members))).state
        assert same(found, expected) == "", f"trimmed up to {until}"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """The facts of a simulated run, a snapshot, and fifty restarts of the orchestrator and of an agent."""
    journal = Journal.open(tmp_path / "journal")
    journal.append(simulated(1), 1)
    epoch = max(fact.epoch for fact in simulated(1) if isinstance(fact, EpochStarted))
    for number in range(1, 51):
        facts = [EpochStarted(epoch=Epoch(epoch + number)), joined("a", f"i{number}"), lost("a", f"i{number}")]
        journal.append(facts, 1)
    return journal


def test_a_start_is_the_same_from_each_snapshot_and_from_none(journal: Journal) -> None:
    first = snapshots.make(journal.folder)
    journal.append([joined("a", "i99")], 1)
    second = snapshots.make(journal.folder)
    with closing(RecordReader(journal.folder)) as reader:
        expected = start(reader)
        assert journal.trim(first, set(expected.state.fleet.members)) > 140
        assert journal.trim(first, set(expected.state.fleet.members)) == 0
        for offset in (second, first, 0):
            found = start(reader)
            assert found.offset == offset
            assert same(found.state, expected.state) == ""
            if offset:
                snapshots.path_of(journal.folder, offset).rename(journal.folder / f"away-{offset}")
        kept = [record for record in reader.replay(reader.last_offset()) if not record.job]
        assert len(kept) < 20
        damaged = next(record for record in kept if record.offset < first)
        connection = journal._writer
        connection.execute("UPDATE facts SET crc = 1 WHERE offset = ?", (damaged.offset,))
        with pytest.raises(JournalDamaged, match=f"record {damaged.offset} is not as it was written"):
            journal.trim(first, set())
    journal.close()


def test_a_trimmed_journal_is_whole(journal: Journal) -> None:
    folder = journal.folder
    first = snapshots.make(folder)
    with closing(RecordReader(folder)) as reader:
        known = set(start(reader).state.fleet.members)
    journal.append([joined("a", "i99")], 1)
    snapshots.make(folder)
    journal.trim(first, known)
    journal.close()
    # The run wrote its facts into another journal, and its values nowhere.
    change(folder.parent, "UPDATE meta SET value = 99 WHERE key = 'epoch'")
    found = check(folder.parent)
    assert ([each for each in found.damage if each.place != "values"], found.snapshots) == ([], 2)


def test_one_of_an_earlier_version_is_trimmed_as_well(journal: Journal) -> None:
    journal._writer.execute("DROP INDEX facts_of_no_job")
    folder, last = journal.folder, journal.last_offset
    journal.close()
    journal = Journal.open(folder)
    assert journal.trim(last, {A}) > 140
    journal.close()


async def test_a_journal_does_not_grow_with_agents_that_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOST_NODES_KEPT", 1)
    monkeypatch.setattr(limits, "SNAPSHOT_FACTS", 10)
    monkeypatch.setattr(limits, "SNAPSHOT_PAUSES", 0.0)
    async with Rig(tmp_path) as rig:
        client, taken = await rig.client(), 0
        for batch in range(3):
            for number in range(4):
                agent = await rig.agent(f"n{batch}-{number}")
                await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)
                await agent.stop()
            taken = await until_taken(rig, taken)
        await rig.orchestrator.engine.commits.settled()
        oldest = snapshots.offsets(tmp_path / "journal")[-1]
        assert oldest > 10

        async def is_trimmed() -> bool:
            # A snapshot is on the disk before the orchestrator is told of it, and trims by it.
            await asyncio.sleep(0.01)
            with closing(RecordReader(tmp_path / "journal")) as reader:
                left = [record for record in reader.read(limit=10_000) if not record.job and record.offset <= oldest]
            return len(left) <= 5

        await wait_until(is_trimmed)
        await rig.restart()
        await rig.agent("n0")
        await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)
