"""The block that a fold leaves open, with the keys and values that the backbone has made of it.

Memories of different lengths go through one pass of an unmodified Hugging Face model: what each holds is padded on the
left to the longest, a mask hides the padding, and every row counts its own positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

# Positions that count differently once a text is long: keys made before and after that do not go together.
_ROPE_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class OpenBlock:
    """What has been folded of a block. Belongs to the model that made it; losing it costs time and nothing else.

    Attributes:
        state: (layers, heads, r, r) after its last token.
        tokens: in it; BOS is not counted.
        keys, values: of each layer of the backbone, (heads, positions, width).
    """

    state: Tensor
    tokens: int
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def positions(self) -> int:
        """Tokens, BOS among them."""
        return self.keys[0].shape[-2]

    @property
    def bytes(self) -> int:
        """What it takes of the device's memory."""
        return sum(each.nbytes for each in (*self.keys, *self.values))


def hands_back(model: PreTrainedModel) -> bool:
    """Whether a model can go on from keys and values: every layer keeps all of them, and nothing else.

    Not so with a sliding window or linear attention, nor where a model has more than text to count positions of.
    """
    config = model.config
    if config.get_text_config(decoder=True) is not config:
        return False
    taken = inspect.signature(model.base_model.forward).parameters
    if not {"past_key_values", "attention_mask", "position_ids"} <= taken.keys():
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if any(kind in str(rope) for kind in _ROPE_BY_LENGTH):
        return False
    try:
        layers = DynamicCache(config=config).layers
    except KeyError:  # a kind of layer that transformers itself has no cache for
        return False
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def join(model: PreTrainedModel, blocks: Sequence[OpenBlock | None], counts: Sequence[int]) -> dict[str, Any]:
    """What the model takes besides the tokens, to go on with these blocks or to begin some (None).

    Args:
        model: that goes on.
        blocks: of each row.
        counts: of the tokens to run in each row; the rest of it is padding.
    """
    held = _held(blocks)
    longest, width, device = max(held), max(counts), model.device
    example = next((block for block in blocks if block is not None), None)
    if example is None:
        return {"past_key_values": DynamicCache(config=model.config)}

    def stacked(name: str, layer: int) -> Tensor:
        parts = []
        for block in blocks:
            part: Tensor = getattr(block or example, name)[layer]
            part = part if block is not None else part[:, :0]
            parts.append(pad(part, (0, 0, longest - part.shape[-2], 0)))
        return torch.stack(parts)

    layers = [(stacked("keys", layer), stacked("values", layer)) for layer in range(len(example.keys))]
    begin, count = (torch.tensor(each, device=device)[:, None] for each in (held, counts))
    steps = torch.arange(width, device=device)
    return {
        "past_key_values": DynamicCache(layers, config=model.config),
        "attention_mask": (torch.arange(longest + width, device=device) >= longest - begin).long(),
        "position_ids": begin + torch.minimum(steps, count - 1),
    }


def split(
    cache: DynamicCache,
    blocks: Sequence[OpenBlock | None],
    counts: Sequence[int],
    sizes: Sequence[int],
    states: Sequence[Tensor],
) -> list[OpenBlock | None]:
    """The blocks after a pass, each without padding.

    Args:
        cache: as the pass left it; ``blocks`` and ``counts`` are those that it was joined with.
        sizes: tokens in each; 0 for one that nobody wants. ``states`` are those after them.
    """
    held = _held(blocks)
    longest, width = max(held), max(counts)
    layers = [
        (layer.keys, layer.values)
        for layer in cache.layers
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
    ]
    if len(layers) < len(cache.layers) or any(keys.shape[-2] != longest + width for keys, _ in layers):
        return [None] * len(blocks)  # the model keeps its own counsel

    def cut(whole: Tensor, row: int) -> Tensor:
        return whole[row, :, longest - held[row] : longest + counts[row]].clone()

    return [
        OpenBlock(
            state=states[row].clone(),  # it may be a view of the whole batch's
            tokens=size,
            keys=tuple(cut(keys, row) for keys, _ in layers),
            values=tuple(cut(values, row) for _, values in layers),
        )
        if size
        else None
        for row, size in enumerate(sizes)
    ]


def _held(blocks: Sequence[OpenBlock | None]) -> list[int]:
    return [0 if block is None else block.positions for block in blocks]
