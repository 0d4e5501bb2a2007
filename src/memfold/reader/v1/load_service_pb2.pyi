from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Readiness(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    READINESS_UNSPECIFIED: _ClassVar[Readiness]
    READINESS_LOADING: _ClassVar[Readiness]
    READINESS_SERVING: _ClassVar[Readiness]
    READINESS_DRAINING: _ClassVar[Readiness]
READINESS_UNSPECIFIED: Readiness
READINESS_LOADING: Readiness
READINESS_SERVING: Readiness
READINESS_DRAINING: Readiness

class WatchLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchLoadResponse(_message.Message):
    __slots__ = ("readiness", "fingerprint", "active", "waiting", "slots")
    READINESS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    readiness: Readiness
    fingerprint: str
    active: int
    waiting: int
    slots: int
    def __init__(self, readiness: _Optional[_Union[Readiness, str]] = ..., fingerprint: _Optional[str] = ..., active: _Optional[int] = ..., waiting: _Optional[int] = ..., slots: _Optional[int] = ...) -> None: ...
