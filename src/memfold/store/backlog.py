"""How many memories wait to be folded, by whatever model, and whose they are."""

from __future__ import annotations

from collections import Counter

from memfold.store import keys
from memfold.store.models import Models
from memfold.store.server import Call


class BacklogCounts(Models):
    """Counts what waits over all models that are registered. Not one moment's picture: partitions are asked in turn."""

    async def count_waiting(self) -> int:
        """Memories that are behind their log."""
        queues = await self._behind_queues()
        return sum(await self._server.commands([("ZCARD", queue) for queue in queues]))

    async def count_waiting_by_tenant(self) -> dict[str, int]:
        """Memories that are behind their log, by tenant; tenants of which none waits are left out."""
        queues = await self._behind_queues()
        counts: Counter[str] = Counter()
        for flat in await self._server.run_each("count_tenants", [Call([queue], ()) for queue in queues]):
            for at in range(0, len(flat), 2):
                counts[flat[at].decode()] += flat[at + 1]
        return dict(counts)

    async def _behind_queues(self) -> list[str]:
        fingerprints = await self.fingerprints()
        told = await self._server.commands([("SMEMBERS", keys.partitions(name)) for name in fingerprints])
        return [
            keys.behind(int(at), fingerprint)
            for fingerprint, partitions in zip(fingerprints, told, strict=True)
            for at in partitions
        ]
