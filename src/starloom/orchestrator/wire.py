"""What the Control service tells, as protobuf: the server's half. `clientwire` reads it again."""

import msgspec

from starloom.agents.wire import load_to_wire, ref_to_wire
from starloom.dag.document import to_json
from starloom.dag.errors import InvalidConstellation
from starloom.dag.kinds import KindCatalog
from starloom.orchestrator.effects import Patched, Stopped, Submitted
from starloom.orchestrator.infos import ClusterInfo, JobInfo, NodeInfo, PatchInfo, StageInfo
from starloom.orchestrator.records import Record
from starloom.v1 import control_pb2 as pb

_encode = msgspec.json.Encoder().encode


def submitted_to_wire(submitted: Submitted) -> pb.SubmitResponse:
    """The answer to Submit."""
    return pb.SubmitResponse(job_id=submitted.job, existing=submitted.existing, revision=submitted.revision)


def stopped_to_wire(stopped: Stopped) -> pb.CancelJobResponse:
    """The answer to CancelJob."""
    return pb.CancelJobResponse(status=stopped.status.value, seconds=stopped.seconds)


def patched_to_wire(patched: Patched) -> pb.PatchJobResponse:
    """The answer to PatchJob."""
    return pb.PatchJobResponse(revision=patched.revision, existing=patched.existing, changes=patched.changes)


def event_to_wire(record: Record) -> pb.Event:
    """A journaled fact, as the line that it is."""
    return pb.Event(offset=record.offset, unix_nanos=record.unix_nanos, fact_json=record.line)


def job_to_wire(info: JobInfo) -> pb.Job:
    """A job as it stands, with whatever of its stages and constellation `info` has."""
    return pb.Job(
        job_id=info.id,
        key=info.key,
        name=info.name,
        status=info.status.value,
        revision=info.revision,
        error=info.error,
        cause=info.cause,
        stuck=info.stuck,
        degraded=info.degraded,
        plan=info.plan,
        outputs={name: ref_to_wire(ref) for name, ref in info.outputs.items()},
        stages=[_stage_to_wire(stage) for stage in info.stages],
        submitted_unix_nanos=info.submitted_unix_nanos,
        ended_unix_nanos=info.ended_unix_nanos,
        constellation_json=_document(info),
        labels=info.labels,
        constellation_revision=info.constellation_revision,
        patches=[_patch_to_wire(patch) for patch in info.patches],
    )


def _patch_to_wire(patch: PatchInfo) -> pb.PatchNote:
    return pb.PatchNote(
        revision=patch.revision,
        principal=patch.principal,
        why=patch.why,
        patch_id=patch.id,
        restart=patch.restart,
        operations=patch.operations,
        changes=patch.changes,
    )


def _document(info: JobInfo) -> bytes:
    try:
        return _encode(to_json(info.constellation)) if info.constellation is not None else b""
    except InvalidConstellation:
        # No document says what only the binary form can; the rest of the job is worth telling.
        return b""


def _stage_to_wire(stage: StageInfo) -> pb.StageState:
    seconds = stage.seconds
    return pb.StageState(
        stage=stage.name,
        kind=stage.kind,
        status=stage.status.value,
        node=stage.node,
        tier=stage.tier,
        target=stage.target,
        target_emulated=stage.emulated,
        models=stage.models,
        attempts=stage.attempts,
        copies=stage.copies,
        reason=stage.reason,
        grown_by=stage.grown_by,
        private=stage.private,
        variant=stage.variant,
        degraded=stage.degraded,
        planned=stage.planned,
        timing=pb.StageTiming(
            queue_seconds=seconds.queue,
            transfer_seconds=seconds.transfer,
            load_seconds=seconds.load,
            run_seconds=seconds.run,
        ),
        figures=stage.figures,
    )


def cluster_to_wire(info: ClusterInfo) -> pb.ListNodesResponse:
    """The nodes, and the orchestrator that tells of them."""
    return pb.ListNodesResponse(nodes=[_node_to_wire(node) for node in info.nodes], epoch=info.epoch, pid=info.pid)


def _node_to_wire(node: NodeInfo) -> pb.Node:
    return pb.Node(
        name=node.name,
        state=node.state,
        profile_json=_encode(node.profile),
        load_json=load_to_wire(node.load),
        heard_seconds=node.heard_seconds,
        incarnation=node.incarnation,
    )


def kinds_to_wire(kinds: KindCatalog) -> pb.ListKindsResponse:
    """The kinds that the nodes can run, by name."""
    return pb.ListKindsResponse(kinds_json=[_encode(kinds[name]) for name in sorted(kinds)])
