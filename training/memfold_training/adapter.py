"""Train an adapter to write a dialogue into the state and to answer from the state alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, Trainer, TrainingArguments

from memfold_osam import AdapterConfig, DeltaMemory, OsamState, save_adapter
from memfold_training.episodes import MemoryBatches, Phase, TurnEncoder

# What the question gives away is worth little: the prompt's own context teaches it.
TEMPLATE_WEIGHT = 0.2
# Whether there is an answer at all.
DECISION_WEIGHT = 0.5


class WriteThenRead(nn.Module):
    """One forward pass: dialogues are written, then their questions answered without them.

    The backbone is frozen; the state passes from the write to the read as a value, so gradients reach
    the writing weights through it.
    """

    def __init__(self, backbone: PreTrainedModel, memory: DeltaMemory) -> None:
        super().__init__()
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
        recall = losses[recalled[:, 1:]].mean() + DECISION_WEIGHT * losses[decided[:, 1:]].mean()
        return {"loss": recall + TEMPLATE_WEIGHT * losses[replies[:, 1:]].mean(), "recall": recall.detach()}


def train_adapter(
    backbone: PreTrainedModel,
    encoder: TurnEncoder,
    config: AdapterConfig,
    phases: tuple[Phase, ...],
    out: Path,
    *,
    seed: int,
    learning_rate: float = 5e-3,
) -> DeltaMemory:
    """Train and save an adapter in ``out``; the phases follow one another under one learning-rate schedule."""
    torch.manual_seed(seed)
    memory = DeltaMemory(backbone, config)
    arguments = TrainingArguments(
        output_dir=str(out / "runs"),
        max_steps=sum(p.steps for p in phases),
        learning_rate=learning_rate,
        adam_beta2=0.98,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=1,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=WriteThenRead(backbone, memory),
        args=arguments,
        train_dataset=MemoryBatches(encoder, phases, seed),
        data_collator=_first,
    )
    trainer.train()
    memory.eval()
    save_adapter(memory, out)
    return memory


def _first(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The dataset makes whole batches."""
    return batches[0]
