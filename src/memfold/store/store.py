"""The store as services see it."""

from __future__ import annotations

from typing import Self

from memfold.store.auditing import Auditing
from memfold.store.backlog import BacklogCounts
from memfold.store.durability import Durability
from memfold.store.expiry import Expiry
from memfold.store.forgetting import Forgetting
from memfold.store.going_back import GoingBack
from memfold.store.rebuilding import Rebuilding
from memfold.store.reconciling import Reconciling
from memfold.store.server import Server
from memfold.store.verifying import Verifying


class Store(Auditing, BacklogCounts, Expiry, Forgetting, GoingBack, Rebuilding, Reconciling, Verifying):
    """Logs, states and models in Redis. Belongs to the event loop that opened it.

    Every method may raise StoreUnavailableError: the store did not answer, a write may or may not have happened, and
    repeating it is safe.
    """

    @classmethod
    async def open(cls, url: str, *, durability: Durability = Durability.NONE, replicas: int = 1) -> Self:
        """Connect to a Redis (6.2 or newer) or a Redis Cluster.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``.
            durability: what an acknowledged write has survived.
            replicas: how many replicas hold it, at the level REPLICA.

        Raises:
            StoreUnavailableError: nobody answers there.
            DurabilityRefusedError: the server cannot hold the durability; the text says what to change.
        """
        return cls(await Server.connect(url, durability, replicas))

    async def close(self) -> None:
        """Close every connection."""
        await self._ear.close()
        await self._server.close()

    async def ping(self) -> None:
        """Make sure that the store answers."""
        await self._server.command("PING")
