"""The step in Triton: one launch each for ``read`` and ``steer``. See ``delta_step`` for the contract."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from memfold_kernels.delta_step.naive import UNIT_EPS
from memfold_kernels.delta_step.triton_kernels import read_kernel, steer_kernel
from memfold_kernels.delta_step.weights import Head, StepWeights
from memfold_kernels.device import device_of

# Outputs that one program corrects, and numbers of a weight tile that it has in flight. Not measured on any card.
SLICE = 1024
TILE = 4096
WARPS = 4


def read(
    weights: StepWeights,
    x: Tensor,
    pool: Tensor,
    slots: Tensor,
    buffers: Tensor,
    out: Tensor | None,
    head: Head,
    gain: Tensor | None,
    writes: bool,
) -> None:
    """See ``delta_step.read``. Buffers of rows of slot 0, and of k, v and gates without ``writes``, stay as they are."""
    if len(slots) == 0:
        return
    if head == "o" and weights.norm is not None and out is not None:
        read(weights, x, pool, slots, buffers, None, head, None, writes)
        steer(weights, pool, slots, buffers, out, head, gain, writes=False)
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    outputs, width, pieces = _outputs(weights, out, head)
    projections = (4 if weights.own_lambda else 3) if writes else 0
    padded = triton.next_power_of_2(weights.width)
    with device_of(x):
        read_kernel[(len(slots), pieces + projections)](
            x, weights.inputs, weights.bias, pool, slots, buffers, outputs,
            pool if out is None else out, pool if gain is None else gain, weights.scales.get(head, 1.0),
            buffers.shape[1], weights.width if weights.rankwise_gates else weights.heads,
            x.stride(0), 0 if out is None else out.stride(0),
            D=x.shape[1], OUT=width, WIDTH=weights.width, RANK=weights.rank, N=padded,
            TILE=max(TILE, 16 * padded), SLICE=SLICE, PIECES=pieces, EPS=UNIT_EPS,
            RANKWISE=weights.rankwise_gates, NORMALIZE=weights.normalize_qk, CORRECTS=out is not None,
            GAIN=gain is not None, num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip


def steer(
    weights: StepWeights,
    pool: Tensor,
    slots: Tensor,
    buffers: Tensor,
    out: Tensor | None,
    head: Head,
    gain: Tensor | None,
    writes: bool | Tensor,
) -> None:
    """See ``delta_step.steer``."""
    outputs, width, pieces = _outputs(weights, out, head)
    pieces = pieces if out is not None else 0
    jobs = pieces + (writes is not False)
    if len(slots) == 0 or jobs == 0:
        return
    norm = weights.norm if head == "o" else None
    with device_of(pool):
        steer_kernel[(len(slots), jobs)](
            pool, slots, buffers, outputs, pool if out is None else out, pool if gain is None else gain,
            writes.view(torch.uint8) if isinstance(writes, Tensor) else slots,
            pool if norm is None else norm.weight, pool if norm is None else norm.gram,
            weights.scales.get(head, 1.0), buffers.shape[1], 0 if out is None else out.stride(0),
            OUT=width, WIDTH=weights.width, RANK=weights.rank, N=triton.next_power_of_2(weights.width),
            SLICE=SLICE, PIECES=pieces, MODE=weights.update_mode, EPS=0.0 if norm is None else norm.eps,
            OWN_LAMBDA=weights.own_lambda, NORM=norm is not None, GAIN=gain is not None,
            SOME=isinstance(writes, Tensor), num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip


def _outputs(weights: StepWeights, out: Tensor | None, head: Head) -> tuple[Tensor, int, int]:
    """The weights of the corrected head, its outputs, and into how many slices they fall; one where there is none."""
    if out is None:
        return weights.inputs, 1, 1
    outputs = weights.outputs[head]
    return outputs, len(outputs), triton.cdiv(len(outputs), SLICE)
