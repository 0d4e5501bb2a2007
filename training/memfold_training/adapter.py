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
    for number, this in enumerate(rounds):
        data = MemoryBatches(encoder, this.phases, seed + number)
        run(Trainer, WriteThenRead(backbone, memory, this.decision), data, this, seed=seed + number, weight_decay=0.0)
    memory.eval()
    save_adapter(memory, out)
    return memory
