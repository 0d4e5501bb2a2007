from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from memfold_kernels.delta_scan import naive as scan
from memfold_kernels.delta_step import StepWeights, cpu_reads, read, steer, step_buffers

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


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("rows", "heads", "rank", "hidden"), [(1, 1, 8, 33), (5, 4, 8, 128), (3, 2, 5, 7)])
def test_what_is_compiled_for_rows_that_only_read_reads_the_same(
    rows: int, heads: int, rank: int, hidden: int, normalized: bool
) -> None:
    g = torch.Generator().manual_seed(rows)
    x, query = torch.randn(rows, 1, hidden, generator=g), torch.randn(heads * rank, hidden, generator=g)
    states = torch.randn(rows, heads, rank, rank, generator=g)
    x[-1] = 0.0  # a query without a direction
    assert cpu_reads.takes(x, query, states)
    found = cpu_reads.read(x, query, states, normalized)
    q = linear(x.double(), query.double()).view(rows, heads, rank)
    q = normalize(q.tanh(), dim=-1, eps=1e-6) if normalized else q
    wanted = torch.einsum("bhij,bhj->bhi", states.double(), q)[:, None]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_in_its_row() -> None:
    x, query, states = torch.ones(3, 1, 4), torch.ones(4, 4), torch.ones(3, 1, 4, 4)
    x[1], states[2] = torch.nan, torch.inf
    found = cpu_reads.read(x, query, states, normalize=True)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()
    assert found[2].isinf().all()


def test_what_is_large_or_of_another_form_is_left_to_others() -> None:
    x, query, states = torch.zeros(2, 1, 8), torch.zeros(8, 8), torch.zeros(2, 1, 8, 8)
    assert cpu_reads.takes(x, query, states)
    assert not cpu_reads.takes(torch.zeros(2, 2, 8), query, states)
    assert not cpu_reads.takes(x.double(), query, states)
    assert not cpu_reads.takes(x, query, states.mT)
    assert not cpu_reads.takes(torch.zeros(2, 1, 1 << 18), torch.zeros(8, 1 << 18), states)
