"""Order within a memory when a turn of it has been turned away for now."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from memfold.api.errors import BacklogFullError
from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.values import MemoryName

_MOST = 20_000


class _Held(NamedTuple):
    turn: bytes
    error: BacklogFullError


class HeldMemories:
    """The memories of one stream of which a turn was turned away and has not been sent again.

    Later turns of such a memory are turned away with it, in this batch and in all that follow: else they would overtake
    the turn that the client is about to send again.
    """

    def __init__(self) -> None:
        self._held: dict[MemoryName, _Held] = {}

    def holds(self, name: MemoryName) -> bool:
        """Whether a turn of this memory was turned away and has not come again."""
        return name in self._held

    def hold(self, name: MemoryName, turn: pb.Turn, error: BacklogFullError) -> None:
        """Note the first turn that was turned away.

        Raises:
            BacklogFullError: the stream has so many of them that it has to end.
        """
        if len(self._held) >= _MOST:
            raise BacklogFullError(
                f"turns of {_MOST} memories of this stream wait to be sent again", retry_after_ms=error.retry_after_ms
            )
        self._held[name] = _Held(_identity(turn), error)

    def admit(self, name: MemoryName, turn: pb.Turn) -> BacklogFullError | None:
        """Why a turn cannot be taken; None where it can, which frees its memory if it is the one that was turned away."""
        held = self._held.get(name)
        if held is None:
            return None
        if held.turn != _identity(turn):
            return held.error
        del self._held[name]
        return None


def _identity(turn: pb.Turn) -> bytes:
    """By what a turn is known again: its id, or all that it says."""
    if turn.id:
        return turn.id.encode()
    return hashlib.sha256(turn.SerializeToString(deterministic=True)).digest()
