"""Looks turns up: a cache of indexes, made from the logs and never trusted beyond them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from memfold.api.errors import MemoryNotFoundError
from memfold.api.values import FoundTurn, Memory, MemoryName
from memfold.search.index import Hit, TurnIndex
from memfold.store import Store

_PAGE_TURNS = 1000
_PAGE_BYTES = 2**20
_READS_AT_A_TIME = 32
_IDLE_S = 600.0
_ATTEMPTS = 8


@dataclass(slots=True)
class _Entry:
    """The index of one incarnation of a memory; within one, a log only grows."""

    incarnation: str
    index: TurnIndex = field(default_factory=TurnIndex)
    extending: asyncio.Lock = field(default_factory=asyncio.Lock)
    used_at: float = 0.0


class Search:
    """Finds turns by words, in the log as it is now.

    An index belongs to an incarnation: what was forgotten or rolled back is gone with it. It is made at the first
    question, extended by what was appended since, and dropped when it has not been used for ten minutes or when there
    is no room.

    Args:
        store: where the logs are.
        max_turns: in all indexes together, more or less; about 50 bytes each.
    """

    def __init__(self, store: Store, *, max_turns: int = 2_000_000) -> None:
        self._store = store
        self._max_turns = max_turns
        self._entries: OrderedDict[MemoryName, _Entry] = OrderedDict()

    async def find(self, name: MemoryName, query: str, limit: int) -> tuple[Memory, list[FoundTurn]]:
        """The turns that share words with a query, the best first.

        Args:
            name: whose.
            query: any text.
            limit: turns at most.

        Returns:
            The memory as it was, and what was found up to its head.

        Raises:
            MemoryNotFoundError: there is no such memory, or it was replaced again and again.
            StoreUnavailableError: the store does not answer.
        """
        for _ in range(_ATTEMPTS):
            memory = await self._store.get_memory(name)
            entry = self._entry(memory)
            await self._extend(entry, memory)
            hits = await asyncio.to_thread(entry.index.search, query, limit)
            found = await self._read(name, hits)
            # All was read by name. What still has the incarnation has had it all the while.
            if (await self._store.get_memory(name)).incarnation == memory.incarnation:
                return memory, found
            if self._entries.get(name) is entry:
                del self._entries[name]
        raise MemoryNotFoundError(f"{name} was replaced during the search")

    def _entry(self, memory: Memory) -> _Entry:
        self._drop_idle()
        entry = self._entries.get(memory.name)
        if entry is None or entry.incarnation != memory.incarnation:
            entry = self._entries[memory.name] = _Entry(memory.incarnation)
        entry.used_at = time.monotonic()
        self._entries.move_to_end(memory.name)
        return entry

    async def _extend(self, entry: _Entry, memory: Memory) -> None:
        """Bring an index up to the head that the memory had."""
        async with entry.extending:
            while entry.index.reached < memory.head:
                entries = await self._store.read_turns(
                    memory.name, after=entry.index.reached, limit=_PAGE_TURNS, max_bytes=_PAGE_BYTES
                )
                if not entries:  # holes at the end
                    break
                await asyncio.to_thread(entry.index.add, entries)

    async def _read(self, name: MemoryName, hits: Sequence[Hit]) -> list[FoundTurn]:
        found = []
        for begin in range(0, len(hits), _READS_AT_A_TIME):
            part = hits[begin : begin + _READS_AT_A_TIME]
            pages = await asyncio.gather(
                *(self._store.read_turns(name, after=hit.sequence - 1, limit=1) for hit in part)
            )
            found += [
                FoundTurn(page[0], hit.score)
                for page, hit in zip(pages, part, strict=True)
                if page and page[0].sequence == hit.sequence
            ]
        return found

    def _drop_idle(self) -> None:
        """Let go of what nobody asks for, the longest unused first."""
        idle_since = time.monotonic() - _IDLE_S
        turns = sum(entry.index.turns for entry in self._entries.values())
        while self._entries:
            name, oldest = next(iter(self._entries.items()))
            if oldest.used_at >= idle_since and (turns <= self._max_turns or len(self._entries) == 1):
                return
            turns -= oldest.index.turns
            del self._entries[name]
