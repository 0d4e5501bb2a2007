"""What an adapter is and what it costs to serve, told without loading a backbone's weights."""

from __future__ import annotations

import math
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memfold_osam.adapter import REFERENCE_WEIGHTS_FILE, WEIGHTS_FILE, check_weights, read_config, read_weights
from memfold_osam.card import AdapterCard, BackboneCard
from memfold_osam.config import AdapterConfig, Head
from memfold_osam.decoder import AttentionBlock, attention_blocks, chosen_blocks
from memfold_osam.layer import HEADS, LayerMemory

if TYPE_CHECKING:  # importing it takes seconds, and is only worth them where there is a backbone to look at
    from transformers import PreTrainedModel

SERVED_IN = (torch.float32, torch.bfloat16)
_HUB_PATIENCE_S = 5
_KEY = re.compile(r"model\.layers\.(\d+)\.self_attn\.(\w+)")


@dataclass(frozen=True, slots=True)
class _Widths:
    """What an adapter's shapes follow from in one block: its input's width and its projections' outputs."""

    hidden: int
    outputs: dict[Head, int]


def inspect_adapter(path: str, backbone: str = "") -> dict[str, Any]:
    """Describe an adapter as plain data.

    Least RAM, of each dtype that weights are served in, is what no process that folds or answers can do without: the
    backbone's weights (tied ones once) and the adapter's in that dtype, and one memory's state in fp32. On top come
    the KV cache, of which a block's share is given, activations, and the libraries themselves.

    Args:
        path: the adapter's directory.
        backbone: directory or hub id of the model; of it the configuration is read and nothing else. Where none is
            named, it is the one that the adapter lies in (as ``adapter/``), and else what the adapter's card says.

    Raises:
        OSError: something named is not there.
        ValueError: the adapter's files are damaged, or do not fit together or the backbone.
        TypeError: the backbone cannot be adapted.
    """
    directory = Path(path)
    config, weights = read_config(directory), read_weights(directory)
    card = AdapterCard.load(directory)
    where = backbone or _around(directory)
    model = _on_meta(where) if where else None
    if model is None:
        widths, known = _widths_of_weights(directory, weights), card.backbone
    else:
        widths = _widths_of_blocks(chosen_blocks(model, config))
        known = replace(card.backbone, parameters=sum(p.numel() for p in model.parameters()))
    check_weights(directory, weights, _shapes(config, widths))
    state_shape = (len(widths), config.num_state_heads, config.rank, config.rank)
    state_bytes = 4 * math.prod(state_shape)
    kinds = _kinds(config, weights)
    return {
        "path": path,
        "name": card.name,
        "format": WEIGHTS_FILE if (directory / WEIGHTS_FILE).exists() else REFERENCE_WEIGHTS_FILE,
        "write_granularity": config.memory_write_granularity,
        "state_update_mode": config.state_update_mode,
        "rank": config.rank,
        "alpha": config.alpha,
        "state_heads": config.num_state_heads,
        "delta_heads": list(config.delta_heads),
        "layers": sorted(widths),
        "parameters": sum(kind["numbers"] for kind in kinds if kind["used"]),
        "unused_parameters": sum(kind["numbers"] for kind in kinds if not kind["used"]),
        "shapes": kinds,
        "state_shape": list(state_shape),
        "state_bytes": state_bytes,
        "block_tokens": card.block_tokens,
        "backbone": _backbone(known, where, backbone),
        "serving": {
            str(dtype).removeprefix("torch."): _serving(dtype, weights, state_bytes, known.parameters)
            | {"kv_cache_bytes_a_block": _kv_numbers(model, card.block_tokens) * dtype.itemsize if model else None}
            for dtype in SERVED_IN
        },
    }


def _backbone(card: BackboneCard, where: str, asked: str) -> dict[str, Any]:
    """What is known of the backbone, and from where its size."""
    source = "argument" if asked else "directory" if where else "card" if card.parameters else None
    name = Path(where).resolve().name if where and Path(where).is_dir() else where
    return {
        "id": name or card.id,
        "revision": card.revision,
        "fingerprint": card.fingerprint,
        "parameters": card.parameters or None,
        "size_from": source,
    }


def _around(directory: Path) -> str:
    """The model that an adapter lies in; empty where there is none."""
    around = directory.resolve().parent
    return str(around) if directory.resolve().name == "adapter" and (around / "config.json").is_file() else ""


def _serving(
    dtype: torch.dtype, weights: Mapping[str, Tensor], state_bytes: int, parameters: int
) -> dict[str, int | None]:
    backbone = parameters * dtype.itemsize
    adapter = sum(tensor.numel() for tensor in weights.values()) * dtype.itemsize
    return {
        "backbone_bytes": backbone or None,
        "adapter_bytes": adapter,
        "state_bytes": state_bytes,
        "least_ram_bytes": backbone + adapter + state_bytes if backbone else None,
    }


def _on_meta(backbone: str) -> PreTrainedModel:
    """The model of a configuration, without numbers in its weights.

    Raises:
        ValueError: there is no configuration of a causal language model.
    """
    try:
        _check_reachable(backbone)
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - see above

        config = AutoConfig.from_pretrained(backbone)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ValueError(f"{backbone} is no backbone: {error}") from error
    return model


def _check_reachable(backbone: str) -> None:
    """Ask the hub once whether it is there. Its own client asks again and again, for half a minute, aloud.

    Raises:
        ValueError: it is not on this machine, and the hub does not answer; or no model can have this name.
    """
    if Path(backbone).is_dir():
        return
    if backbone.startswith((".", "/")):
        raise ValueError("there is no such directory")
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache  # noqa: PLC0415 - slow to import

    if isinstance(try_to_load_from_cache(backbone, "config.json"), str):
        return
    absent = "it is neither a directory here nor in the hub's cache"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{absent}, and HF_HUB_OFFLINE forbids to ask the hub")
    head = urllib.request.Request(hf_hub_url(backbone, "config.json"), method="HEAD")  # noqa: S310 - the hub's address
    try:
        urllib.request.urlopen(head, timeout=_HUB_PATIENCE_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        return  # it answers: its own client knows what that means, and the user's token
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # its own client may know other certificates
        raise ValueError(f"{absent}, and the hub cannot be reached: {reason}") from None


def _widths_of_blocks(blocks: Mapping[int, AttentionBlock]) -> dict[int, _Widths]:
    """The widths of the blocks that an adapter is for."""
    return {
        number: _Widths(block.hidden, {head: p.width for head, p in block.projections.items()})
        for number, block in blocks.items()
    }


def _widths_of_weights(directory: Path, weights: Mapping[str, Tensor]) -> dict[int, _Widths]:
    """The widths that an adapter's own weights tell."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if not (match := _KEY.fullmatch(name)):
            raise ValueError(f"{directory}: {name} belongs to no adapted layer")
        layers.setdefault(int(match[1]), {})[match[2]] = tensor
    if not layers:
        raise ValueError(f"{directory}: there are no weights")
    return {
        number: _Widths(
            hidden=_size(layer.get("memory_q_proj"), -1),
            outputs={head: _size(layer[f"delta_{head}_proj"], 0) for head in HEADS if f"delta_{head}_proj" in layer},
        )
        for number, layer in sorted(layers.items())
    }


def _size(tensor: Tensor | None, dim: int) -> int:
    """A dimension of a matrix; 1 where there is none, which is then found missing or misshapen."""
    return tensor.shape[dim] if tensor is not None and tensor.ndim == 2 else 1


def _shapes(config: AdapterConfig, widths: Mapping[int, _Widths]) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's weights by their names in files."""
    with torch.device("meta"):
        layers = {number: LayerMemory(config, w.hidden, dict(w.outputs)) for number, w in widths.items()}
    return {
        f"model.layers.{number}.self_attn.{name}": tuple(parameter.shape)
        for number, layer in layers.items()
        for name, parameter in layer.named_parameters()
    }


def _kinds(config: AdapterConfig, weights: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The weights by kind of parameter: the shapes it has, in how many layers, how many numbers in all.

    Corrections of heads that are not in use are stored as zeros.
    """
    kinds: dict[str, list[Tensor]] = {}
    for name, tensor in weights.items():
        kinds.setdefault(name.rpartition(".")[2], []).append(tensor)
    unused = {f"delta_{head}_proj" for head in HEADS if head not in config.delta_heads}
    return [
        {
            "parameter": kind,
            "shapes": [list(shape) for shape in sorted({tuple(tensor.shape) for tensor in tensors})],
            "layers": len(tensors),
            "numbers": sum(tensor.numel() for tensor in tensors),
            "used": kind not in unused,
        }
        for kind, tensors in sorted(kinds.items())
    ]


def _kv_numbers(model: PreTrainedModel, tokens: int) -> int:
    """Numbers in the KV cache of one sequence; a layer with a sliding window keeps no more tokens than that."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None) or tokens
    numbers = 0
    for number, block in attention_blocks(model).items():
        slides = number < len(kinds) and kinds[number] == "sliding_attention"
        kept = min(tokens, window) if slides else tokens
        numbers += kept * sum(block.projections[head].width for head in ("k", "v") if head in block.projections)
    return numbers
