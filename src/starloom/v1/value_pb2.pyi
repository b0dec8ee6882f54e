from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ValueRef(_message.Message):
    __slots__ = ("type", "bytes", "digest", "meta_json", "inline", "holder")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    META_JSON_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    type: str
    bytes: int
    digest: str
    meta_json: bytes
    inline: bytes
    holder: str
    def __init__(self, type: _Optional[str] = ..., bytes: _Optional[int] = ..., digest: _Optional[str] = ..., meta_json: _Optional[bytes] = ..., inline: _Optional[bytes] = ..., holder: _Optional[str] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("type", "message", "problems", "retry_after_seconds")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    retry_after_seconds: float
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("place", "what")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    place: str
    what: str
    def __init__(self, place: _Optional[str] = ..., what: _Optional[str] = ...) -> None: ...
