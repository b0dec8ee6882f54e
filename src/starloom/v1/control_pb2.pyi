from starloom.v1 import value_pb2 as _value_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitRequest(_message.Message):
    __slots__ = ("constellation_json", "inputs", "key", "priority", "max_parallel", "labels", "deadline_seconds", "streams")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _value_pb2.ValueRef
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_value_pb2.ValueRef, _Mapping]] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class StreamsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: StreamOptions
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[StreamOptions, _Mapping]] = ...) -> None: ...
    CONSTELLATION_JSON_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    constellation_json: bytes
    inputs: _containers.MessageMap[str, _value_pb2.ValueRef]
    key: str
    priority: int
    max_parallel: int
    labels: _containers.ScalarMap[str, str]
    deadline_seconds: float
    streams: _containers.MessageMap[str, StreamOptions]
    def __init__(self, constellation_json: _Optional[bytes] = ..., inputs: _Optional[_Mapping[str, _value_pb2.ValueRef]] = ..., key: _Optional[str] = ..., priority: _Optional[int] = ..., max_parallel: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., deadline_seconds: _Optional[float] = ..., streams: _Optional[_Mapping[str, StreamOptions]] = ...) -> None: ...

class StreamOptions(_message.Message):
    __slots__ = ("full", "spool")
    FULL_FIELD_NUMBER: _ClassVar[int]
    SPOOL_FIELD_NUMBER: _ClassVar[int]
    full: str
    spool: bool
    def __init__(self, full: _Optional[str] = ..., spool: _Optional[bool] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("job_id", "existing", "revision")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    EXISTING_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    existing: bool
    revision: int
    def __init__(self, job_id: _Optional[str] = ..., existing: _Optional[bool] = ..., revision: _Optional[int] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id", "revision")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    revision: int
    def __init__(self, job_id: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "key", "name", "status", "revision", "error", "outputs", "stages", "submitted_unix_nanos", "ended_unix_nanos", "constellation_json", "labels", "constellation_revision", "patches", "cause", "stuck", "degraded", "plan")
    class OutputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _value_pb2.ValueRef
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_value_pb2.ValueRef, _Mapping]] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    ENDED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    CONSTELLATION_JSON_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CONSTELLATION_REVISION_FIELD_NUMBER: _ClassVar[int]
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    STUCK_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    key: str
    name: str
    status: str
    revision: int
    error: str
    outputs: _containers.MessageMap[str, _value_pb2.ValueRef]
    stages: _containers.RepeatedCompositeFieldContainer[StageState]
    submitted_unix_nanos: int
    ended_unix_nanos: int
    constellation_json: bytes
    labels: _containers.ScalarMap[str, str]
    constellation_revision: int
    patches: _containers.RepeatedCompositeFieldContainer[PatchNote]
    cause: str
    stuck: str
    degraded: _containers.RepeatedScalarFieldContainer[str]
    plan: str
    def __init__(self, job_id: _Optional[str] = ..., key: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., revision: _Optional[int] = ..., error: _Optional[str] = ..., outputs: _Optional[_Mapping[str, _value_pb2.ValueRef]] = ..., stages: _Optional[_Iterable[_Union[StageState, _Mapping]]] = ..., submitted_unix_nanos: _Optional[int] = ..., ended_unix_nanos: _Optional[int] = ..., constellation_json: _Optional[bytes] = ..., labels: _Optional[_Mapping[str, str]] = ..., constellation_revision: _Optional[int] = ..., patches: _Optional[_Iterable[_Union[PatchNote, _Mapping]]] = ..., cause: _Optional[str] = ..., stuck: _Optional[str] = ..., degraded: _Optional[_Iterable[str]] = ..., plan: _Optional[str] = ...) -> None: ...

class PatchNote(_message.Message):
    __slots__ = ("revision", "principal", "why", "patch_id", "restart", "operations", "changes")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    PATCH_ID_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    revision: int
    principal: str
    why: str
    patch_id: str
    restart: bool
    operations: _containers.RepeatedScalarFieldContainer[str]
    changes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, revision: _Optional[int] = ..., principal: _Optional[str] = ..., why: _Optional[str] = ..., patch_id: _Optional[str] = ..., restart: _Optional[bool] = ..., operations: _Optional[_Iterable[str]] = ..., changes: _Optional[_Iterable[str]] = ...) -> None: ...

class StageState(_message.Message):
    __slots__ = ("stage", "kind", "status", "node", "tier", "target", "target_emulated", "models", "attempts", "reason", "timing", "figures", "grown_by", "copies", "private", "variant", "degraded", "planned")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STAGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TARGET_EMULATED_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    GROWN_BY_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    stage: str
    kind: str
    status: str
    node: str
    tier: str
    target: str
    target_emulated: bool
    models: _containers.RepeatedScalarFieldContainer[str]
    attempts: int
    reason: str
    timing: StageTiming
    figures: _containers.ScalarMap[str, float]
    grown_by: str
    copies: int
    private: str
    variant: str
    degraded: str
    planned: str
    def __init__(self, stage: _Optional[str] = ..., kind: _Optional[str] = ..., status: _Optional[str] = ..., node: _Optional[str] = ..., tier: _Optional[str] = ..., target: _Optional[str] = ..., target_emulated: _Optional[bool] = ..., models: _Optional[_Iterable[str]] = ..., attempts: _Optional[int] = ..., reason: _Optional[str] = ..., timing: _Optional[_Union[StageTiming, _Mapping]] = ..., figures: _Optional[_Mapping[str, float]] = ..., grown_by: _Optional[str] = ..., copies: _Optional[int] = ..., private: _Optional[str] = ..., variant: _Optional[str] = ..., degraded: _Optional[str] = ..., planned: _Optional[str] = ...) -> None: ...

class StageTiming(_message.Message):
    __slots__ = ("queue_seconds", "transfer_seconds", "load_seconds", "run_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    transfer_seconds: float
    load_seconds: float
    run_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., transfer_seconds: _Optional[float] = ..., load_seconds: _Optional[float] = ..., run_seconds: _Optional[float] = ...) -> None: ...

class StreamEventsRequest(_message.Message):
    __slots__ = ("job_id", "after_offset", "follow", "kinds")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_OFFSET_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    after_offset: int
    follow: bool
    kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_id: _Optional[str] = ..., after_offset: _Optional[int] = ..., follow: _Optional[bool] = ..., kinds: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamEventsResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("offset", "unix_nanos", "fact_json")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    FACT_JSON_FIELD_NUMBER: _ClassVar[int]
    offset: int
    unix_nanos: int
    fact_json: bytes
    def __init__(self, offset: _Optional[int] = ..., unix_nanos: _Optional[int] = ..., fact_json: _Optional[bytes] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id", "reason")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    reason: str
    def __init__(self, job_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("status", "seconds")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    status: str
    seconds: float
    def __init__(self, status: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class PatchJobRequest(_message.Message):
    __slots__ = ("job_id", "patch_json")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    PATCH_JSON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    patch_json: bytes
    def __init__(self, job_id: _Optional[str] = ..., patch_json: _Optional[bytes] = ...) -> None: ...

class PatchJobResponse(_message.Message):
    __slots__ = ("revision", "existing", "changes")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EXISTING_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    revision: int
    existing: bool
    changes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, revision: _Optional[int] = ..., existing: _Optional[bool] = ..., changes: _Optional[_Iterable[str]] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes", "epoch", "pid")
    NODES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    epoch: int
    pid: int
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., epoch: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "state", "profile_json", "load_json", "heard_seconds", "incarnation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_JSON_FIELD_NUMBER: _ClassVar[int]
    LOAD_JSON_FIELD_NUMBER: _ClassVar[int]
    HEARD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    profile_json: bytes
    load_json: bytes
    heard_seconds: float
    incarnation: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., profile_json: _Optional[bytes] = ..., load_json: _Optional[bytes] = ..., heard_seconds: _Optional[float] = ..., incarnation: _Optional[str] = ...) -> None: ...

class ListKindsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListKindsResponse(_message.Message):
    __slots__ = ("kinds_json",)
    KINDS_JSON_FIELD_NUMBER: _ClassVar[int]
    kinds_json: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, kinds_json: _Optional[_Iterable[bytes]] = ...) -> None: ...
