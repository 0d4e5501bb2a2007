import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from memfold.api.v1 import operation_service_pb2 as _operation_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeptRevision(_message.Message):
    __slots__ = ("revision", "fingerprint", "log_digest", "state_digest", "commit_time")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LOG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TIME_FIELD_NUMBER: _ClassVar[int]
    revision: str
    fingerprint: str
    log_digest: bytes
    state_digest: bytes
    commit_time: _timestamp_pb2.Timestamp
    def __init__(self, revision: _Optional[str] = ..., fingerprint: _Optional[str] = ..., log_digest: _Optional[bytes] = ..., state_digest: _Optional[bytes] = ..., commit_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListRevisionsRequest(_message.Message):
    __slots__ = ("memory", "fingerprint")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    memory: str
    fingerprint: str
    def __init__(self, memory: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class ListRevisionsResponse(_message.Message):
    __slots__ = ("revisions",)
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    revisions: _containers.RepeatedCompositeFieldContainer[KeptRevision]
    def __init__(self, revisions: _Optional[_Iterable[_Union[KeptRevision, _Mapping]]] = ...) -> None: ...

class ForkMemoryRequest(_message.Message):
    __slots__ = ("name", "memory_id", "revision", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    memory_id: str
    revision: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., memory_id: _Optional[str] = ..., revision: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ForkMemoryResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...

class RollbackMemoryRequest(_message.Message):
    __slots__ = ("name", "revision", "expected_revision", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    expected_revision: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., expected_revision: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class RollbackMemoryResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...

class ForgetTurnsRequest(_message.Message):
    __slots__ = ("memory", "selector", "include_forks", "expected_revision", "request_id")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FORKS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    memory: str
    selector: TurnSelector
    include_forks: bool
    expected_revision: str
    request_id: str
    def __init__(self, memory: _Optional[str] = ..., selector: _Optional[_Union[TurnSelector, _Mapping]] = ..., include_forks: _Optional[bool] = ..., expected_revision: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class TurnSelector(_message.Message):
    __slots__ = ("ids", "range", "match")
    IDS_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    ids: TurnIds
    range: SequenceRange
    match: TurnMatch
    def __init__(self, ids: _Optional[_Union[TurnIds, _Mapping]] = ..., range: _Optional[_Union[SequenceRange, _Mapping]] = ..., match: _Optional[_Union[TurnMatch, _Mapping]] = ...) -> None: ...

class TurnIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class SequenceRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class TurnMatch(_message.Message):
    __slots__ = ("metadata", "role", "speaker")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SPEAKER_FIELD_NUMBER: _ClassVar[int]
    metadata: _containers.ScalarMap[str, str]
    role: str
    speaker: str
    def __init__(self, metadata: _Optional[_Mapping[str, str]] = ..., role: _Optional[str] = ..., speaker: _Optional[str] = ...) -> None: ...

class ForgetTurnsResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...

class SkipTurnRequest(_message.Message):
    __slots__ = ("memory", "sequence")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    memory: str
    sequence: int
    def __init__(self, memory: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class SkipTurnResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: str
    def __init__(self, revision: _Optional[str] = ...) -> None: ...

class RebuildMemoryRequest(_message.Message):
    __slots__ = ("name", "fingerprint", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class RebuildMemoryResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...

class VerifyMemoryRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class VerifyMemoryResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operation_service_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operation_service_pb2.Operation, _Mapping]] = ...) -> None: ...
