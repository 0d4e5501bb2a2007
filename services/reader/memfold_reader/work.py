"""What the scheduler knows of a request."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from memfold.api.errors import DeadlineError, MemfoldError

STALL_S = 60.0  # a client that takes nothing for so long has lost its place


class Work(ABC):
    """One request in the engine. All but ``cancel`` is for the engine's thread.

    Args:
        deadline: a time of ``time.monotonic``, infinite where the client set none.
        tenant: whose it is; tenants share the engine evenly.
    """

    def __init__(self, deadline: float, tenant: str = "") -> None:
        self.deadline = deadline
        self.tenant = tenant
        self.cancelled = False
        self._moved_at = time.monotonic()

    def cancel(self) -> None:
        """Give up; the engine lets go of it before its next step."""
        self.cancelled = True

    def overdue(self, now: float) -> DeadlineError | None:
        """The error to end with if its time is up."""
        if now >= self.deadline:
            return DeadlineError("the deadline passed before the reply was complete")
        if now - max(self._moved_at, self.taken_at()) >= STALL_S and not self.can_step():
            return DeadlineError(f"the client took nothing for {STALL_S:.0f} s")
        return None

    def taken_at(self) -> float:
        """When its client last took something."""
        return self._moved_at

    def moved(self) -> None:
        """Note that a step was taken."""
        self._moved_at = time.monotonic()

    @abstractmethod
    def can_step(self) -> bool:
        """Whether the result of a step could be handed on now."""

    @abstractmethod
    def decodes(self) -> bool:
        """Whether its next step is one token, for which it may share a batch with others."""

    @abstractmethod
    def chunk(self, budget: int) -> int:
        """How many tokens to run in its next step; mostly no more than ``budget``, and at least one."""

    @abstractmethod
    def fail(self, error: MemfoldError) -> None:
        """Tell the client that it ends here."""
