"""Loads what a service needs to fold and to answer: backbone, adapter, tokenizer, turn format, card."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from memfold_osam.adapter import adapter_weights, load_adapter
from memfold_osam.attach import DeltaMemory
from memfold_osam.card import SAMPLED, AdapterCard, digest_tensors
from memfold_osam.sentences import RULE
from memfold_osam.turns import TurnFormat


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A frozen backbone with its memory, ready to fold and to generate.

    Attributes:
        fingerprint: of everything that decides which state a log folds into.
        block_tokens: the most tokens that one block of a fold holds.
        context_tokens: the most tokens that prompt and reply may have together.
    """

    model: PreTrainedModel
    memory: DeltaMemory
    tokenizer: PreTrainedTokenizerBase
    turns: TurnFormat
    fingerprint: str
    backbone: str
    adapter: str
    block_tokens: int
    context_tokens: int
    description: str = ""
    examples: tuple[str, ...] = ()

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Shape of one memory's state."""
        return self.memory.state_shape

    @property
    def exact(self) -> bool:
        """The model computes in fp32: what a log folds into does not depend on how, beyond a relative 1e-5."""
        dtype: torch.dtype = self.model.dtype
        return dtype == torch.float32

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = self.model.device
        return device


def embedded_model() -> Path:
    """The directory of memfold-tiny: beside the package in a wheel, in ``models/`` in a checkout.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    here = Path(__file__).resolve().parent
    for path in (here / "models" / "memfold-tiny", here.parent.parent / "models" / "memfold-tiny"):
        if (path / "config.json").exists():
            return path
    raise FileNotFoundError("the embedded model memfold-tiny is not installed; name a backbone and an adapter")


def load_served_model(
    backbone: str = "", adapter: str = "", *, device: str = "auto", dtype: str = "auto"
) -> ServedModel:
    """Load a model from the hub's cache, the hub or a directory; the embedded one where none is named.

    Args:
        backbone: directory or hub id of a Hugging Face causal language model.
        adapter: directory of its adapter, or the hub id of one; required with a backbone, unless the backbone's
            directory has a folder ``adapter``.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
        dtype: of the weights: ``float32``, ``bfloat16``, ..., or ``auto``: as stored on a GPU, fp32 on a CPU.

    Raises:
        ValueError: a backbone without an adapter, or files that do not fit together.
        TypeError: a model that cannot be adapted.
    """
    if not backbone:
        backbone, adapter = str(embedded_model()), adapter or str(embedded_model() / "adapter")
    if not adapter:
        if not (Path(backbone) / "adapter").is_dir():
            raise ValueError(f"no adapter for {backbone}: name one; without it there is no memory")
        adapter = str(Path(backbone) / "adapter")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen: Any = dtype if dtype != "auto" else ("auto" if device != "cpu" else torch.float32)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(backbone, dtype=chosen)
    model = model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(backbone)
    directory = _adapter_directory(adapter)
    return serve(model, tokenizer, load_adapter(model, directory), AdapterCard.load(directory), backbone=backbone)


def serve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: DeltaMemory,
    card: AdapterCard,
    *,
    backbone: str,
) -> ServedModel:
    """Put loaded parts together and take their fingerprint."""
    turns = TurnFormat.derive(tokenizer)
    config = model.config.get_text_config()
    context = int(getattr(config, "max_position_embeddings", card.block_tokens))
    block = min(card.block_tokens, context - len(turns.bos))
    return ServedModel(
        model=model,
        memory=memory,
        tokenizer=tokenizer,
        turns=turns,
        fingerprint=_fingerprint(model, tokenizer, memory, turns, block),
        backbone=Path(backbone).name if Path(backbone).exists() else backbone,
        adapter=card.name,
        block_tokens=block,
        context_tokens=context,
        description=card.description,
        examples=card.examples,
    )


def _adapter_directory(adapter: str) -> Path:
    if Path(adapter).is_dir():
        return Path(adapter)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where an adapter comes from the hub

    return Path(snapshot_download(adapter, allow_patterns=["*.json", "*.safetensors", "*.pt"]))


def _fingerprint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: DeltaMemory,
    turns: TurnFormat,
    block_tokens: int,
) -> str:
    """SHA-256 over backbone (config, weights by sample), adapter (whole), tokenizer, turn format, rules and block size."""
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_THE_MODEL}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    adapter = {k: v for k, v in _config(memory).items() if k not in _NOT_THE_ADAPTER}
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else ""
    sentences = RULE if memory.config.memory_write_granularity == "sentence_mean" else ""
    for part in (config, adapter, vocabulary, rules, turns.fingerprint_text(), sentences, block_tokens):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\x00")
    digest_tensors(digest, sorted(model.state_dict().items()), SAMPLED)
    digest_tensors(digest, sorted(adapter_weights(memory).items()), 0)
    return digest.hexdigest()


_NOT_THE_MODEL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
_NOT_THE_ADAPTER = {"beta_bias_init", "output_init", "base_slice_ref_width", "online_gain", "delta_scale_init"}


def _config(memory: DeltaMemory) -> dict[str, Any]:
    """The adapter's configuration as plain data."""
    return {name: getattr(memory.config, name) for name in memory.config.__slots__}
