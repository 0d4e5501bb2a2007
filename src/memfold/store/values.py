"""What the store takes and gives, beyond the values of the API."""

from __future__ import annotations

from dataclasses import dataclass

from memfold.api.values import MemoryName, Revision

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class AppendedTurn:
    """Where a turn went. ``duplicate``: it was in the log already."""

    id: str
    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What an append did.

    Attributes:
        revision: of the log after the last of these turns.
        turns: one for each turn given, in order.
        behind: the memory was not marked as behind before, so that the writer is due a hint.
        fingerprint: of the model that folds the memory.
    """

    revision: Revision
    turns: tuple[AppendedTurn, ...]
    behind: bool
    fingerprint: str


@dataclass(frozen=True, slots=True)
class State:
    """The committed state of a memory: ``data`` is fp32, little-endian, row-major, of shape (layers, heads, r, r)."""

    revision: Revision
    fingerprint: str
    shape: Shape
    data: bytes


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where the open block starts: the state before token ``offset`` of the turn ``sequence + 1``.

    ``data`` is fp32, little-endian; None stands for the zero state at the very start.
    """

    sequence: int
    offset: int
    data: bytes | None


ZERO_ANCHOR = Anchor(sequence=0, offset=0, data=None)


@dataclass(frozen=True, slots=True)
class Claim:
    """A writer's right to fold the turns from ``applied + 1`` to ``head``, until its lease ends or a higher fence is out."""

    name: MemoryName
    fingerprint: str
    incarnation: str
    applied: int
    head: int
    fence: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """How far the folding of a fingerprint is behind: memories, and seconds since the oldest turn that waits came in."""

    memories: int
    oldest_s: float
