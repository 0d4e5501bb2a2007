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
from memfold.store.digests import chain
from memfold_writer.claims import MAX_ATTEMPTS, Claims, describe
from memfold_writer.device import Device, DeviceFailedError, Folded, NotFiniteError
from memfold_writer.gatherer import Gatherer
from memfold_writer.metrics import Metrics
from memfold_writer.open_blocks import OpenBlocks
from memfold_writer.stopping import Stopping
from memfold_writer.work import Work

_log = logging.getLogger(__name__)

TIME_BUDGET_S = 5.0  # of one task; then the partition queues up again behind the others
SLOWEST_TOKENS_S = 10  # a fold slower than this, after two minutes, is taken for one that never ends
FIRST_LIMIT_S = 120.0
SUSPECT_ATTEMPTS = 3  # from this attempt on a memory is folded alone: whatever it does, it does to itself
BISECT_ATTEMPTS = (
    4  # at this one, what comes before the turn that fails is folded; from the next on, turns go one by one
)
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
        open_blocks: OpenBlocks,
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
        self._open_blocks = open_blocks
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
            # What was claimed comes free with its lease at the latest; the reconciler finds it.
            _log.warning("partition %d was left: %s", partition, error)
            self._claims.give_back_later()
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
            await self._fold(await self._alone(works))
            if time.monotonic() > until:
                self._hint(partition)
                return

    async def _alone(self, works: Sequence[Work]) -> Sequence[Work]:
        """One suspect and nothing else, where there is one: whatever is held when a writer dies, dies of it once more."""
        suspects = [work for work in works if _suspect(work.claim)]
        if not suspects:
            return works
        others = [work.claim for work in works if work is not suspects[0]]
        await self._claims.give_back(others)
        for partition in {claim.name.partition for claim in others}:
            self._hint(partition)
        return suspects[:1]

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
            self._open_blocks.clear()  # it may have been memory that was missing
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
        claim = work.claim
        if isinstance(outcome, Folded):
            await self._commit(work, outcome, suspected=claim.attempts >= MAX_ATTEMPTS)
            return None
        self._open_blocks.drop(claim)
        if not alone:
            return work
        if claim.attempts == BISECT_ATTEMPTS:
            await self._bisect(work, outcome)
        elif claim.attempts >= MAX_ATTEMPTS and await self._device.works():
            [turn] = work.fresh
            await self._claims.quarantine(claim, turn.sequence, type(outcome).__name__)
        else:
            await self._claims.fail(claim, outcome)
        return None

    async def _bisect(self, work: Work, error: Exception) -> None:
        """Commit all that is sound before the turn that fails. That turn is then tried alone, before it is condemned."""
        sound: tuple[Work, Folded] | None = None
        low, high = 0, len(work.fresh)
        while high - low > 1:
            part = work.least((low + high) // 2)
            [outcome] = await self._outcomes([part])
            if isinstance(outcome, Folded):
                sound, low = (part, outcome), len(part.fresh)
            else:
                error, high = outcome, len(part.fresh)
        if sound is None:
            await self._claims.fail(work.claim, error)
        else:
            await self._commit(*sound, suspected=True)

    async def _commit(self, work: Work, folded: Folded, *, suspected: bool) -> None:
        """Commit a state. A suspected memory has what is left of it folded turn by turn."""
        with telemetry.tracer().start_as_current_span("memfold.commit"):
            won = await self._store.commit(
                work.claim,
                applied=work.applied,
                at=work.at,
                state=folded.state,
                shape=self._shape,
                anchor=folded.anchor,
                log_digest=chain(work.claim.log_digest, work.fresh),
                attempts=MAX_ATTEMPTS - 1 if suspected and not work.complete else 0,
            )
        self._claims.drop(work.claim)
        if won:
            self._open_blocks.keep(work.claim, work.applied, folded.state, folded.open_block)
            self._metrics.committed([turn for turn in work.fresh if turn.folds], work.fresh_tokens)
        else:
            self._open_blocks.drop(work.claim)
            self._metrics.lost()
            _log.info("the fold of %s came too late and was thrown away", work.claim.name)


def _suspect(claim: Claim) -> bool:
    return claim.attempts >= SUSPECT_ATTEMPTS
