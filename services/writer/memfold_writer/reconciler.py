"""Looks for what hints have missed, and says how much waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from memfold.api.errors import StoreUnavailableError
from memfold.store import Store
from memfold_writer.claims import describe
from memfold_writer.metrics import Metrics

_log = logging.getLogger(__name__)

MAX_HINTS = 32  # in one round: a drain takes other due partitions along anyway
HINT_AGAIN_S = 2.0  # for the same partition, so that hints do not pile up behind a long fold
STALLED_S = 60.0  # this long with something due, and not one hint has come round: hints are no longer consumed
FRESH_S = 1.0  # the gateway's own hint comes first, and with it the trace of the turn
MEASURE_S = 2.0  # the gauges' own interval: nobody reads them more often


@dataclass(frozen=True, slots=True)
class Drains:
    """What the reconciler has to do with the drains of its process.

    Attributes:
        note_due: takes every partition with something due, the longest overdue first.
        idle_s: tells how long nothing has been drained here.
        live: told whether the hints that are sent come round.
    """

    note_due: Callable[[Sequence[int]], None]
    idle_s: Callable[[], float]
    live: Callable[[bool], Awaitable[None]]


class Reconciler:
    """Hints for every partition that has something due, whoever forgot to. Several may run: duplicates are harmless.

    Args:
        hint: says that a partition has work, without waiting.
        interval_s: from one look to the next.
        drains: of this process, where it drains.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        fingerprint: str,
        hint: Callable[[int], None],
        interval_s: float,
        drains: Drains | None = None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._fingerprint = fingerprint
        self._hint = hint
        self._drains = drains
        self._interval_s = interval_s
        self._hinted: dict[int, float] = {}
        self._measure_at = 0.0
        self._due_since: float | None = None
        self._stalled = False
        self._blind = False

    async def run(self) -> None:
        """Look for ever, also while the store is gone; to be run as a task."""
        while True:
            try:
                await self._look()
                self._sight(None)
            except StoreUnavailableError as error:
                self._sight(error)
            except Exception as error:  # noqa: BLE001 - the outer loop: without it lost hints would stay lost
                _log.error("the reconciler stumbled: %s", describe(error))
            await asyncio.sleep(self._interval_s)

    async def _look(self) -> None:
        due = await self._store.due_partitions(self._fingerprint)
        if self._drains is not None:
            self._drains.note_due(due)
        now = time.monotonic()
        self._hinted = {partition: at for partition, at in self._hinted.items() if now - at < HINT_AGAIN_S}
        missed = [partition for partition in due if partition not in self._hinted]
        fresh = await self._store.just_in(self._fingerprint, missed, within_s=FRESH_S) if missed else set()
        missed = [partition for partition in missed if partition not in fresh]
        for partition in missed[:MAX_HINTS]:
            self._hint(partition)
            self._hinted[partition] = now
            self._metrics.hinted_again(1)
        if self._drains is not None:
            await self._judge(now, bool(due), self._drains)
            await self._measure(now)

    async def _measure(self, now: float) -> None:
        if now >= self._measure_at:
            self._measure_at = now + MEASURE_S
            backlog = await self._store.backlog(self._fingerprint)
            self._metrics.behind(backlog.memories, backlog.oldest_s)

    async def _judge(self, now: float, due: bool, drains: Drains) -> None:
        """Some broken connections to a broker look like an empty queue; then only a new process helps."""
        self._due_since = (self._due_since or now) if due else None
        waited_s = min(now - self._due_since, drains.idle_s()) if self._due_since is not None else 0.0
        if (waited_s > STALLED_S) != self._stalled:
            self._stalled = not self._stalled
            _log.error("hints no longer come round" if self._stalled else "hints come round again")
            await drains.live(not self._stalled)

    def _sight(self, error: StoreUnavailableError | None) -> None:
        if self._blind != (error is not None):
            self._blind = error is not None
            _log.warning("the store is gone: %s", error) if error else _log.warning("the store is back")
