"""The fold: turns go through the frozen backbone with writing on, block by block.

A block starts with a state (its anchor) and no KV cache; within it every token sees all tokens before
it. A turn that does not fit opens the next block, and one larger than a block is split. Where blocks
begin depends on the turns alone, so the state is a function of the log, however the turns came in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    """Tokens of one block, and the message and the token of it that it starts with."""

    index: int
    offset: int
    tokens: list[int]


class Folder:
    """Folds many memories in one batch.

    Args:
        served: the model; its adapter decides what a token or a turn writes.
        batch_tokens: the most tokens, padding included, that one pass of the model takes; a single
            block may exceed it.

    Raises:
        ValueError: the adapter writes segments; those are not folded yet.
    """

    def __init__(self, served: ServedModel, batch_tokens: int = 16384) -> None:
        if served.memory.config.memory_write_granularity != "token":
            raise ValueError(
                f"folding writes tokens; an adapter that writes {served.memory.config.memory_write_granularity} "
                "cannot be served yet"
            )
        self.served = served
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
            last = plan[-1] if plan else _Block(0, 0, [])
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
            at = job.offset if index == 0 else 0
            while at < len(tokens):
                room = size - len(blocks[-1].tokens) if blocks else 0
                if not blocks or len(tokens) - at > room:
                    if not blocks or blocks[-1].tokens:
                        blocks.append(_Block(index, at, []))
                    room = size
                blocks[-1].tokens += tokens[at : at + room]
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
        ids = torch.zeros(len(blocks), width, dtype=torch.long)
        real = torch.zeros(len(blocks), width, dtype=torch.bool)
        for row, block in enumerate(blocks):
            end = len(bos) + len(block.tokens)
            ids[row, :end] = torch.tensor(bos + block.tokens)
            real[row, len(bos) : end] = True
        state = OsamState(torch.stack(states, 1).to(served.device))
        with served.memory.bind(state, write=True, token_mask=real.to(served.device)):
            served.model.base_model(input_ids=ids.to(served.device), use_cache=False)
        return list(state.tensor.cpu().unbind(1))
