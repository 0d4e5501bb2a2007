"""The state is a function of the turns: how they were cut into calls and batches must not show."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfold_osam import AdapterConfig, DeltaMemory, OsamState
from memfold_osam.config import CONFIG_FILE
from memfold_osam.fold import Folder, FoldJob
from memfold_osam.open_block import OpenBlock
from memfold_osam.serving import ServedModel, load_served_model
from memfold_osam.testing import byte_tokenizer, write_random_model
from memfold_osam.turns import Message, TurnFormat

LIMIT = 1e-5
PLENTY = 1 << 30  # bytes

SMALL = {
    "vocab_size": len(byte_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
BY_LENGTH = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
GOES_ON = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
    "llama, eager": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, attn_implementation="eager")),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**SMALL)),
    "qwen3-moe": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    ),
}
BEGINS_ANEW = {
    "mistral, sliding window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SMALL, sliding_window=9)),
    "gemma3, some layers slide": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**SMALL, sliding_window=9, layer_types=["sliding_attention", "full_attention"])
    ),
    "qwen3-next, linear attention": lambda: hf.Qwen3NextForCausalLM(
        hf.Qwen3NextConfig(
            **SMALL,
            layer_types=["linear_attention", "full_attention"],
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
    ),
    "llama, positions by length": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, rope_parameters=BY_LENGTH)),
}


@pytest.fixture(scope="module", params=["token", "message_mean", "sentence_mean"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """The same model with an adapter that writes tokens, turns or sentences. A block opens with a token as BOS."""
    directory = write_random_model(tmp_path_factory.mktemp(request.param), block_tokens=64)
    path = directory / "adapter" / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"memory_write_granularity": request.param}))
    model = load_served_model(str(directory))
    model.turns.bos = (7,)
    return model


def random_served(make: Any) -> ServedModel:
    """A random model of any family with a random adapter, and blocks of 64 tokens."""
    tokenizer = byte_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval().requires_grad_(False)
        memory = DeltaMemory(model, AdapterConfig(num_state_heads=2))
        for parameter in memory.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    turns = TurnFormat.derive(tokenizer)
    turns.bos = (7,)
    return ServedModel(model, memory, tokenizer, turns, "", "", "", block_tokens=64, context_tokens=256)


def conversation(seed: int, turns: int, longest: int = 90) -> list[Message]:
    rng = random.Random(seed)
    roles = ("user", "assistant", "system", "tool")
    return [
        Message(
            rng.choice(roles),
            "".join(rng.choices([*"abc déf<|end|>", ". ", "\n\n"], k=rng.randint(1, longest))),
            rng.choice(["", "Ann"]),
        )
        for _ in range(turns)
    ]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm()) if b.any() else float(a.norm())


def plain_loop(served: ServedModel, messages: list[Message]) -> Tensor:
    """The fold as the design says it, call by call with a KV cache, nothing shared with ``Folder``.

    Tokens are calls of their own; an adapter that writes turns or sentences gets a piece a call, with its ids.
    """
    state = served.memory.init_state(1)
    used, cache, size = 0, None, served.block_tokens
    by_token = served.memory.config.memory_write_granularity == "token"

    def run(tokens: list[int], **flags: Any) -> Any:
        with torch.no_grad(), served.memory.bind(state, **flags):
            return served.model(torch.tensor([tokens]), past_key_values=cache, use_cache=True).past_key_values

    for message in messages:
        tokens, sentences = served.turns.encode(message), served.turns.sentences(message)
        at = 0
        if used and len(tokens) > size - used:
            used = 0
        while at < len(tokens):
            if used in (0, size):
                used, cache = 0, None
                cache = run(list(served.turns.bos), token_mask=torch.zeros(1, len(served.turns.bos)))
            piece = slice(at, at + (1 if by_token else min(size - used, len(tokens) - at)))
            written = torch.full((1, len(tokens[piece])), -1 if message.role == "system" else 0)
            ids = {"message_ids": written, "sentence_ids": torch.tensor([sentences[piece]])}
            cache = run(tokens[piece], **ids)
            used += written.shape[1]
            at = piece.stop
    return state.tensor[:, 0]


@pytest.mark.parametrize("seed", range(2))
def test_the_fold_is_the_plain_loop_over_tokens_or_turns(served: ServedModel, seed: int) -> None:
    messages = conversation(seed, 5)
    (result,) = Folder(served).fold([FoldJob(None, 0, messages)])
    assert distance(result.state, plain_loop(served, messages)) < LIMIT


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 7), max_size=3))
def test_turns_in_any_grouping_give_one_state(served: ServedModel, seed: int, cuts: list[int]) -> None:
    messages = conversation(seed, 8, longest=150)
    folder = Folder(served)
    (whole,) = folder.fold([FoldJob(None, 0, messages)])
    anchor, offset, first = None, 0, 0
    for until in [*sorted(set(cuts)), 8]:
        (result,) = folder.fold([FoldJob(anchor, offset, messages[first:until])])
        if result.anchor is not None:
            anchor, offset, first = result.anchor, result.anchor_offset, first + result.anchor_index
    assert distance(result.state, whole.state) < LIMIT
    assert (first, offset) == (whole.anchor_index, whole.anchor_offset)


def test_memories_that_share_a_batch_do_not_touch_each_other(served: ServedModel) -> None:
    talks = [conversation(seed, 1 + seed % 5) for seed in range(6)]
    together = Folder(served, batch_tokens=300).fold([FoldJob(None, 0, t) for t in talks])
    for talk, result in zip(talks, together, strict=True):
        (alone,) = Folder(served).fold([FoldJob(None, 0, talk)])
        assert distance(result.state, alone.state) < LIMIT
        assert (result.anchor_index, result.anchor_offset) == (alone.anchor_index, alone.anchor_offset)


def test_a_turn_larger_than_a_block_is_split(served: ServedModel) -> None:
    big = Message("user", "x" * (3 * served.block_tokens))
    (result,) = Folder(served).fold([FoldJob(None, 0, [Message("user", "hi"), big])])
    assert result.anchor_index == 1
    assert result.anchor_offset == 3 * served.block_tokens
    assert result.tokens == len(served.turns.encode(big)) + len(served.turns.encode(Message("user", "hi")))


def test_nothing_to_fold_leaves_the_anchor(served: ServedModel) -> None:
    anchor = torch.randn(served.state_shape)
    (result,) = Folder(served).fold([FoldJob(anchor, 0, [])])
    assert torch.equal(result.state, anchor)
    assert result.tokens == 0


def test_a_state_that_is_not_finite_spoils_no_other(served: ServedModel) -> None:
    broken = torch.full(served.state_shape, float("nan"))
    jobs = [FoldJob(broken, 0, [Message("user", "hi")]), FoldJob(None, 0, [Message("user", "hi")])]
    spoilt, sound = Folder(served).fold(jobs)
    (alone,) = Folder(served).fold(jobs[1:])
    assert not spoilt.state.isfinite().all()
    assert distance(sound.state, alone.state) < LIMIT


def test_bos_is_attended_but_neither_reads_nor_writes(served: ServedModel) -> None:
    state = OsamState(torch.randn(served.state_shape).unsqueeze(1))
    before = state.tensor.clone()
    mask = torch.tensor([[False]])
    with torch.no_grad(), served.memory.bind(state, token_mask=mask):
        steered = served.model(torch.tensor([[5]])).logits
    with torch.no_grad():
        frozen = served.model(torch.tensor([[5]])).logits
    assert torch.equal(state.tensor, before)
    assert torch.equal(steered, frozen)


class Talks:
    """Several memories, folded bit by bit in batches that they share, with or without what earlier folds left open."""

    def __init__(self, served: ServedModel, count: int, keep_bytes: int = PLENTY, batch_tokens: int = 16384) -> None:
        self.served = served
        self.folder = Folder(served, batch_tokens, keep_bytes)
        self.messages = [conversation(seed, 14, longest=30) for seed in range(count)]
        self.jobs = [FoldJob(None, 0, [])] * count
        self.done = [0] * count
        self.ran = 0

    def fold(self, counts: list[int], *, forgetting: bool = False) -> list[OpenBlock | None]:
        """Fold the next so many messages of each memory, in one call; ``forgetting``: every other one from its anchor."""
        jobs = []
        for i, count in enumerate(counts):
            job, new = self.jobs[i], self.messages[i][self.done[i] : self.done[i] + count]
            if job.open_block is None or (forgetting and i % 2):
                jobs.append(FoldJob(job.anchor, job.offset, [*job.messages, *new]))
            else:
                jobs.append(FoldJob(None, 0, new, job.open_block))
        results = self.folder.fold(jobs)
        for i, (job, result) in enumerate(zip(jobs, results, strict=True)):
            before = len(self.jobs[i].messages) if job.open_block is not None else 0
            whole = [*self.jobs[i].messages, *job.messages] if before else job.messages
            at, anchor, offset = 0, self.jobs[i].anchor, self.jobs[i].offset
            if result.anchor is not None:
                at, anchor, offset = before + result.anchor_index, result.anchor, result.anchor_offset
            self.jobs[i] = FoldJob(anchor, offset, whole[at:], result.open_block)
            self.done[i] += counts[i]
            self.ran += result.tokens
        self.states = [result.state for result in results]
        return [result.open_block for result in results]

    def check(self) -> None:
        """Every state is that of a memory alone, folded at one go."""
        for messages, done, state in zip(self.messages, self.done, self.states, strict=True):
            (alone,) = Folder(self.served).fold([FoldJob(None, 0, messages[:done])])
            assert distance(state, alone.state) < LIMIT


STEPS = [[1, 3, 2, 5], [2, 1, 1, 1], [1, 1, 4, 1], [1, 2, 1, 1], [1, 1, 1, 6]]


@pytest.mark.parametrize("forgetting", [False, True])
def test_going_on_with_an_open_block_is_running_it_again(served: ServedModel, forgetting: bool) -> None:
    talks = Talks(served, 4)
    for step in STEPS:
        talks.fold(step, forgetting=forgetting)
        talks.check()


@pytest.mark.parametrize("family", GOES_ON)
def test_any_model_with_nothing_but_keys_and_values_goes_on_with_an_open_block(family: str) -> None:
    talks = Talks(random_served(GOES_ON[family]), 4)
    seen: list[OpenBlock | None] = []
    for step in STEPS:
        seen += talks.fold(step, forgetting=True)
    talks.check()
    assert sum(block is not None for block in seen) > 15


@pytest.mark.parametrize("family", BEGINS_ANEW)
def test_a_model_that_keeps_more_or_less_than_keys_and_values_hands_nothing_back(family: str) -> None:
    talks = Talks(random_served(BEGINS_ANEW[family]), 2)
    for step in STEPS[:2]:
        assert talks.fold(step[:2]) == [None, None]
    talks.check()


def test_with_an_open_block_only_new_tokens_run(served: ServedModel) -> None:
    talks = Talks(served, 1)
    for _ in talks.messages[0]:
        talks.fold([1])
    talks.check()
    assert talks.ran == sum(len(served.turns.encode(message)) for message in talks.messages[0])


def test_open_blocks_are_handed_back_as_long_as_there_is_room(served: ServedModel) -> None:
    whole = Talks(served, 4)
    sizes = sorted(block.bytes for block in whole.fold([1, 1, 1, 1]) if block is not None)
    assert len(sizes) == 4
    some = Talks(served, 4, keep_bytes=sum(sizes) - 1)
    kept = [block.bytes for block in some.fold([1, 1, 1, 1]) if block is not None]
    assert 0 < sum(kept) < sum(sizes)
    some.check()
    assert Talks(served, 4, keep_bytes=0).fold([1, 1, 1, 1]) == [None] * 4


def test_a_budget_of_tokens_holds_for_open_blocks_too(served: ServedModel) -> None:
    talks = Talks(served, 4, batch_tokens=70)
    for step in STEPS:
        talks.fold(step)
    talks.check()
