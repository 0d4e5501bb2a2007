"""The scan in torch without a loop over the tokens of a sequence: its chunks go side by side.

Row ``i`` of the state only ever meets its own gates, so that a token maps a row ``s`` to ::

    s (keep_i I - erase_i k k^T) + write_i v_i k^T

and the tokens of a chunk map it to ``s F_i + c_i``. Three passes:

1. ``F`` and ``c`` of all chunks at once, in as many steps as a chunk has tokens;
2. from chunk to chunk the small product ``s F + c``, which tells what each chunk starts with;
3. the reads of all chunks at once.

A gradient ``g`` by a row runs the other way, ``g <- g (keep_i I - erase_i k k^T) + d_read_i q^T``, and the token's
matrix is symmetric: a chunk maps it to ``g F_i^T + c'_i``, and the backward pass is the same three passes.

There is no division, no logarithm and no solve in it, so a gate of zero or one is as exact as in the loop. Chunks
lie in the last dimension ("lanes"): each step is a few elementwise operations over long vectors. With ``l`` and ``i``
column and row of the state, tokens are (C, r, lanes), states (l, i, lanes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

# Numbers that one step works on: the tensors of a step should stay in the processor's cache.
BLOCK = 2**20


def _chunk(length: int, rank: int) -> int:
    """Tokens in a chunk: a map costs r^3 numbers, and the chunks of one sequence one small product each."""
    return min(length, max(32, 4 * rank))


def _to_lanes(x: Tensor, fill: float) -> Tensor:
    """(B, T, H, r) to (C, r, N B H), padded with ``fill``."""
    batch, length, heads, rank = x.shape
    chunk = _chunk(length, rank)
    x = pad(x, (0, 0, 0, 0, 0, -length % chunk), value=fill)
    return x.view(batch, -1, chunk, heads, rank).permute(2, 4, 1, 0, 3).reshape(chunk, rank, -1).contiguous()


def _from_lanes(x: Tensor, shape: torch.Size) -> Tensor:
    """(C, r, N B H) to (B, T, H, r)."""
    batch, length, heads, rank = shape
    x = x.view(x.shape[0], rank, -1, batch, heads).permute(3, 2, 0, 4, 1)
    return x.reshape(batch, -1, heads, rank)[:, :length]


def _blocks(lanes: int, numbers: int) -> Iterator[slice]:
    """Cut the lanes so that ``numbers`` a lane make no more than a block."""
    size = max(1, BLOCK // numbers)
    return (slice(i, i + size) for i in range(0, lanes, size))


def _maps(k: Tensor, keep: Tensor, e: Tensor, w: Tensor) -> Tensor:
    """What chunks do to a row: (lanes, i, r + 1, r), F_i over c_i."""
    _, rank, lanes = k.shape
    maps = k.new_zeros(rank, rank, rank + 1, lanes)
    for column in range(rank):
        maps[column, :, column] = 1.0
    tokens = (k[:, :, None, None].unbind(), keep[:, :, None].unbind(), e[:, :, None].unbind(), w.unbind())
    for key, kept, erased, written in zip(*tokens, strict=True):
        forgotten = (maps * key).sum(0).mul_(erased)
        forgotten[:, rank] -= written
        maps.mul_(kept).addcmul_(forgotten, key, value=-1)
    return maps.permute(3, 1, 2, 0)


def _pass_on(row: Tensor, linear: Sequence[Tensor], constant: Sequence[Tensor]) -> Tensor:
    """From what the first chunk starts with, (B H r, 1, r), to what each starts with, (lanes, i, l).

    Args:
        linear: what the chunks but the last do to a row, (B H r, r, r).
        constant: and what they add, (B H r, 1, r).
    """
    rows = [row]
    for matrix, vector in zip(linear, constant, strict=True):
        rows.append(torch.baddbmm(vector, rows[-1], matrix))
    return torch.cat(rows).view(-1, row.shape[-1], row.shape[-1])


def _read(q: Tensor, k: Tensor, keep: Tensor, e: Tensor, w: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Reads (C, r, lanes), and states after the chunks; ``state`` (l, i, lanes) is what they start with."""
    reads, state = [], state.clone()
    tokens = (q[:, :, None].unbind(), k[:, :, None].unbind(), keep.unbind(), e.unbind(), w.unbind())
    for query, key, kept, erased, written in zip(*tokens, strict=True):
        reads.append((state * query).sum(0))
        update = torch.addcmul(written, erased, (state * key).sum(0), value=-1)
        state.mul_(kept).addcmul_(update, key)
    return torch.stack(reads), state


def _constants_back(q: Tensor, k: Tensor, keep: Tensor, e: Tensor, d_reads: Tensor) -> Tensor:
    """What is c' of the chunks, (l, i, lanes): what reaches their starts from their own reads alone."""
    grad = q.new_zeros(q.shape[1], *q.shape[1:])
    tokens = (q[:, :, None].unbind(), k[:, :, None].unbind(), keep.unbind(), e.unbind(), d_reads.unbind())
    for query, key, kept, erased, d_read in reversed(list(zip(*tokens, strict=True))):
        d_recalled = (grad * key).sum(0).mul_(erased)
        grad.mul_(kept).addcmul_(d_recalled, key, value=-1).addcmul_(d_read, query)
    return grad


def _gradients(
    q: Tensor, k: Tensor, keep: Tensor, e: Tensor, w: Tensor, state: Tensor, d_reads: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by q, k, keep, e, w, (C, r, lanes) each, and by ``state``, which the chunks start with.

    Args:
        grad: by the states after the chunks, (l, i, lanes).
    """
    keys = k[:, :, None].unbind()
    before = []
    for key, kept, erased, written in zip(keys, keep.unbind(), e.unbind(), w.unbind(), strict=True):
        recalled = (state * key).sum(0)
        update = torch.addcmul(written, erased, recalled, value=-1)
        before.append((state, recalled, update))
        state = (state * kept).addcmul_(update, key)
    grad = grad.clone()
    found = []
    tokens = (q[:, :, None].unbind(), keys, keep.unbind(), e.unbind(), d_reads.unbind(), before)
    for query, key, kept, erased, d_read, (state, recalled, update) in reversed(list(zip(*tokens, strict=True))):
        d_update = (grad * key).sum(0)
        d_recalled = d_update * erased
        d_key = (grad * update).addcmul_(state, d_recalled, value=-1).sum(1)
        found.append(((state * d_read).sum(1), d_key, (grad * state).sum(0), -d_update * recalled, d_update))
        grad.mul_(kept).addcmul_(d_recalled, key, value=-1).addcmul_(d_read, query)
    d_q, d_k, d_keep, d_e, d_w = (torch.stack(by_token[::-1]) for by_token in zip(*found, strict=True))
    return d_q, d_k, d_keep, d_e, d_w, grad


def _lanes_of(*tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, keep, erase and write * v in lanes; padding keeps the state as it is."""
    q, k, v, keep, erase, write = tokens
    return _to_lanes(q, 0), _to_lanes(k, 0), _to_lanes(keep, 1), _to_lanes(erase, 0), _to_lanes(write * v, 0)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *tokens, state = inputs
        rank, rows = state.shape[-1], state.shape[0] * state.shape[1]
        x = _lanes_of(*tokens)
        chunks = x[0].shape[-1] // rows
        maps = state.new_empty(0, rows * rank, rank + 1, rank)
        if chunks > 1:
            maps = state.new_empty(chunks * rows, rank, rank + 1, rank)
            for block in _blocks(len(maps), rank * rank * (rank + 1)):
                maps[block] = _maps(*(y[..., block] for y in x[1:]))
            maps = maps.view(chunks, rows * rank, rank + 1, rank)
        linear, constant = maps[:, :, :rank], maps[:, :, rank:]
        starts = _pass_on(state.reshape(-1, 1, rank), linear.unbind()[:-1], constant.unbind()[:-1])
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*tokens, starts, linear.contiguous())
        reads, states = torch.empty_like(x[0]), starts.permute(2, 1, 0).clone(memory_format=torch.contiguous_format)
        for block in _blocks(chunks * rows, len(reads) * rank):
            reads[..., block], states[..., block] = _read(*(y[..., block] for y in (*x, states)))
        return _from_lanes(reads, tokens[0].shape), states[..., -rows:].permute(2, 1, 0).reshape(state.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_reads: Tensor, d_state: Tensor) -> tuple[Tensor, ...]:
        *tokens, starts, linear = ctx.saved_tensors
        rank, rows = d_state.shape[-1], d_state.shape[0] * d_state.shape[1]
        x, d = _lanes_of(*tokens), _to_lanes(d_reads, 0)
        lanes, chunk = d.shape[-1], len(d)
        chunks = lanes // rows
        constants = d.new_empty(rank, rank, lanes)
        if chunks > 1:
            for block in _blocks(lanes, chunk * rank):
                constants[..., block] = _constants_back(*(y[..., block] for y in (*x[:4], d)))
        constants = constants.permute(2, 1, 0).reshape(chunks, -1, 1, rank)
        backwards = linear.transpose(-1, -2).unbind()[:0:-1], constants.unbind()[:0:-1]
        ends = _pass_on(d_state.reshape(-1, 1, rank), *backwards).view(chunks, -1).flip(0).view_as(starts)

        states, grads = (y.permute(2, 1, 0).contiguous() for y in (starts, ends))
        outputs = [torch.empty_like(d) for _ in range(5)]
        for block in _blocks(lanes, chunk * rank * rank):
            *by_token, grads[..., block] = _gradients(*(y[..., block] for y in (*x, states, d, grads)))
            for output, part in zip(outputs, by_token, strict=True):
                output[..., block] = part
        d_q, d_k, d_keep, d_e, d_w = (_from_lanes(y, tokens[0].shape) for y in outputs)
        d_first = grads[..., :rows].permute(2, 1, 0).reshape(d_state.shape)
        return d_q, d_k, d_w * tokens[5], d_keep, d_e, d_w * tokens[2], d_first


def scan(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See ``delta_scan``; for any device, with gradients (of the first order)."""
    if q.numel() == 0:
        return torch.zeros_like(q), state.clone()
    tokens = (x.to(state.dtype) for x in (q, k, v, keep, erase, write))
    reads, after = _Scan.apply(*tokens, state)  # type: ignore[no-untyped-call]
    return reads.to(q.dtype), after


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
) -> Tensor:
    """See ``delta_scan``: the sequences are padded to one batch."""
    lengths = cu_seqlens.diff().tolist()
    if not lengths:
        return torch.zeros_like(q)

    def padded(x: Tensor, fill: float) -> Tensor:
        return pad_sequence(list(torch.split(x[0], lengths)), batch_first=True, padding_value=fill)

    q, k, v, erase, write = (padded(x, 0.0) for x in (q, k, v, erase, write))
    slots = state_slots.long()
    got, states = scan(q, k, v, padded(keep, 1.0), erase, write, pool[slots])
    real = slots != 0
    pool[slots[real]] = states[real]
    got = got.masked_fill(~real[:, None, None, None], 0.0)
    return torch.cat([row[:length] for row, length in zip(got, lengths, strict=True)])[None]
