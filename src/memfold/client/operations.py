"""Operations as the client gives them back, each with a receipt of its own kind."""

from __future__ import annotations

from dataclasses import dataclass

from memfold.api.errors import DeadlineError, MemfoldError
from memfold.api.values import OperationKind, Revision


@dataclass(frozen=True, slots=True)
class ForkReceipt:
    """A memory was copied: the copy's name and revision, the source's revision, and the turns in the copy."""

    memory: str
    revision: Revision
    source_revision: Revision
    turn_count: int


@dataclass(frozen=True, slots=True)
class RollbackReceipt:
    """A memory was taken back.

    Attributes:
        revision: of the log now; its incarnation is new.
        restored_revision: what the state was set to at once; what lies between the two is folded again.
        removed_turns: how many turns are gone.
        log_rewritten: not even unused bytes of the log hold the texts. False, like the next, where no turn was removed.
        files_rewritten: the store's files were written anew after that.
        files_note: why they were not; empty where they were.
    """

    revision: Revision
    restored_revision: Revision
    removed_turns: int
    log_rewritten: bool = False
    files_rewritten: bool = False
    files_note: str = ""


@dataclass(frozen=True, slots=True)
class ForkHolding:
    """How many of the forgotten turns a copy still holds, and how many were forgotten there too."""

    memory: str
    held_turns: int
    forgotten_turns: int


@dataclass(frozen=True, slots=True)
class ForgetReceipt:
    """Turns were forgotten.

    Attributes:
        revision: of the log now; its incarnation is new.
        restored_revision: what the state was set to at once; what follows is folded again. None where no turn was meant.
        sequences: where the first 1,000 of the forgotten turns stood.
        turn_ids: their ids.
        dropped_revisions: sequences of the kept states that are gone with them.
        forks: the copies that had one of the turns.
        log_rewritten: not even unused bytes of the log hold the texts.
        files_rewritten: the store's files were written anew after that.
        files_note: why they were not; empty where they were.
        removed_turns: how many turns are gone.
        ranges: where all of them stood, as (first, last), both included; at most 1,000 of these.
    """

    revision: Revision
    restored_revision: Revision | None
    sequences: tuple[int, ...]
    turn_ids: tuple[str, ...]
    dropped_revisions: tuple[int, ...]
    forks: tuple[ForkHolding, ...]
    log_rewritten: bool
    files_rewritten: bool
    files_note: str
    removed_turns: int = 0
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RebuildReceipt:
    """A memory is folded by another model now: which one, which one before, and the state's revision at the exchange."""

    fingerprint: str
    replaced_fingerprint: str
    revision: Revision


@dataclass(frozen=True, slots=True)
class VerifyReceipt:
    """A memory was checked against its log.

    Attributes:
        ok: everything matched.
        revision: of the state that was checked.
        fingerprint: the model that it belongs to.
        turn_count: turns that were read.
        log_matches: the log's digests, computed again, are those noted with each kept state.
        state_matches: the state's bytes have the digest that was noted with it.
        relative_error: of the state folded again from the log, relative to the stored one's norm.
        log_digest: of the log at that revision.
        state_digest: of the state.
    """

    ok: bool
    revision: Revision
    fingerprint: str
    turn_count: int
    log_matches: bool
    state_matches: bool
    relative_error: float
    log_digest: bytes
    state_digest: bytes


Receipt = ForkReceipt | RollbackReceipt | ForgetReceipt | RebuildReceipt | VerifyReceipt


@dataclass(frozen=True, slots=True)
class Operation:
    """Work on a memory: accepted, under way or done.

    Attributes:
        name: its resource name.
        kind: what it does.
        done: it has ended, with an error or with a receipt.
        create_ms: when it was accepted, in milliseconds since the epoch.
        update_ms: when it last moved.
        stage: the step that it is at.
        completed: turns that this step has seen to.
        total: turns that it has to see to; 0 where that is not known.
        error: why it failed; None where it did not.
        receipt: what it did; None before that, and where it failed.
    """

    name: str
    kind: OperationKind
    done: bool
    create_ms: int
    update_ms: int
    stage: str = ""
    completed: int = 0
    total: int = 0
    error: MemfoldError | None = None
    receipt: Receipt | None = None

    def settled(self) -> Operation:
        """Make sure that it has come to a good end; returns it.

        Raises:
            DeadlineError: it is not done yet.
            MemfoldError: it failed, with this error.
        """
        if not self.done:
            raise DeadlineError(f"{self.name} is not done yet, it is at {self.stage or 'its start'}")
        if self.error is not None:
            raise self.error
        return self
