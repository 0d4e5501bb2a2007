"""What the writer measures: memfold's common instruments, and a few of its own for what goes wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence

from memfold import telemetry
from memfold.api.values import Turn


class Metrics:
    """Notes what happened. Gauges describe the whole fingerprint: take the maximum over writers, not the sum."""

    def __init__(self) -> None:
        self._common = telemetry.instruments()
        meter = telemetry.meter()
        self._memories = meter.create_counter("memfold.fold.memories", "{memory}", "States committed")
        self._lost = meter.create_counter("memfold.fold.lost", "{memory}", "Folds that came too late to be committed")
        self._failures = meter.create_counter("memfold.fold.failures", "{memory}", "Folds that failed, by reason")
        self._running = meter.create_gauge("memfold.fold.running", "{token}", "Tokens on the device now; 0: it is idle")
        self._run = meter.create_counter("memfold.writer.tokens_run", "{token}", "Tokens run through the model")
        self._appended = meter.create_counter("memfold.writer.tokens_appended", "{token}", "Of these, new in a log")
        self._blocks = meter.create_counter("memfold.writer.open_blocks", "{block}", "Folds, by where they began")
        self._quarantined = meter.create_counter("memfold.writer.quarantined", "{memory}", "Quarantines, by reason")
        self._audited = meter.create_counter("memfold.writer.audit_found", "{memory}", "Behind, and in no queue")
        self._hints = meter.create_counter("memfold.hints.repeated", "{hint}", "Hints sent by the reconciler")

    def running(self, tokens: int) -> None:
        """A batch of so many tokens goes to the device; 0: nothing runs any more."""
        self._running.set(tokens)

    def batch(self, seconds: float, tokens: int) -> None:
        """A batch came back from the device, on which so many tokens were run."""
        self._common.fold_seconds.record(seconds)
        self._common.fold_tokens.add(tokens)
        self._run.add(tokens)

    def committed(self, turns: Sequence[Turn], tokens: int) -> None:
        """A state is in the store that holds these turns, new to it, of so many tokens."""
        now_ms = time.time() * 1000
        self._memories.add(1)
        self._appended.add(tokens)
        self._common.fold_lag_turns.record(len(turns))
        self._common.fold_lag_tokens.record(tokens)
        for turn in turns:
            self._common.fold_lag_seconds.record(max(0.0, now_ms - turn.append_ms) / 1000)

    def lost(self) -> None:
        """Somebody else was faster, or the memory is no longer the one that was claimed."""
        self._lost.add(1)

    def failed(self, reason: str) -> None:
        """A memory could not be folded; ``reason`` is an exception's name."""
        self._failures.add(1, {"reason": reason})

    def began(self, at: str) -> None:
        """A fold goes on with an open ``block``, with the committed ``state``, or begins at the ``anchor``."""
        self._blocks.add(1, {"at": at})

    def quarantined(self, reason: str) -> None:
        """A turn cannot be folded."""
        self._quarantined.add(1, {"reason": reason})

    def audited(self, found: int) -> None:
        """The audit has looked at some memories."""
        self._audited.add(found)

    def hinted_again(self, count: int) -> None:
        """The reconciler sent so many hints."""
        self._hints.add(count)

    def behind(self, memories: int, oldest_s: float) -> None:
        """How much waits to be folded."""
        self._common.behind_memories.set(memories)
        self._common.behind_oldest_seconds.set(oldest_s)
