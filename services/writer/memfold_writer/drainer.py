"""One hint's worth of work: batch after batch, until the partition has nothing due."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from memfold import telemetry
from memfold.api.errors import StoreUnavailableError
from memfold.store import Claim, Store
from memfold_writer.claims import Claims, describe
from memfold_writer.device import Device, DeviceFailedError, Folded, NotFiniteError
from memfold_writer.gatherer import Gatherer
from memfold_writer.metrics import Metrics
from memfold_writer.stopping import Stopping
from memfold_writer.work import Work

_log = logging.getLogger(__name__)

TIME_BUDGET_S = 5.0  # of one task; then the partition queues up again behind the others
SLOWEST_TOKENS_S = 10  # a fold slower than this, after two minutes, is taken for one that never ends
FIRST_LIMIT_S = 120.0
SUSPECT_ATTEMPTS = 3  # from this attempt on a memory is folded alone: whatever it does, it does to itself
_TICK_S = 0.05

Outcome = Folded | Exception


class AbandonedError(Exception):
    """The writer stops before this fold ends."""


class Drainer:
    """Gathers, folds, commits.

    Args:
        hint: says that a partition has work, without waiting.
        shape: of one state, (layers, heads, r, r).
    """

    def __init__(
        self,
        store: Store,
        claims: Claims,
        gatherer: Gatherer,
        device: Device,
        metrics: Metrics,
        *,
        stopping: Stopping,
        hint: Callable[[int], None],
        shape: tuple[int, int, int, int],
    ) -> None:
        self._store = store
        self._claims = claims
        self._gatherer = gatherer
        self._device = device
        self._metrics = metrics
        self._stopping = stopping
        self._hint = hint
        self._shape = shape
        self._running = False
        self._ended_at = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last drain ended; 0 while one runs."""
        return 0.0 if self._running else time.monotonic() - self._ended_at

    async def drain(self, partition: int) -> None:
        """Fold what is due in a partition, and along with it what is due elsewhere.

        Raises:
            DeviceFailedError: this process can fold no more.
        """
        self._running = True
        try:
            await self._drain(partition)
        except AbandonedError:
            _log.warning("a fold was abandoned to stop in time; its memories are given back")
            await self._claims.give_back()
        except StoreUnavailableError as error:
            # What was claimed comes free with its lease; the reconciler finds it.
            _log.warning("partition %d was left: %s", partition, error)
            self._claims.forget()
        except Exception as error:
            with suppress(StoreUnavailableError):  # what has failed must come through, a broken device above all
                await self._claims.fail_all(error)
            raise
        else:
            await self._claims.give_back()  # left over where the writer stops between two batches
        finally:
            self._running, self._ended_at = False, time.monotonic()

    async def _drain(self, partition: int) -> None:
        until = time.monotonic() + TIME_BUDGET_S
        while not self._stopping.requested:
            works = await self._gatherer.gather(partition)
            if not works:
                return
            for batch in _apart(works):
                await self._fold(batch)
            if time.monotonic() > until:
                self._hint(partition)
                return

    async def _fold(self, works: Sequence[Work]) -> None:
        """Fold a batch and commit it; what fails in company is folded again alone."""
        if self._stopping.requested:
            return
        attributes = {"memfold.memories": len(works), "memfold.tokens": sum(work.tokens for work in works)}
        with telemetry.tracer().start_as_current_span("memfold.fold", attributes=attributes):
            outcomes = await self._outcomes(works)
            failed = await asyncio.gather(
                *(self._settle(work, outcome, len(works) == 1) for work, outcome in zip(works, outcomes, strict=True))
            )
        for work in failed:
            if work is not None:
                await self._fold([work])

    async def _outcomes(self, works: Sequence[Work]) -> Sequence[Outcome]:
        started, tokens = time.monotonic(), sum(work.tokens for work in works)
        self._metrics.running(tokens)
        try:
            outcomes = await self._finish(self._device.fold(works), FIRST_LIMIT_S + tokens / SLOWEST_TOKENS_S)
        except (DeviceFailedError, AbandonedError):
            raise
        except Exception as error:  # noqa: BLE001 - a fold may fail in any way; then each memory answers for itself
            if len(works) > 1:
                _log.warning("a batch of %d memories failed, each is folded alone: %s", len(works), describe(error))
            return [error] * len(works)
        finally:
            self._metrics.running(0)
        self._metrics.batch(time.monotonic() - started, tokens)
        return outcomes

    async def _finish(self, fold: asyncio.Future[list[Folded | NotFiniteError]], limit_s: float) -> Sequence[Outcome]:
        limit = time.monotonic() + limit_s
        while not fold.done():
            await asyncio.wait({fold}, timeout=_TICK_S)
            if not fold.done() and self._stopping.overdue:
                raise AbandonedError
            if not fold.done() and time.monotonic() > limit:
                raise DeviceFailedError(f"a fold has not come back for {limit_s:.0f} s")
        return fold.result()

    async def _settle(self, work: Work, outcome: Outcome, alone: bool) -> Work | None:
        """Commit a state, or put its memory off, or return the work where it deserves another try alone."""
        if isinstance(outcome, Folded):
            await self._commit(work, outcome)
            return None
        if not alone:
            return work
        await self._claims.fail(work.claim, outcome)
        return None

    async def _commit(self, work: Work, folded: Folded) -> None:
        with telemetry.tracer().start_as_current_span("memfold.commit"):
            won = await self._store.commit(
                work.claim, applied=work.applied, state=folded.state, shape=self._shape, anchor=folded.anchor
            )
        self._claims.drop(work.claim)
        if won:
            self._metrics.committed(work.fresh, work.fresh_tokens)
        else:
            self._metrics.lost()
            _log.info("the fold of %s came too late and was thrown away", work.claim.name)


def _apart(works: Sequence[Work]) -> list[Sequence[Work]]:
    """One batch of the innocent, then each suspect alone."""
    innocent = [work for work in works if not _suspect(work.claim)]
    suspects = [[work] for work in works if _suspect(work.claim)]
    return [innocent, *suspects] if innocent else [*suspects]


def _suspect(claim: Claim) -> bool:
    return claim.attempts >= SUSPECT_ATTEMPTS
