"""Hugging Face's Trainer, told what a checkpoint of an adapter is and how to tell right answers from wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from memfold_osam import DeltaMemory
from memfold_osam.adapter import adapter_weights, read_weights, write_adapter
from memfold_osam.card import CARD_FILE
from memfold_training.adapter import WriteThenRead


class AdapterTrainer(Trainer):
    """Trains a ``WriteThenRead``. A checkpoint is an adapter's directory, with a card, that can be served as it is.

    Beside them in a checkpoint lies what resuming needs. Evaluation reports ``eval_loss``, ``eval_nll`` (nats a token
    of a reply) and ``eval_exact``, the share of its ``eval_replies`` replies of which each token is the most likely one.

    Args:
        card: of the adapter; the last evaluation is added to it.
    """

    def __init__(self, model: WriteThenRead, args: TrainingArguments, *, card: dict[str, Any], **others: Any) -> None:
        _refuse(args)
        super().__init__(model=model, args=args, **others)
        self._module = model
        model.sharded = self.is_fsdp_enabled
        self._card = card
        self._tally = torch.zeros(4, dtype=torch.float64)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, None, None]:
        """The loss of a batch; what is right in it is counted on the way."""
        with torch.no_grad(), self.compute_loss_context_manager():
            found = model(**self._prepare_inputs(inputs))
        self._tally += found["tally"].double().cpu()
        return found["loss"].detach(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate, and count over all processes."""
        self._tally.zero_()
        output: Any = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        total: Any = self.accelerator.reduce(self._tally.float().to(self.args.device), "sum")
        right, replies, nats, tokens = total.tolist()
        output.metrics[f"{metric_key_prefix}_replies"] = round(replies)
        output.metrics[f"{metric_key_prefix}_exact"] = right / max(1, replies)
        output.metrics[f"{metric_key_prefix}_nll"] = nats / max(1, tokens)
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the adapter, and nothing of the backbone."""
        if not self.args.should_save:
            return
        directory = Path(output_dir or str(self.args.output_dir))
        memory = self._module.memory
        # Where there is a state dict, it was gathered from several devices.
        write_adapter(
            directory, memory.config, adapter_weights(memory) if state_dict is None else _named(memory, state_dict)
        )
        scores = [entry for entry in self.state.log_history if "eval_exact" in entry]
        found = {key: round(value, 6) for key, value in scores[-1].items() if key.startswith("eval_")} if scores else {}
        card = self._card | {"steps": self.state.global_step, "evaluation": found}
        (directory / CARD_FILE).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        weights = read_weights(Path(resume_from_checkpoint))
        with torch.no_grad():
            for name, parameter in adapter_weights(self._module.memory).items():
                parameter.copy_(weights[name])

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _refuse(args: TrainingArguments) -> None:
    """Refuse what would compute something else, and say what to do instead.

    Raises:
        ValueError: with the reason.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process: start one process for each, "
            f"torchrun --nproc-per-node {args.n_gpu} --no-python memfold train ..., or set CUDA_VISIBLE_DEVICES"
        )
    sharding: Any = args.fsdp_config or {}
    if isinstance(sharding, dict) and sharding.get("activation_checkpointing"):
        raise ValueError("FSDP's own activation checkpointing knows nothing of the state: use gradient_checkpointing")
    deepspeed = getattr(args, "hf_deepspeed_config", None)
    if deepspeed is not None and deepspeed.is_zero3():
        raise ValueError("DeepSpeed ZeRO-3 gathers weights by module and would miss the memory's: use stage 1 or 2")


def _named(memory: DeltaMemory, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The weights of a module that holds the memory as ``memory``, by their names in adapter files."""
    return {
        f"{block}.{name}": state_dict[f"memory._layers.{index}.{name}"]
        for index, block in enumerate(memory.block_names)
        for name, _ in memory.layer(index).named_parameters()
    }
