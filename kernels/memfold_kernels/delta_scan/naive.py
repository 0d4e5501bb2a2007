"""The oracle: the formulas, one token after another. Every other backend must agree with it."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See ``delta_scan``; gradients by autograd."""
    reads, state = [], state.clone()
    # Taken apart once: the gradient of an index per token would cost the whole length for every token.
    tokens = zip(*(x.to(state.dtype).unbind(1) for x in (q, k, v, keep, erase, write)), strict=True)
    for q_t, k_t, v_t, keep_t, erase_t, write_t in tokens:
        reads.append(torch.einsum("bhij,bhj->bhi", state, q_t))
        recalled = torch.einsum("bhij,bhj->bhi", state, k_t)
        update = write_t * v_t - erase_t * recalled
        state = keep_t[..., None] * state + update[..., None] * k_t[:, :, None, :]
    return (torch.stack(reads, 1).to(q.dtype) if reads else torch.zeros_like(q)), state


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
    """See ``delta_scan``: each sequence alone."""
    reads = torch.zeros_like(q)
    bounds = cu_seqlens.tolist()
    for first, last, slot in zip(bounds, bounds[1:], state_slots.tolist(), strict=False):
        if slot:
            now, here = slice(first, last), slice(slot, slot + 1)
            reads[:, now], pool[here] = scan(
                q[:, now], k[:, now], v[:, now], keep[:, now], erase[:, now], write[:, now], pool[here]
            )
    return reads
