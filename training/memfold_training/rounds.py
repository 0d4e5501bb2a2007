"""A round of training on generated dialogues: phases of data under one learning-rate schedule."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from memfold_training.batches import LossWeights
from memfold_training.episodes import Batches, Phase

SAVED_EVERY = 50


@dataclass(frozen=True, slots=True)
class Round:
    """Phases that follow one another under one schedule.

    Attributes:
        weights: what counts how much; the backbone's rounds look at ``opening`` alone.
        warmup: steps.
    """

    phases: tuple[Phase, ...]
    learning_rate: float
    weights: LossWeights
    warmup: int = 100

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(p.steps for p in self.phases)


def run(
    trainer: Callable[..., Trainer],
    model: nn.Module,
    data: Batches,
    this: Round,
    *,
    seed: int,
    weight_decay: float,
    kept: Path | None = None,
) -> None:
    """Train a model in place. The dataset makes whole batches.

    Args:
        trainer: makes one.
        model: to train.
        data: its batches.
        this: the round that they are of.
        seed: of all that is random in the training itself.
        weight_decay: of AdamW.
        kept: where to leave checkpoints, from which a round that was interrupted goes on; None for nowhere.
    """
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=str(kept or scratch),
            max_steps=this.steps,
            learning_rate=this.learning_rate,
            adam_beta2=0.95,
            lr_scheduler_type="cosine",
            warmup_steps=this.warmup,
            weight_decay=weight_decay,
            max_grad_norm=1.0,
            logging_steps=50,
            save_strategy="no" if kept is None else "steps",
            save_steps=SAVED_EVERY,
            save_total_limit=2,
            report_to="none",
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=1,
            remove_unused_columns=False,
            # Else accelerate takes the first tensor's rows for the batch's and drops the questions beyond as many.
            accelerator_config={"dispatch_batches": False},
        )
        begun = kept is not None and any(kept.glob("checkpoint-*"))
        trainer(model=model, args=arguments, train_dataset=data, data_collator=_first).train(
            resume_from_checkpoint=begun
        )


def _first(batches: list[dict[str, Any]]) -> dict[str, Any]:
    return batches[0]
