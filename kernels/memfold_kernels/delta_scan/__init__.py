"""The delta-rule scan: read and write an associative state, token by token.

For every sequence, head and token ``t``, with the state ``S`` of shape (r, r)::

    reads_t = S_{t-1} q_t
    S_t     = keep_t * S_{t-1} - erase_t * (S_{t-1} k_t) k_t^T + write_t * v_t k_t^T

where the gates scale the rows of ``S``. Source: delta-mem, arXiv 2605.12357.
"""

from __future__ import annotations

import functools
import importlib
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

__all__ = ["Backend", "delta_scan"]

Backend = Literal["auto", "naive", "torch", "cpu", "triton"]
# Modules of this package, imported when first asked for: not every machine has what they need.
_BACKENDS = {"naive": "naive", "torch": "chunked", "cpu": "cpu", "triton": "triton_scan"}


class _Scans(Protocol):
    """What a backend's module offers; a mask has been turned into gates by then."""

    def scan(
        self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """Scan a padded batch: reads and the new state."""

    def scan_packed(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keep: Tensor,
        erase: Tensor,
        write: Tensor,
        pool: Tensor,
        cu_seqlens: Tensor,
        state_slots: Tensor,
        /,
    ) -> Tensor:
        """Scan packed sequences: the reads; the pool changes in place, but for slot 0."""


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
    cu_seqlens: Tensor | None = None,
    state_slots: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan tokens from left to right.

    A batch is padded, or packed where ``cu_seqlens`` and ``state_slots`` are given: then its sequences lie end to
    end in one row, and their states in a pool. Packed batches are for inference only.

    Args:
        q, k, v: queries, keys and values, (B, T, H, r); packed (1, sum of T, H, r).
        keep, erase, write: gates on the rows of the state, of the same shape.
        state: (B, H, r, r), not changed; packed a pool (slots + 1, H, r, r), changed in place (``triton`` takes a
            contiguous one only). All is computed in its dtype, whatever that of the tokens is.
        mask: (B, T), false where a token neither reads (its read is 0) nor writes; all true where it is None.
        cu_seqlens: (N + 1,) integers, where each sequence starts, and the end: 0, ..., sum of T. A sequence may
            be empty.
        state_slots: (N,) integers, the place of each sequence's state in the pool. Slot 0 is padding: its tokens
            read 0 and its state stays as it is. No other slot may be named twice.
        backend: ``naive`` is the oracle, ``torch`` the chunked form for any device, ``cpu`` and ``triton`` are
            compiled; all have gradients, of the first order. ``auto`` takes ``cpu`` on a CPU and ``triton`` on a CUDA
            device where numba and triton can be imported, else ``torch``.

    Returns:
        What each token read, of q's shape and dtype, and the state after the last token; packed the pool itself.

    Raises:
        ValueError: shapes, bounds or slots do not fit (on a CUDA device the values of bounds and slots are not
            looked at), a gradient is asked of a packed batch, or there is no such backend.
        ImportError: the backend needs a package that is not there.
    """
    _check_tokens(q, {"k": k, "v": v, "keep": keep, "erase": erase, "write": write}, mask)
    scans = _load(_best(q.device.type) if backend == "auto" else backend)
    if mask is not None and mask.device.type == "cpu" and mask.all():
        mask = None
    if mask is not None:
        masked = ~mask.bool()[:, :, None, None]
        # All of them: padding may hold NaN, which no gate of zero would stop.
        q, k, v, erase, write = (x.masked_fill(masked, 0.0) for x in (q, k, v, erase, write))
        keep = keep.masked_fill(masked, 1.0)
    if cu_seqlens is None and state_slots is None:
        batch, _, heads, rank = q.shape
        if state.shape != (batch, heads, rank, rank):
            raise ValueError(f"state must be {(batch, heads, rank, rank)}, got {tuple(state.shape)}")
        reads, state = scans.scan(q, k, v, keep, erase, write, state)
    elif cu_seqlens is None or state_slots is None:
        raise ValueError("cu_seqlens and state_slots come together")
    else:
        _check_packed(q, state, cu_seqlens, state_slots)
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, keep, erase, write, state)):
            raise ValueError("a packed batch has no gradients: pad it, or call under torch.no_grad()")
        reads = scans.scan_packed(q, k, v, keep, erase, write, state, cu_seqlens, state_slots)
    return (reads if mask is None else reads.masked_fill(masked, 0.0)), state


def _check_tokens(q: Tensor, others: dict[str, Tensor], mask: Tensor | None) -> None:
    if q.ndim != 4:
        raise ValueError(f"q must have 4 dimensions (B, T, H, r), got {q.ndim}: {tuple(q.shape)}")
    for name, tensor in others.items():
        if tensor.shape != q.shape:
            raise ValueError(f"{name} must have q's shape {tuple(q.shape)}, got {tuple(tensor.shape)}")
    if mask is not None and mask.shape != q.shape[:2]:
        raise ValueError(f"mask must be {tuple(q.shape[:2])}, got {tuple(mask.shape)}")


def _check_packed(q: Tensor, pool: Tensor, cu_seqlens: Tensor, state_slots: Tensor) -> None:
    batch, length, heads, rank = q.shape
    if batch != 1:
        raise ValueError(f"a packed batch is one row, (1, T, H, r), got {batch} rows")
    if pool.ndim != 4 or pool.shape[0] < 1 or pool.shape[1:] != (heads, rank, rank):
        raise ValueError(f"state must be a pool (slots + 1, {heads}, {rank}, {rank}), got {tuple(pool.shape)}")
    for name, tensor in {"cu_seqlens": cu_seqlens, "state_slots": state_slots}.items():
        if tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be int32 or int64, got {tensor.dtype}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 1:
        raise ValueError(f"cu_seqlens must be (N + 1,), got {tuple(cu_seqlens.shape)}")
    if state_slots.shape != (len(cu_seqlens) - 1,):
        raise ValueError(f"state_slots must be {(len(cu_seqlens) - 1,)}, got {tuple(state_slots.shape)}")
    if q.device.type == "cuda":
        return  # a look at the values would wait for the device
    bounds, slots = cu_seqlens.tolist(), state_slots.tolist()
    if bounds[0] != 0 or bounds[-1] != length or bounds != sorted(bounds):
        raise ValueError(f"cu_seqlens must rise from 0 to {length}, got {_few(bounds)}")
    if wrong := [slot for slot in slots if not 0 <= slot < len(pool)]:
        raise ValueError(f"state_slots must lie in 0 to {len(pool) - 1}, got {wrong[0]}")
    real = [slot for slot in slots if slot]
    if len(set(real)) != len(real):
        raise ValueError(f"a slot other than 0 may be named once, got {_few(slots)}")


def _few(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 16 else f"{numbers[:16]} and {len(numbers) - 16} more"


@functools.cache
def _best(device: str) -> str:
    """The compiled backend for a device, where it can be imported."""
    name = {"cpu": "cpu", "cuda": "triton"}.get(device, "torch")
    try:
        _load(name)
    except ImportError:
        return "torch"
    return name


@functools.cache
def _load(backend: str) -> _Scans:
    if backend not in _BACKENDS:
        raise ValueError(f"no backend {backend!r}; there are auto, {', '.join(_BACKENDS)}")
    try:
        return cast("_Scans", importlib.import_module(f"{__name__}.{_BACKENDS[backend]}"))
    except ImportError as error:
        raise ImportError(f"backend {backend!r} cannot be used here: {error}", name=error.name) from error
