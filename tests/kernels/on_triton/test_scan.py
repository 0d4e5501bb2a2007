from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from memfold_kernels.delta_scan import delta_scan, naive, triton_scan

Inputs = tuple[Tensor, ...]


def inputs(
    batch: int, length: int, heads: int, rank: int, device: str, *, dtype: torch.dtype = torch.float64
) -> Inputs:
    g = torch.Generator().manual_seed(batch + length + heads + rank)
    shape = (batch, length, heads, rank)
    q, k, v = (torch.randn(shape, generator=g, dtype=dtype) for _ in range(3))
    gates = (torch.rand(shape, generator=g, dtype=dtype) for _ in range(3))
    state = torch.randn(batch, heads, rank, rank, generator=g, dtype=dtype)
    return tuple(x.to(device) for x in (normalize(q, dim=-1), normalize(k, dim=-1), v, *gates, state))


def close(a: Tensor, b: Tensor, limit: float = 1e-12) -> bool:
    return a.shape == b.shape and (b.numel() == 0 or bool((a - b).abs().max() <= limit * (1 + b.abs().max())))


@pytest.mark.parametrize(
    ("batch", "chunks", "heads", "rank"), [(2, 0, 1, 2), (1, 0.1, 2, 8), (2, 1, 1, 3), (3, 2.5, 2, 1), (1, 2.2, 1, 5)]
)
def test_every_shape_agrees_with_the_loop(
    way: str, device: str, batch: int, chunks: float, heads: int, rank: int
) -> None:
    x = inputs(batch, int(chunks * triton_scan.CHUNK + 0.5), heads, rank, device)
    mask = torch.rand(x[0].shape[:2], generator=torch.Generator().manual_seed(1)).to(device) > 0.3
    reads, state = delta_scan(*x, mask=mask, backend="triton")
    wanted_reads, wanted_state = delta_scan(*x, mask=mask, backend="naive")
    assert close(state, wanted_state)
    assert close(reads, wanted_reads)


def test_gradients_agree_with_autograd_through_the_loop(way: str, device: str) -> None:
    x = [t.requires_grad_() for t in inputs(2, int(2.4 * triton_scan.CHUNK), 2, 3, device)]
    mask = torch.rand(x[0].shape[:2], generator=torch.Generator().manual_seed(1)).to(device) > 0.2

    def gradients(name: str) -> Inputs:
        reads, state = delta_scan(*x, mask=mask, backend=name)
        return torch.autograd.grad(reads.sin().sum() + state.cos().sum(), x)

    for got, wanted in zip(gradients("triton"), gradients("naive"), strict=True):
        assert close(got, wanted, 1e-10)


def test_gates_of_zero_and_one_are_hard(way: str, device: str) -> None:
    q, k, v, *gates, state = inputs(1, int(1.4 * triton_scan.CHUNK), 1, 2, device)
    x = [t.requires_grad_() for t in (q, k, v, *(gate.round() for gate in gates), state)]
    results = []
    for name in ("triton", "naive"):
        reads, after = delta_scan(*x, backend=name)
        results.append((reads, after, *torch.autograd.grad(reads.sin().sum() + after.cos().sum(), x)))
    for got, wanted in zip(*results, strict=True):
        assert close(got, wanted, 1e-10)


def test_two_calls_are_one_and_leave_the_given_state_alone(way: str, device: str) -> None:
    *tokens, state = inputs(2, 12, 1, 2, device)
    given = state.clone()
    _, whole = delta_scan(*tokens, state, backend="triton")
    assert torch.equal(state, given)
    for part in (slice(0, 5), slice(5, 12)):
        _, state = delta_scan(*(t[:, part] for t in tokens), state, backend="triton")
    assert close(state, whole)


@pytest.mark.parametrize("lengths", [(3, 0, 2.4, 1, 0.2, 1.1, 0), (0, 0)])
def test_packed_sequences_scan_like_each_alone(way: str, device: str, lengths: tuple[float, ...]) -> None:
    tokens = [n if n in (0, 1, 3) else int(n * triton_scan.CHUNK) for n in lengths]
    slots = [2, 5, 1, 0, 4, 3, 6][: len(tokens)]
    *x, _ = inputs(1, sum(tokens), 2, 3, device)
    pool = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    wanted_pool, wanted = pool.clone(), torch.zeros_like(x[0])
    bounds = [sum(tokens[:n]) for n in range(len(tokens) + 1)]
    for slot, start, end in zip(slots, bounds, bounds[1:], strict=False):
        if slot:
            wanted[:, start:end], after = naive.scan(*(t[:, start:end] for t in x), wanted_pool[slot : slot + 1])
            wanted_pool[slot] = after[0]
    packing = {
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32, device=device),
        "state_slots": torch.tensor(slots, device=device),
    }
    reads, after = delta_scan(*x, pool, **packing, backend="triton")
    assert after is pool
    assert close(pool, wanted_pool)
    assert close(reads, wanted)
    assert torch.equal(pool[0], wanted_pool[0])


def test_gradients_of_gradients_are_refused_rather_than_wrong(device: str) -> None:
    x = [t.requires_grad_() for t in inputs(1, 5, 1, 2, device)]
    reads, _ = delta_scan(*x, backend="triton")
    (gradient,) = torch.autograd.grad(reads.sin().sum(), x[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_tokens_leave_a_copy_of_the_state(device: str) -> None:
    *tokens, state = inputs(2, 0, 1, 3, device)
    _, after = delta_scan(*tokens, state, backend="triton")
    assert torch.equal(after, state)
    assert after.data_ptr() != state.data_ptr()


def test_tokens_of_less_precision_are_computed_in_the_states(way: str, device: str) -> None:
    *tokens, state = inputs(1, 12, 1, 4, device, dtype=torch.float32)
    small = [t.bfloat16() for t in tokens]
    reads, after = delta_scan(*small, state, backend="triton")
    wanted_reads, wanted = delta_scan(*(t.float() for t in small), state, backend="naive")
    assert reads.dtype == torch.bfloat16
    assert close(reads.float(), wanted_reads.bfloat16().float(), 1e-2)
    assert close(after, wanted, 1e-6)


def test_at_most_eight_bytes_a_token_are_kept_for_states(device: str) -> None:
    length = 64
    x = [t.requires_grad_() for t in inputs(1, length, 1, 8, device, dtype=torch.float32)]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        triton_scan.scan(*x, split=False)
    given = {t.data_ptr() for t in x}
    assert 0 < sum(t.numel() * t.element_size() for t in saved if t.data_ptr() not in given) <= 8 * length


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    @pytest.mark.parametrize(("batch", "length", "heads", "rank"), [(1, 8192, 1, 8), (3, 1000, 4, 8), (2, 300, 1, 16)])
    def test_long_sequences_in_fp32(self, way: str, batch: int, length: int, heads: int, rank: int) -> None:
        x = inputs(batch, length, heads, rank, "cuda", dtype=torch.float32)
        reads, state = delta_scan(*x, backend="triton")
        wanted_reads, wanted_state = delta_scan(*(t.double() for t in x), backend="torch")
        assert close(state.double(), wanted_state, 1e-5)
        assert close(reads.double(), wanted_reads, 1e-5)

    def test_gradients_do_not_change_from_run_to_run(self, way: str) -> None:
        x = [t.requires_grad_() for t in inputs(3, 700, 2, 8, "cuda", dtype=torch.float32)]

        def gradients() -> Inputs:
            reads, state = delta_scan(*x, backend="triton")
            return torch.autograd.grad(reads.sin().sum() + state.cos().sum(), x)

        for first, second in zip(gradients(), gradients(), strict=True):
            assert torch.equal(first, second)

    def test_a_cuda_graph_replays_the_packed_scan(self, way: str) -> None:
        *x, _ = inputs(1, 500, 1, 8, "cuda", dtype=torch.float32)
        pool = torch.randn(4, 1, 8, 8, device="cuda")
        bounds = torch.tensor([0, 200, 300, 500], device="cuda")
        slots = torch.tensor([1, 2, 3], device="cuda")

        def call(states: Tensor) -> Tensor:
            return delta_scan(*x, states, cu_seqlens=bounds, state_slots=slots, backend="triton")[0]

        wanted_pool = pool.clone()
        call(pool.clone())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            reads = call(pool)
        bounds.copy_(torch.tensor([0, 100, 400, 500]))
        slots.copy_(torch.tensor([3, 0, 1]))
        wanted = call(wanted_pool)
        graph.replay()
        assert torch.equal(reads, wanted)
        assert torch.equal(pool, wanted_pool)
