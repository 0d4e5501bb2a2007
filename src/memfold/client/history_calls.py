"""The calls that look back: earlier revisions, copies, forgetting, operations."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from memfold.api.convert import kept_revision_from_message
from memfold.api.errors import InvalidFieldError
from memfold.api.v1 import errors_pb2
from memfold.api.v1 import history_service_pb2 as pb
from memfold.api.v1 import operation_service_pb2 as operation_pb
from memfold.api.values import KeptRevision, OperationKind, Revision, Role
from memfold.client.call import Call, Naming, Page
from memfold.client.operations import (
    ForgetReceipt,
    ForkHolding,
    ForkReceipt,
    Operation,
    RebuildReceipt,
    Receipt,
    RollbackReceipt,
    VerifyReceipt,
)
from memfold.rpc.status import make_error


class HistoryCalls(Naming):
    """Makes the calls of HistoryService and OperationService. An empty ``request_id`` stands for a fresh one."""

    def revisions(self, memory: str, fingerprint: str) -> Call[list[KeptRevision]]:
        """The revisions at which a state is kept."""
        request = pb.ListRevisionsRequest(memory=self.name(memory), fingerprint=fingerprint)
        return Call("history", "ListRevisions", request, _revisions)

    def fork(self, memory: str, new: str, at: Revision | None, request_id: str) -> Call[Operation]:
        """Copy a memory."""
        source = self.name(memory)
        parent, _, memory_id = self.name(new).rpartition("/memories/")
        if parent != source.rpartition("/memories/")[0]:
            raise InvalidFieldError("memory_id", "a copy stays with the tenant of its source")
        request = pb.ForkMemoryRequest(
            name=source, memory_id=memory_id, revision=token(at), request_id=_request_id(request_id)
        )
        return Call("history", "ForkMemory", request, _operation)

    def rollback(self, memory: str, to: Revision, expected: Revision | None, request_id: str) -> Call[Operation]:
        """Go back to a revision."""
        request = pb.RollbackMemoryRequest(
            name=self.name(memory),
            revision=str(to),
            expected_revision=token(expected),
            request_id=_request_id(request_id),
        )
        return Call("history", "RollbackMemory", request, _operation)

    def forget(
        self,
        memory: str,
        selector: pb.TurnSelector,
        include_forks: bool,
        expected: Revision | None,
        request_id: str,
    ) -> Call[Operation]:
        """Forget turns."""
        request = pb.ForgetTurnsRequest(
            memory=self.name(memory),
            selector=selector,
            include_forks=include_forks,
            expected_revision=token(expected),
            request_id=_request_id(request_id),
        )
        return Call("history", "ForgetTurns", request, _operation)

    def skip_turn(self, memory: str, sequence: int) -> Call[Revision]:
        """Leave a turn out of the state."""
        request = pb.SkipTurnRequest(memory=self.name(memory), sequence=sequence)
        return Call("history", "SkipTurn", request, lambda response: Revision.parse(response.revision))

    def rebuild(self, memory: str, fingerprint: str, request_id: str) -> Call[Operation]:
        """Fold with another model."""
        request = pb.RebuildMemoryRequest(
            name=self.name(memory), fingerprint=fingerprint, request_id=_request_id(request_id)
        )
        return Call("history", "RebuildMemory", request, _operation)

    def verify(self, memory: str, request_id: str) -> Call[Operation]:
        """Check log and state."""
        request = pb.VerifyMemoryRequest(name=self.name(memory), request_id=_request_id(request_id))
        return Call("history", "VerifyMemory", request, _operation)

    def get_operation(self, operation: Operation | str) -> Call[Operation]:
        """Look an operation up."""
        request = operation_pb.GetOperationRequest(name=_name(operation))
        return Call("operation", "GetOperation", request, _operation)

    def operations(self, memory: str, page_token: str) -> Call[Page[Operation]]:
        """One page of a memory's operations."""
        request = operation_pb.ListOperationsRequest(memory=self.name(memory), page_size=1000, page_token=page_token)
        return Call("operation", "ListOperations", request, _operations)

    def wait_operation(self, operation: Operation | str) -> Call[Operation]:
        """Wait for the end of an operation."""
        request = operation_pb.WaitOperationRequest(name=_name(operation))
        return Call("operation", "WaitOperation", request, _operation)


def selector_of(
    ids: Iterable[str],
    sequences: tuple[int, int] | None,
    metadata: Mapping[str, str] | None,
    role: Role | None,
    speaker: str,
) -> pb.TurnSelector:
    """The one way in which turns are selected.

    Raises:
        InvalidFieldError: there is none, or more than one.
    """
    ids = list(ids)
    matching = bool(metadata or role or speaker)
    if bool(ids) + (sequences is not None) + matching != 1:
        raise InvalidFieldError("selector", "turns are selected by ids, by sequences, or by what was said about them")
    if ids:
        return pb.TurnSelector(ids=pb.TurnIds(ids=ids))
    if sequences is not None:
        return pb.TurnSelector(range=pb.SequenceRange(first=sequences[0], last=sequences[1]))
    match = pb.TurnMatch(metadata=dict(metadata or {}), role=str(role) if role else "", speaker=speaker)
    return pb.TurnSelector(match=match)


def operation_of(message: operation_pb.Operation) -> Operation:
    """Read an operation."""
    error = None
    if message.HasField("error"):
        reason = errors_pb2.ErrorReason.Name(message.error.reason).removeprefix("ERROR_REASON_")
        error = make_error(reason, message.error.message, {}, 0)
    kind = operation_pb.OperationKind.Name(message.kind).removeprefix("OPERATION_KIND_").lower()
    return Operation(
        name=message.name,
        kind=OperationKind(kind),
        done=message.done,
        create_ms=message.create_time.ToMilliseconds(),
        update_ms=message.update_time.ToMilliseconds(),
        stage=message.progress.stage,
        completed=message.progress.completed,
        total=message.progress.total,
        error=error,
        receipt=_receipt(message),
    )


def token(revision: Revision | None) -> str:
    """A revision as requests take it."""
    return str(revision) if revision is not None else ""


def _receipt(message: operation_pb.Operation) -> Receipt | None:
    match message.WhichOneof("receipt"):
        case "fork":
            fork = message.fork
            return ForkReceipt(
                fork.memory, Revision.parse(fork.revision), Revision.parse(fork.source_revision), fork.turn_count
            )
        case "rollback":
            back = message.rollback
            return RollbackReceipt(
                revision=Revision.parse(back.revision),
                restored_revision=Revision.parse(back.restored_revision),
                removed_turns=back.removed_turns,
                log_rewritten=back.log_rewritten,
                files_rewritten=back.files_rewritten,
                files_note=back.files_note,
            )
        case "forget":
            return _forget_receipt(message.forget)
        case "rebuild":
            rebuilt = message.rebuild
            return RebuildReceipt(rebuilt.fingerprint, rebuilt.replaced_fingerprint, Revision.parse(rebuilt.revision))
        case "verify":
            return _verify_receipt(message.verify)
    return None


def _forget_receipt(message: operation_pb.ForgetReceipt) -> ForgetReceipt:
    return ForgetReceipt(
        revision=Revision.parse(message.revision),
        restored_revision=Revision.parse(message.restored_revision) if message.restored_revision else None,
        sequences=tuple(message.sequences),
        turn_ids=tuple(message.turn_ids),
        dropped_revisions=tuple(message.dropped_revisions),
        forks=tuple(ForkHolding(fork.memory, fork.held_turns, fork.forgotten_turns) for fork in message.forks),
        log_rewritten=message.log_rewritten,
        files_rewritten=message.files_rewritten,
        files_note=message.files_note,
        removed_turns=message.removed_turns,
        ranges=tuple((one.first, one.last) for one in message.ranges),
    )


def _verify_receipt(message: operation_pb.VerifyReceipt) -> VerifyReceipt:
    return VerifyReceipt(
        ok=message.ok,
        revision=Revision.parse(message.revision),
        fingerprint=message.fingerprint,
        turn_count=message.turn_count,
        log_matches=message.log_matches,
        state_matches=message.state_matches,
        relative_error=message.relative_error,
        log_digest=message.log_digest,
        state_digest=message.state_digest,
    )


def _operation(response: Any) -> Operation:
    return operation_of(response.operation)


def _operations(response: operation_pb.ListOperationsResponse) -> Page[Operation]:
    return Page([operation_of(operation) for operation in response.operations], response.next_page_token)


def _revisions(response: pb.ListRevisionsResponse) -> list[KeptRevision]:
    return [kept_revision_from_message(kept) for kept in response.revisions]


def _name(operation: Operation | str) -> str:
    return operation if isinstance(operation, str) else operation.name


def _request_id(given: str) -> str:
    return given or uuid.uuid4().hex  # so that a repeated call is the same operation
