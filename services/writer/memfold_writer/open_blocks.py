"""The open blocks of the memories that were folded last, so that their next turns run alone."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from memfold.api.values import MemoryName
from memfold.store import Claim
from memfold.store.digests import state_digest
from memfold_osam.open_block import OpenBlock


class _Key(NamedTuple):
    """What an open block goes with: nothing else may go on from it."""

    incarnation: str
    revision: int
    state_digest: bytes


class OpenBlocks:
    """As many as fit into so many bytes; those unused for longest go first. May be emptied at any time.

    Belongs to the event loop. One block a memory and model: an older one is of no use to anybody.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[tuple[MemoryName, str], tuple[_Key, OpenBlock]] = OrderedDict()
        self.bytes = 0

    def find(self, claim: Claim) -> OpenBlock | None:
        """The open block that a claim goes on with. One that is of another state goes."""
        place = claim.name, claim.fingerprint
        if place not in self._held:
            return None
        key, block = self._held[place]
        if key != (claim.incarnation, claim.applied, claim.state_digest):
            self._drop(place)
            return None
        self._held.move_to_end(place)
        return block

    def keep(self, claim: Claim, revision: int, state: bytes, block: OpenBlock | None) -> None:
        """Hold what a claim's fold left open, after the commit of this state at this revision."""
        place = claim.name, claim.fingerprint
        self._drop(place)
        if block is None or block.bytes > self._limit:
            return
        self._held[place] = _Key(claim.incarnation, revision, state_digest(state)), block
        self.bytes += block.bytes
        while self.bytes > self._limit:
            self._drop(next(iter(self._held)))

    def drop(self, claim: Claim) -> None:
        """Nothing is to go on from this memory's block: the next fold begins at the anchor."""
        self._drop((claim.name, claim.fingerprint))

    def clear(self) -> None:
        """Give all memory back."""
        self._held.clear()
        self.bytes = 0

    def _drop(self, place: tuple[MemoryName, str]) -> None:
        if place in self._held:
            _, block = self._held.pop(place)
            self.bytes -= block.bytes
