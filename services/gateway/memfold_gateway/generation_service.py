"""GenerationService: checked here, answered by a reader."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.v1 import generation_service_pb2_grpc as pb_grpc
from memfold_gateway.guard import Guard, own_memory
from memfold_gateway.readers import Readers
from memfold_gateway.route import Route


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    """Passes calls on to a reader, with their deadline and their cancellation, and its errors back."""

    def __init__(self, readers: Readers, guard: Guard) -> None:
        self._readers = readers
        self._guard = guard

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Generate a reply, token by token."""
        tenant = self._admit(request, context)
        for trial in Route(self._readers, "Generate", request, context, tenant):
            with trial as call:
                async for response in call.call:
                    call.heard()
                    yield response
                return

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        """Say how likely continuations are."""
        tenant = self._admit(request, context)
        response: pb.ScoreResponse = await self._ask("Score", request, context, tenant)
        return response

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        """Describe the model that serves."""
        tenant = self._guard.admit(request, context)
        response: pb.GetModelResponse = await self._ask("GetModel", request, context, tenant)
        return response

    async def _ask(self, method: str, request: Any, context: Any, tenant: str) -> Any:
        for trial in Route(self._readers, method, request, context, tenant):
            with trial as call:
                return await call.call
        raise AssertionError("a route ends with an answer or an error")

    def _admit(self, request: pb.GenerateRequest | pb.ScoreRequest, context: Any) -> str:
        tenant = self._guard.admit(request, context)
        if request.memory:
            own_memory(request.memory, tenant)
        return tenant
