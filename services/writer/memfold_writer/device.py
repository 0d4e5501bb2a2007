"""The thread that owns the model: tokenises, folds, and hands states back as bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from memfold.api.errors import MemfoldError
from memfold.api.values import Turn
from memfold.store import Anchor
from memfold_osam.device import device_failed
from memfold_osam.fold import Folder, FoldJob, FoldResult
from memfold_osam.open_block import OpenBlock
from memfold_osam.serving import ServedModel
from memfold_osam.state import state_from_bytes, state_to_bytes
from memfold_osam.turns import Message
from memfold_writer.work import Work

_log = logging.getLogger(__name__)


class NotFiniteError(MemfoldError):
    """A fold gave NaN or infinity. Such a state is never committed."""


class DeviceFailedError(MemfoldError):
    """The device is in an unknown condition; only a new process helps."""


@dataclass(frozen=True, slots=True)
class Folded:
    """A state after a work's last turn.

    Attributes:
        anchor: where its open block starts; None where that has not moved.
        open_block: to go on with.
    """

    state: bytes
    anchor: Anchor | None
    open_block: OpenBlock | None = None


class Device:
    """Everything that touches the model or its tokenizer happens here, one call at a time, on one thread.

    Neither a CUDA context nor a fast tokenizer likes company, and the event loop must go on meanwhile.
    """

    def __init__(self, served: ServedModel, batch_tokens: int, keep_bytes: int = 0) -> None:
        self._served = served
        self._folder = Folder(served, batch_tokens, keep_bytes)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._folds = 0

    async def warm_up(self) -> None:
        """Fold something that nobody keeps: kernels are compiled on first use, which takes seconds."""
        await asyncio.get_running_loop().run_in_executor(
            self._thread, self._folder.fold, [FoldJob(anchor=None, offset=0, messages=[Message("user", "Hello.")])]
        )

    async def works(self) -> bool:
        """Whether the device folds anything at all: what fails on one that does not is not to blame."""
        try:
            await self.warm_up()
        except Exception as error:  # noqa: BLE001 - whatever it is, that is the answer
            _log.warning("not even a greeting can be folded: %s", type(error).__name__)
            return False
        return True

    @property
    def block_tokens(self) -> int:
        """The most tokens that a block holds."""
        return self._served.block_tokens

    @property
    def busy(self) -> bool:
        """A fold runs, wanted or abandoned."""
        return self._folds > 0

    async def measure(self, turns: Sequence[Turn]) -> list[int]:
        """Tokens of each log entry; 0 where it is not folded."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._measure, turns)

    def fold(self, works: Sequence[Work]) -> asyncio.Future[list[Folded | NotFiniteError]]:
        """Fold all of these in one batch. The future may be abandoned, the thread then still finishes it.

        Raises (through the future):
            DeviceFailedError: CUDA reported an error after which nothing on this process's device can be trusted.
        """
        self._folds += 1
        return asyncio.get_running_loop().run_in_executor(self._thread, self._fold, works)

    def refold(
        self, anchor: Tensor | None, offset: int, turns: Sequence[Turn]
    ) -> asyncio.Future[tuple[FoldResult, Sequence[Turn]]]:
        """Fold some turns of one memory alone, for nobody to commit: the result, and the turns of the block left open."""
        self._folds += 1
        return asyncio.get_running_loop().run_in_executor(self._thread, self._refold, anchor, offset, turns)

    def close(self) -> None:
        """Let the thread go. Waits for nothing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _measure(self, turns: Sequence[Turn]) -> list[int]:
        return [len(self._served.turns.encode(message_of(turn))) if turn.folds else 0 for turn in turns]

    def _fold(self, works: Sequence[Work]) -> list[Folded | NotFiniteError]:
        try:
            results = self._folder.fold([self._job(work) for work in works])
            return [_folded(work, result) for work, result in zip(works, results, strict=True)]
        except RuntimeError as error:
            if device_failed(error):
                raise DeviceFailedError(str(error)) from error
            raise
        finally:
            self._folds -= 1

    def _refold(self, anchor: Tensor | None, offset: int, turns: Sequence[Turn]) -> tuple[FoldResult, Sequence[Turn]]:
        try:
            [result] = self._folder.fold([FoldJob(anchor, offset, [message_of(turn) for turn in turns])])
            return result, turns if result.anchor is None else turns[result.anchor_index :]
        finally:
            self._folds -= 1

    def _job(self, work: Work) -> FoldJob:
        anchor = work.anchor
        return FoldJob(
            anchor=None if anchor.data is None else state_from_bytes(anchor.data, self._served.state_shape),
            offset=anchor.offset,
            messages=[message_of(turn) for turn in work.folded],
            open_block=work.open_block,
        )


def message_of(turn: Turn) -> Message:
    """A turn as the model's side takes it."""
    return Message(role=str(turn.role), content=turn.content, speaker=turn.speaker)


def _folded(work: Work, result: FoldResult) -> Folded | NotFiniteError:
    for tensor in (result.state, result.anchor):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            return NotFiniteError(f"the state after turn {work.applied} is not finite")
    return Folded(state_to_bytes(result.state), _anchor(work, result), result.open_block)


def _anchor(work: Work, result: FoldResult) -> Anchor | None:
    if result.anchor is None:
        return work.anchor if work.anchor_moved else None
    # Named by the turn that the block starts in: the numbers before it may have lost their turns.
    before = work.folded[result.anchor_index].sequence - 1
    return Anchor(sequence=before, offset=result.anchor_offset, data=state_to_bytes(result.anchor))
