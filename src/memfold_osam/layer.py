"""One layer's share of the memory: its weights, and the formulas around the scan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from memfold_kernels.delta_scan import delta_scan
from memfold_osam.config import AdapterConfig, Head

HEADS: tuple[Head, ...] = ("q", "k", "v", "o")
UNIT_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Projections:
    """What the writes of a layer need: (B, T, H, r) each."""

    k: Tensor
    v: Tensor
    keep: Tensor
    erase: Tensor
    write: Tensor


class LayerMemory(nn.Module):
    """The adapter's parameters in one attention block.

    Args:
        config: of the whole adapter.
        hidden: width of the attention block's input.
        outputs: output features of each of the block's q, k, v, o projections.
    """

    memory_q_proj: nn.Parameter
    memory_k_proj: nn.Parameter
    memory_v_proj: nn.Parameter

    def __init__(self, config: AdapterConfig, hidden: int, outputs: dict[Head, int]) -> None:
        super().__init__()
        self.config = config
        for name in ("q", "k", "v"):
            weight = nn.Parameter(torch.empty(config.width, hidden))
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            self.register_parameter(f"memory_{name}_proj", weight)
        self.beta_proj = nn.Parameter(torch.zeros(config.gates, hidden))
        self.beta_bias = nn.Parameter(torch.full((config.gates,), config.beta_bias_init))
        if not config.couple_lambda:
            self.lambda_proj = nn.Parameter(torch.zeros(config.gates, hidden))
            self.lambda_bias = nn.Parameter(torch.full((config.gates,), -config.beta_bias_init))
        for head in HEADS:
            weight = nn.Parameter(torch.zeros(outputs[head], config.width), requires_grad=head in config.delta_heads)
            self.register_parameter(f"delta_{head}_proj", weight)
        if config.delta_o_rmsnorm:
            self.delta_o_rmsnorm_weight = nn.Parameter(torch.ones(outputs["o"]))
        if config.trainable_delta_scale:
            share = config.delta_scale_init / config.delta_scale_max
            raw = torch.full((1 if config.delta_scale_granularity == "layer" else 4,), math.log(share / (1 - share)))
            self.delta_scale_raw = nn.Parameter(raw)

    def init_outputs(self, bases: dict[Head, Tensor]) -> None:
        """Start the corrections for training: all zero, no gradient would ever reach the memory.

        Args:
            bases: weight of each of the block's projections, (out, in).
        """
        config = self.config
        for head in config.delta_heads:
            weight: nn.Parameter = getattr(self, f"delta_{head}_proj")
            with torch.no_grad():
                weight.zero_()
                if config.output_init == "random":
                    nn.init.normal_(weight, std=config.online_gain)
                elif config.output_init == "base_slice_fixed":
                    columns = min(config.base_slice_ref_width, config.width)
                    weight[:, :columns] = functional.normalize(bases[head][:, :columns], dim=0) * config.online_gain

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, n) to fp32 (B, T, H, r)."""
        x = x if x.dtype == torch.float64 else x.float()
        return x.view(*x.shape[:-1], self.config.num_state_heads, self.config.rank)

    def _unit(self, x: Tensor) -> Tensor:
        heads = self._heads(x)
        return functional.normalize(heads.tanh(), dim=-1, eps=UNIT_EPS) if self.config.normalize_qk else heads

    def _gate(self, logits: Tensor) -> Tensor:
        """(B, T, g) logits to fp32 gates (B, T, H, r)."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        gates = logits.sigmoid()
        if self.config.rankwise_gates:
            return gates.view(*gates.shape[:-1], self.config.num_state_heads, self.config.rank)
        return gates[..., None].expand(*gates.shape, self.config.rank)

    def queries(self, x: Tensor) -> Tensor:
        """What each token asks the state for: (B, T, D) to (B, T, H, r)."""
        return self._unit(functional.linear(x, self.memory_q_proj))

    def projections(self, x: Tensor) -> Projections:
        """What each token would write: keys, values and gates of (B, T, D)."""
        beta = self._gate(functional.linear(x, self.beta_proj, self.beta_bias))
        if self.config.couple_lambda:
            lam = 1.0 - beta
        else:
            lam = self._gate(functional.linear(x, self.lambda_proj, self.lambda_bias))
        keep, erase = lam, beta
        if self.config.state_update_mode == "lambda_outside":
            erase = lam * beta
        elif self.config.state_update_mode == "no_lambda":
            keep = torch.ones_like(beta)
        k = self._unit(functional.linear(x, self.memory_k_proj))
        v = self._heads(functional.linear(x, self.memory_v_proj))
        return Projections(k, v, keep, erase, beta)

    def read(self, x: Tensor, state: Tensor) -> Tensor:
        """All tokens read the same state: (B, T, D), (B, H, r, r) to (B, T, H, r)."""
        return torch.einsum("bthj,bhij->bthi", self.queries(x), state)

    def read_and_write(
        self, x: Tensor, state: Tensor, reads: Tensor | None, writes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Each token reads the state before it and then writes.

        Args:
            x: (B, T, D).
            state: (B, H, r, r).
            reads: (B, T), which tokens are real; all where it is None.
            writes: (B, T), which of them write; all where it is None.

        Returns:
            The reads (B, T, H, r) and the state after the last token.
        """
        p = self.projections(x)
        keep, erase, write = p.keep, p.erase, p.write
        if writes is not None:
            on = writes[:, :, None, None]
            keep, erase, write = keep.masked_fill(~on, 1.0), erase.masked_fill(~on, 0.0), write.masked_fill(~on, 0.0)
        return delta_scan(self.queries(x), p.k, p.v, keep, erase, write, state, mask=reads)

    def write_segments(self, x: Tensor, state: Tensor, ids: Tensor) -> Tensor:
        """Write the mean of each segment once, in the order of their ids.

        Args:
            x: (B, T, D).
            state: (B, H, r, r).
            ids: (B, T), the segment of each token; -1 for none.
        """
        segments = int(ids.max()) + 1
        if segments == 0:
            return state
        member = functional.one_hot(ids.clamp_min(0), segments).to(x.dtype) * (ids >= 0).to(x.dtype)[..., None]
        count = member.sum(1)
        mean = torch.einsum("bts,btd->bsd", member, x) / count.clamp_min(1)[..., None]
        p = self.projections(mean)
        return delta_scan(torch.zeros_like(p.k), p.k, p.v, p.keep, p.erase, p.write, state, mask=count > 0)[1]

    def correction(self, head: Head, reads: Tensor, gain: Tensor | float, dtype: torch.dtype) -> Tensor:
        """What is added to a projection's output: (B, T, H, r) to (B, T, out) in ``dtype``."""
        weight: Tensor = getattr(self, f"delta_{head}_proj")
        delta = functional.linear(reads.flatten(-2).to(weight.dtype), weight) * (self.config.alpha / self.config.rank)
        if head == "o" and self.config.delta_o_rmsnorm:
            delta = functional.rms_norm(delta.float(), delta.shape[-1:], eps=self.config.delta_o_rmsnorm_eps)
            delta = delta * self.delta_o_rmsnorm_weight
        if self.config.trainable_delta_scale:
            scale = self.delta_scale_raw.sigmoid() * self.config.delta_scale_max
            delta = delta * scale[HEADS.index(head) if len(scale) > 1 else 0]
        return (delta * gain).to(dtype)
