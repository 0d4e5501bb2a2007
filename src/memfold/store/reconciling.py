"""What those who look after the queues ask: what is behind without being queued, and for what a hint is on its way."""

from __future__ import annotations

from collections.abc import Sequence

from memfold.store import keys
from memfold.store.part import StorePart


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
