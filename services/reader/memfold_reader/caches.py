"""For models that keep something else than keys and values: a cache of its own for each sequence, run one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer


class OwnCache:
    """One sequence's cache."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config
        self.cache = DynamicCache(config=config)
        self.length = 0

    def rewind(self, length: int) -> int:
        """Forget what stands behind a length, or everything where the cache cannot forget a part."""
        if length < self.length:
            if length == 0 or any(type(layer) is not DynamicLayer for layer in self.cache.layers):
                self.cache, length = DynamicCache(config=self._config), 0
            else:
                self.cache.crop(length - self.length)
            self.length = length
        return self.length


class OwnCaches:
    """The same interface as ``KvSlots``, but nothing shares a batch and nothing can be copied.

    Args:
        config: of the model.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config
        self._rows: list[OwnCache] = []

    @property
    def held(self) -> int:
        """Positions held by all rows."""
        return sum(row.length for row in self._rows)

    def open(self, _length: int) -> OwnCache:
        """A row."""
        self._rows.append(OwnCache(self._config))
        return self._rows[-1]

    def close(self, row: OwnCache) -> None:
        """Free it."""
        self._rows = [other for other in self._rows if other is not row]

    def groups(self, rows: Iterable[OwnCache]) -> list[list[OwnCache]]:
        """Each by itself."""
        return [[row] for row in rows]

    def chunk(self, row: OwnCache, _count: int) -> dict[str, Any]:
        """What the model takes besides some tokens of one row."""
        return {"past_key_values": row.cache}

    def batch(self, group: Sequence[OwnCache]) -> dict[str, Any]:
        """What it takes besides one token."""
        return self.chunk(group[0], 1)
