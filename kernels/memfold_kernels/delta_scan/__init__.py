"""The delta-rule scan: read and write an associative state, token by token.

For every sequence, head and token ``t``, with the state ``S`` of shape (r, r)::

    reads_t = S_{t-1} q_t
    S_t     = keep_t * S_{t-1} - erase_t * (S_{t-1} k_t) k_t^T + write_t * v_t k_t^T

where the gates scale the rows of ``S``. Source: delta-mem, arXiv 2605.12357.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from memfold_kernels.delta_scan import chunked, cpu, naive

__all__ = ["Backend", "delta_scan"]

Backend = Literal["auto", "naive", "torch", "cpu"]
_Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_BACKENDS: dict[str, _Scan] = {"naive": naive.scan, "torch": chunked.scan, "cpu": cpu.scan}


def delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
    *,
    mask: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan tokens from left to right.

    Args:
        q, k, v: queries, keys and values, (B, T, H, r).
        keep, erase, write: gates on the rows of the state, (B, T, H, r).
        state: (B, H, r, r); not changed.
        mask: (B, T), false where a token neither reads nor writes; all true where it is None.
        backend: ``naive`` is the oracle, ``torch`` the chunked form for any device, ``cpu`` the compiled
            one; all have gradients. ``auto`` takes ``cpu`` on a CPU, else ``torch``.

    Returns:
        What each token read, (B, T, H, r), and the state after the last token, (B, H, r, r).

    Raises:
        ValueError: shapes do not fit, or there is no such backend.
    """
    batch, length, heads, rank = q.shape
    for name, tensor in {"k": k, "v": v, "keep": keep, "erase": erase, "write": write}.items():
        if tensor.shape != q.shape:
            raise ValueError(f"{name} must have q's shape {tuple(q.shape)}, got {tuple(tensor.shape)}")
    if state.shape != (batch, heads, rank, rank):
        raise ValueError(f"state must be {(batch, heads, rank, rank)}, got {tuple(state.shape)}")
    if mask is not None and mask.shape != (batch, length):
        raise ValueError(f"mask must be {(batch, length)}, got {tuple(mask.shape)}")
    scan = _BACKENDS.get(_best(q) if backend == "auto" else backend)
    if scan is None:
        raise ValueError(f"no backend {backend!r}; there are auto, {', '.join(_BACKENDS)}")
    if mask is not None:
        real = mask[:, :, None, None]
        keep = keep.masked_fill(~real, 1.0)
        erase, write = erase.masked_fill(~real, 0.0), write.masked_fill(~real, 0.0)
    reads, state = scan(q, k, v, keep, erase, write, state)
    return (reads if mask is None else reads.masked_fill(~real, 0.0)), state


def _best(q: Tensor) -> Backend:
    return "cpu" if q.device.type == "cpu" else "torch"
