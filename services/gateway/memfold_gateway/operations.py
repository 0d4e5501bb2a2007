"""Operations on their way through the gateway: small ones end within the call that asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from memfold.api.convert import operation_to_message
from memfold.api.v1 import operation_service_pb2 as pb
from memfold.api.values import MemoryName, Operation, OperationKind
from memfold.rpc.deadline import answer_in
from memfold.rpc.status import make_error
from memfold.store import Store
from memfold.store.verifying import REFOLD

_AT_ONCE_S = 2.0
# An operation counts its failures and gives up after some; so it is taken up again less and less often.
_AGAIN_S = 0.1
_LONGEST_WAIT_S = 3600.0
_FIRST_LOOK_S, _LAST_LOOK_S = 0.05, 0.5


class Operations:
    """Starts operations and waits for them. What is not done soon is left to the writers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def start(
        self, name: MemoryName, kind: OperationKind, args: Mapping[str, Any], request_id: str, context: Any
    ) -> pb.Operation:
        """Enter an operation and go on with it for a moment. The same request id again: the same operation.

        Raises:
            MemoryNotFoundError: there is no such memory.
            OperationConflictError: the request id was used for something else.
            MemfoldError: the operation has failed already, with this error.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + min(_AT_ONCE_S, answer_in(context) / 2)
        pause = _AGAIN_S
        operation = await self._store.request_operation(name, kind, args, request_id=request_id)
        while not operation.done:
            operation = await self._store.advance(name, operation.id, until=until)
            left = until - clock()
            if operation.done or left <= 0 or operation.progress.get("stage") == REFOLD:
                break  # what waits for a model is a writer's: whoever looked at it here would only put it off
            await asyncio.sleep(min(pause, left))  # it waits for something, or somebody else is at it
            pause *= 2
        return operation_to_message(_not_failed(operation))

    async def wait(self, name: MemoryName, operation_id: str, context: Any) -> Operation:
        """The operation once it is done, or as it stands shortly before the deadline.

        Raises:
            OperationNotFoundError: there is no such operation, or no more.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + min(answer_in(context) * 0.95, _LONGEST_WAIT_S)
        pause = _FIRST_LOOK_S
        while True:
            operation = await self._store.get_operation(name, operation_id)
            left = until - clock()
            if operation.done or left <= 0:
                return operation
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, _LAST_LOOK_S)


def _not_failed(operation: Operation) -> Operation:
    if operation.error:
        name = f"{operation.memory}/operations/{operation.id}"
        raise make_error(operation.error, operation.message, {"operation": name}, 0)
    return operation
