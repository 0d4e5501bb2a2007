"""OperationService: looks at what HistoryService has started."""

from __future__ import annotations

from typing import Any

from memfold.api.convert import operation_to_message
from memfold.api.errors import InvalidFieldError
from memfold.api.v1 import operation_service_pb2 as pb
from memfold.api.v1 import operation_service_pb2_grpc as pb_grpc
from memfold.api.values import MemoryName
from memfold.store import Store
from memfold_gateway.guard import Guard, own_memory
from memfold_gateway.operations import Operations
from memfold_gateway.pages import page_size, page_start, page_token


class OperationServicer(pb_grpc.OperationServiceServicer):
    """Answers for the store. Every method checks key, message and tenant first."""

    def __init__(self, store: Store, guard: Guard, operations: Operations) -> None:
        self._store = store
        self._guard = guard
        self._operations = operations

    async def GetOperation(self, request: pb.GetOperationRequest, context: Any) -> pb.GetOperationResponse:  # noqa: N802
        """Look an operation up."""
        operation = await self._store.get_operation(*self._named(request, context))
        return pb.GetOperationResponse(operation=operation_to_message(operation))

    async def ListOperations(  # noqa: N802
        self, request: pb.ListOperationsRequest, context: Any
    ) -> pb.ListOperationsResponse:
        """List the operations of a memory, the newest first."""
        name = self._guard.memory(request, context, request.memory)
        after = page_start(request.page_token, "operations", request.memory)
        size = page_size(request.page_size, 50, 1000)
        await self._store.get_memory(name)  # raises where there is none
        found = await self._store.list_operations(name, after=after, limit=size + 1)
        token = page_token(found[size - 1].id, "operations", request.memory) if len(found) > size else ""
        operations = [operation_to_message(operation) for operation in found[:size]]
        return pb.ListOperationsResponse(operations=operations, next_page_token=token)

    async def WaitOperation(self, request: pb.WaitOperationRequest, context: Any) -> pb.WaitOperationResponse:  # noqa: N802
        """Answer when an operation is done, or shortly before the deadline."""
        operation = await self._operations.wait(*self._named(request, context), context)
        return pb.WaitOperationResponse(operation=operation_to_message(operation))

    def _named(self, request: Any, context: Any) -> tuple[MemoryName, str]:
        tenant = self._guard.admit(request, context)
        memory, separator, operation_id = request.name.rpartition("/operations/")
        if not separator:
            raise InvalidFieldError("name", "names no operation")
        return own_memory(memory, tenant, "name"), operation_id
