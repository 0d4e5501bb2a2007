"""The step in plain torch: the oracle of the kernels, and what runs on a CPU. See ``delta_step`` for the contract."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, rms_norm

from memfold_kernels.delta_step.weights import Head, StepWeights

UNIT_EPS = 1e-6


def read(
    weights: StepWeights,
    x: Tensor,
    pool: Tensor,
    slots: Tensor,
    buffers: Tensor,
    out: Tensor | None,
    head: Head,
    gain: Tensor | None,
    writes: bool,
) -> None:
    """See ``delta_step.read``. Fills all of the buffers' rows, whether a write follows or not."""
    del writes
    n, rows, dtype = weights.width, len(x), pool.dtype
    projected = linear(x.to(dtype), weights.inputs.to(dtype), weights.bias.to(dtype))
    q, k, v, gates = projected[:, :n], projected[:, n : 2 * n], projected[:, 2 * n : 3 * n], projected[:, 3 * n :]
    beta, *own = gates.sigmoid().chunk(2 if weights.own_lambda else 1, dim=1)
    reads = torch.einsum("bhij,bhj->bhi", pool[slots.long()], _unit(weights, q)).flatten(1)
    buffers[0, :rows] = reads.masked_fill((slots == 0)[:, None], 0.0)
    buffers[1, :rows] = _unit(weights, k).flatten(1)
    buffers[2, :rows] = v
    buffers[3, :rows] = _by_row(weights, beta)
    buffers[4, :rows] = _by_row(weights, own[0] if own else 1 - beta)
    if out is not None:
        _correct(weights, slots, buffers, out, head, gain)


def steer(
    weights: StepWeights,
    pool: Tensor,
    slots: Tensor,
    buffers: Tensor,
    out: Tensor | None,
    head: Head,
    gain: Tensor | None,
    writes: bool | Tensor,
) -> None:
    """See ``delta_step.steer``."""
    if out is not None:
        _correct(weights, slots, buffers, out, head, gain)
    if writes is False:
        return
    _, k, v, beta, lambda_ = (b.view(len(slots), weights.heads, weights.rank) for b in buffers[:, : len(slots)])
    keep, erase = lambda_, beta
    if weights.update_mode == "lambda_outside":
        erase = lambda_ * beta
    elif weights.update_mode == "no_lambda":
        keep = torch.ones_like(beta)
    before = pool[slots.long()]
    update = beta * v - erase * torch.einsum("bhij,bhj->bhi", before, k)
    after = keep[..., None] * before + update[..., None] * k[..., None, :]
    writing = slots != 0 if writes is True else (slots != 0) & writes
    pool[slots.long()] = torch.where(writing[:, None, None, None], after.to(pool.dtype), before)


def _unit(weights: StepWeights, x: Tensor) -> Tensor:
    """(B, n) to (B, H, r): as it is, or tanh and of unit length per head."""
    x = x.reshape(len(x), weights.heads, weights.rank)
    return normalize(x.tanh(), dim=-1, eps=UNIT_EPS) if weights.normalize_qk else x


def _by_row(weights: StepWeights, gate: Tensor) -> Tensor:
    """A gate a row of the state, (B, n), of one a row or one a head."""
    return gate if weights.rankwise_gates else gate.repeat_interleave(weights.rank, dim=1)


def _correct(
    weights: StepWeights, slots: Tensor, buffers: Tensor, out: Tensor, head: Head, gain: Tensor | None
) -> None:
    reads = buffers[0, : len(slots)]
    delta = linear(reads, weights.outputs[head].to(reads.dtype)) * weights.scales[head]
    if head == "o" and weights.norm is not None:
        delta = rms_norm(delta, delta.shape[-1:], weights.norm.weight.to(delta.dtype), weights.norm.eps)
    if gain is not None:
        delta = delta * gain[:, None]
    delta = delta.masked_fill((slots == 0)[:, None], 0.0)
    out.copy_(out.to(delta.dtype) + delta)  # rounded once
