"""Which device a Triton kernel is launched on: the current one, whatever its tensors are on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make a tensor's CUDA device the current one; does nothing for another device."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()
