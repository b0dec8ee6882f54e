"""Messages of the session, and references to values, as protobuf and back: the only way to both from outside.

What arrives is checked: a malformed message raises InvalidInput, which says where. Functions come in
pairs, `x_to_wire` and `x_from_wire`.
"""

from typing import Any, TypeVar

import msgspec

from starloom.agents.channel import Frame
from starloom.agents.messages import Command, Hello, Load, Report, Welcome
from starloom.agents.wireawaits import asks_from_wire as asks_from_wire
from starloom.agents.wireawaits import asks_to_wire as asks_to_wire
from starloom.agents.wireawaits import outcomes_to_wire as outcomes_to_wire
from starloom.agents.wirecommands import command_from_wire as command_from_wire
from starloom.agents.wirecommands import command_to_wire as command_to_wire
from starloom.agents.wirepacked import outcome_from_wire as outcome_from_wire
from starloom.agents.wirepacked import outcome_to_wire as outcome_to_wire
from starloom.agents.wirereports import report_from_wire as report_from_wire
from starloom.agents.wirereports import report_to_wire as report_to_wire
from starloom.agents.wirevalues import digest_from_wire as digest_from_wire
from starloom.agents.wirevalues import encode, parse, refusal, split
from starloom.agents.wirevalues import ref_from_wire as ref_from_wire
from starloom.agents.wirevalues import ref_to_wire as ref_to_wire
from starloom.agents.wirevalues import task_from_wire as task_from_wire
from starloom.agents.wirevalues import task_to_wire as task_to_wire
from starloom.dag import limits
from starloom.dag.checks import name_fault
from starloom.dag.ids import AgentId, Epoch, JobId
from starloom.dag.kinds import KindSpec
from starloom.devices.node import NodeProfile
from starloom.v1 import session_pb2 as pb

Parsed = TypeVar("Parsed")

_profiles = msgspec.json.Decoder(NodeProfile)
_kinds = msgspec.json.Decoder(KindSpec)
_loads = msgspec.json.Decoder(Load)


def hello_to_wire(hello: Hello) -> pb.Hello:
    """An agent's first message."""
    return pb.Hello(
        agent=hello.agent,
        incarnation=hello.incarnation,
        profile_json=encode(hello.profile),
        kinds_json=[encode(kind) for kind in hello.kinds],
        session=hello.session,
        received=hello.received,
        held=[task_to_wire(task) for task in hello.held],
        job_ids=list(hello.jobs),
        epoch_seen=hello.epoch_seen,
    )


def hello_from_wire(message: pb.Hello) -> Hello:
    """An agent's first message; raises InvalidInput."""
    if not message.agent or not message.incarnation:
        raise refusal("hello", "lacks the agent's name or its incarnation")
    if fault := name_fault(message.agent, dotted=True):
        raise refusal("hello.agent", f"{fault}; start the agent under another name")
    profile = parse(_profiles, message.profile_json, "hello.profile_json")
    if profile.name != message.agent:
        raise refusal("hello.profile_json.name", f"is {profile.name!r}, but the agent is {message.agent!r}")
    if len(profile.uplinks) > limits.FLEET_UPLINKS_MAX:
        over = f"are {len(profile.uplinks)}, over FLEET_UPLINKS_MAX = {limits.FLEET_UPLINKS_MAX}"
        raise refusal("hello.profile_json.uplinks", over)
    for number, uplink in enumerate(profile.uplinks):
        if fault := name_fault(uplink.name, dotted=True) or uplink.fault():
            raise refusal(f"hello.profile_json.uplinks.{number}", fault)
    return Hello(
        agent=AgentId(message.agent),
        incarnation=message.incarnation,
        profile=profile,
        kinds=tuple(parse(_kinds, kind, f"hello.kinds_json.{n}") for n, kind in enumerate(message.kinds_json)),
        session=message.session,
        received=message.received,
        held=tuple(task_from_wire(task, f"hello.held.{n}") for n, task in enumerate(message.held)),
        jobs=tuple(JobId(job) for job in message.job_ids),
        epoch_seen=Epoch(message.epoch_seen),
    )


def welcome_to_wire(welcome: Welcome) -> pb.Welcome:
    """The answer to Hello."""
    return pb.Welcome(
        session=welcome.session,
        epoch=welcome.epoch,
        resumed=welcome.resumed,
        received=welcome.received,
        lease_seconds=welcome.lease_seconds,
        heartbeat_seconds=welcome.heartbeat_seconds,
    )


def welcome_from_wire(message: pb.Welcome) -> Welcome:
    """The answer to Hello; raises InvalidInput."""
    if not message.session or not message.epoch:
        raise refusal("welcome", "lacks a session or an epoch")
    for name in ("lease_seconds", "heartbeat_seconds"):
        seconds = getattr(message, name)
        if not 0 < seconds <= limits.DURATION_SECONDS_MAX:
            raise refusal(f"welcome.{name}", f"is {seconds}, not above 0 and at most {limits.DURATION_SECONDS_MAX}")
    return Welcome(
        session=message.session,
        epoch=Epoch(message.epoch),
        resumed=message.resumed,
        received=message.received,
        lease_seconds=message.lease_seconds,
        heartbeat_seconds=message.heartbeat_seconds,
    )


def load_to_wire(load: Load) -> bytes:
    """A heartbeat's load, as JSON."""
    return encode(load)


def load_from_wire(data: bytes) -> Load:
    """A heartbeat's load; raises InvalidInput."""
    place = "heartbeat.load_json"
    load = parse(_loads, data, place)
    links = load.links or {}
    if len(links) > limits.LINKS_MEASURED_MAX:
        raise refusal(f"{place}.links", f"has {len(links)}, more than LINKS_MEASURED_MAX = {limits.LINKS_MEASURED_MAX}")
    for source, link in links.items():
        if fault := (name_fault(source, dotted=True) if source else "") or link.fault():
            raise refusal(f"{place}.links.{source[: limits.NAME_CHARACTERS_MAX]}", fault)
    return load


def reports_to_wire(frame: Frame[Report]) -> list[pb.Reports]:
    """A frame as messages of at most SESSION_FRAME_BYTES_MAX each, unless one report alone is larger."""
    return [
        pb.Reports(sequence=sequence, acknowledged=frame.acknowledged, reports=part)
        for sequence, part in split(frame.sequence, map(report_to_wire, frame.messages))
    ]


def reports_from_wire(message: pb.Reports, node: str = "") -> Frame[Report]:
    """A frame; raises InvalidInput. Failures are said to be of `node`, the agent that sent them."""
    reports = tuple(report_from_wire(report, f"reports.{n}", node) for n, report in enumerate(message.reports))
    return Frame(_sequence(message.sequence, reports, "reports"), message.acknowledged, reports)


def commands_to_wire(frame: Frame[Command], sender_epoch: Epoch) -> list[pb.Commands]:
    """A frame as messages of at most SESSION_FRAME_BYTES_MAX each, unless one command alone is larger."""
    return [
        pb.Commands(sequence=sequence, acknowledged=frame.acknowledged, commands=part, sender_epoch=sender_epoch)
        for sequence, part in split(frame.sequence, map(command_to_wire, frame.messages))
    ]


def commands_from_wire(message: pb.Commands) -> tuple[Frame[Command], Epoch]:
    """A frame and its sender's epoch; raises InvalidInput."""
    commands = tuple(command_from_wire(command, f"commands.{n}") for n, command in enumerate(message.commands))
    frame = Frame(_sequence(message.sequence, commands, "commands"), message.acknowledged, commands)
    return frame, Epoch(message.sender_epoch)


def _sequence(number: int, messages: tuple[Any, ...], place: str) -> int:
    if messages and number < 1:
        raise refusal(f"{place}.sequence", "is 0; the first message has number 1")
    return number
