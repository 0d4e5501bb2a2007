"""How busy an engine is."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

_WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """A look at an engine.

    Attributes:
        active, waiting: requests.
        slots: requests that can be active at once.
        kv_tokens: positions of which keys and values are held.
        tokens_per_s: generated, over the last seconds.
    """

    active: int
    waiting: int
    slots: int
    kv_tokens: int
    tokens_per_s: float


class Rate:
    """Events a second, those of the last seconds counting most; for any thread."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._rate = 0.0
        self._lock = threading.Lock()

    def add(self, events: int, now: float) -> None:
        """Count events; ``now`` is of one clock for all calls."""
        with self._lock:
            self._rate = self._faded(now) + events / _WINDOW_S
            self._at = max(self._at, now)

    def at(self, now: float) -> float:
        """The rate."""
        with self._lock:
            return self._faded(now)

    def _faded(self, now: float) -> float:
        return self._rate * math.exp(-max(0.0, now - self._at) / _WINDOW_S)
