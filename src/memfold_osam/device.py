"""What a service must know of the device that its model runs on."""

from __future__ import annotations

import torch

_SIGNS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert")


def device_failed(error: BaseException) -> bool:
    """Whether nothing on this process's device can be trusted after an error: only a new process helps.

    Running out of memory is not of that kind; a smaller batch may do.
    """
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in _SIGNS)
