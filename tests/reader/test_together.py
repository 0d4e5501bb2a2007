"""What a sequence says does not depend on what runs beside it, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf

from memfold_osam.serving import ServedModel
from memfold_osam.state import OsamState
from memfold_osam.testing import serve_random
from memfold_reader.caches import OwnCaches
from memfold_reader.kv import KvSlots
from memfold_reader.runner import Runner
from memfold_reader.together import kv_slots

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
KINDS = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL, head_dim=16)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
    "mistral, sliding window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SMALL, sliding_window=20)),
    "gemma3, windows here and there": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**SMALL, head_dim=16, query_pre_attn_scalar=16, sliding_window=20, layer_types=KINDS)
    ),
    "qwen3-next, linear attention": lambda: hf.Qwen3NextForCausalLM(
        hf.Qwen3NextConfig(
            **SMALL,
            head_dim=8,
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
}
SLOTS = [name for name in FAMILIES if "linear" not in name]
LENGTHS = (1, 2, 19, 21, 40, 100, 230, 250, 256, 300)
CLOSE_CALL = 1e-4  # between the two most likely tokens: what rounding may turn around


@cache
def served_as(family: str) -> ServedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return serve_random(FAMILIES[family](), rank=4)


def jobs(served: ServedModel) -> list[dict[str, Any]]:
    """Prompts of all lengths; every third without a memory, the others each with its own, at different gains."""
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "prompt": torch.randint(3, 60, (length,), generator=generator).tolist(),
            "state": torch.randn(served.state_shape, generator=generator) if n % 3 else None,
            "gain": 1.0 + n % 2,
        }
        for n, length in enumerate(LENGTHS)
    ]


@torch.inference_mode()
def logits_after(served: ServedModel, tokens: list[int], job: dict[str, Any]) -> torch.Tensor:
    """The oracle: one pass, no cache, no engine."""
    state = served.memory.init_state(1) if job["state"] is None else OsamState(job["state"].unsqueeze(1))
    with served.memory.bind(state, write=False, gain=job["gain"]):
        return served.model(input_ids=torch.tensor([tokens])).logits[0, -1]


def is_right(served: ServedModel, job: dict[str, Any], said: list[int]) -> bool:
    """Whether every token is the oracle's, or a close call."""
    for at, token in enumerate(said):
        logits = logits_after(served, [*job["prompt"], *said[:at]], job)
        if logits.max() - logits[token] > CLOSE_CALL:
            return False
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_says_what_each_row_says_alone(family, by_hand):
    served = served_as(family)
    alone, together = by_hand(served), by_hand(served)
    ones = [alone.finish(alone.submit(**job, max_tokens=12))[0] for job in jobs(served)]
    replies = []
    for job in jobs(served):  # they come in one after the other, while others are on their way
        replies.append(together.submit(**job, max_tokens=12))
        together.step()
    all_of_them = together.finish(*replies)
    assert all(len(said) == 12 for said in all_of_them)
    for job, one, said in zip(jobs(served), ones, all_of_them, strict=True):
        assert said == one or is_right(served, job, said)
    assert len(set(map(tuple, ones))) > len(ones) // 2


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_and_in_pieces_it_says_what_a_plain_loop_says(family, by_hand, monkeypatch):
    monkeypatch.setattr("memfold_reader.scheduler.PREFILL_TOKENS", 30)
    served, engine = served_as(family), by_hand(served_as(family))
    for job in jobs(served)[2:9:3]:
        assert is_right(served, job, engine.finish(engine.submit(**job, max_tokens=6))[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_without_a_memory_are_the_frozen_backbone_whoever_sits_beside_them(family, by_hand):
    served, engine = served_as(family), by_hand(served_as(family))
    replies = [engine.submit(**job, max_tokens=6) for job in jobs(served)]
    engine.finish(*replies)
    for job, reply in zip(jobs(served), replies, strict=True):
        if job["state"] is None:
            prompt = torch.tensor([job["prompt"]])
            wanted = served.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
            )
            assert reply.generated == wanted[0, len(job["prompt"]) :].tolist() or is_right(served, job, reply.generated)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_of_keys_and_values_gets_slots_and_no_other(family):
    kind = KvSlots if family in SLOTS else OwnCaches
    assert type(Runner(served_as(family))._kv) is kind


def test_a_model_that_says_something_else_with_slots_runs_alone(caplog):
    class Forgetful(hf.LlamaForCausalLM):
        """Counts positions by itself."""

        def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return super().forward(*args, position_ids=None, **kwargs)

    torch.manual_seed(0)
    model = Forgetful(hf.LlamaConfig(**SMALL)).eval()
    assert kv_slots(model) is None
    assert "runs alone" in caplog.text


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_change_with_the_longest_row_keep_rows_apart(rope):
    scaling = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0}
    if rope == "longrope":
        scaling |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}
    assert kv_slots(hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, rope_parameters=scaling)).eval()) is None
