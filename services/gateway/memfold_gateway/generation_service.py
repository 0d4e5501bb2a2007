"""GenerationService: checked here, answered by a reader."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from opentelemetry import propagate
from opentelemetry.instrumentation.utils import suppress_instrumentation

from memfold.api.errors import MemfoldError, ReaderUnavailableError
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.v1 import generation_service_pb2_grpc as pb_grpc
from memfold.rpc.deadline import NEVER, answer_in
from memfold.rpc.status import UnreachableError, error_from
from memfold_gateway.guard import Guard, own_memory


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    """Passes calls on to a reader, with their deadline and their cancellation, and its errors back."""

    def __init__(self, channel: Any, guard: Guard) -> None:
        self._reader: Any = pb_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        self._guard = guard

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Generate a reply, token by token."""
        self._admit(request, context)
        call = _call(self._reader.Generate, request, context)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise _reader_error(error) from None
        finally:
            call.cancel()

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        """Say how likely continuations are."""
        self._admit(request, context)
        try:
            response: pb.ScoreResponse = await _call(self._reader.Score, request, context)
        except grpc.aio.AioRpcError as error:
            raise _reader_error(error) from None
        return response

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        """Describe the model that serves."""
        self._guard.admit(request, context)
        try:
            response: pb.GetModelResponse = await _call(self._reader.GetModel, request, context)
        except grpc.aio.AioRpcError as error:
            raise _reader_error(error) from None
        return response

    def _admit(self, request: pb.GenerateRequest | pb.ScoreRequest, context: Any) -> None:
        tenant = self._guard.admit(request, context)
        if request.memory:
            own_memory(request.memory, tenant)


def _call(method: Any, request: Any, context: Any) -> Any:
    """Start a call with the deadline and the trace of the one that is being answered."""
    seconds = answer_in(context)
    trace: dict[str, str] = {}
    propagate.inject(trace)
    # OpenTelemetry's own client for grpc.aio does not pass a cancellation on: the reader would work on for nobody.
    with suppress_instrumentation():
        return method(request, timeout=None if seconds == NEVER else seconds, metadata=tuple(trace.items()))


def _reader_error(error: grpc.aio.AioRpcError) -> MemfoldError:
    found = error_from(error)
    if isinstance(found, UnreachableError):
        return ReaderUnavailableError("no reader answers", retry_after_ms=1000)
    return found
