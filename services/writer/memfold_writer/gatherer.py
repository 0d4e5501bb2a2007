"""Claims memories and reads what their fold needs, until a batch is full."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from memfold.api.errors import MemfoldError, MemoryNotFoundError, StoreUnavailableError
from memfold.api.values import Turn
from memfold.store import Claim, Store
from memfold_writer.claims import Claims
from memfold_writer.device import Device
from memfold_writer.work import Batch, Work

MAX_MEMORIES = 64  # in one batch
AT_ONCE = 8  # memories claimed in one go: what does not fit must be given back
PAGE_TURNS = 256
PAGE_BYTES = 1 << 20


class LogTornError(MemfoldError):
    """The log ends before the turn that it claims to have."""


class Gatherer:
    """Makes batches: first of the partition that was asked for, then of any other that is due.

    With many partitions and few memories behind, one partition alone would make batches of one.
    """

    def __init__(self, store: Store, claims: Claims, device: Device, *, batch_tokens: int) -> None:
        self._store = store
        self._claims = claims
        self._device = device
        self._batch_tokens = batch_tokens
        self._due: deque[int] = deque()

    async def gather(self, partition: int) -> list[Work]:
        """A batch with something of this partition in it; empty where nothing is due there."""
        batch = Batch(self._batch_tokens, MAX_MEMORIES)
        await self._fill(batch, partition)
        while batch.works and batch.places and self._due:
            await self._fill(batch, self._due.popleft())
        return batch.works

    def note_due(self, partitions: Iterable[int]) -> None:
        """Remember where else something is due: asking for every batch would cost more than many a batch."""
        self._due = deque(partitions)

    async def _fill(self, batch: Batch, partition: int) -> None:
        while batch.places:
            asked = min(AT_ONCE, batch.places)
            claims = await self._claims.take(partition, asked)
            works = await asyncio.gather(*(self._read(claim) for claim in claims))
            await self._claims.give_back([work.claim for work in works if work is not None and not batch.take(work)])
            if len(claims) < asked:
                return

    async def _read(self, claim: Claim) -> Work | None:
        """The claim's work, at most about a batch of it; None where it came to nothing."""
        try:
            return await self._work(claim)
        except MemoryNotFoundError:
            self._claims.drop(claim)
        except StoreUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one memory stays its own trouble
            await self._claims.fail(claim, error)
        return None

    async def _work(self, claim: Claim) -> Work:
        anchor = await self._store.read_anchor(claim)
        turns: list[Turn] = []
        lengths: list[int] = []
        reached = anchor.sequence
        while reached <= claim.applied or (reached < claim.head and sum(lengths) < self._batch_tokens):
            page = await self._store.read_turns(claim.name, after=reached, limit=PAGE_TURNS, max_bytes=PAGE_BYTES)
            if not page:
                raise LogTornError(f"no turn after {reached}, the log should reach {claim.head}")
            reached = page[-1].sequence
            page = [turn for turn in page if turn.sequence <= claim.head]  # what came in since is another claim's
            turns += page
            lengths += await self._device.measure(page)
        return Work(claim, anchor, tuple(turns), tuple(lengths))
