"""One decoded token of each sequence, in two steps a layer.

The states of all sequences are in a pool (slots + 1, H, r, r); each row of the batch names its slot, and slot 0
is padding: such a row is not corrected, and writes nothing. Intended use, in the hooks of one attention block::

    weights = StepWeights.stack(q=..., k=..., ...)              # once
    buffers = step_buffers(weights, rows=64)                    # once; the largest batch

    read(weights, x, pool, slots, buffers, out=q, head="q", writes=True)     # after q_proj: q is its output
    steer(weights, pool, slots, buffers, out=k, head="k")                    # only where k and v are corrected
    steer(weights, pool, slots, buffers, out=o, head="o", writes=True)       # after o_proj: the write is last

``x`` is the block's input and ``out`` a projection's output, changed in place. What ``read`` finds is kept in
``buffers`` for the calls after it. Nothing waits for the device and every shape follows from the arguments'
shapes, so that a CUDA graph can capture it; which rows are padding and which write may change between replays.

All is computed in the pool's dtype (fp32), whatever that of weights and activations is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from memfold_kernels.delta_step import naive
from memfold_kernels.delta_step.weights import Head, StepWeights, UpdateMode

__all__ = ["Head", "StepWeights", "UpdateMode", "read", "steer", "step_buffers"]

Backend = Literal["auto", "naive", "triton"]


def step_buffers(weights: StepWeights, rows: int) -> Tensor:
    """Room for what ``read`` hands to ``steer``: (5, rows, n), fp32: reads, keys, values, beta, lambda."""
    return torch.empty(5, rows, weights.width, device=weights.inputs.device, dtype=torch.float32)


def read(
    weights: StepWeights,
    x: Tensor,
    pool: Tensor,
    slots: Tensor,
    buffers: Tensor,
    *,
    out: Tensor | None = None,
    head: Head = "q",
    gain: Tensor | None = None,
    writes: bool = False,
    backend: Backend = "auto",
) -> None:
    """Read each row's state, correct one projection, and project what a write will need.

    Args:
        weights: of the layer.
        x: the attention block's input, (B, D).
        pool: the layer's states, (slots + 1, H, r, r), contiguous.
        slots: (B,) integers.
        buffers: from ``step_buffers``, for B rows at least.
        out: the output of ``head``'s projection, (B, out), changed in place; None where none is corrected here.
        head: which projection that is.
        gain: (B,), multiplies the corrections; 1 where it is None.
        writes: whether ``steer`` will write.
        backend: ``naive`` is plain torch and the oracle; ``auto`` takes ``triton`` on a CUDA device.

    Raises:
        ValueError: shapes do not fit; names the expected and the given one.
    """
    _check(weights, len(x), pool, slots, buffers, out, head, gain)
    if x.shape != (len(slots), weights.inputs.shape[1]):
        raise ValueError(f"x must be {(len(slots), weights.inputs.shape[1])}, got {tuple(x.shape)}")
    if _takes_triton(backend, x):
        from memfold_kernels.delta_step import triton_step  # noqa: PLC0415 - where there is no triton, none is needed

        triton_step.read(weights, x, pool, slots, buffers, out, head, gain, writes)
    else:
        naive.read(weights, x, pool, slots, buffers, out, head, gain, writes)


def steer(
    weights: StepWeights,
    pool: Tensor,
    slots: Tensor,
    buffers: Tensor,
    *,
    out: Tensor | None = None,
    head: Head = "o",
    gain: Tensor | None = None,
    writes: bool | Tensor = False,
    backend: Backend = "auto",
) -> None:
    """Correct one projection with what ``read`` found, and write the states where asked to.

    Args:
        weights, pool, slots, buffers, out, head, gain, backend: as in ``read``.
        writes: whether rows write; a (B,) boolean tensor says which. Each call that says so writes.

    Raises:
        ValueError: as in ``read``.
    """
    _check(weights, len(slots), pool, slots, buffers, out, head, gain)
    if isinstance(writes, Tensor) and (writes.shape != slots.shape or writes.dtype != torch.bool):
        raise ValueError(f"writes must be {tuple(slots.shape)} booleans, got {tuple(writes.shape)} {writes.dtype}")
    if _takes_triton(backend, buffers):
        from memfold_kernels.delta_step import triton_step  # noqa: PLC0415 - see read

        triton_step.steer(weights, pool, slots, buffers, out, head, gain, writes)
    else:
        naive.steer(weights, pool, slots, buffers, out, head, gain, writes)


def _takes_triton(backend: Backend, like: Tensor) -> bool:
    if backend not in ("auto", "naive", "triton"):
        raise ValueError(f"no backend {backend!r}; there are auto, naive, triton")
    return backend == "triton" or (backend == "auto" and like.device.type == "cuda")


def _check(
    weights: StepWeights,
    rows: int,
    pool: Tensor,
    slots: Tensor,
    buffers: Tensor,
    out: Tensor | None,
    head: Head,
    gain: Tensor | None,
) -> None:
    shape = (weights.heads, weights.rank, weights.rank)
    if pool.ndim != 4 or pool.shape[1:] != shape or not pool.is_contiguous():
        raise ValueError(f"the pool must be (slots + 1, {', '.join(map(str, shape))}), contiguous, got {pool.shape}")
    if slots.shape != (rows,):
        raise ValueError(f"slots must be {(rows,)}, got {tuple(slots.shape)}")
    if (
        not buffers.is_contiguous()
        or buffers.ndim != 3
        or buffers.shape[0] != 5
        or buffers.shape[1] < rows
        or buffers.shape[2] != weights.width
    ):
        raise ValueError(
            f"buffers must be (5, {rows} or more, {weights.width}), contiguous, got {tuple(buffers.shape)}"
        )
    if gain is not None and gain.shape != (rows,):
        raise ValueError(f"gain must be {(rows,)}, got {tuple(gain.shape)}")
    if out is not None:
        if head not in weights.outputs:
            raise ValueError(f"the adapter does not correct {head}; it does {', '.join(weights.outputs)}")
        expected = (rows, len(weights.outputs[head]))
        if out.shape != expected or out.stride(1) != 1:
            raise ValueError(f"out must be {expected}, its rows contiguous, got {tuple(out.shape)}")
