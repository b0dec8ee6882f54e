from starloom.v1 import session_pb2 as _session_pb2
from starloom.v1 import value_pb2 as _value_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamName(_message.Message):
    __slots__ = ("job_id", "stage", "epoch", "attempt", "port")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    stage: str
    epoch: int
    attempt: int
    port: str
    def __init__(self, job_id: _Optional[str] = ..., stage: _Optional[str] = ..., epoch: _Optional[int] = ..., attempt: _Optional[int] = ..., port: _Optional[str] = ...) -> None: ...

class StreamChunk(_message.Message):
    __slots__ = ("offset", "generation", "meta_json", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    META_JSON_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    generation: int
    meta_json: bytes
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., generation: _Optional[int] = ..., meta_json: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class StreamCredit(_message.Message):
    __slots__ = ("window_chunks", "window_bytes", "acknowledged")
    WINDOW_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    window_chunks: int
    window_bytes: int
    acknowledged: int
    def __init__(self, window_chunks: _Optional[int] = ..., window_bytes: _Optional[int] = ..., acknowledged: _Optional[int] = ...) -> None: ...

class StreamEnd(_message.Message):
    __slots__ = ("how", "chunks", "bytes", "digest", "message")
    HOW_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    how: str
    chunks: int
    bytes: int
    digest: str
    message: str
    def __init__(self, how: _Optional[str] = ..., chunks: _Optional[int] = ..., bytes: _Optional[int] = ..., digest: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ReadOpen(_message.Message):
    __slots__ = ("stream", "reader", "credit", "full", "attempt", "incarnation", "closed")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    stream: StreamName
    reader: str
    credit: StreamCredit
    full: str
    attempt: int
    incarnation: str
    closed: bool
    def __init__(self, stream: _Optional[_Union[StreamName, _Mapping]] = ..., reader: _Optional[str] = ..., credit: _Optional[_Union[StreamCredit, _Mapping]] = ..., full: _Optional[str] = ..., attempt: _Optional[int] = ..., incarnation: _Optional[str] = ..., closed: _Optional[bool] = ...) -> None: ...

class ReadClose(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("open", "credit", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: ReadOpen
    credit: StreamCredit
    close: ReadClose
    def __init__(self, open: _Optional[_Union[ReadOpen, _Mapping]] = ..., credit: _Optional[_Union[StreamCredit, _Mapping]] = ..., close: _Optional[_Union[ReadClose, _Mapping]] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("chunks", "dropped", "stale", "generation", "end")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[StreamChunk]
    dropped: int
    stale: int
    generation: int
    end: StreamEnd
    def __init__(self, chunks: _Optional[_Iterable[_Union[StreamChunk, _Mapping]]] = ..., dropped: _Optional[int] = ..., stale: _Optional[int] = ..., generation: _Optional[int] = ..., end: _Optional[_Union[StreamEnd, _Mapping]] = ...) -> None: ...

class WriteOpen(_message.Message):
    __slots__ = ("stream", "type")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    stream: StreamName
    type: str
    def __init__(self, stream: _Optional[_Union[StreamName, _Mapping]] = ..., type: _Optional[str] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("open", "chunks", "end")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    open: WriteOpen
    chunks: _containers.RepeatedCompositeFieldContainer[StreamChunk]
    end: StreamEnd
    def __init__(self, open: _Optional[_Union[WriteOpen, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[StreamChunk, _Mapping]]] = ..., end: _Optional[_Union[StreamEnd, _Mapping]] = ...) -> None: ...

class WriteResponse(_message.Message):
    __slots__ = ("credit",)
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    credit: StreamCredit
    def __init__(self, credit: _Optional[_Union[StreamCredit, _Mapping]] = ...) -> None: ...

class ArenaRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ArenaResponse(_message.Message):
    __slots__ = ("boot_id", "name", "nonce")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    name: str
    nonce: bytes
    def __init__(self, boot_id: _Optional[str] = ..., name: _Optional[str] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("job_id", "digest", "offset", "codings", "bytes_per_second")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CODINGS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    digest: str
    offset: int
    codings: _containers.RepeatedScalarFieldContainer[str]
    bytes_per_second: int
    def __init__(self, job_id: _Optional[str] = ..., digest: _Optional[str] = ..., offset: _Optional[int] = ..., codings: _Optional[_Iterable[str]] = ..., bytes_per_second: _Optional[int] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("chunk", "packed")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    packed: bytes
    def __init__(self, chunk: _Optional[bytes] = ..., packed: _Optional[bytes] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("ref", "chunk")
    REF_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ref: _value_pb2.ValueRef
    chunk: bytes
    def __init__(self, ref: _Optional[_Union[_value_pb2.ValueRef, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: _value_pb2.ValueRef
    def __init__(self, ref: _Optional[_Union[_value_pb2.ValueRef, _Mapping]] = ...) -> None: ...

class AwaitRequest(_message.Message):
    __slots__ = ("asked", "unasked")
    ASKED_FIELD_NUMBER: _ClassVar[int]
    UNASKED_FIELD_NUMBER: _ClassVar[int]
    asked: _containers.RepeatedCompositeFieldContainer[_session_pb2.Task]
    unasked: _containers.RepeatedCompositeFieldContainer[_session_pb2.Task]
    def __init__(self, asked: _Optional[_Iterable[_Union[_session_pb2.Task, _Mapping]]] = ..., unasked: _Optional[_Iterable[_Union[_session_pb2.Task, _Mapping]]] = ...) -> None: ...

class AwaitResponse(_message.Message):
    __slots__ = ("outcomes", "shortcut")
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    SHORTCUT_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedScalarFieldContainer[bytes]
    shortcut: Shortcut
    def __init__(self, outcomes: _Optional[_Iterable[bytes]] = ..., shortcut: _Optional[_Union[Shortcut, _Mapping]] = ...) -> None: ...

class Shortcut(_message.Message):
    __slots__ = ("name", "key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    key: bytes
    def __init__(self, name: _Optional[str] = ..., key: _Optional[bytes] = ...) -> None: ...
