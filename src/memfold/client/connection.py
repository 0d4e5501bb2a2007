"""What both clients are connected with."""

from __future__ import annotations

from typing import Any

from memfold.api.errors import MemfoldError
from memfold.api.v1.generation_service_pb2_grpc import GenerationServiceStub
from memfold.api.v1.history_service_pb2_grpc import HistoryServiceStub
from memfold.api.v1.memory_service_pb2_grpc import MemoryServiceStub
from memfold.api.v1.operation_service_pb2_grpc import OperationServiceStub
from memfold.client.call import SERVICES, Service
from memfold.rpc.channel import channel_options

# The client makes every id itself, so that calls may be repeated. Two may not: a stream is resumed instead, and a deletion
# could hit a memory that somebody has made anew under the same name.
OPTIONS = channel_options(
    retry=list(SERVICES.values()), once=[(SERVICES["memory"], "StreamTurns"), (SERVICES["memory"], "DeleteMemory")]
)

_PASSING = {"UNREACHABLE", "STORE_UNAVAILABLE", "NOT_DURABLE", "MODEL_LOADING", "SHUTTING_DOWN"}


def stubs(channel: Any) -> dict[Service, Any]:
    """A stub for each service."""
    return {
        "memory": MemoryServiceStub(channel),  # type: ignore[no-untyped-call]
        "history": HistoryServiceStub(channel),  # type: ignore[no-untyped-call]
        "operation": OperationServiceStub(channel),  # type: ignore[no-untyped-call]
        "generation": GenerationServiceStub(channel),  # type: ignore[no-untyped-call]
    }


def authorization(api_key: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carry an API key."""
    return (("authorization", f"Bearer {api_key}"),)


def passes(error: MemfoldError) -> bool:
    """Whether an error is likely to be gone in a moment."""
    return error.reason in _PASSING
