"""What the engine moves forward."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from memfold.api.errors import DeadlineError, MemfoldError
from memfold_reader.runner import Runner

STALL_S = 60.0  # a client that takes nothing for so long has lost its place


class Work(ABC):
    """One request, advanced in steps by the engine's thread; only ``cancel`` is for others.

    ``deadline`` is a time of ``time.monotonic``, infinite where the client set none.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.cancelled = False
        self._moved_at = time.monotonic()

    def cancel(self) -> None:
        """Give up; the engine lets go of it before its next step."""
        self.cancelled = True

    def overdue(self, now: float) -> DeadlineError | None:
        """The error to end with if its time is up."""
        if now >= self.deadline:
            return DeadlineError("the deadline passed before the reply was complete")
        if now - self._moved_at >= STALL_S and not self.can_step():
            return DeadlineError(f"the client took nothing for {STALL_S:.0f} s")
        return None

    def advance(self, runner: Runner) -> bool:
        """Take one step; True when it was the last."""
        done = self.step(runner)
        self._moved_at = time.monotonic()
        return done

    @abstractmethod
    def can_step(self) -> bool:
        """Whether the result of a step could be handed on now."""

    @abstractmethod
    def step(self, runner: Runner) -> bool:
        """At most one forward pass; True when the work is done."""

    @abstractmethod
    def fail(self, error: MemfoldError) -> None:
        """Tell the client that it ends here."""
