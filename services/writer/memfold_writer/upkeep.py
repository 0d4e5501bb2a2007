"""What has to be done now and then, whoever asked for it: operations, what has expired, the audit of the queues."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from memfold.api.errors import MemfoldError, StoreUnavailableError
from memfold.api.values import MemoryName, OperationKind
from memfold.store import Store
from memfold.store.verifying import REFOLD
from memfold_writer.claims import describe
from memfold_writer.metrics import Metrics

_log = logging.getLogger(__name__)

ROUND_S = 1.0  # from one look to the next, where nobody calls
BUSY_S = 0.1  # the same while there are operations to go on with
SLICE_S = 1.0  # of one operation, before the next has its turn
AT_ONCE = 16  # operations, or memories that have expired, in one round
AUDIT_S = 30.0
AUDIT_LEASE_S = 2 * AUDIT_S  # of many writers one looks; another after so long without a look
AUDIT_KEYS = 20_000  # looked at in one audit; the next goes on from there

Refold = Callable[[MemoryName, str], None]


class Upkeep:
    """Goes on with operations that are due, sweeps, audits. Several may run: the store's leases keep them apart.

    Args:
        refold: told of a verification that waits for a state; None where there is no model to make one.
    """

    def __init__(self, store: Store, metrics: Metrics, *, refold: Refold | None) -> None:
        self._store = store
        self._metrics = metrics
        self._refold = refold
        self._audit_at = time.monotonic() + AUDIT_S
        self._holder = secrets.token_hex(8)

    async def run(self) -> None:
        """Look for ever, also while the store is gone; to be run as a task."""
        async with self._store.operations_left() as left:
            while True:
                left.clear()
                busy = False
                try:
                    busy = await self._round()
                except StoreUnavailableError as error:
                    _log.info("upkeep waits for the store: %s", error)
                except Exception as error:  # noqa: BLE001 - the outer loop: operations must not end with one of them
                    _log.error("upkeep stumbled: %s", describe(error))
                with suppress(TimeoutError):
                    await asyncio.wait_for(left.wait(), BUSY_S if busy else ROUND_S)

    async def _round(self) -> bool:
        due = await self._store.due_operations(AT_ONCE)
        for name, operation_id in due:
            await self._advance(name, operation_id)
        for name, what in await self._store.sweep_expired(AT_ONCE):
            _log.info("%s: %s", name, what)
        if time.monotonic() >= self._audit_at:
            self._audit_at = time.monotonic() + AUDIT_S
            await self._audit()
        return bool(due)

    async def _advance(self, name: MemoryName, operation_id: str) -> None:
        until = asyncio.get_running_loop().time() + SLICE_S
        try:
            operation = await self._store.advance(name, operation_id, until=until)
        except StoreUnavailableError:
            raise
        except MemfoldError as error:
            _log.info("operation %s of %s: %s", operation_id, name, error)  # gone with its memory
            return
        waiting = operation.kind is OperationKind.VERIFY and operation.progress.get("stage") == REFOLD
        if waiting and not operation.done and self._refold is not None:
            self._refold(name, operation_id)

    async def _audit(self) -> None:
        found = await self._store.audit(holder=self._holder, lease_s=AUDIT_LEASE_S, limit=AUDIT_KEYS)
        if found is None:
            return
        self._metrics.audited(len(found.queued))
        for name in found.queued:
            _log.error("%s was behind its log and in no queue; it is queued now", name)
        for name in found.listed:
            _log.warning("%s was not listed; it is now", name)
        for name in found.unlisted:
            _log.info("an index entry of %s had outlived what it was for", name)
