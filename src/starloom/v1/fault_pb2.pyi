from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ArmedFault(_message.Message):
    __slots__ = ("id", "what", "peer", "address", "kind", "factor", "add_seconds", "delay_seconds", "chance", "seed", "most", "seconds", "met")
    ID_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    ADD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DELAY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CHANCE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    id: str
    what: str
    peer: str
    address: str
    kind: str
    factor: float
    add_seconds: float
    delay_seconds: float
    chance: float
    seed: int
    most: int
    seconds: float
    met: int
    def __init__(self, id: _Optional[str] = ..., what: _Optional[str] = ..., peer: _Optional[str] = ..., address: _Optional[str] = ..., kind: _Optional[str] = ..., factor: _Optional[float] = ..., add_seconds: _Optional[float] = ..., delay_seconds: _Optional[float] = ..., chance: _Optional[float] = ..., seed: _Optional[int] = ..., most: _Optional[int] = ..., seconds: _Optional[float] = ..., met: _Optional[int] = ...) -> None: ...

class ArmRequest(_message.Message):
    __slots__ = ("fault",)
    FAULT_FIELD_NUMBER: _ClassVar[int]
    fault: ArmedFault
    def __init__(self, fault: _Optional[_Union[ArmedFault, _Mapping]] = ...) -> None: ...

class ArmResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HealRequest(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class HealResponse(_message.Message):
    __slots__ = ("healed",)
    HEALED_FIELD_NUMBER: _ClassVar[int]
    healed: _containers.RepeatedCompositeFieldContainer[ArmedFault]
    def __init__(self, healed: _Optional[_Iterable[_Union[ArmedFault, _Mapping]]] = ...) -> None: ...

class ListArmedRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListArmedResponse(_message.Message):
    __slots__ = ("armed",)
    ARMED_FIELD_NUMBER: _ClassVar[int]
    armed: _containers.RepeatedCompositeFieldContainer[ArmedFault]
    def __init__(self, armed: _Optional[_Iterable[_Union[ArmedFault, _Mapping]]] = ...) -> None: ...
