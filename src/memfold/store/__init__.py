"""Logs and states in Redis. Every key and every script of memfold lives here."""

from memfold.store.blob import BlobKind, StateBlob
from memfold.store.durability import Durability, DurabilityRefusedError
from memfold.store.new_turns import NewTurns
from memfold.store.opening import when_there
from memfold.store.store import Store
from memfold.store.values import (
    ZERO_ANCHOR,
    Anchor,
    AppendedTurn,
    AppendResult,
    Backlog,
    Claim,
    Shape,
    State,
)

__all__ = [
    "ZERO_ANCHOR",
    "Anchor",
    "AppendResult",
    "AppendedTurn",
    "Backlog",
    "BlobKind",
    "Claim",
    "Durability",
    "DurabilityRefusedError",
    "NewTurns",
    "Shape",
    "State",
    "StateBlob",
    "Store",
    "when_there",
]
