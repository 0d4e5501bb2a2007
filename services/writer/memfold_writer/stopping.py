"""That the writer has been asked to stop, and how long a fold may still run."""

from __future__ import annotations

import time

FOLD_SHARE = 0.6  # of the grace time for the running fold; the rest is for giving back and for saying goodbye


class Stopping:
    """Set once, from a signal handler (so without any lock); read from every thread."""

    def __init__(self, grace_s: float) -> None:
        self._fold_grace_s = FOLD_SHARE * grace_s
        self._fold_until: float | None = None

    def begin(self) -> None:
        """Ask everyone to stop. Asking again changes nothing."""
        if self._fold_until is None:
            self._fold_until = time.monotonic() + self._fold_grace_s

    @property
    def requested(self) -> bool:
        """Nothing new is to be started."""
        return self._fold_until is not None

    @property
    def overdue(self) -> bool:
        """The running fold is to be abandoned."""
        return self._fold_until is not None and time.monotonic() > self._fold_until
