"""What a layer's rows read in a step of decoding, on a CPU, compiled by numba.

While a token is decoded, the model's weights stream through the caches and push everything else out of them. What costs
time then is not arithmetic but code that has to be fetched anew, and one small function beats eight general ones by a
factor of three. The product with the input is theirs again where it is large; ``takes`` says where.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from memfold_kernels.delta_scan.cpu import Array
from memfold_kernels.delta_step.naive import UNIT_EPS

SMALL = 1 << 19  # products with the input in one call
# Sums in any order; NaN and infinity keep their meaning.
_FASTMATH = {"contract", "nsz", "reassoc"}


def takes(x: Tensor, query: Tensor, states: Tensor) -> bool:
    """Whether ``read`` can take these, and is the faster way."""
    return (
        x.shape[1] == 1
        and x.dtype == states.dtype == torch.float32
        and x.is_contiguous()
        and states.is_contiguous()
        and x.shape[0] * query.numel() <= SMALL
    )


def read(x: Tensor, query: Tensor, states: Tensor, normalize: bool) -> Tensor:
    """What each row reads of its state. All in fp32, on a CPU, contiguous.

    Args:
        x: the attention block's input, (B, 1, D).
        query: (H * r, D).
        states: (B, H, r, r).
        normalize: queries are tanh-ed and of unit length per head.

    Returns:
        (B, 1, H, r).
    """
    rows, heads, rank, _ = states.shape
    reads = torch.empty(rows, 1, heads, rank)
    _kernel()(x.numpy(), query.numpy(), states.numpy(), reads.numpy(), normalize)
    return reads


def _read(x: Array, query: Array, states: Array, reads: Array, normalize: bool) -> None:
    rows, heads, rank, _ = states.shape
    asked = np.empty(rank, np.float32)
    for b in range(rows):
        for h in range(heads):
            square = np.float32(0.0)
            for i in range(rank):
                total = np.float32(0.0)
                for d in range(x.shape[2]):
                    total += x[b, 0, d] * query[h * rank + i, d]
                if normalize:
                    total = np.float32(math.tanh(total))
                    square += total * total
                asked[i] = total
            length = np.float32(max(math.sqrt(square), UNIT_EPS)) if normalize else np.float32(1.0)
            for i in range(rank):
                total = np.float32(0.0)
                for j in range(rank):
                    total += states[b, h, i, j] * asked[j]
                reads[b, 0, h, i] = total / length


@functools.cache
def _kernel() -> Any:
    """Compiled on first use, and kept on disk where there is a place to write to."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _FASTMATH}
    try:
        return njit(cache=True, **options)(_read)
    except RuntimeError:  # a read-only installation
        return njit(**options)(_read)
