"""What happens between the start and the end of one ``bind``: the states on their way through its calls."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from memfold_osam.config import AdapterConfig
from memfold_osam.layer import LayerMemory
from memfold_osam.step import LayerStep
from memfold_osam.units import Items, Rows, Units


@dataclass(frozen=True, slots=True)
class TokenFlags:
    """What a ``bind`` is told of its tokens, (B, T) each; see ``DeltaMemory.bind``."""

    write: bool | Tensor = True
    token_mask: Tensor | None = None
    message_ids: Tensor | None = None
    sentence_ids: Tensor | None = None
    segment_ids: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that tell tokens apart, by name."""
        named = {name: getattr(self, name) for name in self.__slots__}
        return {name: flags for name, flags in named.items() if isinstance(flags, Tensor)}

    def unit_ids(self, config: AdapterConfig) -> Tensor | None:
        """The id, within its segment, of the unit that each token is of; None where no means are written."""
        if config.memory_write_granularity == "token" or self.write is False:
            return None
        if config.memory_write_granularity == "sentence_mean":
            return self.sentence_ids
        if self.message_ids is None and self.segment_ids is not None:
            return torch.zeros_like(self.segment_ids)
        return self.message_ids

    def in_units(self, ids: Tensor) -> Tensor:
        """Which tokens count in the mean of their unit: those that write and have every id that is given."""
        counts = ids >= 0
        for given in (self.message_ids, self.segment_ids):
            counts = counts if given is None else counts & (given >= 0)
        for allowed in (self.token_mask, self.write):
            counts = counts & allowed.bool() if isinstance(allowed, Tensor) else counts
        return counts


class Binding:
    """The states of a batch by adapted layer, and who reads and writes them.

    Args:
        config: of the adapter.
        state: (layers, N, H, r, r).
        flags: of the tokens of all calls of the bind, in order.
        gain: scales the corrections: a number, or (N,).
        cu_seqlens: (N + 1,), where the model runs N sequences packed as (1, sum T); one call then.
        steps: of the layers, for what has no gradients; None where the adapter has more to do than they can.

    Attributes:
        gain: as the corrections (B, T, out) want it.
    """

    def __init__(
        self,
        config: AdapterConfig,
        state: Tensor,
        flags: TokenFlags,
        gain: float | Tensor = 1.0,
        cu_seqlens: Tensor | None = None,
        steps: Sequence[LayerStep] | None = None,
    ) -> None:
        if isinstance(gain, Tensor) and gain.shape != state.shape[1:2]:
            raise ValueError(f"gain must be a number or {tuple(state.shape[1:2])}, got {tuple(gain.shape)}")
        self._flags = flags
        self._rows = Rows(cu_seqlens)
        self._by_token = config.memory_write_granularity == "token" and flags.write is not False
        self._unit_ids = flags.unit_ids(config)
        self.gain: float | Tensor = 1.0
        if flags.write is False and not config.delta_o_rmsnorm:
            # What is read only is scaled once, in the state, instead of in every layer and head.
            state = state * (gain.to(state)[:, None, None, None] if isinstance(gain, Tensor) else gain)
        elif isinstance(gain, Tensor):
            gain = gain.to(state.device, torch.float32)
            self.gain = gain[:, None, None] if cu_seqlens is None else gain[self._rows.row][None, :, None]
        else:
            self.gain = gain
        self._states = list(state.unbind(0))
        self._steps = steps
        self._only_reads = flags.write is False and flags.token_mask is None and cu_seqlens is None
        self._seen = [0] * len(self._states)
        # By layer: over the tokens seen so far, what the units' means are the means of.
        self._sums: list[Tensor | None] = [None] * len(self._states)
        self._units: Units | None = None
        self._items: tuple[int, Items] | None = None

    def copy(self) -> Self:
        """Another one that stands where this one stands, and goes its own way from there."""
        other = copy.copy(self)
        other._states, other._seen, other._sums = list(self._states), list(self._seen), list(self._sums)  # noqa: SLF001
        return other

    def advance(self, index: int, layer: LayerMemory, x: Tensor) -> Tensor:
        """What each token of ``x`` (B, T, D) reads in a layer, (B, T, H, r); writes what falls due.

        Raises:
            ValueError: the call's shape fits neither the state nor the flags.
        """
        begin, state, step = self._seen[index], self._states[index], self.step(index)
        end = self._seen[index] = begin + x.shape[1]
        if step is not None and self._only_reads and x.shape[0] == state.shape[0]:
            return step.read(x, state)
        self._check(x, end)
        flags = self._flags
        mask = None if flags.token_mask is None else flags.token_mask[:, begin:end].bool()
        if self._by_token:
            writes = flags.write[:, begin:end].bool() if isinstance(flags.write, Tensor) else None
            reads, self._states[index] = layer.read_and_write(x, state, mask, writes, self._rows.cu_seqlens)
            return reads
        if self._unit_ids is None:
            reads = layer.read(x, state, self._rows)
        else:
            units, items = self._plan(self._unit_ids, begin, end)
            sums = layer.sum_units(x, items, len(units.counts), self._sums[index])
            self._sums[index] = None if items.last else sums
            reads, self._states[index] = layer.read_and_write_units(x, state, items, sums / units.counts[:, None])
        return reads if mask is None else reads.masked_fill(~mask[:, :, None, None], 0.0)

    def step(self, index: int) -> LayerStep | None:
        """What reads and corrects in a layer now; None where gradients may be asked for."""
        return None if self._steps is None or torch.is_grad_enabled() else self._steps[index]

    @property
    def states(self) -> Tensor:
        """As they are now: (layers, N, H, r, r)."""
        return torch.stack(self._states)

    def finish(self) -> None:
        """Check that the calls had all the tokens that there are flags of.

        Raises:
            ValueError: they had fewer.
        """
        seen = max(self._seen)
        for name, flags in self._flags.tensors().items():
            if seen and flags.shape[1] != seen:
                _refuse(name, (flags.shape[0], seen), flags)

    def _plan(self, ids: Tensor, begin: int, end: int) -> tuple[Units, Items]:
        """What the call reads and writes by means; the same in every layer."""
        if self._units is None or self._items is None or self._items[0] != begin:
            counts, segments = self._flags.in_units(ids), self._flags.segment_ids
            if segments is None:  # as in the reference, a call is a segment
                ids = ids[:, begin:end]
                self._units = Units(self._rows, torch.zeros_like(ids), ids, counts[:, begin:end])
                self._items = begin, self._units.items(0, end - begin)
            else:
                self._units = self._units or Units(self._rows, segments, ids, counts)
                self._items = begin, self._units.items(begin, end)
        return self._units, self._items[1]

    def _check(self, x: Tensor, end: int) -> None:
        """Refuse a call that does not fit what was bound."""
        rows = len(self._states[0])
        if self._rows.cu_seqlens is not None:
            if self._rows.count != rows:
                raise ValueError(f"the state has {rows} rows, cu_seqlens {self._rows.count} sequences")
            if (x.shape[0], end) != (1, len(self._rows.row)):
                raise ValueError(f"by cu_seqlens the call must be {(1, len(self._rows.row))}, got {tuple(x.shape[:2])}")
        elif x.shape[0] != rows:
            raise ValueError(f"the state has {rows} rows, the batch {x.shape[0]}")
        for name, flags in self._flags.tensors().items():
            if flags.ndim != 2 or flags.shape[0] != x.shape[0] or flags.shape[1] < end:
                _refuse(name, (x.shape[0], end), flags)


def _refuse(name: str, expected: tuple[int, int], got: Tensor) -> None:
    raise ValueError(f"{name} must be {expected}, as the tokens of the bind's calls, got {tuple(got.shape)}")
