"""The scan on a GPU, in Triton: lanes are (sequence, head, row of the state), serial in tokens.

**Two ways.** ``serial`` walks each sequence from its first token to its last in one launch. A step waits for the
step before it, some 30 cycles at best, so that 8,192 tokens take over 120 us however little else there is to
do. ``split`` cuts sequences into chunks of 64 and needs three launches:

1. ``map_chunks``: each chunk is an affine map of each row, ``s -> s F + c``, because a row only meets its own
   gates (the algebra is told in ``chunked``). The map is found by walking the chunk with r + 1 rows in the place
   of one, all chunks at once. Nothing is divided by a gate, so that ``keep = 0`` is like any other.
2. ``chain_chunks``: from chunk to chunk, one small product a step.
3. ``replay``: all chunks at once again, now from the states that they start with, for the reads.

That is about ten times the arithmetic for T / 64 times as many lanes: it pays until the sequences alone fill the
card. Loads are issued for several tokens (or chunks) at once, before the arithmetic that waits for the first.

**Lanes.** A program holds whole states, r lanes each, instead of one row (as the published implementation does):
keys and queries then come once from memory for the neighbouring lanes of a warp; and the gradients of q and k,
which are sums over a state's rows, are summed inside the warp in a fixed order. With a program a row they
take atomics, whose order, and so whose rounding, changes from run to run. The price is a program of few warps;
many of them fit on a multiprocessor.

**Backward.** Forward keeps the state at the start of each chunk: with r = 8 in fp32, 8 * 8 * 4 / 64 = 4 bytes a
token, head and layer, where keeping every state takes 256. Backward starts each chunk from there and computes its
states again; the gradient of a row runs backwards through chunks by maps of the same form, so that both ways exist
for it too. What it holds for itself while it runs: serial, 16 states a sequence; split, 16 states a chunk (64 bytes
a token) and the chunks' maps (36 bytes a token).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from memfold_kernels.delta_scan import triton_kernels as kernels
from memfold_kernels.device import device_of

CHUNK = 64
# Tokens of a chunk whose states the backward pass has at hand at a time; divides CHUNK.
BLOCK = 8
# Lanes in a program: one warp.
LANES = 32
# Not measured on any card. To be set by `make gpu`, which prints both ways beside each other:
# sequences * heads from which the serial way should win, and tokens below which splitting is not worth two launches.
SPLIT_BELOW_SEQUENCES = 512
SPLIT_FROM_TOKENS = 4 * CHUNK
# Maps of larger states do not fit into the registers of a program.
SPLIT_UP_TO_RANK = 32


def splits(sequences: int, tokens: int, rank: int) -> bool:
    """Whether that many states (sequences * heads), over that many tokens each at most, are scanned by chunks."""
    return sequences < SPLIT_BELOW_SEQUENCES and tokens >= SPLIT_FROM_TOKENS and rank <= SPLIT_UP_TO_RANK


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
    *,
    split: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``delta_scan``; padded, with gradients.

    Args:
        q, k, v, keep, erase, write: (B, T, H, r), of any floating dtype.
        state: (B, H, r, r), in whose dtype all is computed.
        split: the way to take; by ``splits`` where it is None.
    """
    batch, length, heads, rank = q.shape
    if q.numel() == 0:
        return torch.zeros_like(q), state.clone()
    if split is None:
        split = splits(batch * heads, length, rank)
    reads, after = _Scan.apply(q, k, v, keep, erase, write, state, split)  # type: ignore[no-untyped-call]
    return reads, after


def scan_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    pool: Tensor,
    cu_seqlens: Tensor,
    state_slots: Tensor,
    *,
    split: bool | None = None,
) -> Tensor:
    """See ``delta_scan``; packed, states in place, no gradients. Nothing here waits for the device.

    Args:
        q, k, v, keep, erase, write: (1, sumT, H, r).
        pool: (slots + 1, H, r, r), contiguous; changed at ``state_slots``.
        cu_seqlens: (N + 1,), integers.
        state_slots: (N,), integers; 0 for sequences that neither read nor write.
        split: the way to take; by ``splits`` of sumT and N where it is None.

    Returns:
        The reads, (1, sumT, H, r).
    """
    _, tokens, heads, rank = q.shape
    sequences = len(state_slots)
    reads = torch.empty_like(q, memory_format=torch.contiguous_format)
    if q.numel() == 0 or sequences == 0:
        return reads
    if not pool.is_contiguous():
        raise ValueError("the pool must be contiguous")
    inputs = [x.contiguous() for x in (q, k, v, keep, erase, write)]
    shape = _Shape(pool, sequences, tokens, heads, cu_seqlens.contiguous(), state_slots.contiguous())
    if split is None:
        split = splits(sequences * heads, tokens, rank)
    with device_of(q):
        checkpoints = shape.chain(inputs, reads, pool, pool, reverse=False) if split else pool
        shape.replay(inputs, pool, pool, checkpoints, reads, split=split, save=False)
    return reads


class _Shape:
    """The sizes of one call, and the launches that follow from them. Packed where ``starts`` is given."""

    def __init__(
        self,
        like: Tensor,
        sequences: int,
        length: int,
        heads: int,
        starts: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> None:
        self.sequences, self.length, self.heads = sequences, length, heads
        self.rank = like.shape[-1]
        self.padded_rank: int = triton.next_power_of_2(self.rank)
        self.lanes = max(LANES, self.padded_rank)
        self.packed = starts is not None
        # A pointer must point somewhere, also where it is not used.
        self.starts = like if starts is None else starts
        self.slots = like if slots is None else slots
        self.chunks: int = length // CHUNK + sequences if self.packed else sequences * triton.cdiv(length, CHUNK)
        self.like = like

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self.like.device, dtype=self.like.dtype)

    def items(self, split: bool) -> int:
        """How many groups of lanes there are."""
        return (self.chunks if split else self.sequences) * self.heads

    def block(self, registers: int) -> int:
        """How many steps are loaded together, where one takes so many registers of a thread; a power of two."""
        return 1 << min(3, max(1, 96 // registers).bit_length() - 1)

    def checkpoints(self) -> Tensor:
        return self.empty(self.chunks, self.heads, self.rank, self.rank)

    def replay(
        self,
        inputs: list[Tensor],
        state: Tensor,
        after: Tensor,
        checkpoints: Tensor,
        reads: Tensor,
        *,
        split: bool,
        save: bool,
    ) -> None:
        items = self.items(split)
        kernels.replay[(triton.cdiv(items * self.padded_rank, self.lanes),)](
            *inputs, state, after, checkpoints, reads,
            self.starts, self.slots, items, self.sequences, self.length, self.heads,
            RANK=self.rank, R=self.padded_rank, LANES=self.lanes, CHUNK=CHUNK, BLOCK=self.block(2 * self.padded_rank),
            SPLIT=split, PACKED=self.packed, SAVE=save,
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip

    def chain(self, inputs: list[Tensor], d_reads: Tensor, state: Tensor, after: Tensor, *, reverse: bool) -> Tensor:
        """The states that chunks start with; ``reverse``: the gradients that they end with."""
        items, rank = self.items(split=True), self.padded_rank
        maps = self.empty(items, self.rank + 1, self.rank, rank)
        kernels.map_chunks[(triton.cdiv(items * rank * (self.rank + 1), self.lanes),)](
            *inputs, d_reads, maps,
            self.starts, self.slots, items, self.sequences, self.length, self.heads,
            RANK=self.rank, R=rank, LANES=self.lanes, CHUNK=CHUNK, BLOCK=self.block(2 * rank),
            PACKED=self.packed, REVERSE=reverse,
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
        checkpoints = self.checkpoints()
        kernels.chain_chunks[(self.sequences * self.heads,)](
            maps, state, after, checkpoints, self.starts, self.slots, self.length, self.heads,
            RANK=self.rank, R=rank, CHUNK=CHUNK, BLOCK=self.block((rank + 1) * max(1, rank * rank // 32)),
            PACKED=self.packed, REVERSE=reverse,
            num_warps=1 if rank <= 16 else rank * rank // 128, enable_fp_fusion=True,
        )  # fmt: skip
        return checkpoints


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        tensors, ctx.split = arguments[:7], arguments[7]
        *inputs, state = (x.detach().contiguous() for x in tensors)
        batch, length, heads, _ = inputs[0].shape
        ctx.shape = shape = _Shape(state, batch, length, heads)
        keeps = any(ctx.needs_input_grad)
        after, reads = torch.empty_like(state), torch.empty_like(inputs[0])
        with device_of(state):
            if ctx.split:
                checkpoints = shape.chain(inputs, reads, state, after, reverse=False)
            else:
                checkpoints = shape.checkpoints() if keeps else state
            shape.replay(inputs, state, after, checkpoints, reads, split=ctx.split, save=keeps and not ctx.split)
        if keeps:
            ctx.save_for_backward(*inputs, checkpoints)
        return reads, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *inputs, checkpoints = ctx.saved_tensors
        shape: _Shape = ctx.shape
        d_reads, d_state = grads[0].contiguous(), grads[1].to(checkpoints.dtype).contiguous()
        d_before, outputs = torch.empty_like(d_state), [torch.empty_like(x) for x in inputs]
        with device_of(d_state):
            ends = shape.chain(inputs, d_reads, d_state, d_before, reverse=True) if ctx.split else d_state
            items, rank = shape.items(ctx.split), shape.padded_rank
            scratch = shape.empty(items, CHUNK // BLOCK + BLOCK, shape.rank, shape.rank)
            kernels.replay_backward[(triton.cdiv(items * rank, shape.lanes),)](
                *inputs, checkpoints, ends, d_reads, d_state, d_before, scratch, *outputs,
                items, shape.length, shape.heads,
                RANK=shape.rank, R=rank, LANES=shape.lanes, CHUNK=CHUNK, BLOCK=BLOCK, SPLIT=ctx.split,
                num_warps=1, enable_fp_fusion=True,
            )  # fmt: skip
        return (*outputs, d_before, None)
