"""Claims memories and reads what their fold needs, until a batch is full."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from memfold.api.errors import MemfoldError, MemoryNotFoundError, StoreUnavailableError
from memfold.api.values import Turn
from memfold.store import Anchor, Claim, Store
from memfold_writer.claims import MAX_ATTEMPTS, Claims
from memfold_writer.device import Device
from memfold_writer.metrics import Metrics
from memfold_writer.open_blocks import OpenBlocks
from memfold_writer.work import Batch, Work

MAX_MEMORIES = 64  # in one batch
AT_ONCE = 8  # memories claimed in one go: what does not fit must be given back
PAGE_TURNS = 256
PAGE_BYTES = 1 << 20
DIED = "WRITER_DIED"  # the reason of a quarantine without an error: nobody was left to see one


class LogTornError(MemfoldError):
    """The log ends before the turn that it claims to have."""


class Gatherer:
    """Makes batches: first of the partition that was asked for, then of any other that is due.

    With many partitions and few memories behind, one partition alone would make batches of one.
    """

    def __init__(
        self,
        store: Store,
        claims: Claims,
        device: Device,
        open_blocks: OpenBlocks,
        metrics: Metrics,
        *,
        batch_tokens: int,
    ) -> None:
        self._store = store
        self._claims = claims
        self._device = device
        self._open_blocks = open_blocks
        self._metrics = metrics
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
            if claim.attempts < MAX_ATTEMPTS:
                return await self._work(claim)
            return await self._least(claim)
        except MemoryNotFoundError:
            self._claims.drop(claim)
        except StoreUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one memory stays its own trouble
            await self._claims.fail(claim, error)
        return None

    async def _least(self, claim: Claim) -> Work | None:
        """The first fresh entry of a memory that has failed too often, unless its writers have died of just that."""
        page = await self._store.read_turns(claim.name, after=claim.applied, limit=1)
        if not page or not page[0].folds:
            return (await self._work(claim)).least()
        first = page[0]
        if claim.attempts > MAX_ATTEMPTS:
            await self._claims.quarantine(claim, first.sequence, DIED)
            return None
        try:
            return (await self._work(claim, until=first.sequence)).least()
        except (MemoryNotFoundError, StoreUnavailableError, LogTornError):
            raise
        except Exception as error:  # noqa: BLE001 - it cannot even be tokenised
            await self._claims.quarantine(claim, first.sequence, type(error).__name__)
            return None

    async def _work(self, claim: Claim, until: int = 0) -> Work:
        """What there is to fold, up to the turn ``until`` where one is given."""
        open_block = self._open_blocks.find(claim)
        if open_block is None:
            anchor = await self._store.read_anchor(claim)
        else:
            anchor = Anchor(sequence=claim.applied, offset=0, data=None)
        turns: list[Turn] = []
        lengths: list[int] = []
        reached, complete = anchor.sequence, False
        while not complete and (reached <= claim.applied or sum(lengths) < self._batch_tokens):
            page = await self._store.read_turns(claim.name, after=reached, limit=PAGE_TURNS, max_bytes=PAGE_BYTES)
            reached = page[-1].sequence if page else claim.head
            complete = reached >= claim.head
            page = [turn for turn in page if turn.sequence <= claim.head]  # what came in since is another claim's
            if until and page and page[-1].sequence > until:
                page, complete, reached = [turn for turn in page if turn.sequence <= until], False, until
            turns += page
            lengths += await self._device.measure(page)
            if reached == until:
                break
        if not turns or turns[-1].sequence <= claim.applied:
            raise LogTornError(f"no turn behind {claim.applied}, the log should reach {claim.head}")
        work = Work(claim, anchor, tuple(turns), tuple(lengths), complete, open_block)
        return await self._shortened(work)

    async def _shortened(self, work: Work) -> Work:
        """Without the turns of an open block that the next one does not fit into any more."""
        if work.open_block is not None:
            self._metrics.began("block")
            return work
        if 0 < work.held_tokens <= self._device.block_tokens < work.held_tokens + work.first_tokens:
            state = await self._store.read_claimed(work.claim)
            if state is not None:
                self._metrics.began("state")
                return work.from_state(state)
        self._metrics.began("anchor")
        return work
