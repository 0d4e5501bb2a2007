"""What expires: memories that nobody adds to any more, turns that are too old. And what else goes with a memory."""

from __future__ import annotations

import contextlib
import logging

from memfold.api.errors import MemoryNotFoundError, OperationNotFoundError, RevisionMismatchError, StoreUnavailableError
from memfold.api.values import MemoryName, OperationKind, Revision
from memfold.store import keys
from memfold.store.erasing import Erasing
from memfold.store.keys import memory_keys

_LOG = logging.getLogger(__name__)
_TOLD = "expires"
_PAGE = 1000


class Expiry(Erasing):
    """Sweeping by the policies of memories, and deleting."""

    async def sweep_expired(self, limit: int) -> list[tuple[MemoryName, str]]:
        """Look at no more than ``limit`` memories whose time may have come.

        Returns:
            what was done: names, each with "deleted" or "forgetting" (an operation has been entered).
        """
        done: list[tuple[MemoryName, str]] = []
        for entry in await self._due(_TOLD, keys.expires, limit):
            name = keys.name_of(entry)
            with contextlib.suppress(MemoryNotFoundError, OperationNotFoundError, RevisionMismatchError):
                what = await self._look(name)
                done += [(name, what)] if what else []
        await self.rewrite_files()
        return done

    async def delete_memory(self, name: MemoryName, *, expected: Revision | None = None) -> Revision:
        """Delete a memory with all that belongs to it; has the store's files written anew, sooner or later.

        Copies of it stay; copies that are being made end.

        Raises:
            MemoryNotFoundError: there is no such memory.
            RevisionMismatchError: the log is not at ``expected``.
        """
        parent, noted = await self._adopt_copies(name), await self._noted(name)
        last = await super().delete_memory(name, expected=expected)
        # It is deleted; what follows is wanted, and a sweep makes up for it.
        with contextlib.suppress(StoreUnavailableError):
            await self._made(noted, [last.incarnation])
            if parent is not None:
                await self._disown(name, parent)
            await self.want_rewrite(memory_keys(name, "").meta)
            await self.rewrite_files()
        return last

    async def _look(self, name: MemoryName) -> str:
        reply = await self._on_memory("expire_look", name, keys.member(name))
        here = Revision(reply[1].decode(), int(reply[2]))
        if reply[0] == b"EXPIRED":
            # Nothing has come in since, or it is not deleted.
            await self.delete_memory(name, expected=here)
            _LOG.info("%s has expired", name)
            return "deleted"
        cutoff_ms = int(reply[3])
        last = await self._last_before(name, cutoff_ms) if cutoff_ms else 0
        if not last:
            return ""
        # No client can give this request id: theirs hold no spaces.
        args = {"selector": {"first": 1, "last": last}, "include_forks": False, "expected": ""}
        operation = await self.request_operation(
            name, OperationKind.FORGET, args, request_id=f"retention {here.incarnation} {last}"
        )
        await self.advance(name, operation.id, until=0)
        return "forgetting"

    async def _last_before(self, name: MemoryName, ms: int) -> int:
        """The last turn before the first that came in after a time; 0 where there is none."""
        last = 0
        while True:
            page = await self.read_turns(name, after=last, limit=_PAGE, max_bytes=4_000_000)
            for entry in page:
                if entry.append_ms > ms:
                    return last
                last = entry.sequence
            if not page:
                return last
