"""Forward passes of the served model: some tokens of one sequence, or one token of many."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from memfold.api.errors import MemfoldError
from memfold_osam.serving import ServedModel
from memfold_reader.caches import OwnCaches
from memfold_reader.kv import KvSlots
from memfold_reader.prefixes import Prefix, Prefixes
from memfold_reader.sequence import Sequence, Steering
from memfold_reader.steerer import Steerer
from memfold_reader.together import kv_slots

PREFIX_BYTES = 1 << 28


class Runner:
    """Runs the served model. Used by one thread at a time.

    Args:
        served: the model.
        prefix_bytes: of keys and values of prompts that are kept for others; 0 for none.
    """

    def __init__(self, served: ServedModel, *, prefix_bytes: int = PREFIX_BYTES) -> None:
        self.served = served
        # Slots or own caches: the same interface, each with rows of its own kind.
        self._kv: Any = kv_slots(served.model) or OwnCaches(served.model.config)
        self._steerer = Steerer(served)
        self._prefixes = Prefixes(served.fingerprint, prefix_bytes)

    def warm_up(self) -> None:
        """Run with and without a memory: first passes are slow, and nobody should have to wait for them."""
        prompt = [*self.served.turns.generation_prompt, *sorted(self.served.turns.end_ids)] * 2
        nothing = Steering(self.served.memory.init_state(1))
        sequences = [_Trial(prompt, steering=steering, deadline=math.inf) for steering in (None, nothing)]
        for sequence in sequences:
            self.begin(sequence)
            self.prefill(sequence, len(prompt) - 1)
        for group in self.groups(sequences):
            self.decode(group)
        for sequence in sequences:
            self.release(sequence)

    @property
    def held(self) -> int:
        """Positions of which keys and values are held."""
        return int(self._kv.held)

    @torch.inference_mode()
    def begin(self, sequence: Sequence) -> None:
        """What comes before a sequence's first token: its row, its own copy of its state. Later, nothing."""
        if sequence.row is None:
            sequence.row = self._kv.open(len(sequence.tokens) + 1)
        if sequence.computed == 0:
            self._steerer.begin(sequence)
            self._reuse(sequence)

    @torch.inference_mode()
    def release(self, sequence: Sequence) -> None:
        """Take back what a sequence has; harmless where it has nothing."""
        if sequence.row is not None:
            self._kv.close(sequence.row)
            sequence.row = None
        self._steerer.release(sequence)

    @torch.inference_mode()
    def prefill(self, sequence: Sequence, count: int) -> tuple[Tensor, list[int]]:
        """Run the next tokens of one sequence, ``count`` or thereabouts.

        Returns:
            The logits that it wants of them, (wanted, vocabulary), fp32, and the most likely token after each.
        """
        begin, row = sequence.computed, sequence.row
        assert row is not None
        tokens = sequence.tokens[begin : begin + self._steerer.count(sequence, count)]
        wanted = sequence.wanted(len(tokens))
        inputs = self._kv.chunk(row, len(tokens))
        with self._steerer.chunk(sequence, len(tokens)):
            logits = self._forward([tokens], inputs, max(1, wanted))[0]
            logits = logits[len(logits) - wanted :]
            best: list[int] = logits.argmax(-1).tolist()
        row.length += len(tokens)
        if begin < sequence.prefix <= row.length:
            self._keep(sequence)
        return logits, best

    @torch.inference_mode()
    def groups(self, sequences: Iterable[Sequence]) -> list[list[Sequence]]:
        """The batches in which one token of each sequence can run."""
        by_row = {id(sequence.row): sequence for sequence in sequences}
        groups = self._kv.groups([sequence.row for sequence in by_row.values()])
        return [[by_row[id(row)] for row in group] for group in groups]

    @torch.inference_mode()
    def decode(self, group: list[Sequence]) -> tuple[Tensor, list[int]]:
        """Run one token of each sequence of a group.

        All or nothing: where it fails, no sequence has moved, and no state.

        Returns:
            Logits (B, vocabulary), fp32, and the most likely token of each row.
        """
        rows: list[Any] = [sequence.row for sequence in group]
        inputs = self._kv.batch(rows)
        tokens = [[sequence.tokens[sequence.computed]] for sequence in group]
        with self._steerer.batch(group):
            logits = self._forward(tokens, inputs, 1)[:, -1]
            best: list[int] = logits.argmax(-1).tolist()
        for sequence, row in zip(group, rows, strict=True):
            row.length += 1
            if row.length == sequence.prefix:
                self._keep(sequence)
        return logits, best

    def _reuse(self, sequence: Sequence) -> None:
        """Begin with what another request has left of the same prompt under the same memory."""
        key = self._prefixes.key(sequence) if isinstance(self._kv, KvSlots) else None
        if key is not None:
            layers, sequence.reused = self._prefixes.find(key, sequence.tokens[: sequence.prefix])
            self._kv.copy_in(sequence.row, layers, sequence.reused)

    def _keep(self, sequence: Sequence) -> None:
        """Leave a prompt's keys and values to others."""
        key = self._prefixes.key(sequence) if isinstance(self._kv, KvSlots) else None
        tokens = tuple(sequence.tokens[: sequence.prefix])
        size = self._kv.bytes_of(sequence.row, len(tokens)) if key is not None else 0
        if key is not None and self._prefixes.wants(key, tokens, size):
            self._prefixes.keep(key, Prefix(tokens, self._kv.copy_out(sequence.row, len(tokens))))

    def _forward(self, tokens: list[list[int]], inputs: dict[str, Any], keep: int) -> Tensor:
        ids = torch.tensor(tokens, device=self.served.device)
        output = self.served.model(input_ids=ids, use_cache=True, logits_to_keep=keep, **inputs)
        logits: Tensor = output.logits
        return logits.float()


class _Trial(Sequence):
    """Wants nothing but to be run."""

    def can_step(self) -> bool:
        return True

    def wanted(self, _count: int) -> int:
        return 1

    def take(self, _logits: Tensor, _best: list[int]) -> bool:
        return True

    def fail(self, error: MemfoldError) -> None:
        raise error
