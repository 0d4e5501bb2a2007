from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memfold_kernels.delta_step import StepWeights, read, steer, step_buffers

HIDDEN = 70
OUTS = {"q": 33, "k": 20, "o": 70}


def stacked(
    heads: int,
    rank: int,
    device: str,
    dtype: torch.dtype,
    *,
    rankwise: bool = True,
    own_lambda: bool = False,
    norm: bool = False,
    mode: str = "standard",
    normalized: bool = True,
) -> StepWeights:
    g = torch.Generator().manual_seed(heads + rank)
    width = heads * rank
    gates = width if rankwise else heads

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g) / shape[-1] ** 0.5).to(device, dtype)

    return StepWeights.stack(
        q=random(width, HIDDEN),
        k=random(width, HIDDEN),
        v=random(width, HIDDEN),
        beta=(random(gates, HIDDEN), random(gates)),
        lambda_=(random(gates, HIDDEN), random(gates)) if own_lambda else None,
        outputs={head: random(out, width) for head, out in OUTS.items()},
        scales={"q": 2.0, "k": 1.0, "o": 0.7},
        heads=heads,
        update_mode=mode,
        normalize_qk=normalized,
        o_norm=(random(OUTS["o"]), 1e-6) if norm else None,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "rank", "options"),
    [
        (1, 8, {}),
        (2, 3, {"rankwise": False, "own_lambda": True, "mode": "lambda_outside"}),
        (4, 2, {"normalized": False, "norm": True, "mode": "no_lambda"}),
        (1, 1, {"rankwise": False, "own_lambda": True}),
    ],
)
def test_both_launches_agree_with_the_formulas(
    device: str, dtype: torch.dtype, heads: int, rank: int, options: dict[str, object]
) -> None:
    weights = stacked(heads, rank, device, dtype, **options)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(2)
    x = torch.randn(4, HIDDEN, generator=g).to(device, dtype)
    x[2] *= 1e-3  # where tanh must not lose digits
    given = torch.randn(6, heads, rank, rank, generator=g).to(device)
    slots = torch.tensor([3, 0, 5, 1], dtype=torch.int32, device=device)
    gain = torch.tensor([1.0, 2.0, 0.5, 0.0], device=device)
    writes = torch.tensor([True, True, True, False], device=device)
    given_outs = {head: torch.randn(4, out, generator=g).to(device, dtype) for head, out in OUTS.items()}
    results = []
    for backend in ("triton", "naive"):
        pool, outs = given.clone(), {head: out.clone() for head, out in given_outs.items()}
        buffers = step_buffers(weights, 6).fill_(torch.nan)
        read(weights, x, pool, slots, buffers, out=outs["q"], gain=gain, writes=True, backend=backend)
        steer(weights, pool, slots, buffers, out=outs["k"], head="k", backend=backend)
        steer(weights, pool, slots, buffers, out=outs["o"], gain=gain, writes=writes, backend=backend)
        results.append((pool, outs))
    (pool, outs), (wanted_pool, wanted_outs) = results
    torch.testing.assert_close(pool, wanted_pool, rtol=1e-5, atol=1e-5)
    for head, out in outs.items():
        torch.testing.assert_close(out, wanted_outs[head])
    assert torch.equal(pool[[0, 1, 2, 4]], given[[0, 1, 2, 4]])
    assert torch.equal(outs["q"][[1, 3]], given_outs["q"][[1, 3]])


def test_each_launch_can_go_without_its_other_half(device: str) -> None:
    weights = stacked(1, 4, device, torch.float32, norm=True)
    x, given = torch.randn(2, HIDDEN, device=device), torch.randn(3, 1, 4, 4, device=device)
    slots, results = torch.tensor([2, 1], device=device), []
    for backend in ("triton", "naive"):
        pool, buffers = given.clone(), step_buffers(weights, 2)
        read(weights, x, pool, slots, buffers, writes=True, backend=backend)
        steer(weights, pool, slots, buffers, writes=True, backend=backend)
        out = torch.zeros(2, OUTS["o"], device=device)
        read(weights, x, pool, slots, buffers, backend=backend)
        steer(weights, pool, slots, buffers, out=out, backend=backend)
        at_once = torch.zeros_like(out)
        read(weights, x, pool, slots, buffers, out=at_once, head="o", backend=backend)
        results.append((pool, out, at_once))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_correction_of_nearly_nothing_is_normed_to_something_finite(device: str) -> None:
    """The columns of W are nearly one: of large reads little is left, whose mean square must not come out negative."""
    column = torch.randn(OUTS["o"], 1, generator=torch.Generator().manual_seed(0))
    weight = torch.cat([column, column / 3, column / 7, column / 11], 1).to(device)
    zeros = torch.zeros(4, HIDDEN, device=device)
    weights = StepWeights.stack(
        q=zeros,
        k=zeros,
        v=zeros,
        beta=(zeros, zeros[:, 0]),
        outputs={"o": weight},
        scales={"o": 1.0},
        heads=1,
        o_norm=(torch.ones(OUTS["o"], device=device), 1e-6),
    )
    reads = torch.tensor([[1.0, -3, 0, 0], [1, 0, -7, 0], [0, 3, 7, -22], [3, 2, -7, -29.333334]]) * 1e4
    buffers, slots = step_buffers(weights, 4), torch.arange(1, 5, device=device)
    buffers[0] = reads.to(device)
    out, pool = torch.zeros(4, OUTS["o"], device=device), torch.zeros(5, 1, 4, 4, device=device)
    steer(weights, pool, slots, buffers, out=out, backend="triton")
    assert out.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_replays_the_step() -> None:
    weights = stacked(1, 8, "cuda", torch.bfloat16)
    x = torch.randn(3, HIDDEN, device="cuda", dtype=torch.bfloat16)
    slots, writes = torch.tensor([1, 2, 3], device="cuda"), torch.ones(3, dtype=torch.bool, device="cuda")
    pool, buffers = torch.randn(5, 1, 8, 8, device="cuda"), step_buffers(weights, 3)
    outs = {head: torch.zeros(3, OUTS[head], device="cuda", dtype=torch.bfloat16) for head in ("q", "o")}

    def step(states: Tensor, q: Tensor, o: Tensor) -> None:
        read(weights, x, states, slots, buffers, out=q, writes=True)
        steer(weights, states, slots, buffers, out=o, writes=writes)

    step(pool.clone(), outs["q"].clone(), outs["o"].clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(pool, outs["q"], outs["o"])
    slots.copy_(torch.tensor([4, 0, 1]))
    writes.copy_(torch.tensor([False, True, True]))
    wanted = [t.clone() for t in (pool, outs["q"], outs["o"])]
    step(*wanted)
    graph.replay()
    for got, expected in zip((pool, outs["q"], outs["o"]), wanted, strict=True):
        assert torch.equal(got, expected)
