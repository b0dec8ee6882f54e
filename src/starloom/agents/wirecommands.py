"""Commands as protobuf and back. Used through `agents.wire`."""

from starloom.agents.messages import Assign, Cancel, Command, Publish, Release, Replicate, Resolve, Revoke
from starloom.agents.wirepacked import assign_from_wire, assign_to_wire, resolve_from_wire, resolve_to_wire
from starloom.agents.wirereplicas import publish_from_wire, publish_to_wire, replicate_from_wire, replicate_to_wire
from starloom.agents.wirevalues import refusal, task_from_wire, task_to_wire
from starloom.dag.ids import JobId
from starloom.v1 import session_pb2 as pb


def command_to_wire(command: Command) -> pb.Command:
    """One command."""
    match command:
        case Assign():
            return pb.Command(assign=assign_to_wire(command))
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
            return pb.Command(resolve=resolve_to_wire(command))


def command_from_wire(message: pb.Command, place: str = "command") -> Command:
    """One command; raises InvalidInput."""
    match message.WhichOneof("command"):
        case "assign":
            return assign_from_wire(message.assign, f"{place}.assign")
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
            return resolve_from_wire(message.resolve, f"{place}.resolve")
        case _:
            raise refusal(place, "is none that is known here: the sender is newer")
