"""What an adapter's makers say of it, and of the backbone that it was trained on: ``memfold_card.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from memfold_osam.decoder import attention_blocks

CARD_FILE = "memfold_card.json"
# What the released adapter was trained with, whose directory has no card.
BLOCK_TOKENS = 8192
# Of each of the backbone's tensors, so many numbers go into a fingerprint, evenly spread: reading all of a large
# model would cost minutes at every start.
SAMPLED = 4096
# Weights of these types, rounded to bf16, are what they are after a conversion to any other of them.
_COMPARABLE = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class BackboneCard:
    """Which backbone an adapter belongs to.

    Attributes:
        id: hub id, or the name of its directory.
        revision: commit on the hub; empty where it did not come from there.
        fingerprint: of its decoder layers' weights, see ``backbone_fingerprint``; empty where it is not known.
        parameters: numbers in its weights, tied ones counted once; 0 where it is not known.
    """

    id: str = ""
    revision: str = ""
    fingerprint: str = ""
    parameters: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The card of a model at hand."""
        config = getattr(model, "config", None)
        name = str(getattr(config, "_name_or_path", "") or "")
        return cls(
            id=Path(name).resolve().name if Path(name).is_dir() and name else name,
            revision=str(getattr(config, "_commit_hash", None) or ""),
            fingerprint=backbone_fingerprint(model),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )

    def check(self, model: nn.Module, adapter: str) -> None:
        """Refuse a model that is another one than this card names.

        A card without a fingerprint fits every model, and so does one whose numbers can no longer be compared: a model
        in fp16, or quantised.

        Raises:
            ValueError: both have a fingerprint, and they differ; the message has both.
        """
        if not self.fingerprint or not (found := backbone_fingerprint(model)) or found == self.fingerprint:
            return
        revision = f" at {self.revision}" if self.revision else ""
        raise ValueError(
            f"{adapter} was trained on the backbone {self.id or '(unnamed)'}{revision} with the fingerprint "
            f"{self.fingerprint}, but this {type(model).__name__} has {found}; on another backbone it is noise"
        )


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """An adapter's card, with the defaults of the released adapter.

    Attributes:
        examples: sentences that its model understands.
        block_tokens: the most tokens of a block of the fold.
        backbone: that it was trained on.
    """

    name: str = ""
    description: str = ""
    examples: tuple[str, ...] = ()
    block_tokens: int = BLOCK_TOKENS
    backbone: BackboneCard = BackboneCard()

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the card of an adapter's directory; one without a card gets the defaults.

        Raises:
            ValueError: the file is no such card; the message names it.
        """
        raw = _read(directory / CARD_FILE)
        backbone = raw.get("backbone", {})
        try:
            return cls(
                name=str(raw.get("name", directory.resolve().name)),
                description=str(raw.get("description", "")),
                examples=tuple(map(str, raw.get("examples", ()))),
                block_tokens=int(raw.get("block_tokens", BLOCK_TOKENS)),
                backbone=BackboneCard(
                    id=str(backbone.get("id", "")),
                    revision=str(backbone.get("revision", "")),
                    fingerprint=str(backbone.get("fingerprint", "")),
                    parameters=int(backbone.get("parameters", 0)),
                ),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{directory / CARD_FILE} is no card of an adapter: {error}") from error


def save_backbone(directory: Path, model: nn.Module) -> None:
    """Name the backbone in an adapter's card, and leave the rest of the card as it is.

    Raises:
        ValueError: a card is there, and is none.
    """
    path = directory / CARD_FILE
    path.write_text(json.dumps(_read(path) | {"backbone": asdict(BackboneCard.of(model))}, indent=2) + "\n")


def backbone_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the weights of a model's decoder layers, by sample and rounded to bf16; empty where that says nothing.

    It is the same whatever wraps the decoder, and whether the model runs in fp32 or bf16. The configuration is no part
    of it, since each release of transformers writes it differently.

    Raises:
        TypeError: the model cannot be adapted.
    """
    digest = hashlib.sha256()
    for block in attention_blocks(model).values():
        layer = model.get_submodule(block.name.rpartition(".")[0])
        tensors = [(f"{block.number}.{name}", tensor) for name, tensor in sorted(layer.state_dict().items())]
        if any(tensor.is_meta or tensor.dtype not in _COMPARABLE for _, tensor in tensors):
            return ""
        digest_tensors(digest, tensors, SAMPLED, torch.bfloat16)
    return digest.hexdigest()


def digest_tensors(
    digest: Any, tensors: Iterable[tuple[str, Tensor]], sampled: int, dtype: torch.dtype = torch.float32
) -> None:
    """Feed names, shapes and numbers of tensors to a hash.

    Args:
        digest: what takes the bytes.
        tensors: with their names, in order.
        sampled: about so many numbers of each at most, evenly spread; 0 for all.
        dtype: that the numbers are rounded to.
    """
    for name, tensor in tensors:
        flat = tensor.detach().flatten()
        step = max(1, len(flat) // sampled) if sampled else 1
        sample = flat[::step].to("cpu", dtype).float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is no card of an adapter: it holds a {type(raw).__name__}")  # noqa: TRY004 - a file's
    return raw
