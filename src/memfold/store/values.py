"""What the store takes and gives, beyond the values of the API."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from memfold.api.values import MemoryName, Revision
from memfold.store.digests import EMPTY_LOG
from memfold.store.ranges import Runs, numbers

Shape = tuple[int, int, int, int]


class AppendedTurn(NamedTuple):
    """Where a turn went. ``duplicate``: it was in the log already."""

    id: str
    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What an append did.

    Attributes:
        revision: of the log after the last of these turns.
        ids: of the turns given, in order.
        sequences: where each of them went.
        duplicates: whether each of them was in the log already.
        behind: the memory was not marked as behind before, so that the writer is due a hint.
        fingerprint: of the model that folds the memory.
    """

    revision: Revision
    ids: Sequence[str]
    sequences: Sequence[int]
    duplicates: Sequence[bool]
    behind: bool
    fingerprint: str

    @property
    def turns(self) -> tuple[AppendedTurn, ...]:
        """One for each turn given, in order."""
        return tuple(map(AppendedTurn, self.ids, self.sequences, self.duplicates))


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


class Place(NamedTuple):
    """A point in the log: before token ``offset`` of the first turn behind ``sequence``."""

    sequence: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read back what ``str`` wrote."""
        sequence, offset = text.split(".")
        return cls(int(sequence), int(offset))

    def __str__(self) -> str:
        return f"{self.sequence}.{self.offset}"


START = Place(0, 0)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a kept revision.

    Attributes:
        sequence: the revision's number.
        at: the last turn that the state holds; less than ``sequence`` where later ones are gone or passed over.
        made: the incarnation in which the state was written; the log up to it is the same in this one.
        log_digest: of the log up to the revision.
        state_digest: of the state's data.
        anchor: where its open block starts, and ``anchor_digest`` of the state there; empty for the very start.
        ms: when it was committed.
    """

    sequence: int
    at: int
    made: str
    log_digest: bytes
    state_digest: bytes
    anchor: Place
    anchor_digest: bytes
    ms: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A writer's right to fold the turns from ``applied + 1`` to ``head``, until its lease ends or a higher fence is out.

    Attributes:
        log_digest: of the log up to ``applied``; what the digest at the commit continues.
        state_digest: of the committed state's data; empty before the first.
        at: the last turn that the committed state holds, 0 before the first.
        anchor: where the open block starts, and ``anchor_digest`` of the state there.
        history: the kept revisions, ascending.
        keep_last: how many of the newest are to be kept in any case.
    """

    name: MemoryName
    fingerprint: str
    incarnation: str
    applied: int
    head: int
    fence: int
    attempts: int
    log_digest: bytes = EMPTY_LOG
    state_digest: bytes = b""
    at: int = 0
    anchor: Place = START
    anchor_digest: bytes = b""
    history: tuple[Kept, ...] = ()
    keep_last: int = 4

    @property
    def kept(self) -> tuple[int, ...]:
        """Numbers of the kept revisions, ascending."""
        return tuple(revision.sequence for revision in self.history)


@dataclass(frozen=True, slots=True)
class Removed:
    """What forgetting or rolling back did; holds numbers and ids only.

    Attributes:
        revision: of the log afterwards, in its new incarnation.
        restored_to: number of the revision that readers have got since.
        count: how many turns were removed.
        runs: their numbers, the first ``LISTED`` runs of them.
        ids: of the first ``LISTED`` of them.
        dropped: numbers of the revisions that are kept no longer, ascending.
    """

    revision: Revision
    restored_to: int
    count: int = 0
    runs: Runs = ()
    ids: tuple[str, ...] = ()
    dropped: tuple[int, ...] = ()

    @property
    def sequences(self) -> tuple[int, ...]:
        """The numbers that the ids stand for, ascending."""
        return tuple(itertools.islice(numbers(self.runs), len(self.ids)))


@dataclass(frozen=True, slots=True)
class Backlog:
    """How far the folding of a fingerprint is behind: memories, and seconds since the oldest turn that waits came in."""

    memories: int
    oldest_s: float
