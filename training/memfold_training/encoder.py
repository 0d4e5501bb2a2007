"""Turns as tokens, in the turn format in which the writer folds them and the reader asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from memfold_osam.turns import Message, TurnFormat
from memfold_training.batches import Context


class TurnEncoder:
    """Encodes for one tokenizer.

    Attributes:
        end: the token that ends a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.turns = TurnFormat.derive(tokenizer)
        self._opening = list(self.turns.generation_prompt)
        ends = [t for t in self.turns.encode(Message("assistant", "Yes.")) if t in self.turns.end_ids]
        self.end = ends[-1] if ends else min(self.turns.end_ids)

    def turn(self, role: str, content: str, speaker: str = "") -> list[int]:
        """A whole turn."""
        return self.turns.encode(Message(role, content, speaker))

    def context(self, turns: Sequence[Message], granularity: str, most: int = 0) -> Context:
        """Turns to write.

        Args:
            turns: of the conversation.
            granularity: as in ``AdapterConfig.memory_write_granularity``.
            most: tokens at most, BOS aside; of a longer conversation the newest remain. 0 for no limit.
        """
        ids = [self.turns.encode(turn) for turn in turns]
        cut = max(0, sum(map(len, ids)) - most) if most else 0
        bos = list(self.turns.bos)

        def whole(first: int, rows: Iterable[Sequence[int]]) -> list[int]:
            return [first] * len(bos) + [i for row in rows for i in row][cut:]

        tokens = bos + whole(0, ids)[len(bos) :]
        memory = [0] * len(bos) + [1] * (len(tokens) - len(bos))
        if granularity == "token":
            return Context(tokens, memory)
        return Context(
            tokens,
            memory,
            whole(-1, ([number] * len(row) for number, row in enumerate(ids))),
            whole(0, ([int(turn.role != "system")] * len(row) for turn, row in zip(turns, ids, strict=True))),
            whole(-1, map(self.turns.sentences, turns)) if granularity == "sentence_mean" else [],
        )

    def prompt(self, text: str) -> list[int]:
        """What asks a question: its turn, and the header of the reply."""
        return [*self.turns.bos, *self.turn("user", text), *self._opening]

    def reply(self, text: str) -> list[int]:
        """A reply as the model would write it behind its header, with the token that ends it."""
        whole = self.turn("assistant", text)
        if whole[: len(self._opening)] != self._opening:
            return [*self.turns.content(text), self.end]
        rest = whole[len(self._opening) :]
        # Behind the end may come white space of the template's, which no model writes.
        return rest[: len(rest) - rest[::-1].index(self.end)] if self.end in rest else [*rest, self.end]

    def part(self, reply: list[int], text: str) -> list[int] | None:
        """1 for the tokens of a reply that are those of a text in it; None where they are not tokens of their own."""
        for part in (self.turns.content(" " + text), self.turns.content(text)):
            for start in range(len(reply) - len(part) + 1):
                if part and reply[start : start + len(part)] == part:
                    return [int(start <= i < start + len(part)) for i in range(len(reply))]
        return None
