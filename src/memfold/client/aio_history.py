"""The part of the client for asyncio that looks back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TypeVar

from memfold.api.values import KeptRevision, Revision, Role
from memfold.client.call import Call, Page
from memfold.client.calls import Calls
from memfold.client.history_calls import selector_of
from memfold.client.operations import Operation

T = TypeVar("T")


class AsyncHistory:
    """Earlier revisions, copies, forgetting, operations; see ``History``, whose methods and arguments these are."""

    _calls: Calls

    async def revisions(self, memory: str, *, fingerprint: str = "") -> list[KeptRevision]:
        """The revisions at which a state is kept, the newest first."""
        return await self._run(self._calls.revisions(memory, fingerprint))

    async def fork(self, memory: str, new: str, *, at: Revision | None = None, request_id: str = "") -> Operation:
        """Copy a memory as it was at a revision, that of its log by default; the copy appears when it is complete."""
        return await self._run(self._calls.fork(memory, new, at, request_id))

    async def rollback(
        self, memory: str, to: Revision, *, expected_revision: Revision | None = None, request_id: str = ""
    ) -> Operation:
        """Take a memory back to a revision; later turns are gone for good."""
        return await self._run(self._calls.rollback(memory, to, expected_revision, request_id))

    async def forget(
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
        """Forget turns as if they had never been there. Select them in one of three ways."""
        selector = selector_of(ids, sequences, metadata, role, speaker)
        return await self._run(self._calls.forget(memory, selector, include_forks, expected_revision, request_id))

    async def skip_turn(self, memory: str, sequence: int) -> Revision:
        """Leave a turn out of the state, so that a quarantined memory goes on behind it; returns the log's revision.

        Raises:
            TurnFoldedError: it is in the state already.
        """
        return await self._run(self._calls.skip_turn(memory, sequence))

    async def rebuild(self, memory: str, *, fingerprint: str = "", request_id: str = "") -> Operation:
        """Fold the log with another model while the present one serves, then exchange them."""
        return await self._run(self._calls.rebuild(memory, fingerprint, request_id))

    async def verify(self, memory: str, *, request_id: str = "") -> Operation:
        """Prove that the log is the one that was folded, and fold it again to compare the state."""
        return await self._run(self._calls.verify(memory, request_id))

    async def get_operation(self, operation: Operation | str) -> Operation:
        """Where an operation stands; named by itself or by its resource name."""
        return await self._run(self._calls.get_operation(operation))

    def operations(self, memory: str) -> AsyncIterator[Operation]:
        """The operations of a memory, the newest first."""
        return self._pages(lambda token: self._calls.operations(memory, token))

    async def wait_operation(self, operation: Operation | str, *, timeout_s: float = 60) -> Operation:
        """Wait until an operation is done; returns it with its receipt.

        Raises:
            DeadlineError: it is not within ``timeout_s``.
            MemfoldError: it failed, with this error.
        """
        return (await self._run(self._calls.wait_operation(operation), timeout_s)).settled()

    async def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        raise NotImplementedError

    def _pages(self, page: Callable[[str], Call[Page[T]]]) -> AsyncIterator[T]:
        raise NotImplementedError
