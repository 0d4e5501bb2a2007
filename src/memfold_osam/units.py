"""Sequence-state writes: which tokens become one mean, and when that mean is written.

A *segment* is a run of tokens that all read the state from before it; what it writes is written at its
end. Within a segment every id (a message's, a sentence's) is one *unit*: the mean of its tokens is
written once, in the order of the ids. One scan then does all segments of a call. Its items are the
call's tokens, which only read, and between them the units that fall due there, which only write.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Rows:
    """How the tokens of a call lie: ``(N, T)``, or packed one sequence after another as ``(1, sum T)``.

    Args:
        cu_seqlens: (N + 1,), where each packed sequence begins and the last one ends; None for ``(N, T)``.

    Raises:
        ValueError: ``cu_seqlens`` do not rise from 0, or are of no sequence.
    """

    def __init__(self, cu_seqlens: Tensor | None = None) -> None:
        self.cu_seqlens = cu_seqlens
        if cu_seqlens is not None:
            bounds = cu_seqlens.tolist()
            if len(bounds) < 2 or bounds[0] != 0 or bounds != sorted(bounds):
                raise ValueError(f"cu_seqlens must rise from 0 to the number of tokens, got {bounds}")
            lengths = cu_seqlens.diff()
            self.count, self.width = len(lengths), int(lengths.max())
            self.row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
            self.column = torch.arange(len(self.row), device=lengths.device) - cu_seqlens[self.row]

    def pad(self, x: Tensor, fill: int) -> Tensor:
        """A number of each token to (N, longest)."""
        if self.cu_seqlens is None:
            return x
        return x.new_full((self.count, self.width), fill).index_put((self.row, self.column), x[0])

    def flatten(self, x: Tensor) -> Tensor:
        """(N, longest) to a number of each token, in the order in which the model has them."""
        return x.flatten() if self.cu_seqlens is None else x[self.row, self.column]


@dataclass(frozen=True, slots=True)
class Items:
    """What one call gives the scan, in order: (N, length) places, some of them empty.

    Attributes:
        token_unit: (M,), the unit of each of the call's tokens; the number of units where it has none.
        token_row, token_place: (M,), where it reads.
        units: (S,), those that are written in this call.
        unit_row, unit_place: (S,), where.
        length: of the longest row.
        last: no call follows.
    """

    token_unit: Tensor
    token_row: Tensor
    token_place: Tensor
    units: Tensor
    unit_row: Tensor
    unit_place: Tensor
    length: int
    last: bool


class Units:
    """The units of some tokens, sorted by row, segment and id.

    Args:
        rows: how the tokens lie.
        segments: of each token, not falling along a row; a token of -1 reads as the one before it.
        ids: of each token within its segment, any numbers.
        writes: bool, the tokens that count.

    Attributes:
        counts: (U,), tokens of each.

    Raises:
        ValueError: segments fall along a row.
    """

    def __init__(self, rows: Rows, segments: Tensor, ids: Tensor, writes: Tensor) -> None:
        self._rows = rows
        segments, ids, writes = rows.pad(segments, -1), rows.pad(ids, 0), rows.pad(writes, 0).bool()
        self._width = segments.shape[1]
        running = segments.cummax(1).values
        if bool(((segments >= 0) & (segments < running)).any()):
            raise ValueError("segment_ids must not fall along a row")
        # Ranks instead of numbers: ids may be sparse and large.
        segment_names, segment = torch.unique(running, return_inverse=True)
        id_names, number = torch.unique(ids, return_inverse=True)
        lines = torch.arange(len(segments), device=segments.device)[:, None]
        keys = lines * len(segment_names) + segment
        named, unit, self.counts = torch.unique(
            (keys * len(id_names) + number)[writes], return_inverse=True, return_counts=True
        )
        self._unit = torch.full_like(keys, len(named)).masked_scatter(writes, unit)
        key = named // len(id_names)
        self._row = key // len(segment_names)
        # The first token of a later segment; the keys rise from token to token and from row to row.
        self._due = torch.searchsorted(keys.flatten(), key, right=True) - self._row * self._width

    def items(self, begin: int, end: int) -> Items:
        """What a call with the tokens from ``begin`` to ``end`` of each row reads and writes.

        A unit is written before the first token of a later segment, or after the last token of its row.
        """
        last = end == self._width
        units = ((self._due >= begin) & ((self._due < end) | last)).nonzero().squeeze(1)
        row, due = self._row[units], self._due[units] - begin
        written = torch.zeros(len(self._unit), end - begin + 1, dtype=torch.long, device=row.device)
        written = written.index_put((row, due), torch.ones_like(row), accumulate=True).cumsum(1)
        per_row = written[:, -1]
        rank = torch.arange(len(units), device=row.device) - (per_row.cumsum(0) - per_row)[row]
        columns = torch.arange(end - begin, device=row.device)
        lines = torch.arange(len(written), device=row.device)[:, None].expand(-1, end - begin)
        flatten = self._rows.flatten
        return Items(
            token_unit=flatten(self._unit[:, begin:end]),
            token_row=flatten(lines),
            token_place=flatten(columns + written[:, :-1]),
            units=units,
            unit_row=row,
            unit_place=due + rank,
            length=end - begin + int(per_row.max()),
            last=last,
        )
