"""A slow look at everything: what no queue holds, what no index lists, and what an index lists that is not there.

There should never be any of the first. The others are what a crash leaves between a memory and the index of its tenant, which lie
in different slots.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from memfold.api.values import MemoryName
from memfold.store import keys
from memfold.store.keys import memory_keys
from memfold.store.memories import Memories
from memfold.store.server import Server

STALE_S = 600.0
"""An entry of an index comes before its memory: so long it may be without one."""

_PAGE = 1000
_SUSPECTS = 100_000
_PATTERNS = keys.EVERY_META, keys.EVERY_INDEX


@dataclass(slots=True)
class Audited:
    """What a look found, and mended.

    Attributes:
        queued: memories that were behind their log, and in no queue.
        listed: memories that their tenant's index did not list.
        unlisted: what it listed although there was no such memory, or not in that incarnation.
        ended: everything has been looked at; the next look begins anew.
    """

    queued: list[MemoryName] = field(default_factory=list)
    listed: list[MemoryName] = field(default_factory=list)
    unlisted: list[MemoryName] = field(default_factory=list)
    ended: bool = False


class Auditing(Memories):
    """Looking at everything, a part at a time; one of all processes does."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._suspects: dict[tuple[str, bytes], float] = {}

    async def audit(self, *, holder: str, lease_s: float, limit: int) -> Audited | None:
        """Look at the next ``limit`` keys or so, behind where the last look of anybody ended.

        Args:
            holder: whose turn it is from now on, for ``lease_s`` or until it looks again.
            lease_s: as long as that nobody else looks.
            limit: how many keys to look at.

        Returns:
            what was found; None: it is somebody else's turn.
        """
        lease_ms = round(lease_s * 1000)
        place = await self._server.run("audit_turn", [keys.AUDIT], holder, lease_ms, "")
        if place is None:
            return None
        found = Audited()
        place = await self._look_on(place.decode(), limit, found)
        await self._server.run("audit_turn", [keys.AUDIT], holder, lease_ms, place)
        return found

    async def _look_on(self, place: str, limit: int, found: Audited) -> str:
        """Look from a place on; returns where it ended. A place is what is looked for, on which node, and SCAN's cursor."""
        kind, node, cursor = (int(part) for part in place.split(":"))
        nodes, looked = self._server.nodes(), 0
        while looked < limit and kind < len(_PATTERNS):
            if node >= len(nodes):
                kind, node, cursor = kind + 1, 0, 0
                continue
            reply, _ = await self._server.ask(nodes[node], "SCAN", cursor, "MATCH", _PATTERNS[kind], "COUNT", _PAGE)
            cursor, some = reply
            if isinstance(cursor, dict):  # of a cluster: by node
                [cursor] = cursor.values()
            if some:
                await (self._look_at_memories(some, found) if kind == 0 else self._look_at_indexes(some, found))
            looked += _PAGE
            if not cursor:
                node, cursor = node + 1, 0
        found.ended = kind == len(_PATTERNS)
        return keys.AUDIT_START if found.ended else f"{kind}:{node}:{cursor}"

    async def _look_at_memories(self, metas: Sequence[bytes], found: Audited) -> None:
        names = [keys.name_of_meta(meta) for meta in metas]
        replies = await self._on_each("audit", names)
        there = [(name, reply) for name, reply in zip(names, replies, strict=True) if reply[0] == b"OK"]
        found.queued += [name for name, reply in there if reply[1]]
        entries = [(name, reply[2].decode()) for name, reply in there]
        listed = await self._server.commands(
            [("ZSCORE", keys.tenant_index(name.tenant), keys.index_entry(name, known)) for name, known in entries]
        )
        for (name, incarnation), score in zip(entries, listed, strict=True):
            if score is None:
                await self._index(name, incarnation)
                found.listed.append(name)

    async def _look_at_indexes(self, indexes: Sequence[bytes], found: Audited) -> None:
        for index in indexes:
            start, entries = "-", [b""]
            while entries:
                entries = await self._server.command("ZRANGEBYLEX", index, start, "+", "LIMIT", 0, _PAGE)
                if entries:
                    await self._look_at_entries(keys.tenant_of_index(index), entries, found)
                    start = "(" + entries[-1].decode()

    async def _look_at_entries(self, tenant: str, entries: Sequence[bytes], found: Audited) -> None:
        """Remove those that have had no memory for long. A memory that comes after all is listed again by a later look."""
        told = [(MemoryName(tenant, memory), known) for memory, known in map(keys.index_entry_of, entries)]
        metas = [("HGET", memory_keys(name, "").meta, "incarnation") for name, _ in told]
        now, incarnations = time.monotonic(), await self._server.commands(metas)
        if len(self._suspects) > _SUSPECTS:
            self._suspects.clear()
        for entry, (name, incarnation), here in zip(entries, told, incarnations, strict=True):
            suspect = tenant, entry
            if (here or b"").decode() == incarnation:
                self._suspects.pop(suspect, None)
            elif now - self._suspects.setdefault(suspect, now) >= STALE_S:
                await self._unindex(name, incarnation)
                del self._suspects[suspect]
                found.unlisted.append(name)
