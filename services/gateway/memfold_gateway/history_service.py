"""HistoryService: earlier revisions, copies, forgetting, proofs."""

from __future__ import annotations

from typing import Any

from memfold.api.convert import kept_revision_to_message
from memfold.api.errors import InvalidFieldError
from memfold.api.v1 import history_service_pb2 as pb
from memfold.api.v1 import history_service_pb2_grpc as pb_grpc
from memfold.api.values import MemoryName, OperationKind, Revision, Role
from memfold.store import Store
from memfold_gateway.guard import Guard
from memfold_gateway.operations import Operations


class HistoryServicer(pb_grpc.HistoryServiceServicer):
    """Answers for the store. Every method checks key, message and tenant first."""

    def __init__(self, store: Store, guard: Guard, operations: Operations) -> None:
        self._store = store
        self._guard = guard
        self._operations = operations

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Any) -> pb.ListRevisionsResponse:  # noqa: N802
        """List the revisions at which a state is kept."""
        name = self._guard.memory(request, context, request.memory)
        kept = await self._store.list_revisions(name, fingerprint=request.fingerprint)
        return pb.ListRevisionsResponse(revisions=[kept_revision_to_message(revision) for revision in kept])

    async def ForkMemory(self, request: pb.ForkMemoryRequest, context: Any) -> pb.ForkMemoryResponse:  # noqa: N802
        """Copy a memory under a new name of the same tenant."""
        name = self._guard.memory(request, context, request.name, "name")
        target = MemoryName(name.tenant, request.memory_id)
        if target == name:
            raise InvalidFieldError("memory_id", "a memory cannot be copied onto itself")
        args = {"target": str(target), "revision": _checked(request.revision, "revision")}
        operation = await self._operations.start(name, OperationKind.FORK, args, request.request_id, context)
        return pb.ForkMemoryResponse(operation=operation)

    async def RollbackMemory(self, request: pb.RollbackMemoryRequest, context: Any) -> pb.RollbackMemoryResponse:  # noqa: N802
        """Take a memory back to a revision."""
        name = self._guard.memory(request, context, request.name, "name")
        args = {
            "revision": _checked(request.revision, "revision"),
            "expected": _checked(request.expected_revision, "expected_revision"),
        }
        operation = await self._operations.start(name, OperationKind.ROLLBACK, args, request.request_id, context)
        return pb.RollbackMemoryResponse(operation=operation)

    async def ForgetTurns(self, request: pb.ForgetTurnsRequest, context: Any) -> pb.ForgetTurnsResponse:  # noqa: N802
        """Remove turns as if they had never been there."""
        name = self._guard.memory(request, context, request.memory)
        args = {
            "selector": _selector(request.selector),
            "include_forks": request.include_forks,
            "expected": _checked(request.expected_revision, "expected_revision"),
        }
        operation = await self._operations.start(name, OperationKind.FORGET, args, request.request_id, context)
        return pb.ForgetTurnsResponse(operation=operation)

    async def SkipTurn(self, request: pb.SkipTurnRequest, context: Any) -> pb.SkipTurnResponse:  # noqa: N802
        """Leave a turn out of the state."""
        name = self._guard.memory(request, context, request.memory)
        revision = await self._store.skip_turn(name, request.sequence)
        return pb.SkipTurnResponse(revision=str(revision))

    async def RebuildMemory(self, request: pb.RebuildMemoryRequest, context: Any) -> pb.RebuildMemoryResponse:  # noqa: N802
        """Fold with another model, then exchange the two."""
        name = self._guard.memory(request, context, request.name, "name")
        wanted = request.fingerprint
        card = await (self._store.model(wanted) if wanted else self._store.default_model())
        args = {"fingerprint": card.fingerprint}
        operation = await self._operations.start(name, OperationKind.REBUILD, args, request.request_id, context)
        return pb.RebuildMemoryResponse(operation=operation)

    async def VerifyMemory(self, request: pb.VerifyMemoryRequest, context: Any) -> pb.VerifyMemoryResponse:  # noqa: N802
        """Check log and state against each other."""
        name = self._guard.memory(request, context, request.name, "name")
        operation = await self._operations.start(name, OperationKind.VERIFY, {}, request.request_id, context)
        return pb.VerifyMemoryResponse(operation=operation)


def _checked(token: str, field: str) -> str:
    """A revision token that is one; empty stays empty."""
    return str(Revision.parse(token, field)) if token else ""


def _selector(selector: pb.TurnSelector) -> dict[str, Any]:
    """A selector as operations keep it."""
    match selector.WhichOneof("selection"):
        case "ids":
            return {"ids": list(selector.ids.ids)}
        case "range":
            first, last = selector.range.first, selector.range.last
            if first > last:
                raise InvalidFieldError("selector.range.last", f"{last} lies before the first, {first}")
            return {"first": first, "last": last}
    match_ = selector.match
    role = str(Role.parse(match_.role)) if match_.role else ""
    if not (match_.metadata or role or match_.speaker):
        raise InvalidFieldError("selector.match", "something must be given that a turn has to match")
    return {"metadata": dict(match_.metadata), "role": role, "speaker": match_.speaker}
