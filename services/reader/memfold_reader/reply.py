"""One reply on its way: prompt in, tokens out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from transformers.cache_utils import DynamicCache

from memfold.api.errors import MemfoldError
from memfold_reader.detokenize import Detokenizer, StopScanner
from memfold_reader.outbox import Outbox
from memfold_reader.runner import Runner, Steering
from memfold_reader.sampling import Sampler
from memfold_reader.work import Work

PREFILL_TOKENS = 512  # of a prompt in one step, so that a long one does not hold up the others


class FinishReason(Enum):
    """Why a reply ended."""

    END_OF_TURN = "end_of_turn"
    STOP = "stop"
    MAX_TOKENS = "max_tokens"


@dataclass(frozen=True, slots=True)
class Finished:
    """How a reply ended; times are of ``time.monotonic``."""

    reason: FinishReason
    generated_tokens: int
    first_token_at: float
    last_token_at: float


class Reply(Work):
    """A prompt, the tokens that follow it, and everything that belongs to this request alone.

    Its KV cache depends on the state that steers it and is never shared.

    Attributes:
        generated: the tokens drawn so far, the one that ends the turn included.
        first_token_at: a time of ``time.monotonic``; 0 before the first token.
    """

    def __init__(
        self,
        prompt: Iterable[int],
        *,
        max_tokens: int,
        end_ids: frozenset[int],
        steering: Steering | None,
        sampler: Sampler,
        detokenizer: Detokenizer,
        stops: StopScanner,
        outbox: Outbox[str | Finished],
        deadline: float,
    ) -> None:
        super().__init__(deadline)
        self.generated: list[int] = []
        self.first_token_at = 0.0
        self._pending = list(prompt)
        assert self._pending
        assert max_tokens > 0
        self._max_tokens = max_tokens
        self._end_ids = end_ids
        self._steering = steering
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = stops
        self._outbox = outbox
        self._cache: DynamicCache | None = None

    def can_step(self) -> bool:
        """Whether the client has taken enough of what is there."""
        return self._outbox.has_room()

    def step(self, runner: Runner) -> bool:
        """Run a piece of the prompt, or the last token; then draw the next and hand it on at once."""
        if self._cache is None:
            self._cache = runner.new_cache()
        tokens, self._pending = self._pending[:PREFILL_TOKENS], self._pending[PREFILL_TOKENS:]
        logits = runner.forward(tokens, self._cache, self._steering)
        if self._pending:
            return False
        reason = self._accept(self._sampler.draw(logits[0]))
        if reason is None:
            return False
        self._finish(reason)
        return True

    def fail(self, error: MemfoldError) -> None:
        """End the stream with an error."""
        self._outbox.close(error)

    def _accept(self, token: int) -> FinishReason | None:
        self.generated.append(token)
        self.first_token_at = self.first_token_at or time.monotonic()
        if token in self._end_ids:
            return FinishReason.END_OF_TURN
        self._say(self._stops.push(self._detokenizer.push(token)))
        if self._stops.stopped:
            return FinishReason.STOP
        if len(self.generated) == self._max_tokens:
            return FinishReason.MAX_TOKENS
        self._pending = [token]
        return None

    def _finish(self, reason: FinishReason) -> None:
        self._say(self._stops.flush())
        self._outbox.put(Finished(reason, len(self.generated), self.first_token_at, time.monotonic()))
        self._outbox.close()

    def _say(self, text: str) -> None:
        if text:
            self._outbox.put(text)
