"""Attention masks, handed to the model ready-made, because the rows of a batch stand at different positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Mask = Tensor | dict[str, Tensor]


class Masks:
    """Makes masks in the form that a model wants: one tensor, or one for each of its types of attention.

    Args:
        config: of the model's text decoder.
        dtype: in which the model computes.

    Raises:
        ValueError: a type of attention that is not known here.
    """

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        self._off = torch.finfo(dtype).min
        self._dtype = dtype
        self._by_type = hasattr(config, "layer_types")
        window = getattr(config, "sliding_window", None)
        # As in transformers' create_masks_for_generate: without types, a window is every layer's.
        kinds = set(config.layer_types) if self._by_type else {"sliding_attention" if window else "full_attention"}
        if unknown := kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(f"no masks for {', '.join(sorted(unknown))}")
        self._windows: dict[str, int | None] = {
            kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)
        }

    def of(self, positions: Tensor, length: int) -> Mask:
        """Which keys each token sees: additive, (B, 1, T, length), 0 or the lowest number.

        Args:
            positions: of the tokens, (B, T).
            length: of the keys, which are at the positions from 0 on in every row.
        """
        masks = {kind: self._one(positions, length, window) for kind, window in self._windows.items()}
        return masks if self._by_type else next(iter(masks.values()))

    def _one(self, positions: Tensor, length: int, window: int | None) -> Tensor:
        keys = torch.arange(length, device=positions.device)
        ahead = keys - positions[:, None, :, None]
        hidden = ahead > 0
        if window is not None:
            hidden |= ahead <= -window
        return torch.zeros(hidden.shape, dtype=self._dtype, device=positions.device).masked_fill_(hidden, self._off)
