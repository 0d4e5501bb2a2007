"""How likely continuations of a prompt are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from memfold.api.errors import InvalidFieldError, MemfoldError
from memfold_reader.outbox import Outbox
from memfold_reader.runner import Runner, Steering
from memfold_reader.work import Work

SCORE_TOKENS = 256  # in one step; each may need a row of logits


@dataclass(frozen=True, slots=True)
class Candidate:
    """Prompt and continuation as one list of tokens; the continuation begins at ``start``, at 1 or later."""

    tokens: tuple[int, ...]
    start: int

    def __post_init__(self) -> None:
        assert self.start > 0
        if self.start >= len(self.tokens):
            raise InvalidFieldError("continuations", "one holds no token")


@dataclass(frozen=True, slots=True)
class Score:
    """Natural logarithms of the probabilities of a continuation's tokens, each given all before it."""

    log_probabilities: tuple[float, ...]
    is_greedy: bool

    @property
    def total(self) -> float:
        """The logarithm of the whole continuation's probability."""
        return math.fsum(self.log_probabilities)


class Scoring(Work):
    """Scores candidates one after the other. What two share at their beginning is computed once."""

    def __init__(
        self, candidates: Sequence[Candidate], *, steering: Steering | None, outbox: Outbox[Score], deadline: float
    ) -> None:
        super().__init__(deadline)
        assert candidates
        self._candidates = list(candidates)
        self._steering = steering
        self._outbox = outbox
        self._cache: DynamicCache | None = None
        self._fed: list[int] = []  # the tokens that the cache holds
        self._found: list[float] = []
        self._greedy = True

    def can_step(self) -> bool:
        """Whether the outbox takes another score."""
        return self._outbox.has_room()

    def step(self, runner: Runner) -> bool:
        """Run a piece of the current candidate."""
        candidate = self._candidates[0]
        if self._cache is None:
            self._cache = runner.new_cache()
        begin = len(self._fed)
        # The last token is predicted, never fed.
        end = min(begin + SCORE_TOKENS, len(candidate.tokens) - 1)
        # The position before a token predicts it: rows are needed from `start - 1` on.
        needed = end - max(begin, candidate.start - 1)
        piece = list(candidate.tokens[begin:end])
        logits = runner.forward(piece, self._cache, self._steering, keep=max(1, needed))
        self._fed += piece
        if needed > 0:
            self._take(logits, candidate.tokens[end - needed + 1 : end + 1])
        if end < len(candidate.tokens) - 1:
            return False
        return self._finish_candidate()

    def fail(self, error: MemfoldError) -> None:
        """End with an error."""
        self._outbox.close(error)

    def _take(self, logits: Tensor, targets: Sequence[int]) -> None:
        wanted = torch.tensor(targets, device=logits.device).unsqueeze(-1)
        chosen = logits.gather(-1, wanted).squeeze(-1)
        self._found += (chosen - logits.logsumexp(-1)).tolist()
        self._greedy = self._greedy and bool((logits.argmax(-1) == wanted.squeeze(-1)).all())

    def _finish_candidate(self) -> bool:
        self._outbox.put(Score(tuple(self._found), self._greedy))
        self._found, self._greedy = [], True
        del self._candidates[0]
        if not self._candidates:
            self._outbox.close()
            return True
        self._rewind(self._candidates[0])
        return False

    def _rewind(self, candidate: Candidate) -> None:
        """Keep of the cache what the next candidate begins with."""
        assert self._cache is not None
        shared = min(_common(self._fed, candidate.tokens), candidate.start - 1)
        if shared == 0 or any(type(layer) is not DynamicLayer for layer in self._cache.layers):
            self._cache, self._fed = None, []
            return
        if shared < len(self._fed):
            self._cache.crop(shared - len(self._fed))
            del self._fed[shared:]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
