"""One family of errors. Each knows its reason on the wire and carries the facts as attributes.

Only the RPC edge (``memfold.rpc``) turns them into status codes.
"""

from __future__ import annotations

from collections.abc import Mapping


class MemfoldError(Exception):
    """Something that a caller can understand and act on.

    Attributes:
        reason: a name of ``ErrorReason`` without its prefix.
        facts: what a program needs to act; travels as the metadata of ``ErrorInfo``.
        retry_after_ms: when to try again; 0 where that does not help or is not known.
    """

    reason = "INTERNAL"

    def __init__(self, message: str, *, facts: Mapping[str, str] | None = None, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.facts: dict[str, str] = dict(facts or {})
        self.retry_after_ms = retry_after_ms


class MalformedRequestError(MemfoldError):
    """The bytes are no message of this method."""

    reason = "MALFORMED_REQUEST"


class InvalidFieldError(MemfoldError):
    """A field is missing, too long, or out of its range."""

    reason = "INVALID_FIELD"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", facts={"field": field})


class InvalidPageTokenError(MemfoldError):
    """A page token that was not given out for this request."""

    reason = "INVALID_PAGE_TOKEN"


class PromptTooLongError(MemfoldError):
    """Prompt and requested tokens do not fit the model's context."""

    reason = "PROMPT_TOO_LONG"


class ApiKeyError(MemfoldError):
    """No API key, or one that is not known."""

    reason = "API_KEY_INVALID"


class TenantMismatchError(MemfoldError):
    """The resource belongs to another tenant."""

    reason = "TENANT_MISMATCH"


class MemoryNotFoundError(MemfoldError):
    """No such memory."""

    reason = "MEMORY_NOT_FOUND"


class MemoryExistsError(MemfoldError):
    """A memory of this name exists."""

    reason = "MEMORY_ALREADY_EXISTS"


class TurnIdConflictError(MemfoldError):
    """A turn with this id and other content is in the log."""

    reason = "TURN_ID_CONFLICT"


class RevisionMismatchError(MemfoldError):
    """The log does not stand where the caller expected it."""

    reason = "REVISION_MISMATCH"


class RevisionForeignError(MemfoldError):
    """The revision belongs to another incarnation of the memory."""

    reason = "REVISION_FOREIGN"


class RevisionAheadError(MemfoldError):
    """The revision lies beyond the end of the log."""

    reason = "REVISION_AHEAD_OF_LOG"


class BacklogFullError(MemfoldError):
    """Too many turns wait to be folded."""

    reason = "BACKLOG_FULL"


class StoreUnavailableError(MemfoldError):
    """The store does not answer."""

    reason = "STORE_UNAVAILABLE"


class NotDurableError(MemfoldError):
    """Written, but its durability was not confirmed."""

    reason = "NOT_DURABLE"


class ModelLoadingError(MemfoldError):
    """No model has been loaded yet."""

    reason = "MODEL_LOADING"


class ModelNotFoundError(MemfoldError):
    """No writer has ever loaded this model."""

    reason = "MODEL_NOT_FOUND"


class ReaderUnavailableError(MemfoldError):
    """No reader answers."""

    reason = "READER_UNAVAILABLE"


class ModelMismatchError(MemfoldError):
    """The memory was folded with another model than the one that serves."""

    reason = "MODEL_MISMATCH"


class DeadlineError(MemfoldError):
    """The deadline passed before the work was done."""

    reason = "DEADLINE_EXCEEDED"


class ShuttingDownError(MemfoldError):
    """The server is stopping."""

    reason = "SHUTTING_DOWN"


class StateDamagedError(MemfoldError):
    """A stored state is damaged."""

    reason = "STATE_DAMAGED"


class RevisionNotKeptError(MemfoldError):
    """No state is kept at this revision; ``before`` and ``after`` name the nearest that are kept."""

    reason = "REVISION_NOT_KEPT"


class TurnNotFoundError(MemfoldError):
    """The log holds no such turn."""

    reason = "TURN_NOT_FOUND"


class TurnFoldedError(MemfoldError):
    """The turn is in the state already: forget it instead."""

    reason = "TURN_FOLDED"


class TurnQuarantinedError(MemfoldError):
    """The model cannot fold the turn, and nothing behind it before it is skipped or forgotten."""

    reason = "TURN_QUARANTINED"


class OperationNotFoundError(MemfoldError):
    """No such operation."""

    reason = "OPERATION_NOT_FOUND"


class OperationConflictError(MemfoldError):
    """The request id was used for something else."""

    reason = "OPERATION_CONFLICT"
