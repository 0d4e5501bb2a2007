"""Backpressure beyond a single memory: how many memories of a tenant, and of all tenants, wait to be folded."""

from __future__ import annotations

import asyncio
import logging

from memfold.api.errors import BacklogFullError, MemfoldError
from memfold.store import Store

_LOG = logging.getLogger(__name__)
_EVERY_S = 1.0
_RETRY_MS = 2000


class Backlog:
    """Knows as of a moment ago how many memories wait, and refuses turns beyond a limit.

    Args:
        store: where they wait.
        tenant_limit: so many memories of one tenant may wait; 0 for any number.
        system_limit: so many memories of all tenants together may wait; 0 for any number.
    """

    def __init__(self, store: Store, tenant_limit: int, system_limit: int) -> None:
        self._store = store
        self._tenant_limit = tenant_limit
        self._system_limit = system_limit
        self._memories = 0
        self._by_tenant: dict[str, int] = {}

    def check(self, tenant: str) -> None:
        """Make sure that a tenant's turns may come in.

        Raises:
            BacklogFullError: too many memories wait; the text and ``limit`` in the facts say whose.
        """
        if 0 < self._system_limit <= self._memories:
            raise _full("system", f"{self._memories} memories of all tenants", self._system_limit)
        waiting = self._by_tenant.get(tenant, 0)
        if 0 < self._tenant_limit <= waiting:
            raise _full("tenant", f"{waiting} memories of this tenant", self._tenant_limit)

    async def run(self) -> None:
        """Count, every second, until cancelled; what was counted last holds while the store does not answer."""
        if not self._tenant_limit and not self._system_limit:
            return
        while True:
            try:
                await self.look()
            except MemfoldError as error:
                _LOG.info("the backlog cannot be counted: %s", error)
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Count once."""
        self._memories = await self._store.count_waiting()
        # No tenant can be beyond its limit where all of them together are not.
        worth = 0 < self._tenant_limit <= self._memories
        self._by_tenant = await self._store.count_waiting_by_tenant() if worth else {}


def _full(limit: str, waiting: str, most: int) -> BacklogFullError:
    return BacklogFullError(
        f"{waiting} wait to be folded, {most} may", facts={"limit": limit}, retry_after_ms=_RETRY_MS
    )
