"""Commands as protobuf and back. Used through `agents.wire`."""

import msgspec

from starloom.agents.messages import Assign, Cancel, Command, Input, Publish, Release, Replicate, Resolve, Revoke
from starloom.agents.wireawaits import await_from_wire, await_to_wire
from starloom.agents.wirereplicas import (
    publish_from_wire,
    publish_to_wire,
    replicate_from_wire,
    replicate_to_wire,
    sources_from_wire,
    sources_to_wire,
)
from starloom.agents.wirestreams import reader_from_wire, reader_to_wire
from starloom.agents.wirevalues import (
    consumed_from_wire,
    encode,
    object_from_wire,
    parse,
    ref_from_wire,
    ref_to_wire,
    refusal,
    task_from_wire,
    task_to_wire,
    token_from_wire,
)
from starloom.dag import limits
from starloom.dag.constellation import Comparison
from starloom.dag.ids import JobId, StageId
from starloom.v1 import session_pb2 as pb

_comparisons = msgspec.json.Decoder(Comparison)


def command_to_wire(command: Command) -> pb.Command:
    """One command."""
    match command:
        case Assign():
            return pb.Command(assign=_assign_to_wire(command))
        case Cancel(task=task):
            return pb.Command(cancel=pb.Cancel(task=task_to_wire(task)))
        case Revoke(task=task):
            return pb.Command(revoke=pb.Revoke(task=task_to_wire(task)))
        case Release(job=job):
            return pb.Command(release=pb.Release(job_id=job))
        case Replicate():
            return pb.Command(replicate=replicate_to_wire(command))
        case Publish():
            return pb.Command(publish=publish_to_wire(command))
        case Resolve():
            return pb.Command(resolve=_resolve_to_wire(command))


def command_from_wire(message: pb.Command, place: str = "command") -> Command:
    """One command; raises InvalidInput."""
    match message.WhichOneof("command"):
        case "assign":
            return _assign_from_wire(message.assign, f"{place}.assign")
        case "cancel":
            return Cancel(task=task_from_wire(message.cancel.task, f"{place}.cancel.task"))
        case "revoke":
            return Revoke(task=task_from_wire(message.revoke.task, f"{place}.revoke.task"))
        case "release":
            if not message.release.job_id:
                raise refusal(f"{place}.release.job_id", "is empty")
            return Release(job=JobId(message.release.job_id))
        case "replicate":
            return replicate_from_wire(message.replicate, f"{place}.replicate")
        case "publish":
            return publish_from_wire(message.publish, f"{place}.publish")
        case "resolve":
            return _resolve_from_wire(message.resolve, f"{place}.resolve")
        case _:
            raise refusal(place, "is none that is known here: the sender is newer")


def _assign_to_wire(assign: Assign) -> pb.Assign:
    return pb.Assign(
        task=task_to_wire(assign.task),
        kind=assign.kind,
        params_json=encode(assign.params) if assign.params else b"",
        inputs=[_input_to_wire(item) for item in assign.inputs],
        target=assign.target,
        timeout_seconds=assign.timeout_seconds,
        priority=assign.priority,
        publish=assign.publish,
        comparisons_json=[encode(comparison) for comparison in assign.comparisons],
        awaits=[await_to_wire(awaited) for awaited in assign.awaits],
        readers=[reader_to_wire(reader) for reader in assign.readers],
        private=assign.private,
    )


def _assign_from_wire(message: pb.Assign, place: str) -> Assign:
    if not message.kind or not message.target:
        raise refusal(place, "lacks a kind or a target")
    if not 0 <= message.timeout_seconds <= limits.DURATION_SECONDS_MAX:
        raise refusal(
            f"{place}.timeout_seconds", f"is {message.timeout_seconds}, not 0 to {limits.DURATION_SECONDS_MAX}"
        )
    return Assign(
        task=task_from_wire(message.task, f"{place}.task"),
        kind=message.kind,
        params=object_from_wire(message.params_json, f"{place}.params_json"),
        inputs=tuple(_input_from_wire(item, f"{place}.inputs.{n}") for n, item in enumerate(message.inputs)),
        target=message.target,
        timeout_seconds=message.timeout_seconds,
        priority=message.priority,
        publish=tuple(message.publish),
        comparisons=tuple(
            parse(_comparisons, data, f"{place}.comparisons_json.{n}")
            for n, data in enumerate(message.comparisons_json)
        ),
        awaits=tuple(await_from_wire(item, f"{place}.awaits.{n}") for n, item in enumerate(message.awaits)),
        readers=tuple(reader_from_wire(item, f"{place}.readers.{n}") for n, item in enumerate(message.readers)),
        private=message.private,
    )


def _input_to_wire(item: Input) -> pb.Input:
    token = item.consumed.token
    return pb.Input(
        port=item.port,
        ref=ref_to_wire(item.ref),
        upstream=item.consumed.upstream,
        epoch=token.epoch if token else 0,
        attempt=token.attempt if token else 0,
        address=item.address,
        others=sources_to_wire(item.others),
    )


def _input_from_wire(message: pb.Input, place: str) -> Input:
    if not message.port:
        raise refusal(f"{place}.port", "is empty")
    ref = ref_from_wire(message.ref, f"{place}.ref")
    return Input(
        port=message.port,
        ref=ref,
        consumed=consumed_from_wire(message.upstream, message.epoch, message.attempt, ref.digest),
        address=message.address,
        others=sources_from_wire(message.others, f"{place}.others"),
    )


def _resolve_to_wire(command: Resolve) -> pb.Resolve:
    return pb.Resolve(
        task=task_to_wire(command.task),
        upstream=command.upstream,
        epoch=command.token.epoch,
        attempt=command.token.attempt,
        inputs=[_input_to_wire(item) for item in command.inputs],
        holds=command.holds,
    )


def _resolve_from_wire(message: pb.Resolve, place: str) -> Resolve:
    if not (message.upstream and message.epoch and message.attempt):
        raise refusal(place, "lacks an upstream, an epoch or an attempt")
    return Resolve(
        task=task_from_wire(message.task, f"{place}.task"),
        upstream=StageId(message.upstream),
        token=token_from_wire(message.epoch, message.attempt),
        inputs=tuple(_input_from_wire(item, f"{place}.inputs.{n}") for n, item in enumerate(message.inputs)),
        holds=tuple(message.holds),
    )
