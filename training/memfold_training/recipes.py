"""Everything that decides a training run, as plain data, and the presets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from memfold_osam import AdapterConfig
from memfold_training.batches import LossWeights
from memfold_training.conversations import EpisodeLimits

_Start = Literal["config", "attention"]
_Dtype = Literal["auto", "float32", "bfloat16"]
_STARTS, _DTYPES = get_args(_Start), get_args(_Dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained, on what, and how.

    Attributes:
        adapter: its shape, and how it starts.
        start: ``config``, as the adapter's configuration says, or ``attention``, as a copy of the backbone's attention
            (``start_from_attention``).
        start_gain: how loud that copy is.
        episodes: how conversations become examples.
        loss: what counts how much.
        dtype: of the backbone's weights: ``float32``, ``bfloat16``, or ``auto``: as stored on a GPU, fp32 on a CPU. The
            adapter's are always fp32 in training.
        training: arguments of transformers' ``TrainingArguments``.
    """

    adapter: AdapterConfig
    start: _Start = "config"
    start_gain: float = 0.5
    episodes: EpisodeLimits = field(default_factory=EpisodeLimits)
    loss: LossWeights = field(default_factory=LossWeights)
    dtype: _Dtype = "auto"
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, legal in (("start", _STARTS), ("dtype", _DTYPES)):
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} must be one of {', '.join(legal)}, got {getattr(self, name)!r}")

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            name: dict(value) if isinstance(value, Mapping) else _plain(value)
            for name, value in ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        }


# What every run has unless it says otherwise: the bar, evaluation and checkpoints at every tenth of the run.
_RUN: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 0.01,
    "eval_steps": 0.1,
    "save_steps": 0.1,
    "save_total_limit": 2,
    "report_to": "none",
    "seed": 0,
}

PRESETS: dict[str, Recipe] = {
    # As published (arXiv 2605.12357): 8 GPUs x 1 x 4 episodes a step; one device makes up for it by accumulation.
    "reference-qasper": Recipe(
        adapter=AdapterConfig(),
        loss=LossWeights(sparsity=0.01),
        training=_RUN
        | {
            "learning_rate": 2e-4,
            "warmup_steps": 0.1,
            "num_train_epochs": 1.0,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "gradient_accumulation_steps": 32,
            "gradient_checkpointing": True,
        },
    ),
    # What memfold-tiny taught: see docs/training.md.
    "persona": Recipe(
        adapter=AdapterConfig(
            rank=16,
            alpha=32.0,
            num_state_heads=8,
            state_update_mode="no_lambda",
            beta_bias_init=-4.0,
            output_init="zero",
        ),
        start="attention",
        episodes=EpisodeLimits(context_tokens=1024, questions=16),
        loss=LossWeights(reply=0.2, value=1.0, opening=0.5, steady=1.0),
        training=_RUN
        | {
            "learning_rate": 4e-3,
            "adam_beta2": 0.95,
            "warmup_steps": 50,
            "num_train_epochs": 1.0,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 16,
        },
    ),
}


def recipe(preset: str, changes: Sequence[str] = ()) -> Recipe:
    """A preset with changes.

    Args:
        preset: its name.
        changes: ``key=value`` each. Keys are those of the recipe with a dot before the parts of a part, such as
            ``training.learning_rate``; values are JSON, or else text.

    Raises:
        ValueError: there is no such preset or key, or the value does not fit.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}, there are {', '.join(PRESETS)}")
    found = PRESETS[preset]
    for change in changes:
        path, sign, text = change.partition("=")
        if not sign:
            raise ValueError(f"{change!r} must be key=value")
        found = _changed(found, path, _value(text))
    return found


def _changed(found: Recipe, path: str, value: Any) -> Recipe:
    name, _, key = path.partition(".")
    known = {f.name for f in dataclasses.fields(Recipe)}
    if name not in known:
        raise ValueError(f"there is no {name!r} in a recipe, there are {', '.join(sorted(known))}")
    part: Any = getattr(found, name)
    if name == "training":
        return replace(found, training={**part, key: value})
    if name not in ("adapter", "episodes", "loss"):
        return replace(found, **{name: _fitting(path, getattr(found, name), value)})
    if key not in (keys := {f.name for f in dataclasses.fields(part)}):
        raise ValueError(f"there is no {path!r} in a recipe; {name} has {', '.join(sorted(keys))}")
    changed: Any = replace(part, **{key: _fitting(path, getattr(part, key), value)})
    return replace(found, **{name: changed})


def _fitting(path: str, old: Any, new: Any) -> Any:
    """A value of the kind that stood there before."""
    if isinstance(old, tuple) and isinstance(new, list):
        return tuple(new)
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    if type(old) is not type(new):
        raise ValueError(f"{path} must be a {type(old).__name__}, got {new!r}")
    return new


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
