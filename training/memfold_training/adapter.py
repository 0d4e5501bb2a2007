"""Train an adapter to write a dialogue into the state and to answer from the state alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, Trainer

from memfold_osam import AdapterConfig, DeltaMemory, OsamState, save_adapter
from memfold_training.episodes import MemoryBatches, TurnEncoder
from memfold_training.rounds import Round, run

# What the question gives away is worth little: the prompt's own context teaches it.
TEMPLATE_WEIGHT = 0.2


class WriteThenRead(nn.Module):
    """One forward pass: dialogues are written, then their questions answered without them.

    The backbone is frozen; the state passes from the write to the read as a value, so gradients reach
    the writing weights through it.
    """

    def __init__(self, backbone: PreTrainedModel, memory: DeltaMemory, decision: float = 0.0) -> None:
        super().__init__()
        self.decision = decision
        self.memory = memory
        # Not a submodule: the trainer sees, and saves, the adapter only.
        self._frozen = [backbone.requires_grad_(False)]
        self._frozen[0].train(False)

    def write(self, context_ids: Tensor, context_mask: Tensor) -> Tensor:
        """(B, T) tokens and which are real, to the states (layers, B, H, r, r)."""
        state = self.memory.init_state(context_ids.shape[0])
        if not context_ids.shape[1]:  # nothing was said
            return state.tensor
        with self.memory.bind(state, write=True, token_mask=context_mask):
            self._frozen[0].base_model(input_ids=context_ids, use_cache=False)
        return state.tensor

    def read(self, states: Tensor, input_ids: Tensor) -> Tensor:
        """Logits of prompts (Q, T) that read the states (layers, Q, H, r, r)."""
        with self.memory.bind(OsamState(states), write=False):
            logits: Tensor = self._frozen[0](input_ids=input_ids, use_cache=False).logits
        return logits

    def forward(
        self,
        context_ids: Tensor,
        context_mask: Tensor,
        input_ids: Tensor,
        replies: Tensor,
        recalled: Tensor,
        decided: Tensor,
        owner: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of a batch of ``MemoryBatches``."""
        states = self.write(context_ids, context_mask)
        logits = self.read(states[:, owner], input_ids)[:, :-1]
        losses = functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
        losses = losses.view(logits.shape[:2])
        recall = losses[recalled[:, 1:]].mean() + self.decision * losses[decided[:, 1:]].mean()
        return {"loss": recall + TEMPLATE_WEIGHT * losses[replies[:, 1:]].mean(), "recall": recall.detach()}


def start_from_attention(backbone: PreTrainedModel, memory: DeltaMemory) -> None:
    """Let the memory's queries and keys begin as the backbone's own, where those hardly turn with position.

    Telling facts apart needs keys and queries that meet, and a backbone that answers from its context has
    them: in the dimensions that its rotary embedding turns slowest. State head ``s`` takes over those of attention
    head ``s mod heads``, a rank's worth, each further set of state heads the next slowest ones.
    """
    config = backbone.config
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    pairs = memory.config.rank // 2
    blocks = dict(backbone.named_modules())
    for index, name in enumerate(memory.block_names):
        layer, block = memory.layer(index), blocks[name]
        for state_head in range(memory.config.num_state_heads):
            head, turn = state_head % heads, state_head // heads
            end = width // 2 - turn * pairs
            dims = torch.cat([torch.arange(end - pairs, end), torch.arange(end - pairs, end) + width // 2])
            rows = slice(state_head * memory.config.rank, (state_head + 1) * memory.config.rank)
            key_head = head * groups // heads
            with torch.no_grad():
                scale_q, scale_k = block.q_norm.weight[dims, None], block.k_norm.weight[dims, None]
                layer.memory_q_proj[rows] = scale_q * block.q_proj.weight[head * width + dims]
                layer.memory_k_proj[rows] = scale_k * block.k_proj.weight[key_head * width + dims]


def train_adapter(
    backbone: PreTrainedModel,
    encoder: TurnEncoder,
    config: AdapterConfig,
    rounds: tuple[Round, ...],
    out: Path,
    *,
    seed: int,
) -> DeltaMemory:
    """Train an adapter, round after round, and save it in ``out``."""
    torch.manual_seed(seed)
    memory = DeltaMemory(backbone, config)
    start_from_attention(backbone, memory)
    for number, this in enumerate(rounds):
        data = MemoryBatches(encoder, this.phases, seed + number)
        run(Trainer, WriteThenRead(backbone, memory, this.decision), data, this, seed=seed + number, weight_decay=0.0)
    memory.eval()
    save_adapter(memory, out, backbone)
    return memory
