"""A request while it is in the engine: tokens to run, how far they are, what steers them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from memfold_osam.state import OsamState
from memfold_reader.kv import Row
from memfold_reader.states import NO_MEMORY
from memfold_reader.work import Work


@dataclass(frozen=True, slots=True)
class Segment:
    """One of the request's own messages, in the prompt: tokens from ``begin`` to before ``end``.

    Attributes:
        sentences: of each of its tokens, counted from 0, -1 for none; only for an adapter that writes sentences.
    """

    begin: int
    end: int
    sentences: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Steering:
    """The memory that a request reads.

    Attributes:
        state: of one row.
        gain: its strength.
        unread: tokens at the beginning of the prompt (BOS) that take no part in it.
        digest: of the state, under which keys and values may be used again; never where it is empty.
        write_from: the first token of the prompt that writes into the request's own copy of the state, and with it all
            behind it; None for one that only reads.
        segments: what an adapter that writes messages or sentences writes instead: each at its end, and nothing of the
            reply, which has none yet.
    """

    state: OsamState
    gain: float = 1.0
    unread: int = 0
    digest: bytes = b""
    write_from: int | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def writes(self) -> bool:
        """The request changes its copy of the state."""
        return self.write_from is not None


class Sequence(Work):
    """Tokens of which the first ``computed`` have been run.

    Attributes:
        tokens: to run, in order.
        row: where their keys and values are, while it is active.
        state_slot: where its state is, while it is active.
        prefix: tokens of its prompt, whose keys and values others may use, and of which it wants the last one's logits.
        reused: tokens whose keys and values were there already.
    """

    def __init__(self, tokens: Iterable[int], *, steering: Steering | None, deadline: float, tenant: str = "") -> None:
        super().__init__(deadline, tenant)
        self.tokens = list(tokens)
        assert self.tokens
        self.row: Row | None = None
        self.state_slot = NO_MEMORY
        self.prefix = 0
        self.reused = 0
        self._steering = steering

    @property
    def steering(self) -> Steering | None:
        """What steers it now."""
        return self._steering

    @property
    def computed(self) -> int:
        """Tokens that have been run."""
        return 0 if self.row is None else self.row.length

    def decodes(self) -> bool:
        """One token is left, and something stands before it; not of a prompt that is written."""
        if self._steering is not None and self._steering.writes and self.computed < self.prefix:
            return False
        return self.computed == len(self.tokens) - 1 > 0

    def chunk(self, budget: int) -> int:
        """As many as there are, within the budget."""
        return min(budget, len(self.tokens) - self.computed)

    @abstractmethod
    def wanted(self, count: int) -> int:
        """Of how many of the next ``count`` tokens, the last ones, it wants the logits."""

    @abstractmethod
    def take(self, logits: Tensor, best: list[int]) -> bool:
        """Go on with what was wanted.

        Args:
            logits: (wanted, vocabulary), fp32.
            best: the most likely token of each row.

        Returns:
            Whether it has ended.
        """


def common(left: Seq[int], right: Seq[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
