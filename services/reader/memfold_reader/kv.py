"""Keys and values of many sequences, laid out so that a step of all of them copies none of their history.

Each layer has pools (rows, heads, capacity, width), one for each capacity: powers of two, so that short sequences need
not attend over the room of long ones. What is to run together lies together at the front of its pools, so that the model
gets views of them. A sequence that outgrows its pools moves to the next larger ones, and so does one for which a batch of
its own would not be worth a pass over the model's weights.

Beyond what a row holds, its place is zero: attention gives masked positions the weight 0, and 0 times what an earlier
owner left behind could be NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from memfold_reader.masks import Masks

SMALLEST = 256  # positions
# Rows of several pools run in one batch while that wastes no more positions than this: another pass over the weights takes
# longer. On one core, 8 layers of width 128 to 512, a pass costs as much as attention to some 10,000 positions; larger
# models have more weights for each.
TOGETHER = 8192
_FIRST = 1024  # positions for which there is room from the start


class Row(Protocol):
    """Where one sequence's keys and values are.

    Attributes:
        length: positions that are held.
    """

    length: int

    def rewind(self, length: int) -> int:
        """Forget what stands behind a length; how much is still held, which may be less."""


class Slot:
    """A row's place in a bucket.

    Attributes:
        touched: positions that may hold anything but zeros.
    """

    __slots__ = ("bucket", "length", "place", "touched")

    def __init__(self, bucket: Bucket, place: int) -> None:
        self.bucket = bucket
        self.place = place
        self.length = 0
        self.touched = 0

    def rewind(self, length: int) -> int:
        """Forget what stands behind a length."""
        self.length = min(self.length, length)
        return self.length


class Bucket:
    """The rows of one capacity.

    Attributes:
        rows: who is where.
        pools: of each layer that has come up so far, its keys and values, (places, heads, capacity, width) each.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[Slot | None] = []
        self.pools: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self) -> Slot:
        """A place for one more row: the last free one, as the front is for those that run."""
        free = next((place for place in reversed(range(len(self.rows))) if self.rows[place] is None), None)
        if free is None:
            free = len(self.rows)
            self.rows.append(None)
        slot = self.rows[free] = Slot(self, free)
        return slot

    def remove(self, slot: Slot) -> None:
        """Free a row's place, and leave it clean; the last one to leave takes the pools along."""
        self.rows[slot.place] = None
        while self.rows and self.rows[-1] is None:
            self.rows.pop()
        if not self.rows:
            self.pools.clear()
        for pool in self._all():
            if slot.place < len(pool):
                pool[slot.place, :, : slot.touched] = 0.0

    def arrange(self, ready: Iterable[Slot]) -> list[Slot]:
        """Move these rows to the front; them in the order of their places."""
        ready = sorted(ready, key=lambda slot: slot.place)
        count = len(ready)
        inside = {slot.place for slot in ready if slot.place < count}
        gaps = (place for place in range(count) if place not in inside)
        for place, slot in zip(gaps, [slot for slot in ready if slot.place >= count], strict=True):
            self._exchange(slot, place)
        return sorted(ready, key=lambda slot: slot.place)

    def pool(self, layer: int, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, with room for every row; ``like`` says heads, width and dtype."""
        found = self.pools.get(layer)
        if found is None or len(found[0]) < len(self.rows):
            places = max(_FIRST // self.capacity, len(self.rows) + len(self.rows) // 4)
            found = self._room(places, like[0], found and found[0]), self._room(places, like[1], found and found[1])
            self.pools[layer] = found
        return found

    def _room(self, places: int, like: Tensor, old: Tensor | None) -> Tensor:
        pool = like.new_zeros(places, like.shape[1], self.capacity, like.shape[3])
        if old is not None:
            for slot in filter(None, self.rows[: len(old)]):
                pool[slot.place, :, : slot.touched] = old[slot.place, :, : slot.touched]
        return pool

    def _exchange(self, slot: Slot, place: int) -> None:
        other, old = self.rows[place], slot.place
        touched = max(slot.touched, other.touched if other else 0)
        for pool in self._all():
            if max(place, old) < len(pool):
                there = pool[place, :, :touched].clone()
                pool[place, :, :touched] = pool[old, :, :touched]
                pool[old, :, :touched] = there
        self.rows[place], self.rows[old] = slot, other
        slot.place = place
        if other is not None:
            other.place = old

    def _all(self) -> Iterator[Tensor]:
        for pair in self.pools.values():
            yield from pair


class ChunkView:
    """What the model is given as its cache for some tokens of one row."""

    def __init__(self, slot: Slot, count: int) -> None:
        self._bucket = slot.bucket
        self._place = slot.place
        self._begin, self._end = slot.length, slot.length + count
        slot.touched = max(slot.touched, self._end)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take (1, heads, count, width) each; all that the row holds of the layer, as views."""
        rows = slice(self._place, self._place + 1)
        pools = self._bucket.pool(layer_idx, (keys, values))
        for pool, new in zip(pools, (keys, values), strict=True):
            pool[rows, :, self._begin : self._end] = new
        return pools[0][rows, :, : self._end], pools[1][rows, :, : self._end]

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Positions before these tokens."""
        return self._begin


class BatchView:
    """What the model is given as its cache for one token of each row at a bucket's front."""

    def __init__(self, slots: Sequence[Slot], positions: Tensor) -> None:
        self._bucket = slots[0].bucket
        self._positions = positions
        self._rows = torch.arange(len(slots), device=positions.device)
        self._longest = 1 + max(slot.length for slot in slots)
        for slot in slots:
            slot.touched = max(slot.touched, slot.length + 1)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take (B, heads, 1, width) each; all that the rows hold of the layer, up to the longest, as views."""
        count = len(self._rows)
        pools = self._bucket.pool(layer_idx, (keys, values))
        for pool, new in zip(pools, (keys, values), strict=True):
            pool[self._rows, :, self._positions] = new[:, :, 0]
        return pools[0][:count, :, : self._longest], pools[1][:count, :, : self._longest]

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Positions before the longest row's token."""
        return self._longest - 1


class KvSlots:
    """All buckets of a model.

    Args:
        masks: of the model.
        device: of the model.
    """

    def __init__(self, masks: Masks, device: torch.device) -> None:
        self._masks = masks
        self._device = device
        self._buckets: dict[int, Bucket] = {}

    @property
    def held(self) -> int:
        """Positions held by all rows."""
        return sum(slot.length for bucket in self._buckets.values() for slot in bucket.rows if slot is not None)

    def open(self, length: int) -> Slot:
        """A row for a sequence that will soon have so many positions."""
        return self._bucket(length).add()

    def close(self, row: Slot) -> None:
        """Free a row."""
        row.bucket.remove(row)

    def groups(self, rows: Iterable[Slot]) -> list[list[Slot]]:
        """The rows that are to run one token each together, with room for it, in the order of the batch."""
        batches: dict[int, list[Slot]] = {}
        for row in rows:
            self._make_room(row, 1)
            batches.setdefault(row.bucket.capacity, []).append(row)
        for small, large in pairwise(sorted(batches)):
            if _padding(batches[small], batches[large]) <= TOGETHER:
                for row in batches[small]:
                    self._move(row, self._bucket(large))
                batches[large] += batches.pop(small)
        return [self._bucket(capacity).arrange(members) for capacity, members in sorted(batches.items())]

    def chunk(self, row: Slot, count: int) -> dict[str, Any]:
        """What the model takes besides some tokens of one row."""
        self._make_room(row, count)
        begin = row.length
        positions = torch.arange(begin, begin + count, device=self._device)[None]
        return {
            "past_key_values": ChunkView(row, count),
            "position_ids": positions,
            "attention_mask": self._masks.of(positions, begin + count),
        }

    def batch(self, group: Sequence[Slot]) -> dict[str, Any]:
        """What the model takes besides one token of each row of a group."""
        lengths = [slot.length for slot in group]
        positions = torch.tensor(lengths, device=self._device)
        return {
            "past_key_values": BatchView(group, positions),
            "position_ids": positions[:, None],
            "attention_mask": self._masks.of(positions[:, None], 1 + max(lengths)),
        }

    def bytes_of(self, row: Slot, length: int) -> int:
        """What a copy of a row up to a length takes."""
        pools = row.bucket.pools.values()
        return sum(pool[0, :, :length].numel() * pool.element_size() for pair in pools for pool in pair)

    def copy_out(self, row: Slot, length: int) -> list[tuple[int, Tensor, Tensor]]:
        """Copies of what a row holds up to a length, by layer: (heads, length, width) each."""
        found = row.bucket.pools.items()
        return [(i, k[row.place, :, :length].clone(), v[row.place, :, :length].clone()) for i, (k, v) in found]

    def copy_in(self, row: Slot, layers: Iterable[tuple[int, Tensor, Tensor]], length: int) -> None:
        """Fill the beginning of an empty row with what ``copy_out`` gave."""
        assert row.length == 0
        self._make_room(row, length)
        row.length = length
        row.touched = max(row.touched, length)
        for layer, keys, values in layers:
            pools = row.bucket.pool(layer, (keys[None], values[None]))
            for pool, old in zip(pools, (keys, values), strict=True):
                pool[row.place, :, :length] = old[:, :length]

    def _bucket(self, length: int) -> Bucket:
        capacity = max(SMALLEST, 1 << (length - 1).bit_length())
        return self._buckets.setdefault(capacity, Bucket(capacity))

    def _make_room(self, row: Slot, count: int) -> None:
        """See to it that a row has room for so many more positions."""
        if row.length + count > row.bucket.capacity:
            self._move(row, self._bucket(row.length + count))

    def _move(self, row: Slot, bucket: Bucket) -> None:
        """Move a row with what it holds to other pools."""
        old, place, length = row.bucket, row.place, row.length
        new = bucket.add()
        for layer, pair in old.pools.items() if length else ():
            pools = bucket.pool(layer, pair)
            for pool, before in zip(pools, pair, strict=True):
                pool[new.place, :, :length] = before[place, :, :length]
        old.remove(row)
        row.bucket, row.place, row.touched = bucket, new.place, length
        bucket.rows[row.place] = row


def _padding(small: list[Slot], large: list[Slot]) -> int:
    """Positions over which rows would attend for nothing, if they joined a batch of longer ones."""
    return len(small) * (max(slot.length for slot in large) - max(slot.length for slot in small))
