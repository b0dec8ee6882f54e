"""Every message to the wire and back, through bytes; and what is malformed is refused with its place."""

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from tests.agents.fakes import consumed, task

from starloom.agents import values, wire
from starloom.agents.channel import Frame
from starloom.agents.messages import (
    Assign,
    Await,
    AwaitUnreachable,
    Cancel,
    Command,
    Failed,
    Finished,
    Held,
    Hello,
    Input,
    InputLost,
    Load,
    NotHeld,
    Outcome,
    Publish,
    Published,
    Reader,
    Release,
    Replicate,
    Report,
    Resolve,
    Revoke,
    Revoked,
    Source,
    Started,
    WasCancelled,
    Welcome,
)
from starloom.dag import limits
from starloom.dag.constellation import Comparison, Tier
from starloom.dag.errors import InvalidInput
from starloom.dag.facts import Consumed, ErrorInfo, Timing
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.patch import Patch
from starloom.dag.patchdoc import load_patch
from starloom.dag.values import Full, Port, PortType, ValueRef
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.links import SharedUplink
from starloom.devices.node import NodeProfile, Target
from starloom.v1 import session_pb2 as pb
from starloom.v1 import value_pb2

DIGEST = values.digest(b"")
REFS = [
    ValueRef(type=PortType.AUDIO, bytes=2**50, digest=DIGEST, meta={"stream": True, "chunks": 7}, holder="b"),
    ValueRef(type=PortType.JSON, bytes=0, digest=DIGEST, inline=b""),
    ValueRef(type=PortType.BYTES, bytes=0, digest=DIGEST),
    ValueRef(type=PortType.TEXT, bytes=2, digest=DIGEST, inline=b"hi", holder="b"),
    ValueRef(
        type=PortType.TENSOR, bytes=2**30, digest="f" * 64, meta={"dtype": "int8", "shape": [1, 2]}, holder="edge-ü"
    ),
]
JOB_INPUT = Input(port="x", ref=REFS[1], consumed=Consumed(StageId(""), None, DIGEST))
SOURCES = (Source(agent=AgentId("edge-ü"), address="127.0.0.1:6"), Source(agent=AgentId("b"), address="[::1]:7"))
UPSTREAM = Input(port="y", ref=REFS[4], consumed=consumed(REFS[4]), address="127.0.0.1:5", others=SOURCES)

COMMANDS: list[Command] = [
    Assign(task=task(), kind="basic.noop"),
    Assign(
        task=task("stage ü", 2**40, "job", 2**33),
        kind="k",
        params={"a": [1, {"b": None}], "c": 1.5, "d": "", "e": 2**60},
        inputs=(JOB_INPUT, UPSTREAM),
        target="npu",
        timeout_seconds=0.25,
        priority=-3,
        after_seconds=-1.5,
        publish=("a", "b"),
        comparisons=(
            Comparison(output="v", operator=">=", value=0.5, path="faces.0.score"),
            Comparison(output="v", operator="==", value=None),
        ),
        awaits=(
            Await(
                upstream=StageId("up ü"),
                token=FencingToken(Epoch(3), Attempt(2**33)),
                agent=AgentId("edge-ü"),
                address="127.0.0.1:6",
                feeds={"z": "out"},
                holds=("v > 1",),
                streams={"s": "chunks"},
                incarnation="0f3a",
            ),
            Await(upstream=StageId(""), token=FencingToken(Epoch(0), Attempt(0)), streams={"mic": "audio"}),
        ),
    ),
    Assign(
        task=task(),
        kind="k",
        readers=(
            Reader(port="frames", reader="detect.image", full=Full.LATEST),
            Reader(port="frames", reader="keep.ü", full=Full.BLOCK),
        ),
        private=True,
    ),
    Cancel(task=task()),
    Revoke(task=task()),
    Release(job=JobId("j")),
    Replicate(task=task(), values=(REFS[2], REFS[4]), sources=SOURCES),
    Publish(task=task(), values=(REFS[2], REFS[4])),
    Resolve(task=task(), upstream=StageId("up ü"), token=FencingToken(Epoch(3), Attempt(2**33))),
    Resolve(
        task=task(), upstream=StageId("up"), token=FencingToken(Epoch(1), Attempt(1)), inputs=(UPSTREAM,), holds=("k",)
    ),
]
REPORTS: list[Report] = [
    Started(task=task()),
    Finished(task=task(), outputs={}, consumed={}, timing=Timing()),
    Finished(
        task=task(),
        outputs={f"port{number}": ref for number, ref in enumerate(REFS)},
        consumed={"x": JOB_INPUT.consumed, "y": UPSTREAM.consumed},
        timing=Timing(queue=0.1, transfer=0.2, load=0.3, run=1e-9),
        models=("whisper@1", "silero@5"),
        target="npu",
        emulated=True,
        published=("port0",),
        holds=(True, False, True),
        figures={"first_token_seconds": 0.02, "tokens": 7.0},
        growth=load_patch(
            """
            patch:
            - add: {"@0": {kind: k, params: {n: [1, null]}, in: {x: "@in.x", y: {from: "@.o", on: completion}}, after: ["@"]}}
            - redirect: {from: "@.o", to: ["@0.p", "@again.q"]}
            - rewire: {stage: far, in: {x: $q, z: "@0.p"}, wait: ["@0"]}
            """
        ),
    ),
    Failed(task=task(), error=ErrorInfo(message="no\nmore", cause="StageError", transient=True, node="b", trace="t")),
    Failed(task=task(), error=ErrorInfo(message="", cause="", node="b")),
    InputLost(task=task(), upstreams=(StageId("up"), StageId("")), reason="away", gone=True),
    InputLost(task=task(), upstreams=(), reason="", missing={StageId("up"): (AgentId("b"), AgentId("c"))}),
    WasCancelled(task=task()),
    Revoked(task=task()),
    Held(task=task()),
    NotHeld(task=task(), reason="full", missing=(AgentId("b"),)),
    Published(task=task()),
    Published(task=task(), reason="no room"),
    AwaitUnreachable(task=task(), upstreams=(StageId("a"), StageId("ü")), reason="nobody answers"),
]


pack = msgspec.msgpack.encode
NO_STAGE = TaskToken(JobId("j"), StageId(""), task().token)
NO_TRY = TaskToken(JobId("j"), StageId("s"), FencingToken(Epoch(1), Attempt(0)))
NO_REF = ValueRef(type=PortType.JSON, bytes=0, digest="")
BY: dict[str, Any] = {"task": task(), "upstream": StageId("u"), "token": task().token}


def bare_assign(**fields: Any) -> pb.Command:
    """An assignment as it comes, with whatever fields."""
    return pb.Command(assign=pb.Assign(packed=pack(Assign(**{"task": task(), "kind": "k", **fields}))))


def bare_result(**fields: Any) -> pb.Report:
    """A result as it comes, with whatever fields."""
    usual = {"task": task(), "outputs": {}, "consumed": {}, "timing": Timing()}
    return pb.Report(finished=pb.Finished(packed=pack(Finished(**{**usual, **fields}))))


def with_json(message: pb.Command, **fields: Any) -> pb.Command:
    """The same assignment, with fields of JSON beside it."""
    return pb.Command(assign=pb.Assign(packed=message.assign.packed, **fields))


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(InvalidInput, match="a message is malformed") as raised:
        function(*args)
    assert raised.value.problems[0].place
    return str(raised.value)


@pytest.mark.parametrize("ref", REFS)
def test_references_go_round(ref: ValueRef) -> None:
    message = value_pb2.ValueRef.FromString(wire.ref_to_wire(ref).SerializeToString())
    assert wire.ref_from_wire(message) == ref


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_go_round(command: Command) -> None:
    message = pb.Command.FromString(wire.command_to_wire(command).SerializeToString())
    assert wire.command_from_wire(message) == command


@pytest.mark.parametrize("report", REPORTS)
def test_reports_go_round(report: Report) -> None:
    message = pb.Report.FromString(wire.report_to_wire(report).SerializeToString())
    assert wire.report_from_wire(message, node="b") == report


def test_frames_go_round() -> None:
    frame = Frame(7, 3, tuple(COMMANDS))
    (message,) = wire.commands_to_wire(frame, Epoch(9))
    assert wire.commands_from_wire(pb.Commands.FromString(message.SerializeToString())) == (frame, Epoch(9))
    reports = Frame(8, 2, tuple(REPORTS))
    (sent,) = wire.reports_to_wire(reports)
    assert wire.reports_from_wire(pb.Reports.FromString(sent.SerializeToString()), "b") == reports


def test_empty_frame_carries_an_acknowledgement() -> None:
    (message,) = wire.reports_to_wire(Frame(1, 5, ()))
    assert wire.reports_from_wire(message) == Frame(1, 5, ())


def test_large_frame_is_split_and_numbered() -> None:
    big = b"x" * limits.INLINE_VALUE_BYTES_MAX
    ref = ValueRef(type=PortType.BYTES, bytes=len(big), digest=DIGEST, inline=big)
    reports = tuple(
        Finished(task=task(f"s{n}"), outputs={"out": ref}, consumed={}, timing=Timing()) for n in range(200)
    )
    parts = wire.reports_to_wire(Frame(11, 4, reports))
    assert len(parts) == 4
    assert all(part.ByteSize() < limits.SESSION_FRAME_BYTES_MAX + 1000 for part in parts)
    frames = [wire.reports_from_wire(part) for part in parts]
    assert [message for frame in frames for message in frame.messages] == list(reports)
    assert [frame.sequence for frame in frames] == [
        11 + sum(len(earlier.messages) for earlier in frames[:index]) for index in range(len(frames))
    ]


def test_one_message_larger_than_a_frame_goes_alone() -> None:
    params = {"text": "x" * limits.SESSION_FRAME_BYTES_MAX}
    large = Assign(task=task("large"), kind="k", params=params)
    parts = wire.commands_to_wire(Frame(1, 0, (COMMANDS[0], large, COMMANDS[0])), Epoch(1))
    assert [len(part.commands) for part in parts] == [1, 1, 1]


def test_hello_and_welcome_go_round() -> None:
    profile = NodeProfile(
        name=AgentId("cam"),
        tier=Tier.DEVICE,
        targets=(Target(name="cpu"), Target(name="npu", emulated=True, note="on the cpu")),
        labels={"sensor": "camera"},
        kinds=("k",),
        address="127.0.0.1:1",
        details={"python": "3.11"},
        uplinks=(
            SharedUplink(name="hall", up=50.0, down=60.0),
            SharedUplink(name="air", up=70.0, down=70.0, half=True),
        ),
    )
    kind = KindSpec(
        name="k",
        inputs={"x": Port(PortType.IMAGE, optional=True)},
        params={"p": Param(type="integer", default=3, choices=(3, 4))},
        variadic_input=Port(PortType.JSON),
        tier=Tier.EDGE,
        cost=Cost(run_seconds=0.5),
    )
    first = Hello(agent=AgentId("cam"), incarnation="i", profile=profile, kinds=(kind,))
    again = Hello(
        agent=AgentId("cam"),
        incarnation="i",
        profile=profile,
        session="s",
        received=4,
        held=(task(), task("t", 2)),
        jobs=(JobId("j"),),
        epoch_seen=Epoch(3),
    )
    for hello in (first, again):
        assert wire.hello_from_wire(pb.Hello.FromString(wire.hello_to_wire(hello).SerializeToString())) == hello
    welcome = Welcome(session="s", epoch=Epoch(2), resumed=True, received=9, lease_seconds=3.0, heartbeat_seconds=0.5)
    assert wire.welcome_from_wire(wire.welcome_to_wire(welcome)) == welcome
    links = {"": MeasuredLink(latency_seconds=0.5), "cam": MeasuredLink(bytes_per_second=7e6)}
    load = Load(
        queued=1,
        running=2,
        held_bytes=3,
        cpu_fraction=0.5,
        memory_bytes=4,
        file_handles=5,
        stale_refused=6,
        links=links,
    )
    assert wire.load_from_wire(wire.load_to_wire(load)) == load


def test_links_that_cannot_be_meant_are_refused() -> None:
    none = Load(links={"cam": MeasuredLink(bytes_per_second=0.5)})
    assert "heartbeat.load_json.links.cam: has 0.5 bytes a second" in refusal(
        wire.load_from_wire, wire.load_to_wire(none)
    )
    long = Load(links={"cam" * limits.NAME_CHARACTERS_MAX: MeasuredLink(bytes_per_second=7e6)})
    assert "NAME_CHARACTERS_MAX" in refusal(wire.load_from_wire, wire.load_to_wire(long))
    many = Load(links={str(n): MeasuredLink() for n in range(limits.LINKS_MEASURED_MAX + 1)})
    assert "LINKS_MEASURED_MAX" in refusal(wire.load_from_wire, wire.load_to_wire(many))


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"queued": "\xff"}', b"[" * 100_000])
def test_malformed_json_inside_fields_is_refused_with_its_place(data: bytes) -> None:
    ref = wire.ref_to_wire(REFS[3])
    if data:
        ref.meta_json = data
        assert "value.meta_json" in refusal(wire.ref_from_wire, ref)
        assert "command.assign.params_json" in refusal(
            wire.command_from_wire, with_json(bare_assign(), params_json=data)
        )
    command = with_json(bare_assign(), comparisons_json=[data])
    assert "command.assign.comparisons_json.0" in refusal(wire.command_from_wire, command)
    hello = pb.Hello(agent="a", incarnation="i", profile_json=data)
    assert "hello.profile_json" in refusal(wire.hello_from_wire, hello)
    hello = pb.Hello(agent="a", incarnation="i", profile_json=b'{"name": "a", "tier": "edge"}', kinds_json=[data])
    assert "hello.kinds_json.0" in refusal(wire.hello_from_wire, hello)
    assert "heartbeat.load_json" in refusal(wire.load_from_wire, data)


def test_uplinks_that_no_plan_could_count_are_refused() -> None:
    sound = SharedUplink(name="u", up=100.0, down=100.0)
    for uplinks, place in (
        ((sound, msgspec.structs.replace(sound, up=0.0)), "hello.profile_json.uplinks.1"),
        ((sound, msgspec.structs.replace(sound, name="")), "hello.profile_json.uplinks.1"),
        ((msgspec.structs.replace(sound, name="hall\x1b[31m"),), "hello.profile_json.uplinks.0"),
        ((sound,) * (limits.FLEET_UPLINKS_MAX + 1), "hello.profile_json.uplinks"),
    ):
        profile = NodeProfile(name=AgentId("a"), tier=Tier.EDGE, uplinks=uplinks)
        hello = wire.hello_to_wire(Hello(agent=AgentId("a"), incarnation="i", profile=profile))
        assert place in refusal(wire.hello_from_wire, hello)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(task=task()),
        Outcome(task=task(), outputs={f"p{number}": ref for number, ref in enumerate(REFS)}, holds=("k", "ü")),
    ],
)
def test_outcomes_arrive_as_they_were_sent(outcome: Outcome) -> None:
    assert wire.outcome_from_wire(wire.outcome_to_wire(outcome)) == outcome


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"", "outcomes.0"),
        (b"\xc1", "outcomes.0"),
        (pack({}), "outcomes.0"),
        (pack([1]), "outcomes.0"),
        (pack(Outcome(task=NO_STAGE)), "outcomes.0.task"),
        (pack(Outcome(task=NO_TRY)), "outcomes.0.task"),
        (pack(Outcome(task=task(), outputs={"o": NO_REF})), "outcomes.0.outputs.o.digest"),
        (pack(Outcome(task=task())) + b"\0", "outcomes.0"),
        (b"\x91" * 100_000, "outcomes.0"),
    ],
)
def test_malformed_outcomes_are_refused(data: bytes, place: str) -> None:
    assert place in refusal(wire.outcome_from_wire, data, "outcomes.0")


@pytest.mark.parametrize(
    "meta",
    [
        {"shape": float("nan")},
        {"shape": b"bytes"},
        {"at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"by": {1: 2}},
        {"x": msgspec.msgpack.Ext(7, b"x")},
        # What is read here may be too deep for who reads it from a journal, with more calls around it.
        {"x": msgspec.json.decode(b"[" * limits.DOCUMENT_DEPTH_MAX + b"1" + b"]" * limits.DOCUMENT_DEPTH_MAX)},
    ],
)
def test_what_a_journal_could_not_say_is_refused(meta: dict[str, Any]) -> None:
    ref = ValueRef(type=PortType.JSON, bytes=0, digest=DIGEST, meta=meta)
    assert "outcome.outputs.o.meta" in refusal(wire.outcome_from_wire, pack(Outcome(task=task(), outputs={"o": ref})))
    report = bare_result(outputs={"o": ref})
    assert "report.finished.outputs.o.meta" in refusal(wire.report_from_wire, report)


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("type", "hologram", "value.type"),
        ("type", "", "value.type"),
        ("digest", "F" * 64, "value.digest"),
        ("digest", "f" * 63, "value.digest"),
        ("digest", "", "value.digest"),
        ("bytes", limits.VALUE_BYTES_MAX + 1, "value.bytes"),
        ("inline", b"longer than two", "value.inline"),
    ],
)
def test_references_that_name_nothing_are_refused(field: str, value: Any, place: str) -> None:
    message = wire.ref_to_wire(REFS[2])
    setattr(message, field, value)
    assert place in refusal(wire.ref_from_wire, message)


@pytest.mark.parametrize(
    "command",
    [
        pb.Command(),
        bare_assign(awaits=(Await(upstream=StageId("a"), token=task().token, agent=AgentId("n")),)),
        bare_assign(awaits=(Await(upstream=StageId(""), token=task().token, feeds={"x": "y"}),)),
        bare_assign(awaits=(Await(upstream=StageId("a"), token=NO_TRY.token, agent=AgentId("n"), address="n:1"),)),
        bare_assign(readers=(Reader(port="", reader="a.b"),)),
        pb.Command(assign=pb.Assign()),
        bare_assign(task=NO_STAGE),
        bare_assign(task=NO_TRY),
        bare_assign(kind=""),
        bare_assign(target=""),
        bare_assign(params={"a": 1}),
        bare_assign(comparisons=(Comparison(output="v", operator="==", value=1),)),
        pb.Command(cancel=pb.Cancel(task=pb.Task(job_id="j", stage="s", epoch=1))),
        pb.Command(resolve=pb.Resolve()),
        pb.Command(resolve=pb.Resolve(packed=pack(Resolve(**{**BY, "token": NO_TRY.token})))),
        pb.Command(resolve=pb.Resolve(packed=pack(Resolve(**{**BY, "upstream": ""})))),
        pb.Command(resolve=pb.Resolve(packed=pack(Resolve(**{**BY, "task": NO_STAGE})))),
        pb.Command(revoke=pb.Revoke()),
        pb.Command(release=pb.Release()),
        pb.Command(replicate=pb.Replicate(task=wire.task_to_wire(task()), values=[wire.ref_to_wire(REFS[1])])),
        pb.Command(
            replicate=pb.Replicate(task=wire.task_to_wire(task()), sources=[pb.Source(agent="b", address="b:1")])
        ),
        pb.Command(
            replicate=pb.Replicate(
                task=wire.task_to_wire(task()), values=[wire.ref_to_wire(REFS[1])], sources=[pb.Source(agent="b")]
            )
        ),
        pb.Command(
            replicate=pb.Replicate(values=[wire.ref_to_wire(REFS[1])], sources=[pb.Source(agent="b", address="b:1")])
        ),
        pb.Command(publish=pb.Publish(task=wire.task_to_wire(task()))),
        pb.Command(publish=pb.Publish(values=[wire.ref_to_wire(REFS[1])])),
        bare_assign(timeout_seconds=float("nan")),
        bare_assign(timeout_seconds=float("inf")),
        bare_assign(timeout_seconds=-1),
        bare_assign(after_seconds=float("nan")),
        bare_assign(after_seconds=1.01 * limits.PLAN_ORDER_SECONDS_MAX),
        bare_assign(inputs=(msgspec.structs.replace(JOB_INPUT, port=""),)),
        bare_assign(inputs=(msgspec.structs.replace(JOB_INPUT, ref=NO_REF),)),
        bare_assign(inputs=(msgspec.structs.replace(JOB_INPUT, others=(Source(agent=AgentId(""), address="b:1"),)),)),
    ],
)
def test_malformed_commands_are_refused(command: pb.Command) -> None:
    assert "commands.0" in refusal(wire.commands_from_wire, pb.Commands(sequence=1, commands=[command]))


@pytest.mark.parametrize(
    "report",
    [
        pb.Report(),
        pb.Report(started=pb.Started()),
        pb.Report(failed=pb.Failed(message="x")),
        pb.Report(input_lost=pb.InputLost()),
        pb.Report(held=pb.Held()),
        pb.Report(await_unreachable=pb.AwaitUnreachable(upstreams=["u"])),
        pb.Report(await_unreachable=pb.AwaitUnreachable(task=wire.task_to_wire(task()))),
        pb.Report(published=pb.Published(reason="full")),
        pb.Report(not_held=pb.NotHeld(reason="full")),
        pb.Report(was_cancelled=pb.WasCancelled(task=pb.Task(job_id="j"))),
        pb.Report(finished=pb.Finished()),
        bare_result(task=NO_TRY),
        bare_result(timing=Timing(run=float("nan"))),
        bare_result(timing=Timing(queue=float("inf"))),
        bare_result(timing=Timing(load=-0.1)),
        bare_result(figures={"tokens": float("nan")}),
        bare_result(figures={"": 1.0}),
        bare_result(figures={f"f{n}": 1.0 for n in range(17)}),
        bare_result(outputs={"o": NO_REF}),
        bare_result(outputs={"o": ValueRef(type=PortType.JSON, bytes=-1, digest=DIGEST)}),
        bare_result(growth=Patch(operations=())),
        bare_result(consumed={"i": Consumed(StageId("u"), task().token, "x")}),
        bare_result(consumed={"i": Consumed(StageId("u"), NO_TRY.token, DIGEST)}),
        pb.Report(
            finished=pb.Finished(packed=bare_result().finished.packed, growth_json=b'{"operations": [{"op": "x"}]}')
        ),
        pb.Report(
            finished=pb.Finished(packed=bare_result().finished.packed, growth_json=b" " * (limits.GROWTH_BYTES_MAX + 1))
        ),
    ],
)
def test_malformed_reports_are_refused(report: pb.Report) -> None:
    assert "reports.0" in refusal(wire.reports_from_wire, pb.Reports(sequence=1, reports=[report]))


def test_frames_without_a_number_are_refused() -> None:
    message = pb.Reports(reports=[wire.report_to_wire(REPORTS[0])])
    assert "reports.sequence" in refusal(wire.reports_from_wire, message)


@pytest.mark.parametrize(
    "hello",
    [
        pb.Hello(incarnation="i", profile_json=b'{"name": "", "tier": "edge"}'),
        pb.Hello(agent="a", profile_json=b'{"name": "a", "tier": "edge"}'),
        pb.Hello(agent="a", incarnation="i", profile_json=b'{"name": "b", "tier": "edge"}'),
        pb.Hello(agent="a", incarnation="i", profile_json=b'{"name": "a", "tier": "moon"}'),
        pb.Hello(agent="a", incarnation="i", profile_json=b'{"name": "a", "tier": "edge"}', held=[pb.Task()]),
    ],
)
def test_malformed_hellos_are_refused(hello: pb.Hello) -> None:
    assert "hello" in refusal(wire.hello_from_wire, hello)


@pytest.mark.parametrize("name", ["a b", "-a", "küche", "a/b", "a\n", "..", "a" * (limits.NAME_CHARACTERS_MAX + 1)])
def test_names_that_are_none_are_refused(name: str) -> None:
    """They would stand in journals, tables and messages, and name folders."""
    hello = pb.Hello(agent=name, incarnation="i", profile_json=msgspec.json.encode({"name": name, "tier": "edge"}))
    assert "hello.agent: the name" in refusal(wire.hello_from_wire, hello)


@pytest.mark.parametrize("name", ["a", "edge-1.rack_2", "10.0.0.1", "_"])
def test_names_with_dots_are_names(name: str) -> None:
    hello = pb.Hello(agent=name, incarnation="i", profile_json=msgspec.json.encode({"name": name, "tier": "edge"}))
    assert wire.hello_from_wire(hello).agent == name


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_malformed_welcomes_are_refused(seconds: float) -> None:
    assert "welcome.lease_seconds" in refusal(
        wire.welcome_from_wire, pb.Welcome(session="s", epoch=1, lease_seconds=seconds, heartbeat_seconds=1)
    )
    assert "welcome" in refusal(wire.welcome_from_wire, pb.Welcome(lease_seconds=1, heartbeat_seconds=1))


@for_all(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_raise_anything_but_invalid_input(data: bytes) -> None:
    converted: list[tuple[Any, Any]] = [
        (pb.Commands(), wire.commands_from_wire),
        (pb.Reports(), wire.reports_from_wire),
    ]
    for message, convert in converted:
        # What protobuf itself cannot read ends the call before anything of ours sees it.
        with suppress(DecodeError):
            message.ParseFromString(data)
            with suppress(InvalidInput):
                convert(message)


PACKED = [pack(REPORTS[2]), pack(COMMANDS[1]), pack(COMMANDS[-1]), pack(Outcome(task=task(), outputs={"o": REFS[4]}))]


@for_all(st.sampled_from(PACKED), st.data())
@settings(max_examples=300, deadline=None)
def test_no_packed_bytes_raise_anything_but_invalid_input(whole: bytes, drawn: st.DataObject) -> None:
    start = drawn.draw(st.integers(0, len(whole)))
    end = drawn.draw(st.integers(start, min(len(whole), start + 8)))
    data = whole[:start] + drawn.draw(st.binary(max_size=12)) + whole[end:]
    for convert in (
        partial(wire.report_from_wire, pb.Report(finished=pb.Finished(packed=data))),
        partial(wire.command_from_wire, pb.Command(assign=pb.Assign(packed=data))),
        partial(wire.command_from_wire, pb.Command(resolve=pb.Resolve(packed=data))),
        partial(wire.outcome_from_wire, data),
    ):
        with suppress(InvalidInput):
            convert()
