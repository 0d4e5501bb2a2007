"""How likely continuations of a prompt are."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from memfold.api.errors import InvalidFieldError, MemfoldError
from memfold_reader.outbox import Outbox
from memfold_reader.sequence import Sequence, Steering, common

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


class Scoring(Sequence):
    """Scores candidates one after the other. What two share at their beginning is computed once."""

    def __init__(
        self,
        candidates: Seq[Candidate],
        *,
        steering: Steering | None,
        outbox: Outbox[Score],
        deadline: float,
        tenant: str = "",
    ) -> None:
        assert candidates
        # The last token is predicted, never run.
        super().__init__(candidates[0].tokens[:-1], steering=steering, deadline=deadline, tenant=tenant)
        self.prefix = candidates[0].start
        self._candidates = list(candidates)
        self._outbox = outbox
        self._found: list[float] = []
        self._greedy = True

    def can_step(self) -> bool:
        """Whether the outbox takes another score."""
        return self._outbox.has_room()

    def chunk(self, budget: int) -> int:
        """Each of its tokens may need a row of logits, so there are fewer."""
        return super().chunk(min(budget, SCORE_TOKENS))

    def taken_at(self) -> float:
        """When the outbox was last emptied a little."""
        return self._outbox.taken_at

    def wanted(self, count: int) -> int:
        """Those from the position before the continuation on, as each predicts the next token."""
        begin = self.computed
        return max(0, begin + count - max(begin, self._candidates[0].start - 1))

    def take(self, logits: Tensor, best: list[int]) -> bool:
        """Look up the candidate's own tokens."""
        candidate, end = self._candidates[0], self.computed
        if best:
            targets = candidate.tokens[end - len(best) + 1 : end + 1]
            wanted = torch.tensor(targets, device=logits.device)[:, None]
            self._found += (logits.gather(-1, wanted)[:, 0] - logits.logsumexp(-1)).tolist()
            self._greedy = self._greedy and tuple(best) == targets
        return end == len(self.tokens) and self._finish_candidate()

    def fail(self, error: MemfoldError) -> None:
        """End with an error."""
        self._outbox.close(error)

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
        """Keep what the next candidate begins with."""
        assert self.row is not None
        shared = min(common(self.tokens, candidate.tokens), candidate.start - 1)
        self.tokens = list(candidate.tokens[:-1])
        self.prefix = candidate.start
        self.row.rewind(shared)
