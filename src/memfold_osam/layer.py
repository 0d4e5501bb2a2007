"""One layer's share of the memory: its weights, and the formulas around the scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from memfold_kernels.delta_scan import delta_scan
from memfold_osam.config import AdapterConfig, Head
from memfold_osam.units import Items, Rows

HEADS: tuple[Head, ...] = ("q", "k", "v", "o")
UNIT_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Projections:
    """What writes are made of: (..., H, r) each."""

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
        outputs: output features of those of the q, k, v, o projections that the block has.
    """

    memory_q_proj: nn.Parameter
    memory_k_proj: nn.Parameter
    memory_v_proj: nn.Parameter

    def __init__(self, config: AdapterConfig, hidden: int, outputs: dict[Head, int]) -> None:
        super().__init__()
        self.config = config
        # The projections that a write is made of.
        self._writing = ["memory_k_proj", "memory_v_proj", "beta_proj"]
        self._writing += [] if config.couple_lambda else ["lambda_proj"]
        for name in ("q", "k", "v"):
            weight = nn.Parameter(torch.empty(config.width, hidden))
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            self.register_parameter(f"memory_{name}_proj", weight)
        self.beta_proj = nn.Parameter(torch.zeros(config.gates, hidden))
        self.beta_bias = nn.Parameter(torch.full((config.gates,), config.beta_bias_init))
        if not config.couple_lambda:
            self.lambda_proj = nn.Parameter(torch.zeros(config.gates, hidden))
            self.lambda_bias = nn.Parameter(torch.full((config.gates,), -config.beta_bias_init))
        for head, features in outputs.items():
            weight = nn.Parameter(torch.zeros(features, config.width), requires_grad=head in config.delta_heads)
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
                    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
                    weight.mul_(config.online_gain)
                elif config.output_init == "base_slice_fixed":
                    columns = bases[head][:, : min(config.base_slice_ref_width, config.rank)]
                    units = functional.normalize(columns, dim=0, eps=UNIT_EPS)
                    weight[:, : units.shape[1]] = units * config.online_gain

    def _heads(self, x: Tensor) -> Tensor:
        """(..., n) to (..., H, r)."""
        return x.view(*x.shape[:-1], self.config.num_state_heads, self.config.rank)

    def _unit(self, x: Tensor) -> Tensor:
        heads = self._heads(x)
        return functional.normalize(heads.tanh(), dim=-1, eps=UNIT_EPS) if self.config.normalize_qk else heads

    def _gate(self, logits: Tensor) -> Tensor:
        """Logits (..., g) to gates on the rows of the state, (..., H, r)."""
        gates = logits.sigmoid()
        return self._heads(gates if self.config.rankwise_gates else gates.repeat_interleave(self.config.rank, -1))

    def _project(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Several projections of (..., D) side by side: one product, which reads ``x`` once."""
        weight = torch.cat([getattr(self, name) for name in names])
        return _at_least_fp32(functional.linear(x.to(weight.dtype), weight))

    def _written(self, projected: Tensor) -> Projections:
        """Keys, values and gates from the ``_writing`` projections."""
        sizes = [len(getattr(self, name)) for name in self._writing]
        k, v, beta_logits, *lambda_logits = torch.split(projected, sizes, -1)
        beta = self._gate(beta_logits + self.beta_bias)
        lam = self._gate(lambda_logits[0] + self.lambda_bias) if lambda_logits else 1.0 - beta
        keep, erase = lam, beta
        if self.config.state_update_mode == "lambda_outside":
            erase = lam * beta
        elif self.config.state_update_mode == "no_lambda":
            keep = torch.ones_like(beta)
        return Projections(self._unit(k), self._heads(v), keep, erase, beta)

    def queries(self, x: Tensor) -> Tensor:
        """What each token asks the state for: (B, T, D) to (B, T, H, r)."""
        weight = self.memory_q_proj
        return self._unit(_at_least_fp32(functional.linear(x.to(weight.dtype), weight)))

    def read(self, x: Tensor, state: Tensor, rows: Rows) -> Tensor:
        """All tokens of a sequence read the same state: (B, T, D), (N, H, r, r) to (B, T, H, r)."""
        q = self.queries(x)
        if rows.cu_seqlens is None:
            return torch.einsum("bthj,bhij->bthi", q, state)
        return (state[rows.row] @ q[0, ..., None]).squeeze(-1)[None]

    def read_and_write(
        self, x: Tensor, state: Tensor, mask: Tensor | None, writes: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Each token reads the state before it and then writes.

        Args:
            x: (B, T, D).
            state: (N, H, r, r).
            mask: (B, T), which tokens are real; all where it is None.
            writes: (B, T), which of them write; all where it is None.
            cu_seqlens: (N + 1,), where N sequences are packed in (1, sum T); no gradients then.

        Returns:
            The reads (B, T, H, r) and the state after the last token.
        """
        projected = self._project(x, ["memory_q_proj", *self._writing])
        width = self.config.width
        q, p = self._unit(projected[..., :width]), self._written(projected[..., width:])
        keep, erase, write = p.keep, p.erase, p.write
        if writes is not None:
            off = ~writes[:, :, None, None]
            keep, erase, write = keep.masked_fill(off, 1.0), erase.masked_fill(off, 0.0), write.masked_fill(off, 0.0)
        if cu_seqlens is None:
            return delta_scan(q, p.k, p.v, keep, erase, write, state, mask=mask)
        pool = torch.cat([torch.zeros_like(state[:1]), state])
        slots = torch.arange(1, len(pool), device=pool.device)
        reads, pool = delta_scan(
            q, p.k, p.v, keep, erase, write, pool, mask=mask, cu_seqlens=cu_seqlens, state_slots=slots
        )
        return reads, pool[1:]

    def sum_units(self, x: Tensor, items: Items, count: int, so_far: Tensor | None) -> Tensor:
        """Add a call's tokens to their units.

        A mean is projected by projecting its tokens: a few numbers are summed instead of D, and in fp32.

        Args:
            x: (B, T, D).
            items: which units the tokens are of.
            count: units in all.
            so_far: (count, n), what earlier calls brought; None where there were none.

        Returns:
            Sums of the ``_writing`` projections, (count, n).
        """
        projected = self._project(x, self._writing).flatten(0, 1)
        # One row more, for the tokens that are of no unit.
        sums = projected.new_zeros(count + 1, projected.shape[1]).index_add(0, items.token_unit, projected)[:count]
        return sums if so_far is None else so_far + sums

    def read_and_write_units(self, x: Tensor, state: Tensor, items: Items, means: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens read and units write, in the order of the items.

        Args:
            x: (B, T, D).
            state: (N, H, r, r).
            items: of the call.
            means: of all units, from ``sum_units``.

        Returns:
            The reads (B, T, H, r) and the state after the last item.
        """
        q, p = self.queries(x), self._written(means[items.units])
        reading, writing = (items.token_row, items.token_place), (items.unit_row, items.unit_place)
        nothing = q.new_zeros(len(state), items.length, *q.shape[2:])
        reads, state = delta_scan(
            nothing.index_put(reading, q.flatten(0, 1)),
            nothing.index_put(writing, p.k),
            nothing.index_put(writing, p.v),
            (nothing + 1.0).index_put(writing, p.keep),
            nothing.index_put(writing, p.erase),
            nothing.index_put(writing, p.write),
            state,
        )
        return reads[reading].view(q.shape), state

    def correction(self, head: Head, reads: Tensor, gain: Tensor | float, dtype: torch.dtype) -> Tensor:
        """What is added to a projection's output: (B, T, H, r) to (B, T, out) in ``dtype``."""
        weight: Tensor = getattr(self, f"delta_{head}_proj")
        delta = functional.linear(reads.flatten(-2).to(weight.dtype), weight) * (self.config.alpha / self.config.rank)
        if self.config.trainable_delta_scale:
            scale = self.delta_scale_raw.sigmoid() * self.config.delta_scale_max
            delta = delta * scale[HEADS.index(head) if len(scale) > 1 else 0]
        if head == "o" and self.config.delta_o_rmsnorm:
            weight, eps = _at_least_fp32(self.delta_o_rmsnorm_weight), self.config.delta_o_rmsnorm_eps
            delta = functional.rms_norm(_at_least_fp32(delta), delta.shape[-1:], weight, eps)
        return (delta * gain).to(dtype)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
