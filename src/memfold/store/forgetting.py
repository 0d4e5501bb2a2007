"""Taking turns out of a memory, so that its state becomes that of a memory which never had them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from memfold.api.errors import MemoryNotFoundError, RevisionMismatchError
from memfold.api.values import MemoryName, Revision
from memfold.store import keys
from memfold.store.folding import Folding
from memfold.store.memories import memory_of, new_incarnation, token
from memfold.store.server import Argument
from memfold.store.states import check_revision
from memfold.store.values import Removed

RECEIPT_S = 24 * 3600
"""How long a removal that was done can be asked for again."""

_PAGE_ENTRIES = 500
_PAGE_BYTES = 1 << 20


class Forgetting(Folding):
    """Forgetting, rolling back, and writing the log anew afterwards.

    Each takes the log to a new incarnation. Who must be able to repeat a call after a crash chooses it beforehand.
    """

    async def forget(
        self, name: MemoryName, sequences: Iterable[int], *, expected_incarnation: str, incarnation: str = ""
    ) -> Removed:
        """Remove turns. Their numbers stay holes; their ids are free again. Readers get the newest state before them.

        The text of the turns is gone from every value, but not yet from Redis's memory: ``scrub`` does that. Where the log
        holds none of the turns, nothing changes.

        Args:
            name: the memory.
            sequences: the turns; those that the log does not hold are passed over.
            expected_incarnation: that of the log whose numbers these are.
            incarnation: the new one, to be given again when the call is repeated; random by default.

        Raises:
            MemoryNotFoundError: there is no such memory.
            RevisionMismatchError: the log is of another incarnation.
            NotDurableError: done, but not confirmed; repeat it with the same ``incarnation``.
        """
        chosen = sorted({sequence for sequence in sequences if sequence > 0})
        new = incarnation or new_incarnation()
        return await self._take_out(name, "forget", Revision(expected_incarnation, 0), new, new, *_told(name), *chosen)

    async def rollback(
        self, name: MemoryName, to: Revision, *, expected: Revision | None = None, incarnation: str = ""
    ) -> Removed:
        """Take a memory back to a revision: later turns are removed, as ``forget`` removes them.

        Where no state is kept at ``to``, the newest before it is folded on from.

        Args:
            name: the memory.
            to: where to.
            expected: fail unless the log stands here.
            incarnation: the new one, to be given again when the call is repeated; random by default.

        Raises:
            MemoryNotFoundError: there is no such memory.
            RevisionMismatchError: the log is not at ``expected``.
            RevisionForeignError: ``to`` is of another incarnation.
            RevisionAheadError: ``to`` lies beyond the end of the log.
            NotDurableError: done, but not confirmed; repeat it with the same ``incarnation``.
        """
        new = incarnation or new_incarnation()
        return await self._take_out(name, "rollback", to, new, to.sequence, new, token(expected), *_told(name))

    async def scrub(self, name: MemoryName) -> bool:
        """Write a piece of the log anew, where turns were removed: a stream keeps their text. True: nothing is left.

        Files that Redis has written before still hold it.

        Raises:
            MemoryNotFoundError: there is no such memory.
        """
        reply = await self._on_memory("scrub", name, _PAGE_ENTRIES, _PAGE_BYTES)
        return bool(reply[1])

    async def _take_out(
        self, name: MemoryName, script: str, known: Revision, incarnation: str, *args: Argument
    ) -> Removed:
        """Run a script that removes turns and gives the memory a new incarnation, which the index knows before."""
        await self._index(name, incarnation)
        try:
            reply = await self._on_memory(script, name, known.incarnation, *args, durable=True)
        except (MemoryNotFoundError, RevisionMismatchError):
            await self._unindex(name, incarnation)
            raise
        if reply[0] != b"OK":
            await self._unindex(name, incarnation)
            memory = memory_of(name, reply[1])
            check_revision(memory, known)
            return Removed(memory.revision, memory.applied)
        await self._unindex(name, known.incarnation)
        for fingerprint in filter(None, self._guess(name)):
            await self._tell_partition(name.partition, fingerprint)
        receipt = json.loads(reply[2])
        return Removed(
            revision=Revision(incarnation, int(reply[1])),
            restored_to=receipt.get("restored_to", 0),
            sequences=tuple(receipt.get("sequences", ())),
            ids=tuple(receipt.get("ids", ())),
            dropped=tuple(sorted(receipt.get("dropped", ()))),
        )


def _told(name: MemoryName) -> tuple[Argument, ...]:
    """Whom the scripts tell, and how long the receipt is good."""
    return keys.member(name), keys.moved_channel(name.partition), RECEIPT_S
