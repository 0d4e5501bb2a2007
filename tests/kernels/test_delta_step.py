from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from memfold_kernels.delta_scan import naive as scan
from memfold_kernels.delta_step import StepWeights, read, steer, step_buffers

ROWS, HIDDEN = 3, 20
OUTS = {"q": 12, "k": 6, "v": 6, "o": 20}


def adapter(heads: int, rank: int, rankwise: bool, own_lambda: bool) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(heads + rank)
    width = heads * rank
    gates = width if rankwise else heads
    shapes = {"q": (width, HIDDEN), "k": (width, HIDDEN), "v": (width, HIDDEN)}
    shapes |= {"beta": (gates, HIDDEN), "beta_bias": (gates,)}
    if own_lambda:
        shapes |= {"lambda": (gates, HIDDEN), "lambda_bias": (gates,)}
    shapes |= {f"delta_{head}": (out, width) for head, out in OUTS.items()}
    return {name: torch.randn(shape, generator=g, dtype=torch.float64) / 4 for name, shape in shapes.items()}


def stacked(p: dict[str, Tensor], heads: int, **options: object) -> StepWeights:
    return StepWeights.stack(
        q=p["q"],
        k=p["k"],
        v=p["v"],
        beta=(p["beta"], p["beta_bias"]),
        lambda_=(p["lambda"], p["lambda_bias"]) if "lambda" in p else None,
        outputs={head: p[f"delta_{head}"] for head in OUTS},
        scales={"q": 2.0, "k": 1.0, "v": 0.5, "o": 3.0},
        heads=heads,
        **options,  # type: ignore[arg-type]
    )


def buffers_of(weights: StepWeights) -> Tensor:
    return step_buffers(weights, ROWS + 1).double().fill_(torch.nan)


@pytest.mark.parametrize("mode", ["standard", "lambda_outside", "no_lambda"])
@pytest.mark.parametrize(
    ("heads", "rank", "rankwise", "own_lambda", "normalized"),
    [(1, 4, True, False, True), (2, 3, False, True, True), (3, 2, True, True, False), (2, 2, False, False, True)],
)
def test_a_step_is_one_token_of_the_scan(
    mode: str, heads: int, rank: int, rankwise: bool, own_lambda: bool, normalized: bool
) -> None:
    p = adapter(heads, rank, rankwise, own_lambda)
    weights = stacked(p, heads, update_mode=mode, normalize_qk=normalized)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, HIDDEN, generator=g, dtype=torch.float64)
    pool = torch.randn(5, heads, rank, rank, generator=g, dtype=torch.float64)
    slots, before = torch.tensor([4, 1, 2]), pool.clone()

    def by_head(y: Tensor) -> Tensor:
        return y.view(ROWS, 1, heads, -1).expand(ROWS, 1, heads, rank)

    def unit(y: Tensor) -> Tensor:
        return normalize(by_head(y).tanh(), dim=-1) if normalized else by_head(y)

    q, k, v = unit(linear(x, p["q"])), unit(linear(x, p["k"])), by_head(linear(x, p["v"]))
    beta = by_head(linear(x, p["beta"], p["beta_bias"]).sigmoid())
    lambda_ = by_head(linear(x, p["lambda"], p["lambda_bias"]).sigmoid()) if own_lambda else 1 - beta
    keep = torch.ones_like(lambda_) if mode == "no_lambda" else lambda_
    erase = lambda_ * beta if mode == "lambda_outside" else beta
    reads, after = scan.scan(q, k, v, keep, erase, beta, before[slots])

    buffers, outs = buffers_of(weights), {h: torch.randn(ROWS, n, dtype=torch.float64) for h, n in OUTS.items()}
    wanted = {
        h: out + linear(reads.flatten(1), p[f"delta_{h}"]) * weights.scales[h]  # type: ignore[index]
        for h, out in outs.items()
    }
    read(weights, x, pool, slots, buffers, out=outs["q"], head="q", writes=True)
    steer(weights, pool, slots, buffers, out=outs["k"], head="k")
    steer(weights, pool, slots, buffers, out=outs["v"], head="v")
    assert torch.equal(pool, before)
    steer(weights, pool, slots, buffers, out=outs["o"], head="o", writes=True)
    for head, out in outs.items():
        torch.testing.assert_close(out, wanted[head])
    torch.testing.assert_close(pool[slots], after)
    assert torch.equal(pool[[0, 3]], before[[0, 3]])


def test_padding_and_rows_that_may_not_write_leave_the_pool_alone() -> None:
    weights = stacked(adapter(1, 4, True, False), 1)
    x, pool = torch.randn(ROWS, HIDDEN, dtype=torch.float64), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    before, out = pool.clone(), torch.randn(ROWS, OUTS["q"], dtype=torch.float64)
    corrected, slots, buffers = out.clone(), torch.tensor([0, 3, 2]), buffers_of(weights)
    read(weights, x, pool, slots, buffers, out=corrected, writes=True)
    steer(weights, pool, slots, buffers, writes=torch.tensor([True, False, True]))
    assert torch.equal(corrected[0], out[0])
    assert not torch.equal(corrected[1], out[1])
    assert torch.equal(pool[[0, 1, 3, 4]], before[[0, 1, 3, 4]])
    assert not torch.equal(pool[2], before[2])


def test_a_gain_scales_the_correction_after_its_norm() -> None:
    p = adapter(1, 4, True, False)
    weights = stacked(p, 1, o_norm=(torch.rand(OUTS["o"], dtype=torch.float64), 1e-6))
    x, pool = torch.randn(ROWS, HIDDEN, dtype=torch.float64), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    slots, buffers, results = torch.tensor([1, 2, 3]), buffers_of(weights), []
    for gain in (None, torch.tensor([0.0, 1.0, 0.5])):
        out = torch.zeros(ROWS, OUTS["o"], dtype=torch.float64)
        read(weights, x, pool, slots, buffers)
        steer(weights, pool, slots, buffers, out=out, gain=gain)
        results.append(out)
    plain, scaled = results
    assert weights.norm is not None
    rms = (plain / weights.norm.weight).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.ones(ROWS, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled, plain * torch.tensor([0.0, 1.0, 0.5])[:, None])


def test_errors_name_what_was_expected_and_what_was_given() -> None:
    p = adapter(1, 4, True, False)
    weights = stacked(p, 1)
    x, pool, slots = torch.randn(ROWS, HIDDEN), torch.randn(5, 1, 4, 4), torch.tensor([1, 2, 3])
    buffers = step_buffers(weights, ROWS)
    with pytest.raises(ValueError, match=r"x must be \(3, 20\), got \(3, 19\)"):
        read(weights, x[:, 1:], pool, slots, buffers)
    with pytest.raises(ValueError, match=r"out must be \(3, 12\)"):
        read(weights, x, pool, slots, buffers, out=torch.zeros(3, 11))
    with pytest.raises(ValueError, match=r"buffers must be \(5, 3 or more, 4\)"):
        read(weights, x, pool, slots, buffers[:, :2])
    with pytest.raises(ValueError, match=r"writes must be \(3,\) booleans"):
        steer(weights, pool, slots, buffers, writes=torch.ones(3))
    with pytest.raises(ValueError, match=r"k must have q's shape"):
        stacked({**p, "k": p["k"][1:]}, 1)
