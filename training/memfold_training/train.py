"""``memfold train``: an adapter for a backbone, from conversations in JSONL."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - the Trainer needs it and would say so only later
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainingArguments

from memfold_osam import DeltaMemory
from memfold_osam.card import BackboneCard
from memfold_training.adapter import WriteThenRead
from memfold_training.conversations import Collator, Episodes, read_conversations
from memfold_training.encoder import TurnEncoder
from memfold_training.needs import memory_needed
from memfold_training.recipes import PRESETS, Recipe, recipe
from memfold_training.starts import start_from_attention
from memfold_training.trainer import AdapterTrainer


def presets() -> list[str]:
    """Names of the presets."""
    return list(PRESETS)


def needs(backbone: str, preset: str, changes: Sequence[str]) -> dict[str, Any]:
    """What a run would need of a device's memory, from the backbone's configuration alone; see ``memory_needed``."""
    return memory_needed(backbone, recipe(preset, changes))


def train(
    data: str,
    backbone: str,
    out: str,
    preset: str,
    changes: Sequence[str] = (),
    evaluation: str = "",
    resume: bool = False,
    name: str = "",
) -> dict[str, Any]:
    """Train an adapter; ``out`` becomes its directory, with checkpoints in it that are adapters' directories too.

    Args:
        data: JSONL, see ``read_conversations``.
        backbone: directory or hub id.
        out: the adapter's directory.
        preset: of the recipe.
        changes: to it, ``key=value`` each.
        evaluation: JSONL to evaluate on, during training and at its end; empty for none.
        resume: go on from the last checkpoint in ``out``.
        name: for the card; else that of ``out``.

    Returns:
        Steps, the mean loss, and what the last evaluation found; nothing in all processes but the first.

    Raises:
        OSError: a file cannot be read.
        ValueError: conversations, recipe or backbone do not fit; the message says what.
        TypeError: the backbone cannot be adapted.
    """
    chosen = recipe(preset, changes)
    arguments = _arguments(chosen, out, evaluates=bool(evaluation))
    torch.manual_seed(arguments.seed)
    model = _load(backbone, chosen)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    memory = new_memory(model, chosen)
    encoder = TurnEncoder(tokenizer)
    trainer = AdapterTrainer(
        WriteThenRead(model, memory, chosen.loss),
        arguments,
        card=_card(name or Path(out).resolve().name, model, chosen, preset, Path(data)),
        data_collator=Collator(chosen.loss),
        train_dataset=_episodes(data, encoder, chosen),
        eval_dataset=_episodes(evaluation, encoder, chosen) if evaluation else None,
    )
    with redirect_stdout(sys.stderr):  # the Trainer prints what it logs
        found = trainer.train(resume_from_checkpoint=resume)
        metrics = trainer.evaluate() if evaluation else {}
        trainer.save_model(out)
    if not trainer.is_world_process_zero():
        return {}
    return {"steps": found.global_step, "loss": found.training_loss} | {
        key: value for key, value in metrics.items() if key in ("eval_loss", "eval_nll", "eval_exact")
    }


def new_memory(model: PreTrainedModel, chosen: Recipe) -> DeltaMemory:
    """A fresh memory on a backbone, in fp32: steps as small as training's are lost in less."""
    memory = DeltaMemory(model, chosen.adapter).float()
    if chosen.start == "attention":
        start_from_attention(model, memory, chosen.start_gain)
    return memory


def _load(backbone: str, chosen: Recipe) -> PreTrainedModel:
    dtype: Any = chosen.dtype if chosen.dtype != "auto" or torch.cuda.is_available() else "float32"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(backbone, dtype=dtype)
    return model


def _episodes(path: str, encoder: TurnEncoder, chosen: Recipe) -> Episodes:
    return Episodes(
        read_conversations(Path(path)),
        encoder,
        chosen.episodes,
        chosen.adapter.memory_write_granularity,
        others=chosen.loss.leaves_alone,
    )


def _arguments(chosen: Recipe, out: str, *, evaluates: bool) -> TrainingArguments:
    """The Trainer's arguments: the recipe's, and those that follow from what is trained.

    Raises:
        ValueError: the Trainer knows no such argument, or refuses it.
    """
    fixed: dict[str, Any] = {
        "output_dir": out,
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
        "eval_strategy": "steps" if evaluates else "no",
    }
    if taken := fixed.keys() & chosen.training.keys():
        raise ValueError(f"training.{min(taken)} follows from other options")
    given = {_name_today(key): value for key, value in chosen.training.items()}
    try:
        return TrainingArguments(**given, **fixed)
    except TypeError as error:
        raise ValueError(f"training: {error}") from error


def _name_today(key: str) -> str:
    """Newer releases of transformers say activation checkpointing, and warn of the name that older ones need."""
    today = key.replace("gradient_checkpointing", "activation_checkpointing")
    return today if today in {f.name for f in fields(TrainingArguments)} else key


def _card(name: str, model: PreTrainedModel, chosen: Recipe, preset: str, data: Path) -> dict[str, Any]:
    with data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "name": name,
        "block_tokens": chosen.episodes.context_tokens,
        "backbone": asdict(BackboneCard.of(model)),
        "data": {"file": data.name, "sha256": digest},
        "recipe": {"preset": preset} | chosen.as_dict(),
    }
