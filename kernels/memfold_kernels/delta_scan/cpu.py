"""The scan on a CPU, compiled by numba: serial in tokens, the vector lanes are the rows of the state.

The state is held transposed, so that a row's sum over columns becomes a vector addition and no
horizontal sum is needed. The backward pass walks the tokens in reverse over the kept states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def _jit(function: Callable[..., None]) -> Callable[..., None]:
    """Compile on first use, and keep the result on disk where there is a place to write to."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only installation
        compiled = numba.njit(**options)(function)
    return compiled


@_jit
def _forward(
    q: Array, k: Array, v: Array, keep: Array, erase: Array, write: Array, state: Array, reads: Array, history: Array
) -> None:
    batch, length, heads, rank = q.shape
    columns = np.empty((rank, rank), q.dtype)
    recalled = np.empty(rank, q.dtype)
    read = np.empty(rank, q.dtype)
    for b in range(batch):
        for h in range(heads):
            for j in range(rank):
                for i in range(rank):
                    columns[j, i] = state[b, h, i, j]
            for t in range(length):
                if history.shape[1] > 0:
                    history[b, t, h] = columns
                recalled[:] = 0
                read[:] = 0
                for j in range(rank):
                    for i in range(rank):
                        recalled[i] += columns[j, i] * k[b, t, h, j]
                        read[i] += columns[j, i] * q[b, t, h, j]
                for i in range(rank):
                    reads[b, t, h, i] = read[i]
                    recalled[i] = write[b, t, h, i] * v[b, t, h, i] - erase[b, t, h, i] * recalled[i]
                for j in range(rank):
                    for i in range(rank):
                        columns[j, i] = keep[b, t, h, i] * columns[j, i] + recalled[i] * k[b, t, h, j]
            for j in range(rank):
                for i in range(rank):
                    state[b, h, i, j] = columns[j, i]


@_jit
def _backward(
    q: Array,
    k: Array,
    v: Array,
    keep: Array,
    erase: Array,
    write: Array,
    history: Array,
    d_reads: Array,
    d_state: Array,
    d_q: Array,
    d_k: Array,
    d_v: Array,
    d_keep: Array,
    d_erase: Array,
    d_write: Array,
) -> None:
    batch, length, heads, rank = q.shape
    grad = np.empty((rank, rank), q.dtype)
    recalled = np.empty(rank, q.dtype)
    d_recalled = np.empty(rank, q.dtype)
    d_update = np.empty(rank, q.dtype)
    for b in range(batch):
        for h in range(heads):
            for j in range(rank):
                for i in range(rank):
                    grad[j, i] = d_state[b, h, i, j]
            for t in range(length - 1, -1, -1):
                columns = history[b, t, h]
                recalled[:] = 0
                d_update[:] = 0
                for j in range(rank):
                    for i in range(rank):
                        recalled[i] += columns[j, i] * k[b, t, h, j]
                        d_update[i] += grad[j, i] * k[b, t, h, j]
                        d_keep[b, t, h, i] += grad[j, i] * columns[j, i]
                for i in range(rank):
                    d_v[b, t, h, i] = d_update[i] * write[b, t, h, i]
                    d_write[b, t, h, i] = d_update[i] * v[b, t, h, i]
                    d_erase[b, t, h, i] = -d_update[i] * recalled[i]
                    d_recalled[i] = -d_update[i] * erase[b, t, h, i]
                    recalled[i] = write[b, t, h, i] * v[b, t, h, i] - erase[b, t, h, i] * recalled[i]
                for j in range(rank):
                    d_key = q.dtype.type(0)
                    d_query = q.dtype.type(0)
                    for i in range(rank):
                        d_key += grad[j, i] * recalled[i] + columns[j, i] * d_recalled[i]
                        d_query += columns[j, i] * d_reads[b, t, h, i]
                        grad[j, i] = (
                            keep[b, t, h, i] * grad[j, i]
                            + d_recalled[i] * k[b, t, h, j]
                            + d_reads[b, t, h, i] * q[b, t, h, j]
                        )
                    d_k[b, t, h, j] = d_key
                    d_q[b, t, h, j] = d_query
            for j in range(rank):
                for i in range(rank):
                    d_state[b, h, i, j] = grad[j, i]


def _array(x: Tensor) -> Array:
    return x.detach().contiguous().numpy()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        arrays = [_array(x) for x in inputs[:6]]
        batch, length, heads, rank = inputs[0].shape
        state = inputs[6].detach().contiguous().clone()
        reads = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
        kept = length if any(ctx.needs_input_grad) else 0
        history = torch.empty(batch, kept, heads, rank, rank, dtype=reads.dtype)
        _forward(*arrays, state.numpy(), reads.numpy(), history.numpy())
        ctx.save_for_backward(*inputs[:6], history)
        return reads, state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        arrays = [_array(x) for x in ctx.saved_tensors]
        d_state = grads[1].contiguous().clone()
        outputs = [torch.zeros(a.shape, dtype=grads[0].dtype) for a in arrays[:6]]
        _backward(*arrays, _array(grads[0]), d_state.numpy(), *(o.numpy() for o in outputs))
        return (*outputs, d_state)


def scan(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See ``delta_scan``; for tensors on a CPU, with gradients."""
    reads, after = _Scan.apply(q, k, v, keep, erase, write, state)  # type: ignore[no-untyped-call]
    return reads, after
