"""The wire of clients: each call twice, malformed, oversized, without a token."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.message import Message
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.orchestrator.rig import SECONDS, TOKEN, Rig, answered, bytes_ref, request

from starloom.agents.values import digest
from starloom.agents.wire import ref_to_wire
from starloom.dag import limits
from starloom.dag.errors import (
    Conflict,
    DigestMismatch,
    InvalidConstellation,
    InvalidInput,
    NotFound,
    Overloaded,
    StarloomError,
    Unauthenticated,
)
from starloom.dag.facts import decode_fact
from starloom.dag.kinds import KindSpec
from starloom.dag.values import ValueRef
from starloom.orchestrator.headroom import Headroom
from starloom.v1 import control_pb2 as pb
from starloom.v1 import data_pb2

NOOP = "stages: {a: {kind: basic.noop}}\noutputs: {v: a.value}"
GATE = "stages: {a: {kind: test.gate}, b: {kind: basic.noop, in: {value: a.value}}}\noutputs: {v: b.value}"
ECHO = "inputs: {data: bytes}\nstages: {a: {kind: basic.echo, in: {data: $data}}}\noutputs: {v: a.data}"
LARGE = bytes(range(256)) * 4096


CYCLE = b"""{"api_version": "starloom/v1", "name": "x", "stages": {
    "a": {"kind": "basic.noop", "after": ["b"]}, "b": {"kind": "basic.noop", "after": ["a"]}}}"""
UNBOUND = b"""{"api_version": "starloom/v1", "name": "x", "inputs": {"d": "bytes"}, "stages": {
    "a": {"kind": "basic.echo", "in": {"data": "$d"}}}}"""


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[Rig]:
    """An orchestrator without agents."""
    async with Rig(tmp_path) as rig:
        yield rig


@pytest.fixture
async def rig(bare: Rig) -> Rig:
    await bare.agent("n0")
    return bare


def events_of(responses: list[pb.StreamEventsResponse]) -> list[pb.Event]:
    return [event for response in responses for event in response.events]


async def all_events(rig: Rig, job: str = "", after: int = 0, *, follow: bool = False) -> list[pb.Event]:
    asked = pb.StreamEventsRequest(job_id=job, after_offset=after, follow=follow)
    return events_of(await rig.call("StreamEvents", asked))


async def test_the_same_key_and_content_is_the_same_job(rig: Rig) -> None:
    first = await rig.call("Submit", request(NOOP, key="k"))
    second = await rig.call("Submit", request(NOOP, key="k"))
    assert (first.existing, second.existing) == (False, True)
    assert first.job_id == second.job_id
    assert first.revision == second.revision == 1
    with pytest.raises(Conflict, match="k"):
        await rig.call("Submit", request(ECHO, {"data": bytes_ref(b"x", inline=True)}, key="k"))


async def test_without_a_key_each_submission_is_a_job(rig: Rig) -> None:
    first, second = await rig.submit(NOOP), await rig.submit(NOOP)
    assert first != second
    assert first.startswith("job-")
    assert len(first) == len("job-") + 10


async def test_a_job_is_shown_with_its_stages(rig: Rig) -> None:
    job = await rig.submit(NOOP, key="mine", labels={"team": "a"})
    found = await rig.ended(job)
    again = (await rig.call("GetJob", pb.GetJobRequest(job_id="mine"))).job
    assert found == again
    assert (found.job_id, found.key, found.name, found.status, found.revision) == (job, "mine", "test", "succeeded", 1)
    assert dict(found.labels) == {"team": "a"}
    assert 0 < found.submitted_unix_nanos <= found.ended_unix_nanos
    assert found.outputs["v"].inline == b"null"
    assert msgspec.json.decode(found.constellation_json)["stages"] == {"a": {"kind": "basic.noop"}}
    (stage,) = found.stages
    assert (stage.stage, stage.kind, stage.status, stage.node) == ("a", "basic.noop", "succeeded", "n0")
    assert (stage.tier, stage.target, stage.target_emulated, stage.attempts) == ("edge", "cpu", False, 1)
    assert stage.timing.run_seconds > 0
    assert stage.reason == ""


async def test_a_waiting_stage_says_what_for_and_a_failed_one_why(rig: Rig) -> None:
    waiting = await rig.submit(GATE)
    await rig.gate.until_arrived(1)
    stages = {s.stage: s for s in (await rig.call("GetJob", pb.GetJobRequest(job_id=waiting))).job.stages}
    assert stages["b"].status == "placed"
    assert stages["b"].reason == "its upstreams: a; it was sent ahead to n0"
    assert "n0" in stages["a"].reason
    failing = await rig.ended(
        await rig.submit("stages: {a: {kind: basic.fail, params: {message: too dark, transient: true}, retry: 1}}")
    )
    assert failing.status == "failed"
    assert "too dark" in failing.error
    assert "too dark" in failing.stages[0].reason
    assert failing.stages[0].attempts == 2


async def test_jobs_are_listed_with_the_newest_first(rig: Rig) -> None:
    jobs = [await rig.submit(NOOP) for _ in range(3)]
    for job in jobs:
        await rig.ended(job)
    listed = (await rig.call("ListJobs", pb.ListJobsRequest())).jobs
    assert [job.job_id for job in listed] == jobs[::-1]
    assert all(not job.stages and not job.constellation_json and job.ended_unix_nanos for job in listed)
    limited = await rig.call("ListJobs", pb.ListJobsRequest(limit=2))
    assert list(limited.jobs) == list(listed[:2])
    assert await rig.call("ListJobs", pb.ListJobsRequest(limit=2)) == limited


async def test_events_are_the_facts_and_go_on_behind_any_offset(rig: Rig) -> None:
    job = await rig.submit(NOOP)
    await rig.ended(job)
    events = await all_events(rig, job)
    assert await all_events(rig, job, follow=True) == events
    facts = [decode_fact(event.fact_json) for event in events]
    assert type(facts[0]).__name__ == "JobSubmitted"
    assert type(facts[-1]).__name__ == "JobEnded"
    for index, event in enumerate(events):
        assert await all_events(rig, job, event.offset) == events[index + 1 :]
    of_all = await all_events(rig)
    assert [event for event in of_all if event in events] == events
    assert [event.offset for event in of_all] == list(range(1, len(of_all) + 1))
    asked = pb.StreamEventsRequest(job_id=job, kinds=["job-ended", "job-submitted"])
    assert events_of(await rig.call("StreamEvents", asked)) == [events[0], events[-1]]


async def test_many_and_large_events_come_in_bounded_messages(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_BYTES_PER_MESSAGE", 2_000)
    job = await rig.submit("stages: {" + ", ".join(f"s{n}: {{kind: basic.noop}}" for n in range(50)) + "}")
    await rig.ended(job)
    responses = await rig.call("StreamEvents", pb.StreamEventsRequest(job_id=job))
    assert len(responses) > 5
    for response in responses:
        assert len(response.events) == 1 or sum(len(event.fact_json) for event in response.events) <= 2_000
    assert events_of(responses) == await all_events(rig, job)


async def test_a_follower_sees_a_jobs_end_and_one_of_all_jobs_goes_on(rig: Rig) -> None:
    job = await rig.submit(GATE)
    await rig.gate.until_arrived(1)
    asked = pb.StreamEventsRequest(job_id=job, follow=True, kinds=["stage-started", "job-ended"])
    call = rig.stream("StreamEvents", asked)
    assert b"stage-started" in (await anext(call)).events[0].fact_json
    rig.gate.open()
    rest = events_of([message async for message in call])
    assert b"job-ended" in rest[-1].fact_json


async def test_cancel_returns_when_nothing_runs_and_may_be_repeated(rig: Rig) -> None:
    job = await rig.submit(GATE)
    await rig.gate.until_arrived(1)
    first = await rig.call("CancelJob", pb.CancelJobRequest(job_id=job, reason="enough"))
    assert first.status == "cancelled"
    assert first.seconds >= 0
    found = await rig.ended(job)
    assert {stage.status for stage in found.stages} == {"cancelled"}
    assert (await rig.call("CancelJob", pb.CancelJobRequest(job_id=job))).status == "cancelled"
    done = await rig.submit(NOOP)
    await rig.ended(done)
    assert (await rig.call("CancelJob", pb.CancelJobRequest(job_id=done))).status == "succeeded"


async def test_nodes_and_kinds_are_listed(rig: Rig) -> None:
    nodes = await rig.call("ListNodes", pb.ListNodesRequest())
    assert [(node.name, node.state) for node in nodes.nodes] == [("n0", "online")]
    assert nodes.epoch == 1
    assert msgspec.json.decode(nodes.nodes[0].profile_json)["slots"] == 4
    assert (await rig.call("ListNodes", pb.ListNodesRequest())).nodes[0].incarnation == nodes.nodes[0].incarnation
    kinds = await rig.call("ListKinds", pb.ListKindsRequest())
    assert kinds == await rig.call("ListKinds", pb.ListKindsRequest())
    names = [msgspec.json.decode(kind, type=KindSpec).name for kind in kinds.kinds_json]
    assert names == sorted(names)
    assert "basic.noop" in names


async def test_values_are_put_twice_and_fetched_from_any_offset(rig: Rig) -> None:
    ref = bytes_ref(LARGE, inline=False)
    chunks = [LARGE[start : start + limits.CHUNK_BYTES] for start in range(0, len(LARGE), limits.CHUNK_BYTES)]
    assert await rig.put(ref, chunks) == await rig.put(ref, chunks)
    job = await rig.submit(ECHO, {"data": ref})
    output = (await rig.ended(job)).outputs["v"]
    assert (output.digest, output.bytes, output.holder) == (ref.digest, len(LARGE), "")
    assert not output.HasField("inline")
    for offset in (0, 1, len(LARGE) - 1, len(LARGE)):
        assert await rig.fetch(job, output.digest, offset) == LARGE[offset:]
    with pytest.raises(InvalidInput, match="offset"):
        await rig.fetch(job, output.digest, len(LARGE) + 1)
    with pytest.raises(NotFound):
        await rig.fetch(job, digest(b"something else"))


async def test_small_values_are_fetched_by_digest_as_well(rig: Rig) -> None:
    job = await rig.submit(ECHO, {"data": bytes_ref(b"small", inline=True)})
    output = (await rig.ended(job)).outputs["v"]
    assert output.inline == b"small"
    assert await rig.fetch(job, output.digest) == b"small"
    assert await rig.fetch(job, output.digest, 3) == b"ll"
    with pytest.raises(NotFound):
        await rig.fetch("job-unknown", digest(b"smaller"))


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (b"", "mapping"),
        (b"{", "line 2, column 1"),
        (b"\xff\xfe", "UTF-8"),
        (b"[]", "mapping"),
        (b'{"api_version": "starloom/v9", "name": "x", "stages": {}}', "api_version"),
        (b'{"api_version": "starloom/v1", "name": "x", "stages": {"a": {"kind": "no.such"}}}', "stages.a.kind"),
        (CYCLE, r"stages\.b: waits for itself"),
        (UNBOUND, r"inputs\.d"),
    ],
)
async def test_a_document_that_is_no_good_is_refused_with_its_place(rig: Rig, document: bytes, place: str) -> None:
    with pytest.raises(InvalidInput, match=place):
        await rig.call("Submit", pb.SubmitRequest(constellation_json=document))
    assert not (await rig.call("ListJobs", pb.ListJobsRequest())).jobs


async def test_a_node_that_is_nowhere_is_said_to_be(rig: Rig) -> None:
    with pytest.raises(InvalidInput, match=r"stages\.a"):
        await rig.submit("stages: {a: {kind: basic.noop, require: {target: fpga}}}")


def without(ref: ValueRef, **changes: Any) -> ValueRef:
    return msgspec.structs.replace(ref, **changes)


GOOD = bytes_ref(b"data", inline=True)


@pytest.mark.parametrize(
    ("ref", "error", "message"),
    [
        (without(GOOD, inline=None), NotFound, r"inputs\.data: value"),
        (without(GOOD, inline=b"atad"), InvalidInput, r"inputs\.data\.digest"),
        (without(GOOD, inline=b"dat"), InvalidInput, r"inputs\.data"),
        (without(GOOD, digest="xyz"), InvalidInput, r"inputs\.data\.digest"),
        (without(GOOD, holder="n0"), InvalidInput, r"inputs\.data\.holder"),
        (bytes_ref(LARGE, inline=True), InvalidInput, "INLINE_VALUE_BYTES_MAX"),
        (without(GOOD, inline=None, bytes=limits.JOB_INPUT_BYTES_MAX + 1), InvalidInput, "JOB_INPUT_BYTES_MAX"),
        (without(GOOD, inline=None, bytes=limits.VALUE_BYTES_MAX + 1), InvalidInput, "VALUE_BYTES_MAX"),
    ],
)
async def test_an_input_that_is_no_good_is_refused(
    rig: Rig, ref: ValueRef, error: type[StarloomError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await rig.submit(ECHO, {"data": ref})
    assert not (await rig.call("ListJobs", pb.ListJobsRequest())).jobs


async def test_a_value_of_another_size_than_it_was_put_with_is_not_there(rig: Rig) -> None:
    ref = bytes_ref(LARGE, inline=False)
    await rig.put(ref, [LARGE[: limits.CHUNK_BYTES], LARGE[limits.CHUNK_BYTES :]])
    with pytest.raises(NotFound, match=r"inputs\.data"):
        await rig.submit(ECHO, {"data": without(ref, bytes=5)})


async def test_everything_that_is_wrong_is_said_at_once(rig: Rig) -> None:
    document = b'{"api_version": "starloom/v1", "name": "x", "stages": {"a": {"knd": "basic.noop"}}}'
    bad = pb.SubmitRequest(
        constellation_json=document,
        inputs={"data": ref_to_wire(without(GOOD, holder="n0"))},
        key="job-mine\n",
        max_parallel=limits.JOB_PARALLEL_MAX + 1,
        labels={"": "x"},
    )
    with pytest.raises(InvalidConstellation) as caught:
        await rig.call("Submit", bad)
    places = [problem.place for problem in caught.value.problems]
    for place in ("stages.a.knd", "inputs.data.holder", "key", "max_parallel", "labels."):
        assert place in places
    assert places.count("key") == 2


@pytest.mark.parametrize("key", ["k" * (limits.JOB_KEY_CHARACTERS_MAX + 1), " k", "a\x00b", "job-0123456789"])
async def test_a_key_that_is_no_good_is_refused(rig: Rig, key: str) -> None:
    with pytest.raises(InvalidInput, match="key"):
        await rig.submit(NOOP, key=key)


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("GetJob", pb.GetJobRequest(job_id="job-nowhere")),
        ("CancelJob", pb.CancelJobRequest(job_id="job-nowhere")),
        ("StreamEvents", pb.StreamEventsRequest(job_id="job-nowhere", follow=True)),
    ],
)
async def test_an_unknown_job_is_not_found(bare: Rig, method: str, asked: Message) -> None:
    for _ in range(2):
        with pytest.raises(NotFound, match="job-nowhere"):
            await bare.call(method, asked)


async def test_a_job_without_a_name_is_refused(bare: Rig) -> None:
    for method, asked in (("GetJob", pb.GetJobRequest()), ("CancelJob", pb.CancelJobRequest())):
        with pytest.raises(InvalidInput, match="job_id"):
            await bare.call(method, asked)


REQUESTS: Mapping[str, Message] = {
    "Submit": request(NOOP),
    "GetJob": pb.GetJobRequest(job_id="x"),
    "ListJobs": pb.ListJobsRequest(),
    "StreamEvents": pb.StreamEventsRequest(),
    "CancelJob": pb.CancelJobRequest(job_id="x"),
    "ListNodes": pb.ListNodesRequest(),
    "ListKinds": pb.ListKindsRequest(),
}


@pytest.mark.parametrize("method", REQUESTS)
async def test_no_call_is_let_in_without_the_token(bare: Rig, method: str) -> None:
    for token in ("", "guessed", TOKEN + " "):
        with pytest.raises(Unauthenticated):
            await bare.call(method, REQUESTS[method], token)


async def test_no_value_is_given_or_taken_without_the_token(bare: Rig) -> None:
    with pytest.raises(Unauthenticated):
        await bare.fetch("x", digest(b""), token="guessed")
    with pytest.raises(Unauthenticated):
        await bare.put(bytes_ref(b"x", inline=False), [b"x"], token="guessed")


@pytest.mark.parametrize("method", [*REQUESTS, "NoSuchCall"])
async def test_what_is_no_message_is_refused_and_serving_goes_on(bare: Rig, method: str) -> None:
    call: Any = bare.channel.unary_stream(f"/starloom.v1.ControlService/{method}", None, None)
    for _ in range(2):
        with pytest.raises(StarloomError):
            await answered(call(b"\xff\xff\xff", metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=SECONDS))
    assert (await bare.call("ListNodes", pb.ListNodesRequest())).epoch == 1


async def test_what_is_too_large_is_refused_and_serving_goes_on(bare: Rig) -> None:
    with pytest.raises(InvalidInput, match="larger than max"):
        await bare.call("Submit", pb.SubmitRequest(constellation_json=b" " * (limits.MESSAGE_BYTES_MAX + 1)))
    with pytest.raises(InvalidInput, match="DOCUMENT_BYTES_MAX"):
        await bare.call("Submit", pb.SubmitRequest(constellation_json=b" " * (limits.DOCUMENT_BYTES_MAX + 1)))
    with pytest.raises(InvalidInput, match="CHUNK_BYTES"):
        await bare.put(bytes_ref(LARGE, inline=False), [LARGE])
    assert (await bare.call("ListNodes", pb.ListNodesRequest())).epoch == 1


async def test_bytes_that_are_not_those_announced_are_refused(bare: Rig) -> None:
    ref = bytes_ref(b"announced", inline=False)
    for sent in ([b"announce"], [b"announced!"], [b"unnoanced"], []):
        with pytest.raises(DigestMismatch):
            await bare.put(ref, sent)
    with pytest.raises(NotFound):
        await bare.fetch("x", ref.digest)
    # A Put without a first message, and one without a reference.
    for messages in ([], [data_pb2.PutRequest(chunk=b"x")]):
        call: Any = bare.channel.stream_unary(
            "/starloom.v1.DataService/Put",
            request_serializer=data_pb2.PutRequest.SerializeToString,
            response_deserializer=data_pb2.PutResponse.FromString,
        )
        with pytest.raises(InvalidInput, match="ref"):
            await answered(call(iter(messages), metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=SECONDS))


async def test_a_full_disk_refuses_new_jobs_only(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await rig.submit(GATE)
    await rig.gate.until_arrived(1)
    with monkeypatch.context() as patched:
        patched.setattr(Headroom, "take", lambda _: False)
        with pytest.raises(Overloaded, match="disk is full") as caught:
            await rig.submit(NOOP)
        assert caught.value.retry_after_seconds > 0
        rig.gate.open()
        assert (await rig.ended(job)).status == "succeeded"
    assert (await rig.ended(await rig.submit(NOOP))).status == "succeeded"


async def test_health_needs_no_token(bare: Rig) -> None:
    stub: Any = health_pb2_grpc.HealthStub(bare.channel)
    for _ in range(2):
        found = await stub.Check(health_pb2.HealthCheckRequest())
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(aio.AioRpcError):
        await stub.Check(health_pb2.HealthCheckRequest(service="unknown"))
