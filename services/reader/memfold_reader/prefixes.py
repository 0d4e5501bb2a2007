"""Keys and values of prompts that others may begin with, kept as long as there is room.

From the first adapted layer up, keys and values depend on the memory that steered them: tokens alone say nothing. What
may be reused must have been made by the same model, from the same state, at the same gain, and by a request that
left the state alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from memfold_reader.sequence import Sequence, common

LEAST_TOKENS = 16  # fewer are computed sooner than they are looked for

Layers = Seq[tuple[int, Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """All that keys and values depend on besides the tokens.

    Attributes:
        fingerprint: of model and adapter.
        writes: the write mode: whether tokens changed the state on the way.
        gain, digest, unread: of the memory; 0, empty and 0 where there is none.
    """

    fingerprint: str
    writes: bool
    gain: float
    digest: bytes
    unread: int


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens, and by layer what the model made of them: (heads, tokens, width) each."""

    tokens: tuple[int, ...]
    layers: Layers

    @property
    def bytes(self) -> int:
        """What it takes of the device's memory."""
        return sum(keys.nbytes + values.nbytes for _, keys, values in self.layers)


class Prefixes:
    """Forgets first what was used least recently.

    Args:
        fingerprint: of model and adapter.
        most_bytes: to keep; 0 for nothing.
    """

    def __init__(self, fingerprint: str, most_bytes: int) -> None:
        self._fingerprint = fingerprint
        self._most_bytes = most_bytes
        self._kept: dict[PrefixKey, list[Prefix]] = {}
        # In the order of their last use.
        self._used: OrderedDict[int, tuple[PrefixKey, Prefix]] = OrderedDict()
        self.bytes = 0

    def key(self, sequence: Sequence) -> PrefixKey | None:
        """Under what a sequence's keys and values may be shared; None where they may not."""
        steering = sequence.steering
        if steering is None:
            return PrefixKey(self._fingerprint, writes=False, gain=0.0, digest=b"", unread=0)
        if steering.writes or not steering.digest:
            return None
        return PrefixKey(self._fingerprint, False, steering.gain, steering.digest, steering.unread)

    def find(self, key: PrefixKey, tokens: Seq[int]) -> tuple[Layers, int]:
        """What begins like ``tokens`` the longest, and how many of them it has; at least one is left to run."""
        best, length = None, LEAST_TOKENS - 1
        for prefix in self._kept.get(key, ()):
            shared = min(common(prefix.tokens, tokens), len(tokens) - 1)
            if shared > length:
                best, length = prefix, shared
        if best is None:
            return (), 0
        self._used.move_to_end(id(best))
        return best.layers, length

    def wants(self, key: PrefixKey, tokens: Seq[int], size: int) -> bool:
        """Whether tokens that would take so many bytes are worth keeping, and not kept already."""
        if len(tokens) < LEAST_TOKENS or size > self._most_bytes:
            return False
        return all(common(prefix.tokens, tokens) < len(tokens) for prefix in self._kept.get(key, ()))

    def keep(self, key: PrefixKey, prefix: Prefix) -> None:
        """Keep a prefix that is wanted, in place of those that are its own beginning."""
        for old in list(self._kept.get(key, ())):
            if common(old.tokens, prefix.tokens) == len(old.tokens):
                self._drop(key, old)
        self._kept.setdefault(key, []).append(prefix)
        self._used[id(prefix)] = key, prefix
        self.bytes += prefix.bytes
        while self.bytes > self._most_bytes:
            self._drop(*next(iter(self._used.values())))

    def _drop(self, key: PrefixKey, prefix: Prefix) -> None:
        del self._used[id(prefix)]
        left = [other for other in self._kept[key] if other is not prefix]
        if left:
            self._kept[key] = left
        else:
            del self._kept[key]
        self.bytes -= prefix.bytes
