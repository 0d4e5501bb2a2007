"""A round of training: phases of data under one learning-rate schedule, run by Hugging Face's Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from memfold_training.episodes import Batches, Phase


@dataclass(frozen=True, slots=True)
class Round:
    """Phases that follow one another under one schedule.

    Attributes:
        decision: weight of a reply's first tokens, which decide whether there is an answer at all.
    """

    phases: tuple[Phase, ...]
    learning_rate: float
    decision: float

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(p.steps for p in self.phases)


def run(
    trainer: Callable[..., Trainer], model: nn.Module, data: Batches, this: Round, *, seed: int, weight_decay: float
) -> None:
    """Train a model in place; nothing is kept on disk. The dataset makes whole batches."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=this.steps,
            learning_rate=this.learning_rate,
            adam_beta2=0.95,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=weight_decay,
            max_grad_norm=1.0,
            logging_steps=100,
            save_strategy="no",
            report_to="none",
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=1,
            remove_unused_columns=False,
        )
        trainer(model=model, args=arguments, train_dataset=data, data_collator=_first).train()


def _first(batches: list[dict[str, Any]]) -> dict[str, Any]:
    return batches[0]
