"""What the gateway keeps an eye on: the store, the readers, the file of keys."""

from __future__ import annotations

import asyncio
import logging

from memfold.api.errors import MemfoldError
from memfold.rpc.server import Server
from memfold.store import Store
from memfold_gateway.keys import ApiKeys
from memfold_gateway.readers import Readers

STORE_SERVICES = ("MemoryService", "HistoryService", "OperationService")
GENERATION_SERVICE = "memfold.api.v1.GenerationService"
_LOG = logging.getLogger(__name__)
_EVERY_S = 0.5
_PATIENCE_S = 2.0


class Watch:
    """Keeps health in step with what the services rest on.

    The gateway as a whole serves while the store answers: it takes turns in without a reader as well.
    """

    def __init__(self, server: Server, store: Store, readers: Readers, keys: ApiKeys) -> None:
        self._server = server
        self._store = store
        self._readers = readers
        self._keys = keys
        self._serving: dict[str, bool] = {}

    async def run(self) -> None:
        """Look, twice a second, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Look once."""
        self._keys.refresh()
        store = await self._store_answers()
        await self._set(GENERATION_SERVICE, store and self._readers.any_serves)
        for service in STORE_SERVICES:
            await self._set(f"memfold.api.v1.{service}", store)
        await self._set("", store)

    async def _set(self, service: str, serving: bool) -> None:
        if self._serving.get(service) != serving:
            self._serving[service] = serving
            _LOG.log(
                logging.INFO if serving else logging.WARNING,
                "%s: %s",
                service or "gateway",
                "serving" if serving else "not serving",
            )
            await self._server.set_serving(serving, service)

    async def _store_answers(self) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._store.ping()
        except (MemfoldError, TimeoutError):
            return False
        return True
