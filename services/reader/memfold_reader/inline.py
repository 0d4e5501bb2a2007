"""Folding what no writer has folded yet, for one answer: on a private copy that nobody keeps."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from memfold.api.values import Memory, Revision, Turn
from memfold.store import Anchor, State, Store
from memfold_osam.fold import Folder, FoldJob, FoldResult
from memfold_osam.open_block import OpenBlock
from memfold_osam.serving import ServedModel
from memfold_osam.state import state_from_bytes, state_to_bytes
from memfold_osam.turns import Message
from memfold_reader.engine import Engine

PIECE_TOKENS = 256  # between two steps of the engine, so that a fold does not hold up the others
_PAGE_TURNS = 64
_PAGE_BYTES = 1 << 18

Encode = Callable[[Sequence[Turn]], Awaitable[list[list[int]]]]


@dataclass(frozen=True, slots=True)
class _Tail:
    """What a writer would fold next.

    Attributes:
        anchor: where the open block starts.
        turns: that fold, from there on; ``lengths`` are their tokens.
        fresh: how many of them no committed state holds.
    """

    anchor: Anchor
    turns: Sequence[Turn]
    lengths: Sequence[int]
    fresh: int


class InlineFolder:
    """Folds the end of a log as a writer would, one memory at a time, and commits nothing.

    Args:
        served: the model, with a tokenizer that the engine's thread has for itself.
        store: where anchors and logs are.
        engine: whose thread runs the model.
        encode: gives the tokens of turns.
        most_tokens: of the open block and what follows it; where there are more, the writer has to do it.
    """

    def __init__(self, served: ServedModel, store: Store, engine: Engine, encode: Encode, *, most_tokens: int) -> None:
        # All that is wanted of open blocks is to go on in the next piece: one at a time is never too much.
        self._folder = Folder(served, keep_bytes=sys.maxsize)
        self._shape = served.state_shape
        self._store = store
        self._engine = engine
        self._encode = encode
        self._most_tokens = most_tokens
        self._turn = asyncio.Lock()

    async def fold(self, memory: Memory, target: Revision) -> tuple[State, int] | None:
        """The state at a revision, and how many turns were folded for it.

        None where that is not to be had so: too many tokens, a turn that cannot be folded, or a memory that has moved
        meanwhile, whether on or away.

        Raises:
            MemoryNotFoundError: the memory was deleted meanwhile.
        """
        async with self._turn:
            tail = await self._tail(memory, target)
            data = None if tail is None else await self._run(tail)
        if tail is None or data is None:
            return None
        return State(target, memory.fingerprint, self._shape, data), tail.fresh

    async def _tail(self, memory: Memory, target: Revision) -> _Tail | None:
        here, anchor = await self._store.read_open_block(memory.name)
        if anchor is None or here.quarantined or here.applied >= target.sequence:
            return None
        turns: list[Turn] = []
        lengths: list[int] = []
        reached = anchor.sequence
        while reached < target.sequence:
            page = await self._store.read_turns(memory.name, after=reached, limit=_PAGE_TURNS, max_bytes=_PAGE_BYTES)
            if not page:  # the numbers up to the target have lost their turns
                break
            reached = page[-1].sequence
            folding = [turn for turn in page if turn.folds and turn.sequence <= target.sequence]
            turns += folding
            lengths += [len(tokens) for tokens in await self._encode(folding)]
            if sum(lengths) - anchor.offset > self._most_tokens:
                return None
        # All this was read by name: it may be of another life of the memory, of another memory, or another model's.
        after = await self._store.get_memory(memory.name)
        if (after.incarnation, after.fingerprint) != (target.incarnation, memory.fingerprint):
            return None
        return _Tail(anchor, turns, lengths, sum(turn.sequence > here.applied for turn in turns))

    async def _run(self, tail: _Tail) -> bytes | None:
        """The state's data after the tail; None where it is not finite, or takes more memory than there is."""
        state = None if tail.anchor.data is None else state_from_bytes(tail.anchor.data, self._shape)
        progress = _Progress(state, tail.anchor.offset)
        left = [Message(str(turn.role), turn.content, turn.speaker) for turn in tail.turns]
        lengths = list(tail.lengths)
        while True:
            count = _fitting(lengths) if progress.can_go_on else len(left)
            job = progress.job(left[:count])
            try:
                result = await self._engine.call(partial(self._fold, job))
            except torch.OutOfMemoryError:
                return None
            progress.advance(job, result)
            del left[:count], lengths[:count]
            if not left:
                return state_to_bytes(result.state) if bool(result.state.isfinite().all()) else None

    def _fold(self, job: FoldJob) -> FoldResult:
        return self._folder.fold([job])[0]


class _Progress:
    """Where a fold in pieces stands.

    Attributes:
        can_go_on: the next piece costs its own tokens only. Otherwise the open block has to be run again with it, and
            all that is left had better come at once.
    """

    def __init__(self, anchor: Tensor | None, offset: int) -> None:
        self.can_go_on = True
        self._anchor = anchor
        self._offset = offset
        self._held: list[Message] = []
        self._open_block: OpenBlock | None = None

    def job(self, messages: Sequence[Message]) -> FoldJob:
        """The next piece."""
        if self._open_block is not None:
            return FoldJob(None, 0, messages, self._open_block)
        return FoldJob(self._anchor, self._offset, [*self._held, *messages])

    def advance(self, job: FoldJob, result: FoldResult) -> None:
        """Note what has come of it."""
        held = [*self._held, *job.messages] if job.open_block is not None else list(job.messages)
        if result.anchor is not None:
            self._anchor, self._offset = result.anchor, result.anchor_offset
            held = held[len(held) - len(job.messages) + result.anchor_index :]
        self._held = held
        self._open_block = result.open_block
        self.can_go_on = result.open_block is not None


def _fitting(lengths: Sequence[int]) -> int:
    """How many turns make a piece: at least one, if there is one."""
    total, count = 0, 0
    while count < len(lengths) and (count == 0 or total + lengths[count] <= PIECE_TOKENS):
        total += lengths[count]
        count += 1
    return count
