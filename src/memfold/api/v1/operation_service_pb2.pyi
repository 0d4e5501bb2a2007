import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from memfold.api.v1 import errors_pb2 as _errors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_KIND_UNSPECIFIED: _ClassVar[OperationKind]
    OPERATION_KIND_FORK: _ClassVar[OperationKind]
    OPERATION_KIND_ROLLBACK: _ClassVar[OperationKind]
    OPERATION_KIND_FORGET: _ClassVar[OperationKind]
    OPERATION_KIND_REBUILD: _ClassVar[OperationKind]
    OPERATION_KIND_VERIFY: _ClassVar[OperationKind]
OPERATION_KIND_UNSPECIFIED: OperationKind
OPERATION_KIND_FORK: OperationKind
OPERATION_KIND_ROLLBACK: OperationKind
OPERATION_KIND_FORGET: OperationKind
OPERATION_KIND_REBUILD: OperationKind
OPERATION_KIND_VERIFY: OperationKind

class Operation(_message.Message):
    __slots__ = ("name", "kind", "done", "create_time", "update_time", "progress", "error", "fork", "rollback", "forget", "rebuild", "verify")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: OperationKind
    done: bool
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    progress: OperationProgress
    error: OperationError
    fork: ForkReceipt
    rollback: RollbackReceipt
    forget: ForgetReceipt
    rebuild: RebuildReceipt
    verify: VerifyReceipt
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[OperationKind, str]] = ..., done: _Optional[bool] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., progress: _Optional[_Union[OperationProgress, _Mapping]] = ..., error: _Optional[_Union[OperationError, _Mapping]] = ..., fork: _Optional[_Union[ForkReceipt, _Mapping]] = ..., rollback: _Optional[_Union[RollbackReceipt, _Mapping]] = ..., forget: _Optional[_Union[ForgetReceipt, _Mapping]] = ..., rebuild: _Optional[_Union[RebuildReceipt, _Mapping]] = ..., verify: _Optional[_Union[VerifyReceipt, _Mapping]] = ...) -> None: ...

class OperationProgress(_message.Message):
    __slots__ = ("stage", "completed", "total")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    stage: str
    completed: int
    total: int
    def __init__(self, stage: _Optional[str] = ..., completed: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class OperationError(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: _errors_pb2.ErrorReason
    message: str
    def __init__(self, reason: _Optional[_Union[_errors_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class ForkReceipt(_message.Message):
    __slots__ = ("memory", "revision", "source_revision", "turn_count")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_REVISION_FIELD_NUMBER: _ClassVar[int]
    TURN_COUNT_FIELD_NUMBER: _ClassVar[int]
    memory: str
    revision: str
    source_revision: str
    turn_count: int
    def __init__(self, memory: _Optional[str] = ..., revision: _Optional[str] = ..., source_revision: _Optional[str] = ..., turn_count: _Optional[int] = ...) -> None: ...

class RollbackReceipt(_message.Message):
    __slots__ = ("revision", "restored_revision", "removed_turns", "log_rewritten", "files_rewritten", "files_note")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RESTORED_REVISION_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TURNS_FIELD_NUMBER: _ClassVar[int]
    LOG_REWRITTEN_FIELD_NUMBER: _ClassVar[int]
    FILES_REWRITTEN_FIELD_NUMBER: _ClassVar[int]
    FILES_NOTE_FIELD_NUMBER: _ClassVar[int]
    revision: str
    restored_revision: str
    removed_turns: int
    log_rewritten: bool
    files_rewritten: bool
    files_note: str
    def __init__(self, revision: _Optional[str] = ..., restored_revision: _Optional[str] = ..., removed_turns: _Optional[int] = ..., log_rewritten: _Optional[bool] = ..., files_rewritten: _Optional[bool] = ..., files_note: _Optional[str] = ...) -> None: ...

class ForgetReceipt(_message.Message):
    __slots__ = ("revision", "restored_revision", "sequences", "turn_ids", "dropped_revisions", "forks", "log_rewritten", "files_rewritten", "files_note", "removed_turns", "ranges")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RESTORED_REVISION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TURN_IDS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_REVISIONS_FIELD_NUMBER: _ClassVar[int]
    FORKS_FIELD_NUMBER: _ClassVar[int]
    LOG_REWRITTEN_FIELD_NUMBER: _ClassVar[int]
    FILES_REWRITTEN_FIELD_NUMBER: _ClassVar[int]
    FILES_NOTE_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TURNS_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    revision: str
    restored_revision: str
    sequences: _containers.RepeatedScalarFieldContainer[int]
    turn_ids: _containers.RepeatedScalarFieldContainer[str]
    dropped_revisions: _containers.RepeatedScalarFieldContainer[int]
    forks: _containers.RepeatedCompositeFieldContainer[ForkHolding]
    log_rewritten: bool
    files_rewritten: bool
    files_note: str
    removed_turns: int
    ranges: _containers.RepeatedCompositeFieldContainer[RemovedRange]
    def __init__(self, revision: _Optional[str] = ..., restored_revision: _Optional[str] = ..., sequences: _Optional[_Iterable[int]] = ..., turn_ids: _Optional[_Iterable[str]] = ..., dropped_revisions: _Optional[_Iterable[int]] = ..., forks: _Optional[_Iterable[_Union[ForkHolding, _Mapping]]] = ..., log_rewritten: _Optional[bool] = ..., files_rewritten: _Optional[bool] = ..., files_note: _Optional[str] = ..., removed_turns: _Optional[int] = ..., ranges: _Optional[_Iterable[_Union[RemovedRange, _Mapping]]] = ...) -> None: ...

class RemovedRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class ForkHolding(_message.Message):
    __slots__ = ("memory", "held_turns", "forgotten_turns")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    HELD_TURNS_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_TURNS_FIELD_NUMBER: _ClassVar[int]
    memory: str
    held_turns: int
    forgotten_turns: int
    def __init__(self, memory: _Optional[str] = ..., held_turns: _Optional[int] = ..., forgotten_turns: _Optional[int] = ...) -> None: ...

class RebuildReceipt(_message.Message):
    __slots__ = ("fingerprint", "replaced_fingerprint", "revision")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    replaced_fingerprint: str
    revision: str
    def __init__(self, fingerprint: _Optional[str] = ..., replaced_fingerprint: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class VerifyReceipt(_message.Message):
    __slots__ = ("ok", "revision", "fingerprint", "turn_count", "log_matches", "state_matches", "relative_error", "log_digest", "state_digest")
    OK_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TURN_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOG_MATCHES_FIELD_NUMBER: _ClassVar[int]
    STATE_MATCHES_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    LOG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    revision: str
    fingerprint: str
    turn_count: int
    log_matches: bool
    state_matches: bool
    relative_error: float
    log_digest: bytes
    state_digest: bytes
    def __init__(self, ok: _Optional[bool] = ..., revision: _Optional[str] = ..., fingerprint: _Optional[str] = ..., turn_count: _Optional[int] = ..., log_matches: _Optional[bool] = ..., state_matches: _Optional[bool] = ..., relative_error: _Optional[float] = ..., log_digest: _Optional[bytes] = ..., state_digest: _Optional[bytes] = ...) -> None: ...

class GetOperationRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetOperationResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    def __init__(self, operation: _Optional[_Union[Operation, _Mapping]] = ...) -> None: ...

class ListOperationsRequest(_message.Message):
    __slots__ = ("memory", "page_size", "page_token")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    memory: str
    page_size: int
    page_token: str
    def __init__(self, memory: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListOperationsResponse(_message.Message):
    __slots__ = ("operations", "next_page_token")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    next_page_token: str
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WaitOperationRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WaitOperationResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    def __init__(self, operation: _Optional[_Union[Operation, _Mapping]] = ...) -> None: ...
