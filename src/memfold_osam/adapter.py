"""Adapter directories: read the reference's and ours, write ours. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memfold_osam.attach import DeltaMemory
from memfold_osam.card import AdapterCard, save_backbone
from memfold_osam.config import CONFIG_FILE, AdapterConfig

WEIGHTS_FILE = "delta_mem_adapter.safetensors"
REFERENCE_WEIGHTS_FILE = "delta_mem_adapter.pt"


def load_adapter(model: nn.Module, path: str | Path) -> DeltaMemory:
    """Attach the adapter in a directory to a model; the model's weights are not touched.

    Args:
        model: a Hugging Face decoder.
        path: holds ``delta_mem_config.json`` and the weights, as safetensors or in the reference's form, and maybe a
            card. Other files are left alone.

    Raises:
        FileNotFoundError: config or weights are missing.
        ValueError: config, weights or card are not those of an adapter for this model; the message names what is wrong.
        TypeError: the model cannot be adapted.
    """
    directory = Path(path)
    config, weights = read_config(directory), read_weights(directory)
    AdapterCard.load(directory).backbone.check(model, str(directory))
    memory = DeltaMemory(model, config)
    parameters = adapter_weights(memory)
    check_weights(directory, weights, {name: tuple(p.shape) for name, p in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    memory.requires_grad_(False)
    return memory.eval()


def read_config(directory: Path) -> AdapterConfig:
    """The adapter's configuration.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not what an adapter of ours or the reference's says; the message names the key.
    """
    try:
        return AdapterConfig.load(directory)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{directory / CONFIG_FILE} is no JSON object: {error}") from error


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The adapter's tensors by their names in the reference's file.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the file is damaged, or holds something else than finite numbers by name.
    """
    ours, theirs = directory / WEIGHTS_FILE, directory / REFERENCE_WEIGHTS_FILE
    if ours.exists():
        weights = _read_safetensors(ours)
    elif theirs.exists():
        weights = _read_reference(theirs)
    else:
        raise FileNotFoundError(f"{directory} has neither {WEIGHTS_FILE} nor {REFERENCE_WEIGHTS_FILE}")
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{directory}: {name} must hold floating-point numbers, got {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"{directory}: {name} holds numbers that are not finite")
    return weights


def check_weights(directory: Path, weights: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not exactly the ones expected.

    Raises:
        ValueError: one is missing, unknown or of another shape; the message names it.
    """
    if missing := [name for name in shapes if name not in weights]:
        raise ValueError(f"{directory}: the weights lack {missing[0]} ({len(missing)} missing in all)")
    if unknown := sorted(weights.keys() - shapes.keys()):
        raise ValueError(f"{directory}: {unknown[0]} belongs to no adapted layer ({len(unknown)} unknown in all)")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"{directory}: {name} must be {shape}, got {tuple(weights[name].shape)}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _read_reference(path: Path) -> dict[str, Tensor]:
    """The reference's file, from which nothing but plain tensors is taken."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on a damaged file this reader fails in a dozen ways
        raise ValueError(
            f"{path} is damaged, or holds more than tensors (it is read with weights_only): {error}"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} must hold tensors by name")
    return {str(name): tensor for name, tensor in weights.items()}


def adapter_weights(memory: DeltaMemory) -> dict[str, nn.Parameter]:
    """The adapter's parameters under ``model.layers.N.self_attn.<parameter>``."""
    return {
        f"{block}.{name}": parameter
        for index, block in enumerate(memory.block_names)
        for name, parameter in memory.layer(index).named_parameters()
    }


def save_adapter(memory: DeltaMemory, path: str | Path, model: nn.Module | None = None) -> None:
    """Write an adapter to a directory that ``load_adapter`` reads; the reference reads its config.

    Args:
        memory: the adapter.
        path: the directory, made where it does not exist. A card that is there stays, but for what it says of the
            backbone.
        model: the backbone, for the card: only an adapter that names its backbone is refused on another one.
    """
    directory = Path(path)
    write_adapter(directory, memory.config, adapter_weights(memory))
    if model is not None:
        save_backbone(directory, model)


def write_adapter(directory: Path, config: AdapterConfig, weights: Mapping[str, Tensor]) -> None:
    """Write configuration and weights, these by the names of ``adapter_weights``, to a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    config.save(directory)
    tensors = {name: weight.detach().to("cpu", torch.float32).contiguous() for name, weight in weights.items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
