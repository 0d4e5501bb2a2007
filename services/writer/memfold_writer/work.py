"""What is to be folded: a memory's turns since its anchor, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memfold.api.values import Turn
from memfold.store import Anchor, Claim


@dataclass(frozen=True, slots=True)
class Work:
    """One memory's share of a batch.

    Attributes:
        turns: all after the anchor's turn, ascending; those up to ``claim.applied`` only bring the open block back.
        lengths: tokens of each turn.
    """

    claim: Claim
    anchor: Anchor
    turns: tuple[Turn, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.turns) == len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens to run: the first turn counts from the anchor on."""
        return sum(self.lengths) - self.anchor.offset

    @property
    def applied(self) -> int:
        """The sequence that the state will have reached."""
        return self.turns[-1].sequence

    @property
    def fresh(self) -> Sequence[Turn]:
        """The turns that the committed state does not hold yet."""
        return [turn for turn in self.turns if turn.sequence > self.claim.applied]

    @property
    def fresh_tokens(self) -> int:
        """Tokens of the fresh turns."""
        return sum(
            length for turn, length in zip(self.turns, self.lengths, strict=True) if turn.sequence > self.claim.applied
        )

    def least(self) -> Work:
        """As little of this as makes any progress: up to the first fresh turn."""
        count = next(i for i, turn in enumerate(self.turns, 1) if turn.sequence > self.claim.applied)
        return self._first(count)

    def within(self, tokens: int) -> Work | None:
        """As much of this as so many tokens allow; None where that is nothing fresh."""
        count, total = 0, -self.anchor.offset
        for length in self.lengths:
            if total + length > tokens:
                break
            total += length
            count += 1
        if count == 0 or self.turns[count - 1].sequence <= self.claim.applied:
            return None
        return self._first(count)

    def _first(self, count: int) -> Work:
        return replace(self, turns=self.turns[:count], lengths=self.lengths[:count])


class Batch:
    """Works that go over the device together."""

    def __init__(self, tokens: int, memories: int) -> None:
        self.works: list[Work] = []
        self._tokens = tokens
        self._memories = memories
        self._full = False

    @property
    def places(self) -> int:
        """How many more memories are welcome."""
        return 0 if self._full or self._tokens <= 0 else self._memories - len(self.works)

    def take(self, work: Work) -> bool:
        """Add as much of it as there is room for. The first is always taken, whatever it costs.

        Returns:
            False where nothing of it fits: the batch is full.
        """
        fitting = work.within(self._tokens)
        if fitting is None and not self.works:
            fitting = work.least()
        if fitting is None or not self.places:
            self._full = True
            return False
        self.works.append(fitting)
        self._tokens -= fitting.tokens
        return True
