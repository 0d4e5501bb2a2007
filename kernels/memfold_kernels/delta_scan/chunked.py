"""The scan without a loop over tokens: chunks of 16, each one affine map of the state's rows.

Row ``i`` of the state only ever meets its own gates, so that with ``s`` a row and
``u_t = w_t - e_t (s_{t-1} . k_t)`` (``w = write * v``, ``e = erase``)

    s_t = keep_t s_{t-1} + u_t k_t
    s_{t-1} . k_t = decay(t) (s_0 . k_t) + sum_{j<t} decay(t, j) u_j (k_j . k_t)

Inside a chunk the ``u`` solve one unit-triangular system, linear in the row that the chunk starts
with: ``u = a - B s_0``. The chunk therefore maps ``s_0`` to ``s_0 F + c``. All chunks are solved at
once; only that last, small product runs from chunk to chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 16
# A gate of zero forgets all: its logarithm is held finite, and exp() of it is zero all the same.
SMALLEST_KEEP = 1e-30


def _split(x: Tensor, fill: float) -> Tensor:
    """(B, T, H, r) to (B, H, N, C, r), padded with ``fill``."""
    batch, length, heads, rank = x.shape
    x = pad(x, (0, 0, 0, 0, 0, -length % CHUNK), value=fill)
    return x.view(batch, -1, CHUNK, heads, rank).permute(0, 3, 1, 2, 4)


def scan(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See ``delta_scan``; gradients by autograd."""
    batch, length, heads, rank = q.shape
    if length == 0:
        return torch.zeros_like(q), state
    qc, kc = _split(q, 0.0), _split(k, 0.0)
    gates_to_rows = (0, 1, 2, 4, 3)
    w = _split(write * v, 0.0).permute(gates_to_rows)
    e = _split(erase, 0.0).permute(gates_to_rows)
    log_keep = _split(keep, 1.0).permute(gates_to_rows).clamp_min(SMALLEST_KEEP).log()

    before, after = _decays(log_keep)
    from_start = (log_keep.cumsum(-1) - log_keep).exp()
    strictly_lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril(-1)
    kk = (kc @ kc.transpose(-1, -2)).masked_fill(~strictly_lower, 0.0)
    qk = (qc @ kc.transpose(-1, -2)).masked_fill(~strictly_lower, 0.0)
    system = e[..., None] * before * kk[:, :, :, None] + torch.eye(CHUNK, dtype=q.dtype, device=q.device)
    start = (e * from_start)[..., None] * kc[:, :, :, None]
    solved = torch.linalg.solve_triangular(
        system, torch.cat([w[..., None], start], -1), upper=False, unitriangular=True
    )
    a, b = solved[..., :1], solved[..., 1:]

    keys_at_end = after[..., None] * kc[:, :, :, None]
    total = log_keep.sum(-1).exp()[..., None, None]
    constant = a.transpose(-1, -2) @ keys_at_end
    linear = total * torch.eye(rank, dtype=q.dtype, device=q.device) - b.transpose(-1, -2) @ keys_at_end
    starts, row = [], state[..., None, :]
    for n in range(linear.shape[2]):
        starts.append(row)
        row = row @ linear[:, :, n] + constant[:, :, n]
    s0 = torch.stack(starts, 2).transpose(-1, -2)

    u = a - b @ s0
    reads = from_start[..., None] * (qc[:, :, :, None] @ s0) + (before * qk[:, :, :, None]) @ u
    reads = reads.squeeze(-1).permute(0, 2, 4, 1, 3).reshape(batch, -1, heads, rank)
    return reads[:, :length], row.squeeze(-2)


def _decays(log_keep: Tensor) -> tuple[Tensor, Tensor]:
    """From (..., C): what token j's write has become when token t reads, and at the chunk's end.

    Sums of logarithms, never differences of sums: a gate near zero then costs no other gate its digits.

    Returns:
        (..., C, C) with entry [t, j] = prod of keep over j < i < t, for j < t; and (..., C).
    """
    steps = log_keep[..., :, None].expand(*log_keep.shape, CHUNK)
    strictly_lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=log_keep.device).tril(-1)
    through = steps.masked_fill(~strictly_lower, 0.0).cumsum(-2)
    before = pad(through[..., :-1, :], (0, 0, 1, 0)).exp()
    return before, through[..., -1, :].exp()
