"""A model whose state is a hash chain over the turns: any loss, repeat or swap shows at once. Needs no torch."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from memfold.api.values import ModelCard

SHAPE = (1, 1, 4, 8)  # one number for each byte of a digest
NAMES = ("chain-a", "chain-b")


def fingerprint(name: str) -> str:
    """Of a model: each has a chain of its own."""
    return hashlib.sha256(name.encode()).hexdigest()


def state_of(name: str, turns: Iterable[Any]) -> bytes:
    """The state after these turns under a model, as the store holds it. The oracle."""
    digest = start(name)
    for turn in turns:
        digest = link(digest, turn)
    return struct.pack("<32f", *digest)


def start(name: str) -> bytes:
    """What a chain begins with; it is never stored, the zero state stands for it."""
    return hashlib.sha256(name.encode()).digest()


def link(digest: bytes, turn: Any) -> bytes:
    """One turn or message more."""
    return hashlib.sha256(f"{digest.hex()}\0{turn.role}\0{turn.speaker}\0{turn.content}".encode()).digest()


@dataclass(frozen=True)
class ChainModel:
    """Stands where a served model stands."""

    backbone: str
    adapter: str = "chain"
    block_tokens: int = 64
    context_tokens: int = 4096
    description: str = ""
    examples: tuple[str, ...] = ()
    state_shape: tuple[int, int, int, int] = SHAPE
    device: str = "cpu"
    exact: bool = True

    @property
    def turns(self) -> Any:
        """Tells how many tokens a message has."""
        return SimpleNamespace(encode=lambda message: [0] * (1 + len(message.content) // 8))

    @property
    def fingerprint(self) -> str:
        """As the store knows it."""
        return fingerprint(self.backbone)

    @property
    def card(self) -> ModelCard:
        """As other services know it."""
        return ModelCard.of(self)
