"""Every strategy against the plain loop of ``plain.py``, and against itself under other groupings of the tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from memfold_osam import AdapterConfig, DeltaMemory, OsamState

LIMIT = 1e-5
LAYERS, VOCABULARY = 3, 60
OPTIONS: dict[str, Sequence[Any]] = {
    "memory_write_granularity": ("token", "message_mean", "sentence_mean"),
    "num_state_heads": (1, 4),
    "state_update_mode": ("standard", "lambda_outside", "no_lambda"),
    "couple_lambda": (True, False),
    "rankwise_gates": (True, False),
    "normalize_qk": (True, False),
    "delta_heads": (("q",), ("o",), ("k", "v"), ("q", "o"), ("v", "o"), ("q", "k", "v", "o")),
    "delta_o_rmsnorm": (False, True),
    "trainable_delta_scale": (False, True),
    "delta_scale_granularity": ("layer", "head"),
    "target_layers": ((), (1,), (0, 2)),
    "rank": (1, 3, 8, 16),
}


def every_pair(options: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Combinations in which every two values of two options meet; greedy, the same every time."""
    rng = random.Random(0)
    missing = {
        ((a, x), (b, y))
        for a, b in combinations(options, 2)
        for x in range(len(options[a]))
        for y in range(len(options[b]))
    }
    chosen = []
    while missing:
        (a, x), (b, y) = min(missing)
        tries = [
            {name: rng.randrange(len(values)) for name, values in options.items()} | {a: x, b: y} for _ in range(30)
        ]
        met = [set(combinations(case.items(), 2)) & missing for case in tries]
        best = max(range(len(tries)), key=lambda i: len(met[i]))
        missing -= met[best]
        chosen.append({name: options[name][place] for name, place in tries[best].items()})
    return chosen


CASES = every_pair(OPTIONS)


def attach(seed: int = 0, dtype: torch.dtype = torch.float32, **values: Any) -> tuple[Qwen3ForCausalLM, DeltaMemory]:
    """A tiny random model with a random adapter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.2,
        )
        model = Qwen3ForCausalLM(config).eval().requires_grad_(False).to(dtype)
        memory = DeltaMemory(model, AdapterConfig(**values))
        for parameter in memory.parameters():
            nn.init.normal_(parameter, std=0.3)
    memory.requires_grad_(False)
    return model, memory


def random_state(memory: DeltaMemory, rows: int, seed: int = 0) -> OsamState:
    zeros = memory.init_state(rows).tensor
    return OsamState(torch.randn(zeros.shape, generator=torch.Generator().manual_seed(seed)).to(zeros.dtype))


@dataclass
class Observed:
    """What went into a block, and what was added to its projections: by call."""

    inputs: list[Tensor] = field(default_factory=list)
    added: dict[str, list[Tensor]] = field(default_factory=dict)


@contextmanager
def observe(model: nn.Module, memory: DeltaMemory) -> Iterator[list[Observed]]:
    layers = [Observed() for _ in memory.block_names]
    handles = []
    for seen, name in zip(layers, memory.block_names, strict=True):
        block = model.get_submodule(name)

        def enter(_module: nn.Module, _args: Any, kwargs: dict[str, Any], seen: Observed = seen) -> None:
            seen.inputs.append(kwargs["hidden_states"])

        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        for head in "qkvo":

            def leave(module: Any, args: Any, output: Tensor, seen: Observed = seen, head: str = head) -> None:
                seen.added.setdefault(head, []).append(output - functional.linear(args[0], module.weight))

            handles.append(block.get_submodule(f"{head}_proj").register_forward_hook(leave))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def close(a: Tensor, b: Tensor, limit: float = LIMIT) -> bool:
    return bool((a - b).norm() <= limit * b.norm() + 1e-12)


def ids_of(lengths: Sequence[int], names: Sequence[int]) -> list[int]:
    return [name for name, length in zip(names, lengths, strict=True) for _ in range(length)]


# Two rows of 14 tokens in two calls of 9 and 5; the second row has three tokens of padding at its end.
CUT, LENGTH = 9, 14
REAL = torch.tensor([[True] * LENGTH, [True] * 11 + [False] * 3])
WRITES = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(3)) > 0.2
MESSAGES = torch.tensor(
    [ids_of((2, 4, 1, 2, 5), (-1, 70_000_000_007, 3, 5, 3)), ids_of((5, 3, 6), (0, 900, -1))]
)  # sparse, out of order, and some of none
SENTENCES = torch.tensor([ids_of((1, 3, 3, 2, 2, 3), (4, 9, -1, 1, 2, 9)), ids_of((4, 3, 7), (8, 6, 2))])
SEGMENTS = torch.tensor([ids_of((2, 4, 3, 5), (0, 4, 4000, 4001)), ids_of((1, 5, 8), (2, 3, 9))])


@pytest.mark.parametrize("segmented", [False, True], ids=["a call a segment", "segments"])
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_every_strategy_is_the_formulas(plain: ModuleType, case: dict[str, Any], segmented: bool) -> None:
    model, memory = attach(dtype=torch.float64, **case)
    state = random_state(memory, 2)
    before = state.tensor
    ids = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    flags = {"message_ids": MESSAGES, "sentence_ids": SENTENCES, "segment_ids": SEGMENTS if segmented else None}
    gain = torch.tensor([1.0, 0.7])
    flags |= {"write": WRITES, "token_mask": REAL}
    with torch.no_grad(), observe(model, memory) as layers, memory.bind(state, gain=gain, **flags):
        cache = model(ids[:, :CUT], use_cache=True).past_key_values
        model(ids[:, CUT:], past_key_values=cache)
    for index, seen in enumerate(layers):
        x = torch.cat(seen.inputs, 1)
        for row in range(2):
            now, added = before[index, row], []
            for span in [slice(0, LENGTH)] if segmented else [slice(0, CUT), slice(CUT, LENGTH)]:
                told = {"messages": MESSAGES, "sentences": SENTENCES, "real": REAL, "writes": WRITES}
                told |= {"segments": SEGMENTS} if segmented else {}
                told = {name: values[row, span].tolist() for name, values in told.items()}
                answer = plain.run(
                    memory.config,
                    dict(memory.layer(index).named_parameters()),
                    now,
                    x[row, span],
                    gain=float(gain[row]),
                    **told,
                )
                now = answer.state
                added.append(answer.corrections)
            assert close(state.tensor[index, row], now, 1e-9)
            for head in "qkvo":
                got = torch.cat(seen.added[head], 1)[row]
                if head in case["delta_heads"]:
                    assert close(got, torch.cat([a[head] for a in added]), 1e-9)
                else:
                    assert not got.any()


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_zero_state_is_the_frozen_model_bit_for_bit(case: dict[str, Any]) -> None:
    model, memory = attach(**case)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        frozen = model(ids).logits
        with memory.bind(memory.init_state(2), write=False):
            assert torch.equal(model(ids).logits, frozen)
        with memory.bind(random_state(memory, 2), write=False):
            assert not torch.equal(model(ids).logits, frozen)


# Four memories of unlike length, as turns: tokens of each segment. One has a turn of a single token.
TURNS = ((5, 4), (3,), (1, 6, 4, 2), (2, 9))
GRANULARITIES = ("token", "message_mean", "sentence_mean")


def talk(row: int) -> dict[str, Tensor]:
    """One memory's tokens (1, T) with their segments, sentences and writes."""
    rng, lengths = random.Random(row), TURNS[row]
    length = sum(lengths)
    return {
        "ids": torch.tensor([[rng.randrange(VOCABULARY) for _ in range(length)]]),
        "segment_ids": torch.tensor([ids_of(lengths, range(len(lengths)))]),
        "sentence_ids": torch.tensor([[t // 3 if t % 5 else -1 for t in range(length)]]),
        "write": torch.tensor([[rng.random() > 0.1 for _ in range(length)]]),
    }


Result = tuple[Tensor, list[Tensor]]


def alone(model: Any, memory: DeltaMemory, start: Tensor, row: int, cuts: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """State and logits of one memory run by itself, cut into calls with a KV cache."""
    given = talk(row)
    ids = given.pop("ids")
    state, cache, logits = OsamState(start[:, row : row + 1]), None, []
    with memory.bind(state, **given):
        for begin, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
            out = model(ids[:, begin:end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits[0])
    return state.tensor[:, 0], torch.cat(logits)


def padded(model: Any, memory: DeltaMemory, start: Tensor, rows: Sequence[int]) -> Result:
    talks = [talk(row) for row in rows]
    width = max(t["ids"].shape[1] for t in talks)

    def pad(name: str, fill: int) -> Tensor:
        return torch.cat([functional.pad(t[name].long(), (0, width - t[name].shape[1]), value=fill) for t in talks])

    state = OsamState(start[:, list(rows)])
    real = pad("write", 2) < 2
    flags = {"write": pad("write", 0), "segment_ids": pad("segment_ids", -1), "sentence_ids": pad("sentence_ids", -1)}
    with memory.bind(state, token_mask=real, **flags):
        logits = model(pad("ids", 0)).logits
    return state.tensor, [logits[i, real[i]] for i in range(len(rows))]


def packed(model: Any, memory: DeltaMemory, start: Tensor, rows: Sequence[int]) -> Result:
    talks = [talk(row) for row in rows]
    lengths = torch.tensor([t["ids"].shape[1] for t in talks])
    joined = {name: torch.cat([t[name] for t in talks], 1) for name in talks[0]}
    owner = torch.arange(len(rows)).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(int(n)) for n in lengths])
    visible = (owner[:, None] == owner) & (positions[:, None] >= positions)
    state = OsamState(start[:, list(rows)])
    ids = joined.pop("ids")
    ends = functional.pad(lengths.cumsum(0), (1, 0))
    with memory.bind(state, cu_seqlens=ends, **joined):
        out = model(ids, position_ids=positions[None], attention_mask=visible[None, None], use_cache=False)
    return state.tensor, list(out.logits[0].split(lengths.tolist()))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@torch.no_grad()
def test_how_tokens_are_grouped_shows_in_no_state_and_no_logit(granularity: str, heads: int) -> None:
    model, memory = attach(
        memory_write_granularity=granularity, num_state_heads=heads, delta_heads=("q", "v", "o"), rank=4
    )
    rows = range(len(TURNS))
    start = random_state(memory, len(TURNS)).tensor
    wanted = [alone(model, memory, start, row) for row in rows]
    groupings = {
        "padded": padded(model, memory, start, rows),
        "packed": packed(model, memory, start, rows),
        "one packed": packed(model, memory, start, [2]),
        "another order": padded(model, memory, start, [3, 0, 2, 1]),
        "another packing": packed(model, memory, start, [1, 3, 0]),
    }
    orders = {"one packed": [2], "another order": [3, 0, 2, 1], "another packing": [1, 3, 0]}
    for name, (states, logits) in groupings.items():
        for place, row in enumerate(orders.get(name, rows)):
            assert close(states[:, place], wanted[row][0]), name
            assert close(logits[place], wanted[row][1]), name
    for row in rows:
        length = sum(TURNS[row])
        for cuts in ([length // 2], [1, length - 1], list(range(1, length))):
            state, logits = alone(model, memory, start, row, sorted(set(cuts)))
            assert close(state, wanted[row][0]), cuts
            assert close(logits, wanted[row][1]), cuts


@torch.no_grad()
def test_a_read_only_packed_call_steers_each_sequence_by_its_own_memory_and_gain() -> None:
    model, memory = attach(delta_heads=("k", "v", "o"))
    state, ids = random_state(memory, 2), torch.arange(8)[None]
    ends, gain = torch.tensor([0, 5, 8]), torch.tensor([0.5, 0.0])
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    visible = torch.block_diag(torch.ones(5, 5).tril(), torch.ones(3, 3).tril()).bool()[None, None]
    with memory.bind(state, write=False, gain=gain, cu_seqlens=ends):
        logits = model(ids, position_ids=positions, attention_mask=visible, use_cache=False).logits[0]
    with memory.bind(OsamState(state.tensor[:, :1]), write=False, gain=0.5):
        assert close(logits[:5], model(ids[:, :5]).logits[0])
    assert close(logits[5:], model(ids[:, 5:]).logits[0])


def written(memory: DeltaMemory, model: Any, rows: int = 2, **flags: Any) -> Tensor:
    """The state after six tokens a row, from zeros."""
    state = memory.init_state(rows)
    with torch.no_grad(), memory.bind(state, **flags):
        model(torch.arange(12).view(2, 6)[:rows])
    return state.tensor


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_rows_and_tokens_without_ids_write_nothing_whatever_their_neighbours_do(granularity: str) -> None:
    model, memory = attach(memory_write_granularity=granularity)
    name = granularity.replace("mean", "ids")
    ids = torch.tensor([[-1] * 6, [0, 0, -1, 1, 1, 1]])
    both = written(memory, model, **{name: ids})
    assert not both[:, 0].any()
    assert both[:, 1].any()
    for none in (
        {},
        {name: torch.full_like(ids, -1)},
        {name: ids, "write": False},
        {name: ids, "token_mask": ids < -1},
    ):
        assert not written(memory, model, **none).any()


def test_ids_mean_their_order_and_nothing_else() -> None:
    model, memory = attach(memory_write_granularity="message_mean")
    ranks = torch.tensor([[2, 2, 0, 0, 1, -1], [0, 1, 1, 1, 2, 2]])
    names = torch.tensor([7, 10**9, 2**62, -5])[ranks]
    assert torch.equal(written(memory, model, message_ids=names), written(memory, model, message_ids=ranks))


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_ids_may_be_integers_of_any_size(granularity: str) -> None:
    model, memory = attach(memory_write_granularity=granularity)
    ids = torch.tensor([[2, 2, 0, 0, 1, -1], [0, 1, 1, 1, 2, 2]])
    segments = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 3, 3, 3]])

    def given(dtype: torch.dtype) -> Tensor:
        flags = {"message_ids": ids, "sentence_ids": ids, "segment_ids": segments}
        return written(memory, model, **{name: values.to(dtype) for name, values in flags.items()})

    for dtype in (torch.int32, torch.int16):
        assert torch.equal(given(dtype), given(torch.int64))


def test_a_sentence_of_no_message_is_not_written() -> None:
    model, memory = attach(memory_write_granularity="sentence_mean")
    sentences, messages = torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.tensor([[0, 0, 0, -1, -1, -1]])
    both = written(memory, model, 1, sentence_ids=sentences, message_ids=messages)
    assert torch.equal(both, written(memory, model, 1, sentence_ids=sentences.where(messages >= 0, -1)))
    assert both.any()


def test_a_token_of_no_segment_writes_nothing_and_reads_as_the_one_before_it() -> None:
    model, memory = attach(memory_write_granularity="message_mean")
    given, ids = torch.tensor([[-1, 0, 0, -1, 1, -1]]), torch.arange(6)[None]
    same = {"segment_ids": torch.tensor([[0, 0, 0, 0, 1, 1]]), "write": given >= 0}
    start, answers = random_state(memory, 1).tensor, []
    for flags in ({"segment_ids": given}, same):
        state = OsamState(start)
        with torch.no_grad(), memory.bind(state, **flags):
            answers.append((model(ids).logits, state))
    assert torch.equal(answers[0][0], answers[1][0])
    assert torch.equal(answers[0][1].tensor, answers[1][1].tensor)


def test_flags_that_do_not_fit_are_refused_with_both_shapes() -> None:
    model, memory = attach(memory_write_granularity="message_mean")
    ids, state = torch.arange(6)[None], memory.init_state(1)
    with (
        pytest.raises(ValueError, match="must not fall"),
        memory.bind(state, segment_ids=torch.tensor([[0, 1, 0, 1, 2, 2]])),
    ):
        model(ids)
    for length in (5, 7):
        short = torch.zeros(1, length, dtype=torch.long)
        with (
            pytest.raises(ValueError, match=rf"message_ids must be \(1, 6\), .* got \(1, {length}\)"),
            memory.bind(state, message_ids=short),
        ):
            model(ids)
    for ends, why in (
        ([0, 4], r"by cu_seqlens the call must be \(1, 4\), got \(1, 6\)"),
        ([0, 4, 6], "1 rows, .* 2 seq"),
    ):
        with pytest.raises(ValueError, match=why), memory.bind(state, cu_seqlens=torch.tensor(ends)):
            model(ids)
    for ends in ([1, 7], [0, 8, 6], [0]):
        with (
            pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the number of tokens"),
            memory.bind(memory.init_state(len(ends) - 1), cu_seqlens=torch.tensor(ends)),
        ):
            model(ids)
    for gain in (torch.ones(2), torch.tensor(0.5)):
        why = rf"gain must be a number or \(1,\), got \({'2,' if gain.ndim else ''}\)"
        with pytest.raises(ValueError, match=why), memory.bind(state, gain=gain):
            model(ids)
    assert not state.tensor.any()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_state_is_fp32_under_bf16_weights(plain: ModuleType, granularity: str) -> None:
    """Writes of a ten-thousandth, none of which would move a state that is kept in bf16, add up."""
    model, memory = attach(dtype=torch.bfloat16, memory_write_granularity=granularity, target_layers=(0,), rank=4)
    layer = memory.layer(0)
    layer.beta_bias.fill_(-9.0)
    layer.beta_proj.zero_()
    state, ids = random_state(memory, 1), torch.arange(200)[None] % VOCABULARY
    segments = ids.new_tensor(range(200))[None]
    before = state.tensor[0, 0]
    flags = {"segments": segments[0].tolist(), "sentences": [0] * 200}
    bound = memory.bind(state, segment_ids=segments, sentence_ids=torch.zeros_like(ids))
    with torch.no_grad(), observe(model, memory) as (seen,), bound:
        model(ids)
    assert state.tensor.dtype == torch.float32
    weights = dict(layer.named_parameters())
    wanted = plain.run(memory.config, weights, before.double(), seen.inputs[0][0].double(), **flags).state
    assert (wanted - before).norm() > 1e-3 * before.norm()
    assert close(state.tensor[0, 0] - before, wanted - before, 0.02)


@pytest.mark.parametrize("init", ["zero", "random", "base_slice_fixed"])
def test_corrections_start_as_published(init: str) -> None:
    model, _ = attach()
    memory = DeltaMemory(model, AdapterConfig(output_init=init, rank=3, num_state_heads=2, delta_heads=("q", "o")))
    layer, attention = memory.layer(1), model.model.layers[1].self_attn
    assert not layer.delta_k_proj.any()
    for head in ("q", "o"):
        delta = getattr(layer, f"delta_{head}_proj")
        if init == "zero":
            assert not delta.any()
        elif init == "random":
            assert 0 < delta.abs().max() <= 0.05 / 6**0.5
        else:
            base = getattr(attention, f"{head}_proj").weight[:, :3]
            assert torch.allclose(delta[:, :3], 0.05 * base / base.norm(dim=0))
            assert not delta[:, 3:].any()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_reach_the_writing_weights_through_segments(granularity: str) -> None:
    """Finite differences along the gradient, up to the first corrected projection: behind it the backbone rounds."""
    model, memory = attach(dtype=torch.float64, memory_write_granularity=granularity, target_layers=(0,), rank=3)
    given, start = talk(2), random_state(memory, 1).tensor
    ids, weight = given.pop("ids"), memory.layer(0).memory_k_proj

    def loss() -> Tensor:
        state = OsamState(start)
        with observe(model, memory) as (seen,), memory.bind(state, **given):
            model(ids)
        return seen.added["q"][0].sin().mean() + state.tensor.cos().mean()

    weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(), weight)
    step = 1e-6 * gradient / gradient.norm()
    with torch.no_grad():
        weight += step
        above = loss()
        weight -= 2 * step
        below = loss()
    assert gradient.norm() > 0
    assert float(above - below) / 2e-6 == pytest.approx(float(gradient.norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"delta_heads": ()}, "delta_heads must name some"),
        ({"delta_heads": ("o", "o")}, "once each, got o, o"),
        ({"delta_o_rmsnorm_eps": 0.0}, "delta_o_rmsnorm_eps must be above 0"),
        ({"delta_scale_init": 2.0}, "delta_scale_init must be between 0 and delta_scale_max, got 2.0 and 2.0"),
        ({"base_slice_ref_width": 0}, "base_slice_ref_width must be at least 1"),
    ],
)
def test_a_configuration_out_of_range_is_refused_by_key(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        AdapterConfig(**values)
