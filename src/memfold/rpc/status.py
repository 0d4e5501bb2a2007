"""Errors to statuses and back: a status code, and exactly one ``google.rpc.ErrorInfo``."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from memfold.api import errors

DOMAIN = "memfold.api.v1"
_DETAILS_KEY = "grpc-status-details-bin"
# Details travel as metadata, of which receivers take 8 KiB by default.
_LONGEST_MESSAGE = 1024
_LONGEST_FACT = 256

_CODES = {
    "MALFORMED_REQUEST": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_PAGE_TOKEN": grpc.StatusCode.INVALID_ARGUMENT,
    "PROMPT_TOO_LONG": grpc.StatusCode.INVALID_ARGUMENT,
    "API_KEY_INVALID": grpc.StatusCode.UNAUTHENTICATED,
    "TENANT_MISMATCH": grpc.StatusCode.PERMISSION_DENIED,
    "MEMORY_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "MEMORY_ALREADY_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "TURN_ID_CONFLICT": grpc.StatusCode.ALREADY_EXISTS,
    "REVISION_MISMATCH": grpc.StatusCode.ABORTED,
    "REVISION_FOREIGN": grpc.StatusCode.FAILED_PRECONDITION,
    "REVISION_AHEAD_OF_LOG": grpc.StatusCode.OUT_OF_RANGE,
    "BACKLOG_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "STORE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "NOT_DURABLE": grpc.StatusCode.UNAVAILABLE,
    "MODEL_LOADING": grpc.StatusCode.UNAVAILABLE,
    "MODEL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "READER_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "MODEL_MISMATCH": grpc.StatusCode.FAILED_PRECONDITION,
    "DEADLINE_EXCEEDED": grpc.StatusCode.DEADLINE_EXCEEDED,
    "CANCELLED": grpc.StatusCode.CANCELLED,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "STATE_DAMAGED": grpc.StatusCode.DATA_LOSS,
    "INTERNAL": grpc.StatusCode.INTERNAL,
    "UNKNOWN_METHOD": grpc.StatusCode.UNIMPLEMENTED,
    "REVISION_NOT_KEPT": grpc.StatusCode.FAILED_PRECONDITION,
    "OPERATION_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "TURN_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "TURN_FOLDED": grpc.StatusCode.FAILED_PRECONDITION,
    "TURN_QUARANTINED": grpc.StatusCode.FAILED_PRECONDITION,
    "OPERATION_CONFLICT": grpc.StatusCode.ALREADY_EXISTS,
}
# What a status without an ErrorInfo means: it comes from the transport, or from a proxy on the way.
_BARE = {
    grpc.StatusCode.UNAVAILABLE: "UNREACHABLE",
    grpc.StatusCode.UNKNOWN: "UNREACHABLE",  # a connection that broke in the middle of an answer
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    grpc.StatusCode.CANCELLED: "CANCELLED",
    grpc.StatusCode.UNIMPLEMENTED: "UNKNOWN_METHOD",
    grpc.StatusCode.UNAUTHENTICATED: "API_KEY_INVALID",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "INVALID_FIELD",  # a message beyond what the transport takes
}
# What grpc.aio makes of any status that arrives while it is still sending.
_LOST_STATUS = "Internal error from Core"


class UnreachableError(errors.MemfoldError):
    """Nothing answers at the address. Known to clients only: no server sends it."""

    reason = "UNREACHABLE"


def code_of(reason: str) -> grpc.StatusCode:
    """The status code that a reason travels under."""
    return _CODES.get(reason, grpc.StatusCode.INTERNAL)


def status_of(error: errors.MemfoldError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """An error as (code, message, trailing metadata), ready for ``context.abort``."""
    code = code_of(error.reason)
    message = _cut(error.message, _LONGEST_MESSAGE)
    facts = {key: _cut(value, _LONGEST_FACT) for key, value in error.facts.items()}
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts))
    if error.retry_after_ms:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        status.details.add().Pack(retry)
    return code, message, ((_DETAILS_KEY, status.SerializeToString()),)


def error_from(error: grpc.RpcError) -> errors.MemfoldError:
    """The error that a failed call stands for, of the class that its reason names.

    A status without an ``ErrorInfo`` did not come from a memfold server: UNAVAILABLE becomes
    ``UnreachableError``, other codes the nearest class.
    """
    code, message = error.code(), error.details() or ""
    for info, retry_ms in _infos(error):
        return make_error(info.reason, message, dict(info.metadata), retry_ms)
    reason = _BARE.get(code, "INTERNAL")
    if reason == "INTERNAL" and message == _LOST_STATUS:
        reason = "UNREACHABLE"
    return make_error(reason, message or str(code), {}, 0)


def make_error(reason: str, message: str, facts: dict[str, str], retry_after_ms: int) -> errors.MemfoldError:
    """An error of the class that a reason names; of ``MemfoldError`` itself for a reason without a class."""
    # Errors that never leave their process have no reason of their own.
    named = (kind for kind in errors.MemfoldError.__subclasses__() if vars(kind).get("reason") == reason)
    kind = next(named, errors.MemfoldError)
    error = kind.__new__(kind)
    errors.MemfoldError.__init__(error, message, facts=facts, retry_after_ms=retry_after_ms)
    error.reason = reason
    return error


def _infos(error: grpc.RpcError) -> Iterator[tuple[error_details_pb2.ErrorInfo, int]]:
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS_KEY:
            continue
        try:
            details = list(status_pb2.Status.FromString(value).details)
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if _unpack(details, info):
                _unpack(details, retry)
                yield info, retry.retry_delay.ToMilliseconds()
        except DecodeError:
            continue


def _unpack(details: list[any_pb2.Any], into: Message) -> bool:
    return any(packed.Unpack(into) for packed in details)  # false, and untouched, for another type


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
