from starloom.v1 import value_pb2 as _value_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectRequest(_message.Message):
    __slots__ = ("hello", "reports", "heartbeat", "goodbye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    reports: Reports
    heartbeat: Heartbeat
    goodbye: Goodbye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., reports: _Optional[_Union[Reports, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("welcome", "commands", "heartbeat")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    commands: Commands
    heartbeat: HeartbeatReply
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., commands: _Optional[_Union[Commands, _Mapping]] = ..., heartbeat: _Optional[_Union[HeartbeatReply, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("agent", "incarnation", "profile_json", "kinds_json", "session", "received", "held", "job_ids", "epoch_seen")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PROFILE_JSON_FIELD_NUMBER: _ClassVar[int]
    KINDS_JSON_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_SEEN_FIELD_NUMBER: _ClassVar[int]
    agent: str
    incarnation: str
    profile_json: bytes
    kinds_json: _containers.RepeatedScalarFieldContainer[bytes]
    session: str
    received: int
    held: _containers.RepeatedCompositeFieldContainer[Task]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    epoch_seen: int
    def __init__(self, agent: _Optional[str] = ..., incarnation: _Optional[str] = ..., profile_json: _Optional[bytes] = ..., kinds_json: _Optional[_Iterable[bytes]] = ..., session: _Optional[str] = ..., received: _Optional[int] = ..., held: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., job_ids: _Optional[_Iterable[str]] = ..., epoch_seen: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("session", "epoch", "resumed", "received", "lease_seconds", "heartbeat_seconds")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    resumed: bool
    received: int
    lease_seconds: float
    heartbeat_seconds: float
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., resumed: _Optional[bool] = ..., received: _Optional[int] = ..., lease_seconds: _Optional[float] = ..., heartbeat_seconds: _Optional[float] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sent_nanos", "load_json", "acknowledged")
    SENT_NANOS_FIELD_NUMBER: _ClassVar[int]
    LOAD_JSON_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    sent_nanos: int
    load_json: bytes
    acknowledged: int
    def __init__(self, sent_nanos: _Optional[int] = ..., load_json: _Optional[bytes] = ..., acknowledged: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("sent_nanos", "unix_nanos", "acknowledged")
    SENT_NANOS_FIELD_NUMBER: _ClassVar[int]
    UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    sent_nanos: int
    unix_nanos: int
    acknowledged: int
    def __init__(self, sent_nanos: _Optional[int] = ..., unix_nanos: _Optional[int] = ..., acknowledged: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("job_id", "stage", "epoch", "attempt")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    stage: str
    epoch: int
    attempt: int
    def __init__(self, job_id: _Optional[str] = ..., stage: _Optional[str] = ..., epoch: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class Reports(_message.Message):
    __slots__ = ("sequence", "acknowledged", "reports")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    acknowledged: int
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    def __init__(self, sequence: _Optional[int] = ..., acknowledged: _Optional[int] = ..., reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ...) -> None: ...

class Commands(_message.Message):
    __slots__ = ("sequence", "acknowledged", "commands", "sender_epoch")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    SENDER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    acknowledged: int
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    sender_epoch: int
    def __init__(self, sequence: _Optional[int] = ..., acknowledged: _Optional[int] = ..., commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ..., sender_epoch: _Optional[int] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("assign", "cancel", "release", "revoke", "replicate", "resolve", "publish")
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    REPLICATE_FIELD_NUMBER: _ClassVar[int]
    RESOLVE_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    assign: Assign
    cancel: Cancel
    release: Release
    revoke: Revoke
    replicate: Replicate
    resolve: Resolve
    publish: Publish
    def __init__(self, assign: _Optional[_Union[Assign, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., revoke: _Optional[_Union[Revoke, _Mapping]] = ..., replicate: _Optional[_Union[Replicate, _Mapping]] = ..., resolve: _Optional[_Union[Resolve, _Mapping]] = ..., publish: _Optional[_Union[Publish, _Mapping]] = ...) -> None: ...

class Assign(_message.Message):
    __slots__ = ("packed", "params_json", "comparisons_json")
    PACKED_FIELD_NUMBER: _ClassVar[int]
    PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    COMPARISONS_JSON_FIELD_NUMBER: _ClassVar[int]
    packed: bytes
    params_json: bytes
    comparisons_json: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, packed: _Optional[bytes] = ..., params_json: _Optional[bytes] = ..., comparisons_json: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("agent", "address")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    agent: str
    address: str
    def __init__(self, agent: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class Replicate(_message.Message):
    __slots__ = ("task", "values", "sources")
    TASK_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    task: Task
    values: _containers.RepeatedCompositeFieldContainer[_value_pb2.ValueRef]
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., values: _Optional[_Iterable[_Union[_value_pb2.ValueRef, _Mapping]]] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ...) -> None: ...

class Resolve(_message.Message):
    __slots__ = ("packed",)
    PACKED_FIELD_NUMBER: _ClassVar[int]
    packed: bytes
    def __init__(self, packed: _Optional[bytes] = ...) -> None: ...

class Publish(_message.Message):
    __slots__ = ("task", "values")
    TASK_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    task: Task
    values: _containers.RepeatedCompositeFieldContainer[_value_pb2.ValueRef]
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., values: _Optional[_Iterable[_Union[_value_pb2.ValueRef, _Mapping]]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("started", "finished", "failed", "input_lost", "was_cancelled", "revoked", "held", "not_held", "await_unreachable", "published")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    INPUT_LOST_FIELD_NUMBER: _ClassVar[int]
    WAS_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    NOT_HELD_FIELD_NUMBER: _ClassVar[int]
    AWAIT_UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    started: Started
    finished: Finished
    failed: Failed
    input_lost: InputLost
    was_cancelled: WasCancelled
    revoked: Revoked
    held: Held
    not_held: NotHeld
    await_unreachable: AwaitUnreachable
    published: Published
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., input_lost: _Optional[_Union[InputLost, _Mapping]] = ..., was_cancelled: _Optional[_Union[WasCancelled, _Mapping]] = ..., revoked: _Optional[_Union[Revoked, _Mapping]] = ..., held: _Optional[_Union[Held, _Mapping]] = ..., not_held: _Optional[_Union[NotHeld, _Mapping]] = ..., await_unreachable: _Optional[_Union[AwaitUnreachable, _Mapping]] = ..., published: _Optional[_Union[Published, _Mapping]] = ...) -> None: ...

class Published(_message.Message):
    __slots__ = ("task", "reason")
    TASK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task: Task
    reason: str
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("packed", "growth_json")
    PACKED_FIELD_NUMBER: _ClassVar[int]
    GROWTH_JSON_FIELD_NUMBER: _ClassVar[int]
    packed: bytes
    growth_json: bytes
    def __init__(self, packed: _Optional[bytes] = ..., growth_json: _Optional[bytes] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("task", "message", "cause", "transient", "trace")
    TASK_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    TRANSIENT_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    task: Task
    message: str
    cause: str
    transient: bool
    trace: str
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., message: _Optional[str] = ..., cause: _Optional[str] = ..., transient: _Optional[bool] = ..., trace: _Optional[str] = ...) -> None: ...

class InputLost(_message.Message):
    __slots__ = ("task", "upstreams", "reason", "gone", "missing")
    TASK_FIELD_NUMBER: _ClassVar[int]
    UPSTREAMS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    task: Task
    upstreams: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    gone: bool
    missing: _containers.RepeatedCompositeFieldContainer[Missing]
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., upstreams: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., gone: _Optional[bool] = ..., missing: _Optional[_Iterable[_Union[Missing, _Mapping]]] = ...) -> None: ...

class Missing(_message.Message):
    __slots__ = ("upstream", "agents")
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    upstream: str
    agents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, upstream: _Optional[str] = ..., agents: _Optional[_Iterable[str]] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class NotHeld(_message.Message):
    __slots__ = ("task", "reason", "missing")
    TASK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    task: Task
    reason: str
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., reason: _Optional[str] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class Revoked(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class WasCancelled(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class AwaitUnreachable(_message.Message):
    __slots__ = ("task", "upstreams", "reason")
    TASK_FIELD_NUMBER: _ClassVar[int]
    UPSTREAMS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task: Task
    upstreams: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., upstreams: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ...) -> None: ...
