"""The fold: turns go through the frozen backbone with writing on, block by block.

A block starts with a state (its anchor) and no KV cache; within it every token sees all tokens before
it. A turn that does not fit opens the next block, and one larger than a block is split. Where blocks
begin depends on the turns alone, so the state is a function of the log, however the turns came in.

An adapter that writes messages or sentences reads and writes by *pieces*: one turn, or what one block holds of a
turn that is split. A piece reads the state from before it and is written at its end, system turns never. A sentence
that is split is two. No piece reaches over the end of a fold.

The block that a fold leaves open can be handed back with the backbone's keys and values: then the next fold of that
memory runs its new turns only. Without it the block is run again from its anchor; the state is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memfold_osam.open_block import OpenBlock, hands_back, join, split
from memfold_osam.serving import ServedModel
from memfold_osam.state import OsamState
from memfold_osam.turns import Message


@dataclass(frozen=True, slots=True)
class FoldJob:
    """The turns of one memory since its open block's anchor.

    Attributes:
        anchor: state (layers, heads, r, r) before token ``offset`` of the first message; zeros where it is None.
        offset: tokens of the first message that earlier blocks hold.
        messages: from the anchor to the last turn to fold, in order.
        open_block: as an earlier fold handed it back; then ``messages`` are those behind it, and neither ``anchor`` nor
            ``offset`` is looked at.
    """

    anchor: Tensor | None
    offset: int
    messages: Sequence[Message]
    open_block: OpenBlock | None = None


@dataclass(frozen=True, slots=True)
class FoldResult:
    """Where a memory stands after its turns.

    Attributes:
        state: (layers, heads, r, r), fp32, on the CPU.
        anchor: state at the start of the block that is open now; None where it is the job's own.
        anchor_index: the message in which that block starts.
        anchor_offset: and the token of that message.
        tokens: that were run.
        open_block: to go on with; None where it is full, or not worth its bytes, or the model cannot go on so.
    """

    state: Tensor
    anchor: Tensor | None
    anchor_index: int
    anchor_offset: int
    tokens: int
    open_block: OpenBlock | None = None


@dataclass(slots=True)
class _Block:
    """Tokens of one block, and the message and the token of it that it starts with.

    Attributes:
        before: what earlier folds have put into the block.
        tokens: to run.
        pieces: which of these pieces each token is of, counted from 0.
        writes: 1 where an adapter that writes pieces writes the token's, else 0.
        sentences: of the token's message, -1 for none; only where the adapter writes sentences.
    """

    index: int
    offset: int
    before: OpenBlock | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    sentences: list[int] = field(default_factory=list)

    @property
    def held(self) -> int:
        """Positions of the keys and values that it starts with."""
        return 0 if self.before is None else self.before.positions

    @property
    def size(self) -> int:
        """Tokens in it, those of earlier folds included."""
        return len(self.tokens) + (0 if self.before is None else self.before.tokens)

    def add(self, message: Message, tokens: list[int], sentences: list[int]) -> None:
        """Append one piece."""
        number = self.pieces[-1] + 1 if self.pieces else 0
        self.tokens += tokens
        self.pieces += [number] * len(tokens)
        self.writes += [int(message.role != "system")] * len(tokens)
        self.sentences += sentences


class Folder:
    """Folds many memories in one batch.

    Args:
        served: the model; its adapter decides what a token, a turn or a sentence writes.
        batch_tokens: the most tokens, padding included, that one pass of the model takes; a single
            block may exceed it.
        keep_bytes: the most bytes of open blocks that one call hands back.
    """

    def __init__(self, served: ServedModel, batch_tokens: int = 16384, keep_bytes: int = 0) -> None:
        self.served = served
        self._granularity = served.memory.config.memory_write_granularity
        self.batch_tokens = batch_tokens
        self._keep_bytes = keep_bytes if keep_bytes and hands_back(served.model) else 0
        self._position_bytes = 0  # known once something has been handed back

    @torch.inference_mode()
    def fold(self, jobs: Sequence[FoldJob]) -> list[FoldResult]:
        """Fold all jobs; which of them share a pass shows in no state beyond rounding.

        A state may have become NaN or infinite, of its own row alone; the caller must look before it keeps one.
        """
        plans = [self._blocks(job) for job in jobs]
        states = [self._start(job) for job in jobs]
        anchors: list[Tensor | None] = [None] * len(jobs)
        opened: list[OpenBlock | None] = [job.open_block if not job.messages else None for job in jobs]
        room = self._keep_bytes
        for wave in range(max((len(p) for p in plans), default=0)):
            blocks = {i: plan[wave] for i, plan in enumerate(plans) if wave < len(plan)}
            if wave:
                anchors = [states[i] if i in blocks else anchor for i, anchor in enumerate(anchors)]
            for batch in self._batches(blocks):
                ends = [wave == len(plans[i]) - 1 for i in batch]
                kept = self._worth_keeping([blocks[i] for i in batch], ends, room)
                after = self._run([blocks[i] for i in batch], [states[i] for i in batch], kept)
                for i, (state, left) in zip(batch, after, strict=True):
                    states[i] = state
                    if left is not None and left.bytes <= room:
                        opened[i], room = left, room - left.bytes
        results = []
        for plan, state, anchor, left in zip(plans, states, anchors, opened, strict=True):
            last = plan[-1] if plan else _Block(0, 0)
            tokens = sum(len(block.tokens) for block in plan)
            results.append(FoldResult(state, anchor, last.index, last.offset, tokens, left))
        return results

    def _start(self, job: FoldJob) -> Tensor:
        if job.open_block is not None:
            return job.open_block.state
        return torch.zeros(self.served.state_shape) if job.anchor is None else job.anchor.float()

    def _blocks(self, job: FoldJob) -> list[_Block]:
        """Cut a job's turns into blocks."""
        size = self.served.block_tokens
        blocks = [] if job.open_block is None else [_Block(0, 0, before=job.open_block)]
        for index, message in enumerate(job.messages):
            tokens = self.served.turns.encode(message)
            sentences = self.served.turns.sentences(message) if self._granularity == "sentence_mean" else []
            at = job.offset if index == 0 and job.open_block is None else 0
            while at < len(tokens):
                room = size - blocks[-1].size if blocks else 0
                if len(tokens) - at > room:
                    blocks.append(_Block(index, at))
                    room = size
                blocks[-1].add(message, tokens[at : at + room], sentences[at : at + room])
                at += room
        return blocks

    def _batches(self, blocks: dict[int, _Block]) -> Iterator[list[int]]:
        """Group rows of similar length under the token budget; those without tokens need no pass.

        Padding may double what the rows hold of keys and values, and no more: they may be many times the tokens.
        """
        batch: list[int] = []
        for length, held, row in sorted((len(block.tokens), block.held, row) for row, block in blocks.items()):
            if not length:
                continue
            rows = [*batch, row]
            longest, whole = max(blocks[i].held for i in rows), sum(blocks[i].held for i in batch) + held
            if batch and (
                length * len(rows) > self.batch_tokens or longest * len(rows) > 2 * whole + self.batch_tokens
            ):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _worth_keeping(self, blocks: list[_Block], ends: list[bool], room: int) -> list[bool]:
        """Which blocks to hand back: the last of their plans, unless they are full, as long as there is room."""
        kept = []
        for block, is_last in zip(blocks, ends, strict=True):
            expected = self._position_bytes * (block.size + len(self.served.turns.bos))
            keep = is_last and block.size < self.served.block_tokens and room > 0 and expected <= room
            room -= expected if keep else 0
            kept.append(keep)
        return kept

    def _run(
        self, blocks: list[_Block], states: list[Tensor], kept: list[bool]
    ) -> list[tuple[Tensor, OpenBlock | None]]:
        """One pass over a batch of blocks: the states after it, and of those ``kept`` the keys and values.

        Rows are padded on the right, where causal attention never looks; what they start with, on the left.
        """
        served = self.served
        bos = [list(served.turns.bos) if block.before is None else [] for block in blocks]
        counts = [len(first) + len(block.tokens) for first, block in zip(bos, blocks, strict=True)]
        width = max(counts)

        def padded(fill: int, rows: Sequence[list[int]], opening: Sequence[list[int]] | None = None) -> Tensor:
            openings = opening or [[fill] * len(first) for first in bos]
            whole = [first + row for first, row in zip(openings, rows, strict=True)]
            return torch.tensor([row + [fill] * (width - len(row)) for row in whole], device=served.device)

        flags = {"token_mask": padded(0, [[1] * len(b.tokens) for b in blocks])}
        if self._granularity != "token":
            flags["write"] = padded(0, [b.writes for b in blocks])
            flags["segment_ids"] = padded(-1, [b.pieces for b in blocks])
        if self._granularity == "sentence_mean":
            flags["sentence_ids"] = padded(-1, [b.sentences for b in blocks])
        inputs: dict[str, Any] = {"input_ids": padded(0, [b.tokens for b in blocks], opening=bos)}
        befores = [block.before for block in blocks]
        if any(kept) or any(befores):
            inputs |= join(served.model, befores, counts)
        state = OsamState(torch.stack(states, 1).to(served.device))
        with served.memory.bind(state, **flags):
            served.model.base_model(**inputs, use_cache="past_key_values" in inputs)
        after = list(state.tensor.cpu().unbind(1))
        opened: list[OpenBlock | None] = [None] * len(blocks)
        if any(kept):
            sizes = [block.size if keep else 0 for block, keep in zip(blocks, kept, strict=True)]
            opened = split(inputs["past_key_values"], befores, counts, sizes, after)
            self._position_bytes = max((o.bytes // o.positions for o in opened if o), default=self._position_bytes)
        return list(zip(after, opened, strict=True))
