from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from memfold_kernels.delta_scan import delta_scan

FAST = ("torch", "cpu")
ALL = ("naive", *FAST)
# The compiled kernel is one of its own for each rank.
RANKS = {"torch": tuple(range(1, 17)), "cpu": (1, 3, 8, 16)}
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


def close(a: Tensor, b: Tensor, limit: float = 1e-12) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= limit * (1 + b.abs())).all())


def gradients(backend: str, x: Inputs, mask: Tensor | None = None) -> Inputs:
    x = tuple(t.detach().clone().requires_grad_() for t in x)
    reads, state = delta_scan(*x, mask=mask, backend=backend)
    return (reads.detach(), state.detach(), *torch.autograd.grad(reads.sin().sum() + state.cos().sum(), x))


def packed(lengths: list[int], heads: int, rank: int, slots: list[int], *, seed: int = 0) -> tuple[Inputs, Inputs]:
    """Tokens and a pool of 8 slots and slot 0; and cu_seqlens, state_slots."""
    *tokens, _ = inputs(1, sum(lengths), heads, rank, seed=seed)
    pool = torch.randn(9, heads, rank, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (*tokens, pool), (torch.tensor([0, *lengths]).cumsum(0), torch.tensor(slots, dtype=torch.long))


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_shape_agrees_with_the_loop(backend: str, data: st.DataObject) -> None:
    batch, heads = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    length, rank = data.draw(st.integers(0, 100)), data.draw(st.sampled_from(RANKS[backend]))
    seed = data.draw(st.integers(0, 1000))
    x = inputs(batch, length, heads, rank, seed=seed)
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) > 0.3
    for got, wanted in zip(
        delta_scan(*x, mask=mask, backend=backend), delta_scan(*x, mask=mask, backend="naive"), strict=True
    ):
        assert close(got, wanted)


@pytest.mark.parametrize("backend", FAST)
def test_float32_agrees_over_long_sequences(backend: str) -> None:
    x = inputs(2, 1500, 1, 8, dtype=torch.float32)
    wanted = delta_scan(*(t.double() for t in x), backend="naive")
    for got, exact in zip(delta_scan(*x, backend=backend), wanted, strict=True):
        assert got.dtype == torch.float32
        assert close(got.double(), exact, 1e-5)


@pytest.mark.parametrize(
    ("backend", "shape"),
    [(name, shape) for name in FAST for shape in [(2, 150, 2, 3), (1, 33, 1, 8)]] + [("torch", (1, 1, 1, 1))],
)
def test_gradients_agree_with_autograd_through_the_loop(backend: str, shape: tuple[int, int, int, int]) -> None:
    x = inputs(*shape)
    mask = torch.rand(shape[:2], generator=torch.Generator().manual_seed(1)) > 0.2
    for got, wanted in zip(gradients(backend, x, mask), gradients("naive", x, mask), strict=True):
        assert close(got, wanted, 1e-11)


@pytest.mark.parametrize("backend", ALL)
def test_gradients_agree_with_differences(backend: str) -> None:
    x = tuple(t.requires_grad_() for t in inputs(1, 40, 1, 3))
    assert torch.autograd.gradcheck(lambda *y: delta_scan(*y, backend=backend), x, fast_mode=True)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_gradients_of_gradients_are_refused_rather_than_wrong(backend: str) -> None:
    x = [t.requires_grad_() for t in inputs(1, 5, 1, 2)]
    reads, _ = delta_scan(*x, backend=backend)
    (gradient,) = torch.autograd.grad(reads.sin().sum(), x[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", [40, 150])
def test_gates_of_zero_and_one_are_hard(backend: str, length: int) -> None:
    q, k, v, keep, erase, write, state = inputs(2, length, 2, 3)
    x = (q, k, v, keep.round(), erase.round(), write.round(), state)
    for got, wanted in zip(gradients(backend, x), gradients("naive", x), strict=True):
        assert close(got, wanted)


@pytest.mark.parametrize("backend", ALL)
def test_a_keep_of_zero_forgets_all(backend: str) -> None:
    q, k, v, keep, erase, write, state = inputs(1, 50, 1, 3)
    keep[:, 20], erase[:, 20], write[:, 20] = 0, 0, 0
    _, after = delta_scan(q, k, v, keep, erase, write, state, backend=backend)
    _, fresh = delta_scan(*(t[:, 21:] for t in (q, k, v, keep, erase, write)), state * 0, backend=backend)
    assert close(after, fresh, 1e-15)


@pytest.mark.parametrize("backend", ALL)
def test_a_masked_token_reads_nothing_and_changes_nothing_whatever_it_holds(backend: str) -> None:
    *tokens, state = inputs(2, 20, 1, 3)
    poison = [torch.full_like(t, torch.nan) for t in tokens]
    state.requires_grad_()
    reads, after = delta_scan(*poison, state, mask=torch.zeros(2, 20, dtype=torch.bool), backend=backend)
    assert not reads.any()
    assert torch.equal(after, state)
    (gradient,) = torch.autograd.grad(reads.sum() + after.sum(), state)
    assert torch.equal(gradient, torch.ones_like(state))


@pytest.mark.parametrize("backend", ALL)
def test_a_mask_of_numbers_is_one_of_truth_values(backend: str) -> None:
    x = inputs(1, 6, 1, 3)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1]])
    reads, state = delta_scan(*x, mask=mask, backend=backend)
    wanted_reads, wanted = delta_scan(*(t[:, mask[0].bool()] for t in x[:-1]), x[-1], backend=backend)
    assert close(reads[:, mask[0].bool()], wanted_reads)
    assert close(state, wanted)


@pytest.mark.parametrize("backend", ALL)
def test_two_calls_are_one(backend: str) -> None:
    *tokens, state = inputs(2, 100, 2, 3)
    reads, whole = delta_scan(*tokens, state, backend=backend)
    parts = []
    for part in (slice(0, 1), slice(1, 71), slice(71, 71), slice(71, 100)):
        read, state = delta_scan(*(t[:, part] for t in tokens), state, backend=backend)
        parts.append(read)
    assert close(torch.cat(parts, 1), reads)
    assert close(state, whole)


@pytest.mark.parametrize("backend", ALL)
def test_no_tokens_leave_a_copy_of_the_state_that_passes_gradients(backend: str) -> None:
    *tokens, state = inputs(2, 0, 1, 3)
    state.requires_grad_()
    reads, after = delta_scan(*tokens, state, backend=backend)
    assert reads.shape == (2, 0, 1, 3)
    assert torch.equal(after, state)
    assert after.data_ptr() != state.data_ptr()
    assert torch.equal(torch.autograd.grad(after.sum(), state)[0], torch.ones_like(state))


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("length", [1, 5, 50])
def test_the_given_state_is_not_changed(backend: str, length: int) -> None:
    x = inputs(1, length, 1, 1)
    before = x[-1].clone()
    _, after = delta_scan(*x, backend=backend)
    after += 1
    assert torch.equal(x[-1], before)


@pytest.mark.parametrize("backend", ALL)
def test_layout_in_memory_does_not_matter(backend: str) -> None:
    g = torch.Generator().manual_seed(3)
    fused = torch.randn(2, 40, 3 * 6, generator=g, dtype=torch.float64)
    q, k, v = (t.view(2, 40, 2, 3)[:, 3:] for t in fused.split(6, -1))
    keep = torch.rand(2, 37, 2, 1, generator=g, dtype=torch.float64).expand(2, 37, 2, 3)
    erase = torch.rand(3, 2, 37, 2, generator=g, dtype=torch.float64).permute(1, 2, 3, 0) / 10
    write = torch.ones((), dtype=torch.float64).expand(2, 37, 2, 3)
    state = torch.randn(2, 3, 3, 2, generator=g, dtype=torch.float64).permute(0, 3, 2, 1)
    x = (q, k, v, keep, erase, write, state)
    for got, wanted in zip(
        delta_scan(*x, backend=backend), delta_scan(*(t.contiguous() for t in x), backend=backend), strict=True
    ):
        assert close(got, wanted)


@pytest.mark.parametrize("backend", FAST)
def test_gradients_reach_gates_that_are_shared_by_the_rows(backend: str) -> None:
    q, k, v, keep, erase, write, state = inputs(2, 70, 1, 3)
    found = []
    for name in ("naive", backend):
        shared = [t[..., :1].clone().requires_grad_() for t in (keep, erase, write)]
        reads, _ = delta_scan(q, k, v, *(t.expand_as(q) for t in shared), state, backend=name)
        found.append(torch.autograd.grad(reads.sum(), shared))
    for got, wanted in zip(*found, strict=True):
        assert close(got, wanted, 1e-11)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_packed_sequences_are_each_alone(backend: str, data: st.DataObject) -> None:
    heads, rank = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([3, 8]))
    lengths = data.draw(st.lists(st.integers(0, 50), max_size=6))
    slots = data.draw(st.permutations(range(1, 9)))[: len(lengths)]
    slots = [data.draw(st.sampled_from([slot, slot, 0])) for slot in slots]
    (*tokens, pool), (bounds, places) = packed(lengths, heads, rank, slots, seed=data.draw(st.integers(0, 1000)))
    mask = torch.rand(1, sum(lengths), generator=torch.Generator().manual_seed(5)) > 0.2
    wanted, wanted_reads = pool.clone(), torch.zeros_like(tokens[0])
    for first, end, slot in zip(bounds[:-1], bounds[1:], slots, strict=True):
        if slot:
            alone = (t[:, first:end] for t in tokens)
            wanted_reads[:, first:end], wanted[slot : slot + 1] = delta_scan(
                *alone, pool[slot : slot + 1], mask=mask[:, first:end], backend="naive"
            )
    for name, integers in ((backend, torch.int32), ("naive", torch.int64)):
        states = pool.clone()
        reads, returned = delta_scan(
            *tokens,
            states,
            mask=mask,
            cu_seqlens=bounds.to(integers),
            state_slots=places.to(integers),
            backend=name,  # type: ignore[arg-type]
        )
        assert returned is states
        assert close(reads, wanted_reads)
        assert close(states, wanted)


@pytest.mark.parametrize("backend", ALL)
def test_a_pool_is_changed_where_it_lies(backend: str) -> None:
    (*tokens, pool), (bounds, slots) = packed([5, 40], 1, 3, [4, 2])
    layers = torch.stack([pool, pool, pool], 1)
    _, returned = delta_scan(*tokens, layers[:, 1], cu_seqlens=bounds, state_slots=slots, backend=backend)
    delta_scan(*tokens, pool, cu_seqlens=bounds, state_slots=slots, backend="naive")
    assert returned.data_ptr() == layers[:, 1].data_ptr()
    assert close(layers[:, 1], pool)
    assert not close(layers[:, 0], pool)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("place", range(7))
def test_nan_stays_in_its_sequence(backend: str, place: int) -> None:
    x = inputs(3, 40, 2, 3)
    whole = delta_scan(*x, backend=backend)
    x[place][1] = torch.nan
    reads, state = delta_scan(*x, backend=backend)
    for got, wanted in zip((reads, state), whole, strict=True):
        assert torch.equal(got[[0, 2]], wanted[[0, 2]])
    assert reads[1].isnan().any()


@pytest.mark.parametrize("backend", ALL)
def test_nan_in_a_row_of_the_state_stays_in_that_row(backend: str) -> None:
    x = inputs(1, 40, 2, 3)
    whole_reads, whole = delta_scan(*x, backend=backend)
    x[-1][0, 1, 2] = torch.nan
    reads, state = delta_scan(*x, backend=backend)
    assert reads[:, :, 1, 2].isnan().all()
    assert torch.equal(reads[:, :, 0], whole_reads[:, :, 0])
    assert torch.equal(reads[:, :, 1, :2], whole_reads[:, :, 1, :2])
    assert torch.equal(state[:, 1, :2], whole[:, 1, :2])


@pytest.mark.parametrize("backend", ALL)
def test_nan_stays_in_its_packed_sequence(backend: str) -> None:
    (*tokens, pool), (bounds, slots) = packed([7, 40, 9], 1, 3, [3, 1, 2])
    clean = pool.clone()
    whole, _ = delta_scan(*tokens, clean, cu_seqlens=bounds, state_slots=slots, backend=backend)
    tokens[1][:, 20] = torch.nan
    reads, _ = delta_scan(*tokens, pool, cu_seqlens=bounds, state_slots=slots, backend=backend)
    assert torch.equal(reads[:, :20], whole[:, :20])
    assert torch.equal(reads[:, 47:], whole[:, 47:])
    assert torch.equal(pool[[0, 2, 3]], clean[[0, 2, 3]])
    assert pool[1].isnan().any()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.usefixtures("poisoned")
def test_nothing_is_read_that_was_not_written(backend: str) -> None:
    assert torch.empty(3).isnan().all()
    for result in gradients(backend, inputs(2, 70, 2, 3)):
        assert result.isfinite().all()
    (*tokens, pool), (bounds, slots) = packed([7, 40, 0, 9], 1, 3, [3, 0, 5, 2])
    reads, _ = delta_scan(*tokens, pool, cu_seqlens=bounds, state_slots=slots, backend=backend)
    assert reads.isfinite().all()
    assert pool.isfinite().all()


def test_the_cpu_kernel_keeps_at_most_eight_bytes_a_token_of_states() -> None:
    x = tuple(t.requires_grad_() for t in inputs(1, 1024, 1, 8, dtype=torch.float32))
    given = {t.data_ptr() for t in x}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        delta_scan(*x, backend="cpu")
    assert 0 < sum(t.nbytes for t in kept if t.data_ptr() not in given) <= 8 * 1024


def test_a_packed_batch_refuses_gradients() -> None:
    (*tokens, pool), (bounds, slots) = packed([3, 4], 1, 3, [1, 2])
    tokens[1].requires_grad_()
    with pytest.raises(ValueError, match="a packed batch has no gradients"):
        delta_scan(*tokens, pool, cu_seqlens=bounds, state_slots=slots)
    with torch.no_grad():
        delta_scan(*tokens, pool, cu_seqlens=bounds, state_slots=slots)


def test_errors_name_the_shape_expected_and_the_shape_got() -> None:
    x = inputs(1, 5, 1, 2)
    with pytest.raises(ValueError, match=r"state must be \(1, 1, 2, 2\), got \(1, 2, 2\)"):
        delta_scan(*x[:-1], x[-1][0])
    with pytest.raises(ValueError, match=r"v must have q's shape \(1, 5, 1, 2\), got \(1, 3, 1, 2\)"):
        delta_scan(x[0], x[1], x[2][:, :3], *x[3:])
    with pytest.raises(ValueError, match=r"q must have 4 dimensions .*, got 3"):
        delta_scan(x[0][0], *x[1:])
    with pytest.raises(ValueError, match=r"mask must be \(1, 5\), got \(5,\)"):
        delta_scan(*x, mask=torch.ones(5))


@pytest.mark.parametrize(
    ("bounds", "slots", "message"),
    [
        ([0, 3, 7], None, "come together"),
        ([0, 3, 7], [1], r"state_slots must be \(2,\), got \(1,\)"),
        ([0, 3, 6], [1, 2], r"cu_seqlens must rise from 0 to 7, got \[0, 3, 6\]"),
        ([0, 8, 7], [1, 2], r"cu_seqlens must rise from 0 to 7, got \[0, 8, 7\]"),
        ([1, 3, 7], [1, 2], "cu_seqlens must rise from 0 to 7"),
        ([0, 3, 7], [1, 9], "state_slots must lie in 0 to 8, got 9"),
        ([0, 3, 7], [-1, 2], "state_slots must lie in 0 to 8, got -1"),
        ([0, 3, 7], [2, 2], r"a slot other than 0 may be named once, got \[2, 2\]"),
        ([[0, 3, 7]], [1, 2], r"cu_seqlens must be \(N \+ 1,\), got \(1, 3\)"),
        ([0.0, 3.0, 7.0], [1, 2], "cu_seqlens must be int32 or int64, got torch.float32"),
    ],
)
def test_errors_name_what_is_wrong_with_a_packed_batch(
    bounds: list[int], slots: list[int] | None, message: str
) -> None:
    x, _ = packed([3, 4], 1, 2, [1, 2])
    places = None if slots is None else torch.tensor(slots)
    with pytest.raises(ValueError, match=message):
        delta_scan(*x, cu_seqlens=torch.tensor(bounds), state_slots=places)


def test_a_packed_batch_is_one_row_with_a_pool_of_its_shape() -> None:
    (*tokens, pool), (bounds, slots) = packed([3, 4], 1, 2, [1, 2])
    with pytest.raises(ValueError, match=r"a packed batch is one row, \(1, T, H, r\), got 2 rows"):
        delta_scan(*(torch.cat([t, t]) for t in tokens), pool, cu_seqlens=bounds, state_slots=slots)
    with pytest.raises(ValueError, match=r"state must be a pool \(slots \+ 1, 1, 2, 2\), got \(9, 2, 1, 2\)"):
        delta_scan(*tokens, pool.transpose(1, 2), cu_seqlens=bounds, state_slots=slots)


@pytest.mark.parametrize("backend", ALL)
def test_all_is_computed_in_the_dtype_of_the_state(backend: str) -> None:
    *tokens, state = inputs(1, 40, 1, 3)
    tokens = [t.bfloat16() for t in tokens]
    reads, after = delta_scan(*tokens, state, backend=backend)
    wanted_reads, wanted = delta_scan(*(t.double() for t in tokens), state, backend="naive")
    assert close(after, wanted)
    assert torch.equal(reads, wanted_reads.bfloat16())
    pool, places = torch.cat([state, state]), {"cu_seqlens": torch.tensor([0, 40]), "state_slots": torch.tensor([1])}
    reads, _ = delta_scan(*tokens, pool, **places, backend=backend)
    assert close(pool[1:], wanted)
    assert torch.equal(reads, wanted_reads.bfloat16())


def test_the_cpu_kernel_names_what_it_does_not_take() -> None:
    *tokens, state = inputs(1, 5, 1, 2)
    with pytest.raises(ValueError, match=r"takes a state in float32 or float64, got torch.bfloat16"):
        delta_scan(*tokens, state.bfloat16(), backend="cpu")
    with pytest.raises(ValueError, match=r"takes tensors on a CPU, got q on cpu and the state on meta"):
        delta_scan(*tokens, state.to("meta"), backend="cpu")


def test_an_unknown_backend_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no backend 'gpu'; there are auto, naive, torch, cpu, triton"):
        delta_scan(*inputs(1, 5, 1, 2), backend="gpu")  # type: ignore[arg-type]


def test_a_backend_that_lacks_its_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("memfold_kernels.delta_scan")
    monkeypatch.setattr(package, "_BACKENDS", {"triton": "not_installed"})
    package._load.cache_clear()
    with pytest.raises(ImportError, match=r"backend 'triton' cannot be used here: No module named .*not_installed"):
        delta_scan(*inputs(1, 5, 1, 2), backend="triton")


@pytest.mark.parametrize(
    ("module", "chosen"), [("naive", ["cpu", "triton", "torch"]), ("not_installed", ["torch"] * 3)]
)
def test_auto_takes_the_compiled_kernel_of_the_device_where_it_can_be_imported(
    monkeypatch: pytest.MonkeyPatch, module: str, chosen: list[str]
) -> None:
    package = importlib.import_module("memfold_kernels.delta_scan")
    monkeypatch.setattr(package, "_BACKENDS", {"cpu": module, "triton": module, "torch": "naive"})
    package._load.cache_clear()
    assert [package._best.__wrapped__(device) for device in ("cpu", "cuda", "mps")] == chosen
    package._load.cache_clear()


# As on a machine that has torch and transformers only, with the tree on its path.
WITHOUT = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] in ("numba", "llvmlite", "triton", "memfold") else find(name, *rest)
)
import torch, memfold_kernels.delta_step, memfold_osam, memfold_osam.fold
from memfold_kernels.delta_scan import delta_scan
tokens = [torch.rand(1, 4, 1, 2) for _ in range(6)]
print(tuple(delta_scan(*tokens, torch.rand(1, 1, 2, 2))[0].shape))
"""


def test_the_tree_alone_goes_without_the_compilers() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root / 'kernels'}", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[0] == "(1, 4, 1, 2)", done.stderr
