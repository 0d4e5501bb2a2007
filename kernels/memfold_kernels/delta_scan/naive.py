"""The oracle: the formulas, one token after another. Every other backend must agree with it."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See ``delta_scan``; gradients by autograd."""
    reads = []
    for t in range(q.shape[1]):
        reads.append(torch.einsum("bhij,bhj->bhi", state, q[:, t]))
        recalled = torch.einsum("bhij,bhj->bhi", state, k[:, t])
        update = write[:, t] * v[:, t] - erase[:, t] * recalled
        state = keep[:, t, :, :, None] * state + update[..., None] * k[:, t, :, None, :]
    return (torch.stack(reads, 1) if reads else torch.zeros_like(q)), state
