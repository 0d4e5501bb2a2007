"""The state is a function of the turns: how they were cut into calls and batches must not show."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfold_osam import OsamState
from memfold_osam.config import CONFIG_FILE
from memfold_osam.fold import Folder, FoldJob
from memfold_osam.serving import ServedModel, load_served_model
from memfold_osam.testing import write_random_model
from memfold_osam.turns import Message

LIMIT = 1e-5


@pytest.fixture(scope="module", params=["token", "message_mean", "sentence_mean"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """The same model with an adapter that writes tokens, turns or sentences. A block opens with a token as BOS."""
    directory = write_random_model(tmp_path_factory.mktemp(request.param), block_tokens=64)
    path = directory / "adapter" / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"memory_write_granularity": request.param}))
    model = load_served_model(str(directory))
    model.turns.bos = (7,)
    return model


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
