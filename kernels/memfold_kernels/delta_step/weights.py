"""One layer's adapter as the step wants it: everything that is projected from the input in one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Head = Literal["q", "k", "v", "o"]
UpdateMode = Literal["standard", "lambda_outside", "no_lambda"]


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """The norm over the corrections of head ``o``, without a sum over them.

    The mean square of ``W m`` is ``m^T (W^T W / out) m``: an n x n form that is computed once, so that each
    slice of the output can be normed by itself. In fp32 it is exact to a thousandth where the correction is at least
    a hundredth of what its terms are; of one that cancels further the norm is too small.

    Attributes:
        weight: (out,).
        gram: (n, n), of the scaled correction's weights, divided by ``out``.
        eps: added to the mean square.
    """

    weight: Tensor
    gram: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class StepWeights:
    """One layer's weights, laid out once; ``n`` is heads * rank, ``D`` the width of the attention block's input.

    Attributes:
        inputs: (m, D): n rows each of the projections to q, k and v; then of beta, n or ``heads``; then, where lambda
            is not 1 - beta, as many of lambda.
        bias: (m,), fp32; zeros for q, k and v.
        outputs: of each corrected head, (out, n).
        scales: what multiplies each head's correction.
        heads, rank: of the state.
        rankwise_gates: a gate a row of the state, instead of one a head.
        own_lambda: lambda is projected too.
        normalize_qk: q and k are tanh-ed and of unit length per head.
        update_mode: how keep and erase follow from the gates.
        norm: over the corrections of head ``o``; None for none.
    """

    inputs: Tensor
    bias: Tensor
    outputs: Mapping[Head, Tensor]
    scales: Mapping[Head, float]
    heads: int
    rank: int
    rankwise_gates: bool
    own_lambda: bool
    normalize_qk: bool
    update_mode: UpdateMode
    norm: RmsNorm | None

    @classmethod
    def stack(
        cls,
        *,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: tuple[Tensor, Tensor],
        lambda_: tuple[Tensor, Tensor] | None = None,
        outputs: Mapping[Head, Tensor],
        scales: Mapping[Head, float],
        heads: int,
        normalize_qk: bool = True,
        update_mode: UpdateMode = "standard",
        o_norm: tuple[Tensor, float] | None = None,
    ) -> StepWeights:
        """Lay out an adapter's parameters.

        Args:
            q, k, v: (n, D).
            beta: weight (g, D) and bias (g,), g being n or ``heads``.
            lambda_: the same of lambda; 1 - beta where it is None.
            outputs: of each corrected head, (out, n).
            scales: of each corrected head: alpha / rank, times its trained scale where there is one.
            heads: state heads.
            normalize_qk, update_mode: see ``StepWeights``.
            o_norm: weight (out,) and eps of the norm over o's corrections.

        Raises:
            ValueError: shapes do not fit; names the expected and the given one.
        """
        width, hidden = q.shape
        gates = [beta] if lambda_ is None else [beta, lambda_]
        for name, weight in {"k": k, "v": v}.items():
            if weight.shape != q.shape:
                raise ValueError(f"{name} must have q's shape {tuple(q.shape)}, got {tuple(weight.shape)}")
        for weight, bias in gates:
            if weight.shape not in ((width, hidden), (heads, hidden)) or bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"a gate must be ({width} or {heads}, {hidden}) with a bias of as many, "
                    f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
                )
        for head, weight in outputs.items():
            if weight.ndim != 2 or weight.shape[1] != width:
                raise ValueError(f"the outputs of {head} must be (out, {width}), got {tuple(weight.shape)}")
        with torch.no_grad():
            norm = None
            if o_norm is not None and "o" in outputs:
                scaled = outputs["o"].float() * scales["o"]
                norm = RmsNorm(o_norm[0].contiguous(), scaled.T @ scaled / len(scaled), o_norm[1])
            return cls(
                inputs=torch.cat([q, k, v, *(weight for weight, _ in gates)]),
                bias=torch.cat([q.new_zeros(3 * width, dtype=torch.float32), *(b.float() for _, b in gates)]),
                outputs={head: weight.contiguous() for head, weight in outputs.items()},
                scales=dict(scales),
                heads=heads,
                rank=width // heads,
                rankwise_gates=len(beta[0]) == width,
                own_lambda=lambda_ is not None,
                normalize_qk=normalize_qk,
                update_mode=update_mode,
                norm=norm,
            )

    @property
    def width(self) -> int:
        """Numbers that one token reads or writes: heads * rank."""
        return self.heads * self.rank
