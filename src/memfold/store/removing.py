"""Taking turns out of a memory, so that its state becomes that of a memory which never had them.

Few are taken out where they lie, in one script. For many that script would hold up everybody: so the log is written anew without
them, aside and page by page, and a short script puts it in the place of the old one, with all that goes with it. Either way there
is one moment at which the turns are gone, for readers, writers and lists alike; nobody ever sees some of them gone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from memfold.api.errors import MemoryNotFoundError, RevisionMismatchError
from memfold.api.values import MemoryName, Revision
from memfold.store import keys, removals
from memfold.store.folding import Folding
from memfold.store.memories import memory_of, new_incarnation
from memfold.store.ranges import runs_of
from memfold.store.removals import Aside, Removal, removed
from memfold.store.states import check_revision
from memfold.store.values import Removed

RECEIPT_S = 24 * 3600
"""How long a removal that was done can be asked for again."""

_PAGE_ENTRIES = 250
_PAGE_BYTES = 1 << 20
_BUSY_S = 0.05


class Removing(Folding):
    """Forgetting, rolling back, and writing the log anew.

    Each removal takes the log to a new incarnation. Who must be able to repeat a call after a crash chooses it beforehand.
    """

    async def forget(
        self, name: MemoryName, sequences: Iterable[int], *, expected_incarnation: str, incarnation: str = ""
    ) -> Removed:
        """Remove turns. Their numbers stay holes; their ids are free again. Readers get the newest state before them.

        The text of the turns is gone from every value, but perhaps not yet from Redis's memory: ``scrub`` does that. Where the
        log holds none of the turns, nothing changes.

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
        runs = runs_of(sorted({sequence for sequence in sequences if sequence > 0}))
        known = Revision(expected_incarnation, 0)
        return await self._remove(Removal.of_turns(name, runs, known, incarnation or new_incarnation()))

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
        return await self._remove(Removal.behind(name, to, expected, incarnation or new_incarnation()))

    async def take_out(self, removal: Removal) -> Removed | None:
        """The moment at which turns are gone. None: they are many, and ``write_aside`` has not come to the end yet.

        Raises:
            MemoryNotFoundError, RevisionMismatchError, RevisionForeignError, RevisionAheadError, NotDurableError: as
                ``forget`` and ``rollback`` do.
        """
        if removal.aside is None and len(removal.runs) > removals.MANY:
            return None
        name, new, known, aside = removal.name, removal.incarnation, removal.known, removal.aside
        runs = [] if removal.open else removal.told(aside.cursor if aside else 0)[1]
        told = (
            keys.member(name),
            keys.moved_channel(name.partition),
            RECEIPT_S,
            removals.MANY,
            aside.receipt() if aside else "",
        )
        await self._index(name, new)
        try:
            reply = await self._on_memory(
                removal.script, name, known.incarnation, new, *told, *removal.args, *runs, durable=True
            )
        except (MemoryNotFoundError, RevisionMismatchError):
            await self._unindex(name, new)
            raise
        match reply[0]:
            case b"LOST":
                removal.aside = Aside()
                return None
            case b"MANY" | b"MORE":
                return None
            case b"OK":
                # Something else may have been removed since an earlier run of this very script.
                for incarnation in {known.incarnation, new} - {reply[2].decode()}:
                    await self._unindex(name, incarnation)
                for fingerprint in filter(None, self._guess(name)):
                    await self._tell_partition(name.partition, fingerprint)
                return removed(new, json.loads(reply[1]))
        await self._unindex(name, new)
        memory = memory_of(name, reply[1])
        check_revision(memory, known)
        return Removed(memory.revision, memory.applied)

    async def write_aside(self, removal: Removal) -> bool:
        """Write a page of the log anew, without what goes. True: there is nothing left to write; then ``take_out`` can.

        Where turns are to be forgotten, readers get only states without them from the first page on, and nothing is folded
        before they are gone (or before nobody has been at it for long). It goes on from where ``removal.aside`` is, which may be where a process that died had noted it.

        Raises:
            MemoryNotFoundError: there is no such memory.
            RevisionMismatchError: the log is of another incarnation.
        """
        aside = removal.aside = removal.aside or Aside()
        until, runs = removal.told(aside.cursor)
        first = "" if removal.open else removal.runs[0][0]
        page = aside.cursor, until, int(removal.open), _PAGE_ENTRIES, _PAGE_BYTES, keys.member(removal.name), first
        known, new = removal.known.incarnation, removal.incarnation
        reply = await self._on_memory("write_aside", removal.name, known, new, *page, *runs)
        match reply[0]:
            case b"DONE":
                return True
            case b"LOST":
                removal.aside = Aside()
                return False
            case b"BUSY":
                await asyncio.sleep(_BUSY_S)
                return False
        aside.cursor, aside.ended = int(reply[1]), bool(reply[2])
        aside.add(json.loads(reply[3]))
        return aside.ended

    async def scrub(self, name: MemoryName) -> bool:
        """Write a piece of the log anew, where turns were taken out of it: a stream keeps their text. True: nothing is left.

        Files that Redis has written before still hold it.

        Raises:
            MemoryNotFoundError: there is no such memory.
        """
        status = int((await self._on_memory("scrub", name, _PAGE_ENTRIES, _PAGE_BYTES))[1])
        if status == _SOMEBODY_ELSE:
            await asyncio.sleep(_BUSY_S)
        return status == _SCRUBBED

    async def _remove(self, removal: Removal) -> Removed:
        while (gone := await self.take_out(removal)) is None:
            while not await self.write_aside(removal):
                pass
        return gone


_SCRUBBED, _SOMEBODY_ELSE = 1, 2
