"""Folds a memory's whole log again, beside the real work, and says whether the state is what comes of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memfold.api.errors import (
    MemfoldError,
    MemoryNotFoundError,
    OperationNotFoundError,
    RevisionNotKeptError,
    StateDamagedError,
)
from memfold.api.values import MemoryName, Revision, Turn
from memfold.store import State, Store
from memfold_osam.state import state_from_bytes
from memfold_writer.claims import describe
from memfold_writer.device import Device
from memfold_writer.loop_thread import end

_log = logging.getLogger(__name__)

PAGE_TURNS = 64
PAGE_BYTES = 1 << 15  # no more than this at once, so that nobody's turns wait long
LEASE_S = 30.0
PATIENCE_S = 1.0  # a page gives way to drains for so long
TOLERANCE = 1e-5  # relative, of the largest number; rounding in fp32 stays far below it
COARSE_TOLERANCE = 5e-2  # with weights of fewer bits, whose rounding depends on how turns were grouped
_TICK_S = 0.02
_WORST = 1e9  # stands for what is not a number: receipts hold numbers


class Verifier:
    """One verification at a time; others wait, here or at another writer.

    Args:
        fingerprint: of the model on the device; memories of other models are left to others.
        exact: the model computes in fp32.
        idle: tells that no drain runs.
    """

    def __init__(
        self, store: Store, device: Device, *, fingerprint: str, exact: bool, idle: Callable[[], bool]
    ) -> None:
        self._store = store
        self._device = device
        self._fingerprint = fingerprint
        self._tolerance = TOLERANCE if exact else COARSE_TOLERANCE
        self._idle = idle
        self._task: asyncio.Task[None] | None = None

    def offer(self, name: MemoryName, operation_id: str) -> None:
        """Take a verification on, unless one is under way already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(name, operation_id))

    async def close(self) -> None:
        """Leave what is under way to others."""
        if self._task is not None:
            await end([self._task])

    async def _run(self, name: MemoryName, operation_id: str) -> None:
        try:
            await self._verify(name, operation_id)
        except (MemoryNotFoundError, OperationNotFoundError):
            pass  # deleted meanwhile
        except MemfoldError as error:
            _log.warning("the verification of %s was left: %s", name, error)
        except Exception as error:  # noqa: BLE001 - the outer loop of a task
            _log.error("the verification of %s stumbled: %s", name, describe(error))

    async def _verify(self, name: MemoryName, operation_id: str) -> None:
        awaited = await self._store.state_awaited(name, operation_id)
        if awaited is None or awaited[1] != self._fingerprint:
            return
        hold = _Hold(self._store, name, operation_id)
        if not await hold.renew():
            return
        try:
            stored = await self._committed(name, awaited[0])
        except StateDamagedError:
            await self._store.finish_verify(name, operation_id, ok=False, relative_error=1.0, state_matches=False)
            return
        error = 0.0
        if stored is not None:
            again = await self._folded_again(name, stored.revision, hold)
            if again is None:
                return
            error = relative_error(again, state_from_bytes(stored.data, stored.shape))
        ok = error <= self._tolerance
        _log.log(logging.INFO if ok else logging.ERROR, "%s was folded again: relative error %.1e", name, error)
        await self._store.finish_verify(name, operation_id, ok=ok, relative_error=error)

    async def _committed(self, name: MemoryName, revision: Revision) -> State | None:
        """The state at a revision, or the present one where that is kept no longer: it has grown from the other."""
        try:
            memory, state = await self._store.read_state_at(name, revision)
        except RevisionNotKeptError:
            memory, state = await self._store.read_state(name)
        # After a change of model or log the operation begins anew by itself.
        return state if memory.fingerprint == self._fingerprint else None

    async def _folded_again(self, name: MemoryName, until: Revision, hold: _Hold) -> Tensor | None:
        """Fold the log up to a revision; None where another log has taken its place, or another writer this one's."""
        anchor, offset, state = None, 0, None
        pending: Sequence[Turn] = []
        after, ended = 0, False
        while not ended:
            page = await self._store.read_turns(name, after=after, limit=PAGE_TURNS, max_bytes=PAGE_BYTES)
            mine = [turn for turn in page if turn.sequence <= until.sequence]
            ended = len(mine) < len(page) or not page
            after = mine[-1].sequence if mine else after
            await self._give_way()
            turns = [*pending, *(turn for turn in mine if turn.folds)]
            result, pending = await self._device.refold(anchor, offset, turns)
            state = result.state
            if result.anchor is not None:
                anchor, offset = result.anchor, result.anchor_offset
            if not await hold.renew():
                return None
        memory = await self._store.get_memory(name)
        return state if memory.incarnation == until.incarnation else None

    async def _give_way(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while (self._device.busy or not self._idle()) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(_TICK_S)


class _Hold:
    """The right to verify, for as long as it takes."""

    def __init__(self, store: Store, name: MemoryName, operation_id: str) -> None:
        self._store = store
        self._name = name
        self._operation_id = operation_id
        self._holder = ""
        self._renew_at = 0.0

    async def renew(self) -> bool:
        """False: somebody else is at it."""
        now = time.monotonic()
        if now >= self._renew_at:
            self._holder = await self._store.hold_operation(
                self._name, self._operation_id, lease_s=LEASE_S, holder=self._holder
            )
            self._renew_at = now + LEASE_S / 3
        return bool(self._holder)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number expected."""
    largest = float(expected.abs().max())
    difference = float(torch.nan_to_num(found - expected, nan=_WORST, posinf=_WORST, neginf=_WORST).abs().max())
    return difference / largest if largest else difference
