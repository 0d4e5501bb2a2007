"""A request that writes: into its own copy of the state, what is its own, and nobody else notices."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from memfold_osam.serving import ServedModel
from memfold_osam.state import OsamState
from memfold_osam.testing import serve_random
from memfold_reader.sequence import Segment

PROMPT = torch.randint(3, 60, (48,), generator=torch.Generator().manual_seed(3)).tolist()
# A window up to 12, then two messages of the request's own around one that is not written, and the reply's header.
OWN = (Segment(12, 27), Segment(33, 45))
SENTENCES = (
    Segment(12, 27, (-1, *[0] * 6, *[1] * 7, -1)),
    Segment(33, 45, (-1, *[0] * 10, -1)),
)


@cache
def served_as(granularity: str) -> ServedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
        model = Qwen3ForCausalLM(
            Qwen3Config(**small, num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, initializer_range=0.3)
        )
        return serve_random(model, rank=4, memory_write_granularity=granularity)


@pytest.fixture
def state() -> torch.Tensor:
    return torch.randn(served_as("token").state_shape, generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def greedy_by(served: ServedModel, tokens: list[int], state: torch.Tensor, **flags: Any) -> list[int]:
    """The oracle: the most likely token after each, in one pass over all of them with writing on."""
    given = {name: torch.tensor([ids]) if isinstance(ids, list) else ids for name, ids in flags.items()}
    with served.memory.bind(OsamState(state.unsqueeze(1)), **given):
        return served.model(input_ids=torch.tensor([tokens])).logits[0].argmax(-1).tolist()


def follows(reply: Any, best: list[int]) -> bool:
    said = reply.generated
    return said == best[len(PROMPT) - 1 : len(PROMPT) - 1 + len(said)]


@pytest.mark.parametrize("piece", [7, 512])
def test_tokens_from_the_requests_own_messages_on_write_and_those_before_only_read(by_hand, state, monkeypatch, piece):
    monkeypatch.setattr("memfold_reader.scheduler.PREFILL_TOKENS", piece)
    served, engine = served_as("token"), by_hand(served_as("token"))
    reply = engine.submit(PROMPT, state=state, write_from=12, unread=1, max_tokens=20)
    engine.finish(reply)
    tokens = PROMPT + reply.generated[:-1]
    write = [at >= 12 for at in range(len(tokens))]
    mask = [at >= 1 for at in range(len(tokens))]
    assert follows(reply, greedy_by(served, tokens, state, write=write, token_mask=mask))
    assert not follows(reply, greedy_by(served, tokens, state, write=False, token_mask=mask))


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
@pytest.mark.parametrize("piece", [7, 512])
def test_own_messages_are_written_at_their_end_and_the_reply_only_reads(
    by_hand, state, monkeypatch, granularity, piece
):
    monkeypatch.setattr("memfold_reader.scheduler.PREFILL_TOKENS", piece)
    served, engine = served_as(granularity), by_hand(served_as(granularity))
    own = OWN if granularity == "message_mean" else SENTENCES
    reply = engine.submit(PROMPT, state=state, write_from=12, segments=own, max_tokens=20)
    engine.finish(reply)
    tokens = PROMPT + reply.generated[:-1]
    segments, write, sentences = [0] * 12, [False] * len(tokens), [-1] * len(tokens)
    for number, segment in enumerate(own):
        segments += [2 * number + 1] * (segment.end - segment.begin)
        segments += [2 * number + 2] * ((own[number + 1].begin if number + 1 < len(own) else len(tokens)) - segment.end)
        write[segment.begin : segment.end] = [True] * (segment.end - segment.begin)
        sentences[segment.begin : segment.end] = segment.sentences or [0] * (segment.end - segment.begin)
    flags: dict[str, Any] = {"segment_ids": segments, "write": write}
    if granularity == "sentence_mean":
        flags["sentence_ids"] = sentences
    assert follows(reply, greedy_by(served, tokens, state, **flags))
    assert not follows(reply, greedy_by(served, tokens, state, write=False))


@pytest.mark.parametrize("granularity", ["token", "message_mean"])
def test_who_writes_beside_whom_changes_nothing(by_hand, state, granularity):
    served = served_as(granularity)
    jobs: list[dict[str, Any]] = [
        {"prompt": PROMPT[n:], "state": state if n % 2 else -state} | options
        for n, options in enumerate([{"write_from": 5, "segments": (Segment(5, 20),)}, {}, {"gain": 0.5}] * 3)
    ]
    jobs += [{"prompt": PROMPT, "state": None}]
    kept = state.clone()
    alone, together = by_hand(served), by_hand(served)
    ones = [alone.finish(alone.submit(**job))[0] for job in jobs]
    replies = []
    for job in jobs:
        replies.append(together.submit(**job))
        together.step()
    assert together.finish(*replies) == ones
    assert torch.equal(state, kept)


def test_requests_of_one_memory_each_write_into_a_copy_of_their_own(by_hand, state):
    served, engine = served_as("token"), by_hand(served_as("token"))
    job = {"prompt": PROMPT, "state": state, "write_from": 0}
    (first,) = engine.finish(engine.submit(**job))
    assert engine.finish(engine.submit(**job), engine.submit(**job)) == [first, first]
    fresh = by_hand(served)
    assert engine.finish(engine.submit(PROMPT, state=state)) == fresh.finish(fresh.submit(PROMPT, state=state))


def test_every_prefix_of_a_prompt_may_be_its_own_message(by_hand, state):
    """Even one that ends with the prompt, so that no header follows it."""
    served, engine = served_as("message_mean"), by_hand(served_as("message_mean"))
    for begin, end in itertools.product((0, 46, 47), (48,)):
        reply = engine.submit(PROMPT, state=state, write_from=begin, segments=(Segment(begin, end),), max_tokens=8)
        engine.finish(reply)
        tokens = PROMPT + reply.generated[:-1]
        flags = {
            "segment_ids": [0] * begin + [1] * (end - begin) + [2] * (len(tokens) - end),
            "write": [begin <= at < end for at in range(len(tokens))],
        }
        assert follows(reply, greedy_by(served, tokens, state, **flags))
