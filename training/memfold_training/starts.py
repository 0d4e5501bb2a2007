"""How a fresh adapter begins, beyond what its configuration says."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memfold_osam import DeltaMemory
from memfold_osam.decoder import chosen_blocks


def start_from_attention(backbone: PreTrainedModel, memory: DeltaMemory, gain: float) -> None:
    """Let the memory begin as a linear copy of the backbone's own attention.

    Telling facts apart needs keys and queries that meet, and a backbone that answers from its context has them: in
    the dimensions that its rotary embedding turns slowest. It also knows how to carry a word from where it was said to
    where it is asked for: by the values and the output projection of its attention heads. State head ``s`` takes over
    those of attention head ``s mod heads``, a rank's worth of each; each further set of state heads the next ones.

    Args:
        backbone: whose layers have ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``.
        memory: attached to it.
        gain: of what the memory adds, against what attention with all its weight on one token would.

    Raises:
        ValueError: the backbone's attention is laid out in another way; the message says what is missing.
    """
    config = backbone.config.get_text_config()
    rank, state_heads = memory.config.rank, memory.config.num_state_heads
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if width % rank or rank % 2:
        raise ValueError(f"a rank of {rank} is odd, or does not divide the backbone's heads, which are {width} wide")
    for index, block in enumerate(chosen_blocks(backbone, memory.config).values()):
        layer, attention = memory.layer(index), cast("Any", block.module)
        missing = [name for name in ("q_proj", "k_proj", "v_proj", "o_proj") if not hasattr(attention, name)]
        if missing:
            raise ValueError(f"{block.name} has no {', '.join(missing)}: start this adapter as the reference does")
        for state_head in range(state_heads):
            head, turn = state_head % heads, state_head // heads % (width // rank)
            key_head = head * groups // heads
            slow, part = _slow_dims(width, rank, turn), torch.arange(turn * rank, (turn + 1) * rank)
            rows = slice(state_head * rank, (state_head + 1) * rank)
            with torch.no_grad():
                for name, at in (("q", head), ("k", key_head)):
                    weight = getattr(attention, f"{name}_proj").weight[at * width + slow].float()
                    norm = getattr(attention, f"{name}_norm", None)
                    if norm is not None and norm.weight.shape == (width,):
                        weight = weight * norm.weight[slow, None].float()
                    getattr(layer, f"memory_{name}_proj")[rows] = weight.to(layer.memory_q_proj)
                layer.memory_v_proj[rows] = attention.v_proj.weight[key_head * width + part].to(layer.memory_v_proj)
                if "o" in memory.config.delta_heads:
                    outputs: Tensor = cast("Tensor", layer.delta_o_proj)
                    columns = attention.o_proj.weight[:, head * width + part].to(outputs)
                    outputs[:, rows] = columns * (gain * rank / memory.config.alpha)


def _slow_dims(width: int, rank: int, turn: int) -> torch.Tensor:
    """The dimensions of a head that rotary embedding turns slowest, in pairs; with each turn the next ones."""
    pairs = rank // 2
    end = width // 2 - turn * pairs
    low = torch.arange(end - pairs, end)
    return torch.cat([low, low + width // 2])
