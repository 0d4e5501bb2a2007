"""Binds the memories of a step's rows, and keeps what they have become."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager

import torch
from torch import Tensor

from memfold_osam.binding import Binding
from memfold_osam.serving import ServedModel
from memfold_osam.state import OsamState
from memfold_reader.sequence import Segment, Sequence, Steering
from memfold_reader.states import NO_MEMORY, StatePool

_PREPARED = 16  # more batches than run side by side; the rest are of compositions long gone


class Steerer:
    """The states of all sequences, and how they take part in a step.

    Rows that no memory steers share batches with rows that one does: they read zeros at gain 0. Where no row is steered,
    nothing is bound, and the frozen backbone runs and nothing else.

    Args:
        served: the model.
    """

    def __init__(self, served: ServedModel) -> None:
        self._memory = served.memory
        self._device = served.device
        self._states = StatePool(served.state_shape, served.device)
        self._prepared: dict[tuple[tuple[int, ...], tuple[float, ...]], Binding] = {}
        self._changes = 0
        self._by_token = served.memory.config.memory_write_granularity == "token"

    def begin(self, sequence: Sequence) -> None:
        """Give a sequence its own copy of the state that it starts from."""
        if sequence.steering is not None:
            if sequence.state_slot == NO_MEMORY:
                sequence.state_slot = self._states.open()
            self._states.load(sequence.state_slot, sequence.steering.state.tensor)

    def release(self, sequence: Sequence) -> None:
        """Take it back; harmless where there is none."""
        if sequence.state_slot != NO_MEMORY:
            self._states.close(sequence.state_slot)
            sequence.state_slot = NO_MEMORY

    def count(self, sequence: Sequence, count: int) -> int:
        """How many tokens to run where ``count`` were planned: an own message that is written as one comes whole."""
        steering = sequence.steering
        if steering is None or not steering.writes or self._by_token:
            return count
        begin = sequence.computed
        for segment in steering.segments:
            if begin < segment.begin:
                return min(count, segment.begin - begin)
            if begin < segment.end:
                return segment.end - begin
        return count

    @contextmanager
    def chunk(self, sequence: Sequence, count: int) -> Iterator[None]:
        """Bind for the next tokens of one sequence."""
        steering, begin = sequence.steering, sequence.computed
        if steering is None:
            yield
            return
        positions = torch.arange(begin, begin + count, device=self._device)[None]
        mask = positions >= steering.unread if begin < steering.unread else None
        segment = None if self._by_token else _segment(steering, begin, begin + count)
        write: bool | Tensor = segment is not None
        if self._by_token and steering.write_from is not None and steering.write_from < begin + count:
            write = True if steering.write_from <= begin else positions >= steering.write_from
        ids = torch.zeros_like(positions) if segment is not None else None
        sentences = None
        if segment is not None and segment.sentences:
            sentences = torch.tensor([segment.sentences], device=self._device)
        state = OsamState(self._states.rows([sequence.state_slot]))
        with self._memory.bind(state, write, mask, sentence_ids=sentences, gain=steering.gain, segment_ids=ids):
            yield
        if write is not False:
            self._states.store([sequence.state_slot], state.tensor)

    @contextmanager
    def batch(self, group: Seq[Sequence]) -> Iterator[None]:
        """Bind for one token of each row."""
        steerings = [sequence.steering for sequence in group]
        if all(steering is None for steering in steerings):
            yield
            return
        slots = [sequence.state_slot for sequence in group]
        gains = [0.0 if steering is None else steering.gain for steering in steerings]
        writers = [row for row, steering in enumerate(steerings) if steering and steering.writes and self._by_token]
        if not writers:
            with self._memory.rebind(self._reading(slots, gains)):
                yield
            return
        write = torch.zeros(len(group), 1, dtype=torch.bool, device=self._device)
        write[writers] = True
        state = OsamState(self._states.rows(slots))
        with self._memory.bind(state, write, gain=torch.tensor(gains, device=self._device)):
            yield
        self._states.store([slots[row] for row in writers], state.tensor[:, writers])

    def _reading(self, slots: list[int], gains: list[float]) -> Binding:
        """What binds these states to read; kept from step to step while they and the batch stay the same."""
        if self._changes != self._states.changes or len(self._prepared) > _PREPARED:
            self._prepared.clear()
            self._changes = self._states.changes
        key = tuple(slots), tuple(gains)
        if key not in self._prepared:
            gain = torch.tensor(gains, device=self._device)
            self._prepared[key] = self._memory.prepare(OsamState(self._states.rows(slots)), gain)
        return self._prepared[key]


def _segment(steering: Steering, begin: int, end: int) -> Segment | None:
    """The own message that some tokens are, if they are to be written as one."""
    found = next((segment for segment in steering.segments if segment.begin == begin and segment.end == end), None)
    return found if steering.writes else None
