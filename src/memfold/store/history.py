"""Which revisions of a state are kept: all of the newest, ever fewer of older ones. Nothing here touches Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from memfold.store.values import START, Kept, Place


def thin(kept: Iterable[int], newest: int, keep_last: int) -> list[int]:
    """Those of the revisions ``kept`` before ``newest`` that may go, ascending.

    The newest stays, with it the last ``keep_last`` (itself among them), and of the older ones the oldest of each age
    from 2^k to 2^(k+1) - 1: of n revisions at most ``keep_last`` + log2(n) + 1, and of each age a near one.
    """
    older = sorted((sequence for sequence in kept if sequence < newest), reverse=True)[max(0, keep_last - 1) :]
    oldest = {(newest - sequence).bit_length(): sequence for sequence in older}
    return sorted(set(older) - set(oldest.values()))


def thin_anchors(history: Sequence[Kept], dropped: Iterable[int], *present: Place) -> list[Place]:
    """Anchors that no revision needs any more once some are dropped; ``present`` are needed besides."""
    gone = set(dropped)
    needed = {START, *present, *(revision.anchor for revision in history if revision.sequence not in gone)}
    return sorted({revision.anchor for revision in history} - needed)


def nearest(kept: Iterable[int], sequence: int) -> tuple[int | None, int | None]:
    """The nearest of the kept revisions before and after one that is not kept."""
    kept = list(kept)
    before = max((one for one in kept if one < sequence), default=None)
    after = min((one for one in kept if one > sequence), default=None)
    return before, after


def read_history(stored: Mapping[bytes, bytes] | Sequence[bytes]) -> tuple[Kept, ...]:
    """Read the hash of revisions, as a mapping or flat, ascending."""
    pairs = stored.items() if isinstance(stored, Mapping) else zip(stored[::2], stored[1::2], strict=True)
    return tuple(sorted((_kept(int(field), value) for field, value in pairs), key=lambda one: one.sequence))


def _kept(sequence: int, value: bytes) -> Kept:
    said = json.loads(value)
    return Kept(
        sequence=sequence,
        at=int(said["at"]),
        made=said["made"],
        log_digest=bytes.fromhex(said["log_digest"]),
        state_digest=bytes.fromhex(said["state_digest"]),
        anchor=Place.parse(said["anchor"]),
        anchor_digest=bytes.fromhex(said["anchor_digest"]),
        ms=int(said["ms"]),
    )
