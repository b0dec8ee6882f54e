"""Answers of the Control service as values: the client's half of `orchestrator.wire`."""

import msgspec

from starloom.agents import wire
from starloom.agents.messages import Load
from starloom.dag.document import load
from starloom.dag.errors import StarloomError
from starloom.dag.facts import Fact, JobStatus, Timing, decode_fact
from starloom.dag.ids import AgentId, Epoch, JobId, Revision, StageId
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.stagestate import StageStatus
from starloom.devices.node import NodeProfile
from starloom.orchestrator.effects import Patched, Stopped
from starloom.orchestrator.infos import ClusterInfo, Event, JobInfo, NodeInfo, PatchInfo, StageInfo
from starloom.v1 import control_pb2 as pb


def fact_kind(fact: Fact) -> str:
    """The name of a fact's kind, as the journal has it."""
    return str(fact.__struct_config__.tag)


def event_from_wire(message: pb.Event) -> Event:
    """An event; raises StarloomError for a fact that this client does not know."""
    try:
        fact = decode_fact(message.fact_json)
    except msgspec.MsgspecError as error:
        raise StarloomError(f"event {message.offset} cannot be read: {error}; is the orchestrator newer?") from error
    return Event(offset=message.offset, unix_nanos=message.unix_nanos, fact=fact)


def job_from_wire(message: pb.Job) -> JobInfo:
    """A job as it stands; its outputs in the order of its constellation, where that is told."""
    constellation = load(message.constellation_json) if message.constellation_json else None
    # The wire keeps no order of its own.
    declared = [name for name in constellation.outputs if name in message.outputs] if constellation else []
    names = dict.fromkeys([*declared, *sorted(message.outputs)])
    return JobInfo(
        id=JobId(message.job_id),
        key=message.key,
        name=message.name,
        status=JobStatus(message.status),
        revision=Revision(message.revision),
        error=message.error,
        cause=message.cause,
        stuck=message.stuck,
        degraded=tuple(message.degraded),
        plan=message.plan,
        outputs={name: wire.ref_from_wire(message.outputs[name], f"outputs.{name}") for name in names},
        stages=tuple(map(_stage_from_wire, message.stages)),
        submitted_unix_nanos=message.submitted_unix_nanos,
        ended_unix_nanos=message.ended_unix_nanos,
        constellation=constellation,
        labels=dict(message.labels),
        constellation_revision=Revision(message.constellation_revision),
        patches=tuple(map(_patch_from_wire, message.patches)),
    )


def _patch_from_wire(message: pb.PatchNote) -> PatchInfo:
    return PatchInfo(
        revision=Revision(message.revision),
        principal=message.principal,
        why=message.why,
        id=message.patch_id,
        restart=message.restart,
        operations=tuple(message.operations),
        changes=tuple(message.changes),
    )


def _stage_from_wire(message: pb.StageState) -> StageInfo:
    timing = message.timing
    return StageInfo(
        name=StageId(message.stage),
        kind=message.kind,
        status=StageStatus(message.status),
        node=message.node,
        tier=message.tier,
        target=message.target,
        emulated=message.target_emulated,
        models=tuple(message.models),
        attempts=message.attempts,
        copies=message.copies,
        reason=message.reason,
        grown_by=message.grown_by,
        private=message.private,
        variant=message.variant,
        degraded=message.degraded,
        planned=message.planned,
        seconds=Timing(
            queue=timing.queue_seconds,
            transfer=timing.transfer_seconds,
            load=timing.load_seconds,
            run=timing.run_seconds,
        ),
        figures=dict(sorted(message.figures.items())),
    )


def stopped_from_wire(message: pb.CancelJobResponse, job: JobId) -> Stopped:
    """What a cancelled job ended as."""
    return Stopped(job=job, status=JobStatus(message.status), seconds=message.seconds)


def patched_from_wire(message: pb.PatchJobResponse, job: JobId) -> Patched:
    """What a patch came to."""
    revision = Revision(message.revision)
    return Patched(job=job, revision=revision, changes=tuple(message.changes), existing=message.existing)


def cluster_from_wire(message: pb.ListNodesResponse) -> ClusterInfo:
    """The nodes, and the orchestrator that told of them."""
    nodes = tuple(
        NodeInfo(
            name=AgentId(node.name),
            state=node.state,
            profile=msgspec.json.decode(node.profile_json, type=NodeProfile),
            load=msgspec.json.decode(node.load_json, type=Load) if node.load_json else Load(),
            heard_seconds=node.heard_seconds,
            incarnation=node.incarnation,
        )
        for node in message.nodes
    )
    return ClusterInfo(nodes=nodes, epoch=Epoch(message.epoch), pid=message.pid)


def kinds_from_wire(message: pb.ListKindsResponse) -> KindCatalog:
    """The kinds that the nodes can run."""
    return KindCatalog(msgspec.json.decode(kind, type=KindSpec) for kind in message.kinds_json)
