"""The device memory that training takes, computed from a backbone's configuration: nothing is loaded or run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from memfold_osam.decoder import AttentionBlock, chosen_blocks
from memfold_osam.layer import LayerMemory
from memfold_training.recipes import Recipe

# Of a question and its reply together, where nothing else is known.
ASKED_TOKENS = 512
FP32, BF16 = 4, 2


def memory_needed(backbone: str, chosen: Recipe, asked_tokens: int = ASKED_TOKENS) -> dict[str, Any]:
    """Bytes by what they are for, of one process without sharding, at the start of the backward pass.

    Activations, twice those of a layer that is recomputed (for what comes back through it), are counted by running the first adapted layer on the ``meta`` device, which has shapes and no numbers,
    and adding up what it keeps for the backward pass; attention is taken to be of the kind that keeps no matrix of
    scores. On top come the device's own context, the allocator's slack and what a kernel needs while it runs.

    Args:
        backbone: directory or hub id; of it the configuration is read and nothing else.
        chosen: how it is trained.
        asked_tokens: of all questions and replies of an example.

    Raises:
        ValueError: there is no such configuration.
        TypeError: the backbone cannot be adapted.
    """
    model = _on_meta(backbone, chosen)
    blocks = list(chosen_blocks(model, chosen.adapter).values())
    layers = [_memory(chosen, block) for block in blocks]
    trained = sum(p.numel() for layer in layers for p in layer.parameters() if p.requires_grad)
    config = model.config.get_text_config()
    rows = int(chosen.training.get("per_device_train_batch_size", 8))
    written, read = rows * chosen.episodes.context_tokens, rows * asked_tokens
    checkpointed = bool(chosen.training.get("gradient_checkpointing"))
    one = _kept_by_layer(model, blocks[0], written) + _kept_by_memory(layers[0], blocks[0], written)
    depth = config.num_hidden_layers
    boundary = config.hidden_size * model.dtype.itemsize
    kept = boundary * depth * (written + read) + 2 * one if checkpointed else one * depth * (written + read) / written
    costs = {
        "backbone": sum(p.numel() for p in model.parameters()) * model.dtype.itemsize,
        "adapter, gradients, AdamW": trained * 4 * FP32,
        "activations": int(kept),
        "logits": read * config.vocab_size * (model.dtype.itemsize + 3 * FP32),
    }
    return {
        "backbone": backbone,
        "trained": trained,
        "written_tokens": written,
        "asked_tokens": read,
        "gradient_checkpointing": checkpointed,
        "bytes": costs | {"in all": sum(costs.values())},
    }


def _on_meta(backbone: str, chosen: Recipe) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(backbone)
    except OSError as error:
        raise ValueError(f"{backbone} is no backbone: {error}") from error
    stored = config.dtype or torch.float32
    dtype = stored if chosen.dtype == "auto" else getattr(torch, chosen.dtype)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model.requires_grad_(False)


def _memory(chosen: Recipe, block: AttentionBlock) -> LayerMemory:
    with torch.device("meta"):
        return LayerMemory(chosen.adapter, block.hidden, {head: p.width for head, p in block.projections.items()})


def _kept_by_layer(model: PreTrainedModel, block: AttentionBlock, tokens: int) -> int:
    """Bytes that the layer around a block keeps for its backward pass when it is frozen and its input is not."""
    layer = model.get_submodule(block.name.rpartition(".")[0])
    rotary: Any = model.base_model.rotary_emb
    with torch.device("meta"):
        x = torch.empty(1, tokens, block.hidden, dtype=model.dtype, requires_grad=True)
        positions = torch.arange(tokens)[None]
        angles = rotary(x, positions)
    kept = _Kept({id(p) for p in model.parameters()}, tokens)
    with saved_tensors_hooks(kept.count, lambda tensor: tensor):
        layer(x, position_embeddings=angles, attention_mask=None, position_ids=positions)
    return kept.bytes


def _kept_by_memory(layer: LayerMemory, block: AttentionBlock, tokens: int) -> int:
    """The same of the memory in that layer, all of it in fp32: its input, its projections and gates, the reads."""
    projected = 3 * layer.config.width + 2 * layer.config.gates
    corrected = sum(block.projections[head].width for head in layer.config.delta_heads)
    # Per number of q, k, v and the gates: as projected, after tanh or sigmoid, after the norm or as the scan takes it.
    return tokens * (FP32 * (block.hidden + 3 * projected + 2 * layer.config.width) + BF16 * corrected)


class _Kept:
    """Counts tensors that autograd keeps, each storage once; weights not at all, nor what is tokens by tokens.

    On ``meta``, attention falls back to the form that keeps its scores.
    """

    def __init__(self, weights: set[int], tokens: int) -> None:
        self._weights, self._scores, self._seen = weights, (tokens, tokens), dict[int, Tensor]()
        self.bytes = 0

    def count(self, tensor: Tensor) -> Tensor:
        """Take note of one."""
        base = tensor if tensor._base is None else tensor._base  # noqa: SLF001 - a view keeps what it is of
        if id(base) not in self._weights and id(base) not in self._seen and base.shape[-2:] != self._scores:
            self._seen[id(base)] = base
            self.bytes += base.numel() * base.element_size()
        return tensor
