"""What those who look after the queues ask: what is behind without being queued, and for what a hint is on its way."""

from __future__ import annotations

from collections.abc import Sequence

from memfold.api.values import MemoryName
from memfold.store import keys
from memfold.store.part import StorePart

_PAGE = 1000


class Reconciling(StorePart):
    """Looking after the queues."""

    async def just_in(self, fingerprint: str, partitions: Sequence[int], *, within_s: float) -> set[int]:
        """Of some partitions in which something is due, those that hold nothing but what came in so recently.

        Whoever appended has sent a hint for it. Not so for what a writer has given back, or let its lease run out on.
        """
        after = await self._server.now_ms() - within_s * 1000
        heads = await self._server.commands(
            [("ZRANGE", keys.dirty(at, fingerprint), 0, 0, "WITHSCORES") for at in partitions]
        )
        fresh = [
            (at, *head[0]) for at, head in zip(partitions, heads, strict=True) if head and float(head[0][1]) > after
        ]
        # A memory is marked as due and as behind at once when a turn comes in; whatever else happens moves only one.
        since = await self._server.commands(
            [("ZSCORE", keys.behind(at, fingerprint), member) for at, member, _ in fresh]
        )
        return {
            at for (at, _, due), was in zip(fresh, since, strict=True) if was is not None and float(was) == float(due)
        }

    async def audit(self, place: str, *, limit: int) -> tuple[str, list[MemoryName]]:
        """Look at the next ``limit`` keys or so for memories that are behind their log and in no queue; queue them.

        Args:
            place: where an earlier look ended; empty for the beginning.
            limit: how many keys to look at.

        Returns:
            where this look ended, empty once it has been everywhere; and what was found. There should never be any.
        """
        nodes = self._server.nodes()
        at, cursor = (int(part) for part in (place or "0:0").split(":"))
        if at >= len(nodes):
            return "", []
        looked, metas = 0, set[bytes]()
        while looked < limit:
            reply, _ = await self._server.ask(nodes[at], "SCAN", cursor, "MATCH", keys.EVERY_META, "COUNT", _PAGE)
            cursor, found = reply
            if isinstance(cursor, dict):  # of a cluster: by node
                [cursor] = cursor.values()
            looked += _PAGE
            metas.update(found)
            if not cursor:
                break
        names = [keys.name_of_meta(meta) for meta in metas]
        replies = await self._on_each("audit", names)
        place = f"{at}:{cursor}" if cursor else f"{at + 1}:0"
        marked = [name for name, reply in zip(names, replies, strict=True) if reply[0] == b"OK" and reply[1]]
        return "" if place == f"{len(nodes)}:0" else place, marked
