"""Adapter directories: read the reference's and ours, write ours. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memfold_osam.attach import DeltaMemory
from memfold_osam.config import AdapterConfig

WEIGHTS_FILE = "delta_mem_adapter.safetensors"
REFERENCE_WEIGHTS_FILE = "delta_mem_adapter.pt"


def load_adapter(model: nn.Module, path: str | Path) -> DeltaMemory:
    """Attach the adapter in a directory to a model; the model's weights are not touched.

    Args:
        model: a Hugging Face decoder.
        path: holds ``delta_mem_config.json`` and the weights, as safetensors or in the reference's form.

    Raises:
        FileNotFoundError: config or weights are missing.
        ValueError: the config or the weights are not those of such an adapter; the message names what is wrong.
        TypeError: the model cannot be adapted.
    """
    directory = Path(path)
    memory = DeltaMemory(model, AdapterConfig.load(directory))
    weights = read_weights(directory)
    expected = adapter_weights(memory)
    if missing := sorted(expected.keys() - weights.keys()):
        raise ValueError(f"{directory}: the weights lack {missing[0]} ({len(missing)} missing in all)")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"{directory}: {unknown[0]} belongs to no adapted layer ({len(unknown)} unknown in all)")
    with torch.no_grad():
        for name, parameter in expected.items():
            if parameter.shape != weights[name].shape:
                raise ValueError(f"{name} must be {tuple(parameter.shape)}, got {tuple(weights[name].shape)}")
            parameter.copy_(weights[name])
    memory.requires_grad_(False)
    return memory.eval()


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The adapter's tensors by their names in the reference's file."""
    if (directory / WEIGHTS_FILE).exists():
        return load_file(directory / WEIGHTS_FILE)
    if (directory / REFERENCE_WEIGHTS_FILE).exists():
        weights: dict[str, Tensor] = torch.load(
            directory / REFERENCE_WEIGHTS_FILE, map_location="cpu", weights_only=True
        )
        return weights
    raise FileNotFoundError(f"{directory} has neither {WEIGHTS_FILE} nor {REFERENCE_WEIGHTS_FILE}")


def adapter_weights(memory: DeltaMemory) -> dict[str, nn.Parameter]:
    """The adapter's parameters under ``model.layers.N.self_attn.<parameter>``."""
    return {
        f"{block}.{name}": parameter
        for index, block in enumerate(memory.block_names)
        for name, parameter in memory.layer(index).named_parameters()
    }


def save_adapter(memory: DeltaMemory, path: str | Path) -> None:
    """Write config and weights to a directory that ``load_adapter`` reads."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    memory.config.save(directory)
    tensors = {name: p.detach().to("cpu", torch.float32).contiguous() for name, p in adapter_weights(memory).items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
