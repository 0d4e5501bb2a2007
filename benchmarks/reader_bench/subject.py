"""What is measured: a random model of Qwen3's kind with a random adapter, and random prompts and states for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from memfold_osam.attach import DeltaMemory
from memfold_osam.card import AdapterCard
from memfold_osam.config import AdapterConfig
from memfold_osam.serving import ServedModel, serve
from memfold_osam.state import OsamState
from memfold_osam.testing import CHAT_TEMPLATE, SPECIAL
from memfold_reader.sequence import Steering

_WITHOUT_TEXT = len(SPECIAL) + 1


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a model."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    context: int
    dtype: torch.dtype


CPU = Shape("8 layers × 512, fp32", 8, 512, 1536, 8, 4, 64, 8192, 16384, torch.float32)
GPU = Shape("36 layers × 2,560, bf16, of Qwen3-4B's shape", 36, 2560, 9728, 32, 8, 128, 151_936, 16384, torch.bfloat16)
DRY = Shape("2 layers × 64, fp32", 2, 64, 128, 4, 2, 16, 512, 16384, torch.float32)


@dataclass(frozen=True, slots=True)
class Subject:
    """A served model, and the same weights in a model that nothing is attached to, for the peers."""

    shape: Shape
    served: ServedModel
    plain: Qwen3ForCausalLM

    def prompt(self, length: int, seed: int) -> list[int]:
        """Random tokens, none of them special."""
        random = torch.Generator().manual_seed(seed)
        tokens: list[int] = torch.randint(_WITHOUT_TEXT, self.shape.vocabulary, (length,), generator=random).tolist()
        return tokens

    def steering(self, seed: int) -> Steering:
        """A random memory."""
        layers, *state = self.served.state_shape
        random = torch.Generator().manual_seed(seed)
        return Steering(OsamState(torch.randn(layers, 1, *state, generator=random).to(self.served.device)))


def make(shape: Shape, device: str) -> Subject:
    """The model, the same every time."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.width,
        max_position_embeddings=shape.context,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(device):
        model, plain = (_frozen(Qwen3ForCausalLM(config), shape.dtype) for _ in range(2))
    model.lm_head.weight[:_WITHOUT_TEXT] = 0.0  # so that every token of a reply has a text, and can be seen to arrive
    plain.load_state_dict(model.state_dict(), assign=True)
    memory = DeltaMemory(model, AdapterConfig()).requires_grad_(False)
    for parameter in memory.parameters():
        nn.init.normal_(parameter, std=0.05)
    card = AdapterCard(name="random", block_tokens=min(8192, shape.context))
    return Subject(shape, serve(model, _words(shape.vocabulary), memory, card, backbone="random"), plain)


def _frozen(model: Any, dtype: torch.dtype) -> Qwen3ForCausalLM:
    frozen: Qwen3ForCausalLM = model.to(dtype).eval().requires_grad_(False)
    return frozen


def _words(count: int) -> PreTrainedTokenizerFast:
    """A tokenizer with a word a token."""
    names = [*SPECIAL, "<|unknown|>"]
    vocabulary = {name: i for i, name in enumerate([*names, *(f"w{i} " for i in range(len(names), count))])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=names[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
