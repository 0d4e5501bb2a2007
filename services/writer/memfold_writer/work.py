"""What is to be folded: a memory's turns since its anchor, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memfold.api.values import Turn
from memfold.store import Anchor, Claim
from memfold_osam.open_block import OpenBlock

MOST_HELD = 2  # tokens that are run again for each new one, where the rest of a log has to wait for the next batch


@dataclass(frozen=True, slots=True)
class Work:
    """One memory's share of a batch.

    Attributes:
        turns: all log entries behind the anchor, ascending; those up to ``claim.applied`` only bring the open block back.
        lengths: tokens of each; 0 where it is not folded.
        complete: they reach the log's end, as the claim knows it.
        open_block: that an earlier fold left here; then the turns are those behind the committed state.
        anchor_moved: the anchor is not yet the one that the store knows.
    """

    claim: Claim
    anchor: Anchor
    turns: tuple[Turn, ...]
    lengths: tuple[int, ...]
    complete: bool = False
    open_block: OpenBlock | None = None
    anchor_moved: bool = False

    def __post_init__(self) -> None:
        assert len(self.turns) == len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens to run: the first turn counts from the anchor on."""
        return sum(self.lengths) - self.anchor.offset

    @property
    def applied(self) -> int:
        """The revision that the state will have reached: numbers at the log's end may have lost their turns."""
        return self.claim.head if self.complete else self.turns[-1].sequence

    @property
    def folded(self) -> Sequence[Turn]:
        """The turns that run through the model."""
        return [turn for turn in self.turns if turn.folds]

    @property
    def at(self) -> int:
        """The last turn that the state will hold."""
        return self.folded[-1].sequence if self.folded else self.claim.at

    @property
    def fresh(self) -> Sequence[Turn]:
        """The log entries behind the committed state."""
        return [turn for turn in self.turns if turn.sequence > self.claim.applied]

    @property
    def fresh_tokens(self) -> int:
        """Tokens of the fresh turns."""
        return sum(
            length for turn, length in zip(self.turns, self.lengths, strict=True) if turn.sequence > self.claim.applied
        )

    @property
    def held_tokens(self) -> int:
        """Tokens of the open block that bring nothing new."""
        return self.tokens - self.fresh_tokens

    @property
    def first_tokens(self) -> int:
        """Tokens of the first fresh turn that is folded at all."""
        return next((length for length in self.lengths[len(self.turns) - len(self.fresh) :] if length), 0)

    def least(self, fresh: int = 1) -> Work:
        """As little of this as makes any progress: up to the first fresh entry, or so many of them."""
        return self._first(len(self.turns) - len(self.fresh) + fresh)

    def from_state(self, state: bytes) -> Work:
        """The same from the committed state on, which is where the first fresh turn opens a block."""
        fresh = tuple(self.fresh)
        anchor = Anchor(sequence=fresh[0].sequence - 1, offset=0, data=state)
        return replace(self, anchor=anchor, turns=fresh, lengths=self.lengths[-len(fresh) :], anchor_moved=True)

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
        whole = self.complete and count == len(self.turns)
        return replace(self, turns=self.turns[:count], lengths=self.lengths[:count], complete=whole)


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
        if not self.works:
            fitting = fitting or work.least()
        elif fitting is not None and not fitting.complete and fitting.held_tokens > MOST_HELD * fitting.fresh_tokens:
            fitting = None  # the next batch has room for more, and the open block is run but once
        if fitting is None or not self.places:
            self._full = True
            return False
        self.works.append(fitting)
        self._tokens -= fitting.tokens
        return True
