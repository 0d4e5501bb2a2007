"""The part of the client for ordinary code that looks back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from memfold.api.values import KeptRevision, Revision, Role
from memfold.client.call import Call, Page
from memfold.client.calls import Calls
from memfold.client.history_calls import selector_of
from memfold.client.operations import Operation

T = TypeVar("T")


class History:
    """Earlier revisions, copies, forgetting, operations.

    What changes a memory for good is an operation: it is accepted when the method returns, often done already, and goes
    on without the client. ``wait_operation`` waits for its end. Repeating a call under the same ``request_id``, which is
    a fresh one where none is given, is the same operation.
    """

    _calls: Calls

    def revisions(self, memory: str, *, fingerprint: str = "") -> list[KeptRevision]:
        """The revisions at which a state is kept, the newest first.

        Args:
            memory: the memory.
            fingerprint: the model whose states are meant; the one that serves where it is empty.
        """
        return self._run(self._calls.revisions(memory, fingerprint))

    def fork(self, memory: str, new: str, *, at: Revision | None = None, request_id: str = "") -> Operation:
        """Copy a memory as it was at a revision, that of its log by default; the copy appears when it is complete.

        Args:
            memory: what to copy.
            new: the copy's name.
            at: the revision.
            request_id: makes it safe to repeat the call.
        """
        return self._run(self._calls.fork(memory, new, at, request_id))

    def rollback(
        self, memory: str, to: Revision, *, expected_revision: Revision | None = None, request_id: str = ""
    ) -> Operation:
        """Take a memory back to a revision; later turns are gone for good.

        Args:
            memory: the memory.
            to: the revision.
            expected_revision: fail unless the log stands here.
            request_id: makes it safe to repeat the call.
        """
        return self._run(self._calls.rollback(memory, to, expected_revision, request_id))

    def forget(
        self,
        memory: str,
        *,
        ids: Iterable[str] = (),
        sequences: tuple[int, int] | None = None,
        metadata: Mapping[str, str] | None = None,
        role: Role | None = None,
        speaker: str = "",
        include_forks: bool = False,
        expected_revision: Revision | None = None,
        request_id: str = "",
    ) -> Operation:
        """Forget turns as if they had never been there. Select them in one of three ways.

        Args:
            memory: the memory.
            ids: these turns.
            sequences: the turns from the first to the last of the two, both included.
            metadata: the turns that have all these keys with these values,
            role: of this role,
            speaker: by this speaker; of these three all that are given must match.
            include_forks: forget them in the copies of the memory too.
            expected_revision: fail unless the log stands here.
            request_id: makes it safe to repeat the call.
        """
        selector = selector_of(ids, sequences, metadata, role, speaker)
        return self._run(self._calls.forget(memory, selector, include_forks, expected_revision, request_id))

    def skip_turn(self, memory: str, sequence: int) -> Revision:
        """Leave a turn out of the state, so that a quarantined memory goes on behind it; returns the log's revision.

        Raises:
            TurnFoldedError: it is in the state already.
        """
        return self._run(self._calls.skip_turn(memory, sequence))

    def rebuild(self, memory: str, *, fingerprint: str = "", request_id: str = "") -> Operation:
        """Fold the log with another model while the present one serves, then exchange them.

        Args:
            memory: the memory.
            fingerprint: the model; the one that new memories get where it is empty.
            request_id: makes it safe to repeat the call.
        """
        return self._run(self._calls.rebuild(memory, fingerprint, request_id))

    def verify(self, memory: str, *, request_id: str = "") -> Operation:
        """Prove that the log is the one that was folded, and fold it again to compare the state."""
        return self._run(self._calls.verify(memory, request_id))

    def get_operation(self, operation: Operation | str) -> Operation:
        """Where an operation stands; named by itself or by its resource name."""
        return self._run(self._calls.get_operation(operation))

    def operations(self, memory: str) -> Iterator[Operation]:
        """The operations of a memory, the newest first."""
        return self._pages(lambda token: self._calls.operations(memory, token))

    def wait_operation(self, operation: Operation | str, *, timeout_s: float = 60) -> Operation:
        """Wait until an operation is done; returns it with its receipt.

        Raises:
            DeadlineError: it is not within ``timeout_s``.
            MemfoldError: it failed, with this error.
        """
        return self._run(self._calls.wait_operation(operation), timeout_s).settled()

    def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        raise NotImplementedError

    def _pages(self, page: Callable[[str], Call[Page[T]]]) -> Iterator[T]:
        raise NotImplementedError
