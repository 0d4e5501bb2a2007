"""One reply on its way: prompt in, tokens out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from memfold.api.errors import MemfoldError
from memfold_reader.detokenize import Detokenizer, StopScanner
from memfold_reader.outbox import Outbox
from memfold_reader.sampling import Sampler
from memfold_reader.sequence import Sequence, Steering


class FinishReason(Enum):
    """Why a reply ended."""

    END_OF_TURN = "end_of_turn"
    STOP = "stop"
    MAX_TOKENS = "max_tokens"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was drawn, and what else might have been.

    Attributes:
        token: its id.
        text: its own, with a replacement character where it is only part of a character.
        log_probability: natural logarithm of its probability at temperature 1, before any cut.
        top: id, text and the same of the most likely tokens, falling.
    """

    token: int
    text: str
    log_probability: float
    top: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token brings: text, and its probability where that was asked for.

    There may be no text, while a character is unfinished or a stop text may have begun.
    """

    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """How a reply ended.

    Attributes:
        generated_tokens: the one that ended the turn included.
        first_token_at, last_token_at: times of ``time.monotonic``.
        influence: how far the memory moved the first token's distribution: KL(with | without), in nats; None where it was
            not asked for.
        reused_tokens: of the prompt, that were there already.
    """

    reason: FinishReason
    generated_tokens: int
    first_token_at: float
    last_token_at: float
    influence: float | None = None
    reused_tokens: int = 0


class Reply(Sequence):
    """A prompt, the tokens that follow it, and everything that belongs to this request alone.

    Args:
        prompt: its tokens.
        max_tokens: of the reply.
        end_ids: tokens that end the turn.
        stop_ids: tokens at which the client wants it to stop; as little shown as the others.
        steering: the memory; None for the backbone alone.
        sampler, detokenizer, stops: of this request.
        outbox: takes a ``Piece`` for each token that brings something, and ``Finished``.
        deadline, tenant: see ``Work``.
        top_logprobs: how many alternatives to tell of each token; None for no probabilities at all.
        influence: whether to measure it, which takes the prompt a second time.

    Attributes:
        generated: the tokens drawn so far.
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
        outbox: Outbox[Piece | Finished],
        deadline: float,
        stop_ids: frozenset[int] = frozenset(),
        tenant: str = "",
        top_logprobs: int | None = None,
        influence: bool = False,
    ) -> None:
        super().__init__(prompt, steering=steering, deadline=deadline, tenant=tenant)
        assert max_tokens > 0
        self.generated: list[int] = []
        self.first_token_at = 0.0
        self.prefix = len(self.tokens)
        self._max_tokens = max_tokens
        self._end_ids = end_ids
        self._stop_ids = stop_ids
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = stops
        self._outbox = outbox
        self._top_logprobs = top_logprobs
        self._influence = 0.0 if influence else None
        # The prompt runs first without the memory, and again with it.
        self._without = influence and steering is not None
        self._frozen: Tensor | None = None

    @property
    def steering(self) -> Steering | None:
        """The memory, once the prompt has run without it, where that was asked for."""
        return None if self._without else self._steering

    def can_step(self) -> bool:
        """Whether the client has taken enough of what is there."""
        return self._outbox.has_room()

    def taken_at(self) -> float:
        """When the outbox was last emptied a little."""
        return self._outbox.taken_at

    def wanted(self, count: int) -> int:
        """The last token's, once it comes."""
        return int(self.computed + count == len(self.tokens))

    def take(self, logits: Tensor, best: list[int]) -> bool:
        """Draw the next token and hand it on at once."""
        if not best:
            return False
        if self._without:
            self._compare_later(logits[-1])
            return False
        if self._frozen is not None:
            self._influence, self._frozen = _divergence(logits[-1], self._frozen), None
        token = best[-1] if self._sampler.greedy else self._sampler.draw(logits[-1])
        reason = self._accept(token, logits[-1])
        if reason is not None:
            self._finish(reason)
        return reason is not None

    def fail(self, error: MemfoldError) -> None:
        """End the stream with an error."""
        self._outbox.close(error)

    def _compare_later(self, logits: Tensor) -> None:
        assert self.row is not None
        self._frozen, self._without = logits.clone(), False
        self.row.rewind(0)

    def _accept(self, token: int, logits: Tensor) -> FinishReason | None:
        self.generated.append(token)
        self.tokens.append(token)
        if not self.first_token_at:
            self.first_token_at = time.monotonic()
        told = self._tell(token, logits)
        if token in self._end_ids or token in self._stop_ids:
            self._say("", told)
            return FinishReason.END_OF_TURN if token in self._end_ids else FinishReason.STOP
        self._say(self._stops.push(self._detokenizer.push(token)), told)
        if self._stops.stopped:
            return FinishReason.STOP
        return FinishReason.MAX_TOKENS if len(self.generated) == self._max_tokens else None

    def _tell(self, token: int, logits: Tensor) -> tuple[TokenLogprob, ...]:
        if self._top_logprobs is None:
            return ()
        logs = logits.double().log_softmax(-1)
        values, ids = logs.topk(min(self._top_logprobs, len(logs)))
        text_of = self._detokenizer.text_of
        top = tuple((i, text_of(i), value) for i, value in zip(ids.tolist(), values.tolist(), strict=True))
        return (TokenLogprob(token, text_of(token), float(logs[token]), top),)

    def _finish(self, reason: FinishReason) -> None:
        self._say(self._stops.flush())
        self._outbox.put(
            Finished(reason, len(self.generated), self.first_token_at, time.monotonic(), self._influence, self.reused)
        )
        self._outbox.close()

    def _say(self, text: str, tokens: tuple[TokenLogprob, ...] = ()) -> None:
        if text or tokens:
            self._outbox.put(Piece(text, tokens))


def _divergence(steered: Tensor, frozen: Tensor) -> float:
    """KL(steered | frozen) of two rows of logits, in nats."""
    with_memory, without = steered.double().log_softmax(-1), frozen.double().log_softmax(-1)
    return max(0.0, float((with_memory.exp() * (with_memory - without)).sum()))
