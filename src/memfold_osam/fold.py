"""The fold: turns go through the frozen backbone with writing on, block by block.

A block starts with a state (its anchor) and no KV cache; within it every token sees all tokens before
it. A turn that does not fit opens the next block, and one larger than a block is split. Where blocks
begin depends on the turns alone, so the state is a function of the log, however the turns came in.

An adapter that writes messages or sentences reads and writes by *pieces*: one turn, or what one block holds of a
turn that is split. A piece reads the state from before it and is written at its end, system turns never. A sentence
that is split is two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
    """

    anchor: Tensor | None
    offset: int
    messages: Sequence[Message]


@dataclass(frozen=True, slots=True)
class FoldResult:
    """Where a memory stands after its turns.

    Attributes:
        state: (layers, heads, r, r), fp32, on the CPU.
        anchor: state at the start of the block that is open now; None where it is the job's own.
        anchor_index: the message in which that block starts.
        anchor_offset: and the token of that message.
        tokens: that were run.
    """

    state: Tensor
    anchor: Tensor | None
    anchor_index: int
    anchor_offset: int
    tokens: int


@dataclass(slots=True)
class _Block:
    """Tokens of one block, and the message and the token of it that it starts with.

    Attributes:
        pieces: which of the block's pieces each token is of, counted from 0.
        writes: 1 where an adapter that writes pieces writes the token's, else 0.
        sentences: of the token's message, -1 for none; only where the adapter writes sentences.
    """

    index: int
    offset: int
    tokens: list[int] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    sentences: list[int] = field(default_factory=list)

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
    """

    def __init__(self, served: ServedModel, batch_tokens: int = 16384) -> None:
        self.served = served
        self._granularity = served.memory.config.memory_write_granularity
        self.batch_tokens = batch_tokens

    @torch.inference_mode()
    def fold(self, jobs: Sequence[FoldJob]) -> list[FoldResult]:
        """Fold all jobs; which of them share a pass shows in no state beyond rounding.

        A state may have become NaN or infinite, of its own row alone; the caller must look before it keeps one.
        """
        plans = [self._blocks(job) for job in jobs]
        states = [self._start(job) for job in jobs]
        anchors: list[Tensor | None] = [None] * len(jobs)
        for wave in range(max((len(p) for p in plans), default=0)):
            rows = [i for i, plan in enumerate(plans) if wave < len(plan)]
            if wave:
                for i in rows:
                    anchors[i] = states[i]
            for batch in self._batches(rows, [len(plans[i][wave].tokens) for i in rows]):
                after = self._run([plans[i][wave] for i in batch], [states[i] for i in batch])
                for i, state in zip(batch, after, strict=True):
                    states[i] = state
        results = []
        for plan, state, anchor in zip(plans, states, anchors, strict=True):
            last = plan[-1] if plan else _Block(0, 0)
            tokens = sum(len(block.tokens) for block in plan)
            results.append(FoldResult(state, anchor, last.index, last.offset, tokens))
        return results

    def _start(self, job: FoldJob) -> Tensor:
        return torch.zeros(self.served.state_shape) if job.anchor is None else job.anchor.float()

    def _blocks(self, job: FoldJob) -> list[_Block]:
        """Cut a job's turns into blocks."""
        size = self.served.block_tokens
        blocks: list[_Block] = []
        for index, message in enumerate(job.messages):
            tokens = self.served.turns.encode(message)
            sentences = self.served.turns.sentences(message) if self._granularity == "sentence_mean" else []
            at = job.offset if index == 0 else 0
            while at < len(tokens):
                room = size - len(blocks[-1].tokens) if blocks else 0
                if not blocks or len(tokens) - at > room:
                    if not blocks or blocks[-1].tokens:
                        blocks.append(_Block(index, at))
                    room = size
                blocks[-1].add(message, tokens[at : at + room], sentences[at : at + room])
                at += room
        return blocks

    def _batches(self, rows: list[int], lengths: list[int]) -> Iterator[list[int]]:
        """Group rows of similar length under the token budget."""
        batch: list[int] = []
        for length, row in sorted(zip(lengths, rows, strict=True)):
            if batch and length * (len(batch) + 1) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _run(self, blocks: list[_Block], states: list[Tensor]) -> list[Tensor]:
        """One pass over a batch of blocks, padded on the right: causal attention never looks there."""
        served, bos = self.served, list(self.served.turns.bos)
        width = len(bos) + max(len(b.tokens) for b in blocks)

        def padded(fill: int, rows: Iterable[list[int]], opening: list[int] | None = None) -> Tensor:
            whole = [(opening or [fill] * len(bos)) + row for row in rows]
            return torch.tensor([row + [fill] * (width - len(row)) for row in whole], device=served.device)

        ids = padded(0, (b.tokens for b in blocks), opening=bos)
        flags = {"token_mask": padded(0, ([1] * len(b.tokens) for b in blocks))}
        if self._granularity != "token":
            flags["write"] = padded(0, (b.writes for b in blocks))
            flags["segment_ids"] = padded(-1, (b.pieces for b in blocks))
        if self._granularity == "sentence_mean":
            flags["sentence_ids"] = padded(-1, (b.sentences for b in blocks))
        state = OsamState(torch.stack(states, 1).to(served.device))
        with served.memory.bind(state, **flags):
            served.model.base_model(input_ids=ids, use_cache=False)
        return list(state.tensor.cpu().unbind(1))
