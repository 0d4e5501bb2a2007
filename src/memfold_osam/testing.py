"""Small random models, for tests of whatever is built on this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from memfold_osam.adapter import save_adapter
from memfold_osam.attach import DeltaMemory
from memfold_osam.card import CARD_FILE, AdapterCard
from memfold_osam.config import AdapterConfig
from memfold_osam.serving import ServedModel, load_served_model, serve

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def write_random_model(path: Path, *, seed: int = 0, block_tokens: int = 256) -> Path:
    """Write a random Qwen3 of four layers with a random adapter (in ``adapter/``) to a directory."""
    tokenizer = byte_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                max_position_embeddings=2048,
                initializer_range=0.08,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        memory = DeltaMemory(model, AdapterConfig(num_state_heads=2))
        for parameter in memory.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    save_adapter(memory, path / "adapter")
    card = {
        "name": "random",
        "description": "Random weights; understands nothing.",
        "examples": ["Hello.", "I live in Lisbon.", "Where do I live?"],
        "block_tokens": block_tokens,
    }
    (path / "adapter" / CARD_FILE).write_text(json.dumps(card))
    return path


def tiny_random_model(path: Path, *, seed: int = 0, block_tokens: int = 256) -> ServedModel:
    """``write_random_model``, loaded."""
    return load_served_model(str(write_random_model(path, seed=seed, block_tokens=block_tokens)))


def serve_random(model: PreTrainedModel, **config: Any) -> ServedModel:
    """A model at hand with a random adapter of this configuration, ready to be read with; its text means nothing."""
    memory = DeltaMemory(model, AdapterConfig(**{"num_state_heads": 2} | config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.normal_(std=0.2, generator=generator)
    model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    return serve(model, byte_tokenizer(), memory.eval(), AdapterCard(name="random"), backbone="random")
