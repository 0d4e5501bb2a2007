"""Which models can run many sequences in one batch: tried, not believed."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from memfold_reader.kv import KvSlots, Slot
from memfold_reader.masks import Masks

_logger = logging.getLogger(__name__)

# Positions that count differently once a text is long: a long row would change a short one's.
_ROPE_BY_LENGTH = ("dynamic", "longrope")
_KINDS = (DynamicLayer, DynamicSlidingWindowLayer)
# Of the largest logit: what rounding may do, and what a wrong position, mask or key does at least by far.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
_COARSE = 0.1


def kv_slots(model: PreTrainedModel) -> KvSlots | None:
    """Slots for a model's keys and values, or None where it must have a cache for each sequence."""
    masks = _masks(model)
    if masks is None:
        return None
    if _agrees(model, KvSlots(masks, model.device)):
        return KvSlots(masks, model.device)
    _logger.warning("%s says something else with slots than alone; it runs alone", type(model).__name__)
    return None


def _masks(model: PreTrainedModel) -> Masks | None:
    """The masks of a model, if what it keeps are keys and values of every position, or of the last ones."""
    config = model.config.get_text_config(decoder=True)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model  # type: ignore[no-untyped-call]
    taken = inspect.signature(decoder.forward).parameters
    rope = str(getattr(config, "rope_parameters", None))
    if (
        not {"past_key_values", "attention_mask", "position_ids"} <= taken.keys()
        or any(kind in rope for kind in _ROPE_BY_LENGTH)
        or config._attn_implementation not in ("sdpa", "eager")  # noqa: SLF001  transformers has no other way to ask
    ):
        return None
    try:
        layers = DynamicCache(config=config).layers
        # A cache that finds its layers as they come has none yet.
        return Masks(config, model.dtype) if all(type(layer) in _KINDS for layer in layers) else None
    except (KeyError, ValueError):  # a kind of layer that transformers has no cache for, or we no mask
        return None


@torch.inference_mode()
def _agrees(model: PreTrainedModel, slots: KvSlots) -> bool:
    """Whether two rows of different lengths, first in pieces and then in a batch, get the logits that each gets alone."""
    vocabulary = min(97, model.config.get_text_config(decoder=True).vocab_size)
    rows = [[(7 * i + 3 * n) % vocabulary for i in range(length)] for n, length in enumerate((5, 11))]
    alone = [_logits(model, [row], past_key_values=DynamicCache(config=model.config))[0] for row in rows]
    places = [slots.open(1) for _ in rows]
    try:
        together = [_pieces(model, slots, place, (row[:3], row[3:-1])) for place, row in zip(places, rows, strict=True)]
        (group,) = slots.groups(places)
        order = [places.index(place) for place in group]
        last = _logits(model, [rows[n][-1:] for n in order], **slots.batch(group))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Whatever a model's code makes of a cache and a mask that it does not expect.
        _logger.warning("%s does not run with slots: %s", type(model).__name__, error)
        return False
    for n, logits in zip(order, last, strict=True):
        together[n] = torch.cat([together[n], logits])
    return all(_close(a, b, model.dtype) for a, b in zip(together, alone, strict=True))


def _pieces(model: PreTrainedModel, slots: KvSlots, place: Slot, pieces: Iterable[list[int]]) -> Tensor:
    found = []
    for piece in pieces:
        found.append(_logits(model, [piece], **slots.chunk(place, len(piece)))[0])
        place.length += len(piece)
    return torch.cat(found)


def _logits(model: PreTrainedModel, rows: list[list[int]], **inputs: Any) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor(rows, device=model.device), use_cache=True, **inputs).logits
    return logits.float()


def _close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    return bool((a - b).abs().max() <= _TOLERANCE.get(dtype, _COARSE) * b.abs().max())
