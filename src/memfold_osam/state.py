"""The state: an fp32 value, passed in and out; never an attribute of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class OsamState:
    """Holds the state of a batch while a model runs.

    Attributes:
        tensor: fp32, (adapted layers in order, batch, heads, r, r). Replaced, never changed in place,
            when a ``bind`` with writing on ends.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.ndim != 5:
            raise ValueError(
                "a state is an fp32 tensor (layers, batch, heads, r, r), "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        self.tensor = tensor


def state_to_bytes(state: Tensor) -> bytes:
    """One memory's state (layers, heads, r, r) as fp32, little-endian, row-major."""
    return state.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False).tobytes()


def state_from_bytes(data: bytes, shape: Sequence[int]) -> Tensor:
    """The inverse of ``state_to_bytes``.

    Raises:
        ValueError: not as many bytes as the shape asks for.
    """
    if len(data) != 4 * math.prod(shape):
        raise ValueError(f"a state of shape {tuple(shape)} has {4 * math.prod(shape)} bytes, got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(*shape)
