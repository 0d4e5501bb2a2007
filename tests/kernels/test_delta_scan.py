from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from memfold_kernels.delta_scan import delta_scan

FAST = ("torch", "cpu")
Inputs = tuple[Tensor, ...]


def inputs(
    batch: int, length: int, heads: int, rank: int, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    shape = (batch, length, heads, rank)
    q, k, v = (torch.randn(shape, generator=g, dtype=dtype) for _ in range(3))
    gates = (torch.rand(shape, generator=g, dtype=dtype) for _ in range(3))
    state = torch.randn(batch, heads, rank, rank, generator=g, dtype=dtype)
    return (normalize(q, dim=-1), normalize(k, dim=-1), v, *gates, state)


def close(a: Tensor, b: Tensor, limit: float) -> bool:
    return bool((a - b).abs().max() <= limit * (1 + b.abs().max()))


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(0, 70),
    heads=st.integers(1, 3),
    rank=st.sampled_from([1, 2, 3, 5, 8, 16]),
    seed=st.integers(0, 1000),
)
def test_every_shape_agrees_with_the_loop(
    backend: str, batch: int, length: int, heads: int, rank: int, seed: int
) -> None:
    x = inputs(batch, length, heads, rank, seed=seed)
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) > 0.3
    reads, state = delta_scan(*x, mask=mask, backend=backend)
    wanted_reads, wanted_state = delta_scan(*x, mask=mask, backend="naive")
    assert close(state, wanted_state, 1e-12)
    assert length == 0 or close(reads, wanted_reads, 1e-12)


@pytest.mark.parametrize("backend", FAST)
def test_gradients_agree_with_autograd_through_the_loop(backend: str) -> None:
    x = [t.requires_grad_() for t in inputs(2, 37, 2, 4)]
    mask = torch.rand(2, 37, generator=torch.Generator().manual_seed(1)) > 0.2

    def gradients(name: str) -> Inputs:
        reads, state = delta_scan(*x, mask=mask, backend=name)
        return torch.autograd.grad(reads.sin().sum() + state.cos().sum(), x)

    for got, wanted in zip(gradients(backend), gradients("naive"), strict=True):
        assert close(got, wanted, 1e-10)


@pytest.mark.parametrize("backend", FAST)
def test_gates_of_zero_and_one_are_hard(backend: str) -> None:
    q, k, v, keep, erase, write, state = inputs(1, 40, 2, 4)
    keep, erase, write = keep.round(), erase.round(), write.round()
    reads, after = delta_scan(q, k, v, keep, erase, write, state, backend=backend)
    wanted_reads, wanted = delta_scan(q, k, v, keep, erase, write, state, backend="naive")
    assert close(reads, wanted_reads, 1e-12)
    assert close(after, wanted, 1e-12)


@pytest.mark.parametrize("backend", ["naive", *FAST])
def test_a_masked_token_reads_nothing_and_changes_nothing(backend: str) -> None:
    x = inputs(2, 20, 1, 3)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    reads, state = delta_scan(*x, mask=mask, backend=backend)
    assert not reads.any()
    assert torch.equal(state, x[-1])


@pytest.mark.parametrize("backend", ["naive", *FAST])
def test_two_calls_are_one(backend: str) -> None:
    q, k, v, keep, erase, write, state = inputs(2, 30, 2, 4)
    _, whole = delta_scan(q, k, v, keep, erase, write, state, backend=backend)
    for part in (slice(0, 11), slice(11, 30)):
        _, state = delta_scan(*(t[:, part] for t in (q, k, v, keep, erase, write)), state, backend=backend)
    assert close(state, whole, 1e-12)


@pytest.mark.parametrize("backend", FAST)
def test_the_given_state_is_not_changed(backend: str) -> None:
    x = inputs(1, 5, 1, 2)
    before = x[-1].clone()
    delta_scan(*x, backend=backend)
    assert torch.equal(x[-1], before)


def test_errors_name_the_shape_expected_and_the_shape_got() -> None:
    x = inputs(1, 5, 1, 2)
    with pytest.raises(ValueError, match=r"state must be \(1, 1, 2, 2\), got \(1, 2, 2\)"):
        delta_scan(*x[:-1], x[-1][0])
    with pytest.raises(ValueError, match=r"v must have q's shape"):
        delta_scan(x[0], x[1], x[2][:, :3], *x[3:])
    with pytest.raises(ValueError, match="there are auto, naive, torch, cpu"):
        delta_scan(*x, backend="gpu")  # type: ignore[arg-type]
