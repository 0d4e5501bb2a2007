"""A layer's reads and corrections without gradients: the same formulas in as few operations as there can be.

While a token is decoded, a layer's own work takes microseconds, and so does every view of a tensor. What can be made
once is made once.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from memfold_osam.config import AdapterConfig, Head
from memfold_osam.layer import UNIT_EPS, LayerMemory


def can_step(config: AdapterConfig) -> bool:
    """Whether every correction is one product and nothing after it."""
    return not (config.trainable_delta_scale or config.delta_o_rmsnorm)


class LayerStep:
    """Views of one layer's weights. They change with the weights, as long as these are where they were.

    Args:
        layer: of an adapter of which ``can_step`` holds.
    """

    def __init__(self, layer: LayerMemory) -> None:
        config = layer.config
        self._query = layer.memory_q_proj.detach()
        self._query_columns = self._query.t()
        self._outputs: dict[Head, Tensor] = {
            head: getattr(layer, f"delta_{head}_proj").detach().t() for head in config.delta_heads
        }
        self._scale = config.alpha / config.rank
        self._heads, self._rank = config.num_state_heads, config.rank
        self._normalize = config.normalize_qk
        self._compiled = _compiled_for(self._query)

    def fits(self, layer: LayerMemory) -> bool:
        """Whether the layer's weights are where they were."""
        return self._query.data_ptr() == layer.memory_q_proj.data_ptr()

    def read(self, x: Tensor, state: Tensor) -> Tensor:
        """What each token reads: (B, T, D), (B, H, r, r) to (B, T, H, r)."""
        if x.dtype != self._query.dtype:
            x = x.to(self._query.dtype)
        if self._compiled is not None and self._compiled.takes(x, self._query, state):
            reads: Tensor = self._compiled.read(x, self._query, state, self._normalize)
            return reads
        q = torch.mm(x.reshape(-1, x.shape[-1]), self._query_columns).view(*x.shape[:2], self._heads, self._rank)
        if q.dtype != state.dtype:
            q = q.to(state.dtype)
        if self._normalize:
            q = q.tanh_()
            q = q.div_(torch.linalg.vector_norm(q, dim=-1, keepdim=True).clamp_min_(UNIT_EPS))
        if q.shape[1] == 1:
            return torch.bmm(state.flatten(0, 1), q.view(-1, self._rank, 1)).view(q.shape)
        return torch.einsum("bthj,bhij->bthi", q, state)

    def correct(self, head: Head, output: Tensor, reads: Tensor, gain: float | Tensor) -> Tensor:
        """Add the correction for ``reads``, (B, T, H, r), to a projection's output (B, T, out), in place.

        Args:
            gain: a number, or one that fits (B, T, out).
        """
        weight, scale = self._outputs[head], self._scale
        if isinstance(gain, Tensor):
            reads = reads * gain[..., None]
        else:
            scale *= gain
        if reads.dtype != weight.dtype:
            reads = reads.to(weight.dtype)
        rows = reads.reshape(-1, weight.shape[0])
        if output.dtype == weight.dtype and output.is_contiguous():
            output.view(-1, weight.shape[1]).addmm_(rows, weight, alpha=scale)
            return output
        return output + (torch.mm(rows, weight) * scale).view(output.shape).to(output.dtype)


def _compiled_for(weight: Tensor) -> ModuleType | None:
    """Compiled reads for weights like this, where there are some, and numba to compile them."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    try:
        from memfold_kernels.delta_step import cpu_reads  # noqa: PLC0415 - needs a compiler, and only here
    except ImportError:
        return None
    return cpu_reads
