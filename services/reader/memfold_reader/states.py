"""The states of all sequences that a memory steers, in one pool on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NO_MEMORY = 0
_FIRST_SLOTS = 8


class StatePool:
    """(layers, slots + 1, heads, r, r), fp32. Slot 0 is no memory: zeros, for ever.

    A sequence's slot is a copy of its own, so that one that writes changes nobody else's.

    Args:
        shape: of one state, (layers, heads, r, r).
        device: of the model.

    Attributes:
        changes: rises whenever a slot gets other contents.
    """

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self._shape = shape
        self._pool = torch.zeros(shape[0], 1 + _FIRST_SLOTS, *shape[1:], device=device)
        self._free = list(range(_FIRST_SLOTS, NO_MEMORY, -1))
        self.changes = 0

    def open(self) -> int:
        """A slot, whatever it holds: ``load`` comes first."""
        if not self._free:
            slots = self._pool.shape[1]
            self._pool = torch.cat([self._pool, torch.zeros_like(self._pool)], 1)
            self._free = list(range(2 * slots - 1, slots - 1, -1))
        return self._free.pop()

    def close(self, slot: int) -> None:
        """Free a slot."""
        assert slot != NO_MEMORY
        assert slot not in self._free
        self._free.append(slot)

    def load(self, slot: int, state: Tensor) -> None:
        """Put a state (layers, 1, heads, r, r) into a slot."""
        assert slot != NO_MEMORY
        self._pool[:, slot] = state[:, 0]
        self.changes += 1

    def rows(self, slots: Sequence[int]) -> Tensor:
        """A copy of the states of a batch, (layers, B, heads, r, r)."""
        return self._pool[:, list(slots)]

    def store(self, slots: Sequence[int], states: Tensor) -> None:
        """Put back what a batch has written, (layers, B, heads, r, r)."""
        assert NO_MEMORY not in slots
        self._pool[:, list(slots)] = states.to(self._pool.dtype)
        self.changes += 1
