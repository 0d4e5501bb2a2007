"""Conversations to train on, from JSONL: what is written into the memory, and what is asked of it without them.

One conversation a line (``docs/training.md``)::

    {"turns": [{"role": "user", "content": "..."}, ...],
     "questions": [{"text": "...", "answer": "...", "value": "..."}, ...]}

Without ``questions``, the last turn is an answer and the one before it its question; all before those is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from memfold_osam.turns import Message
from memfold_training.batches import Asked, Context, Example, LossWeights, collate
from memfold_training.encoder import TurnEncoder

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; ``value`` is the part of the answer that only the conversation can tell, all of it where None."""

    text: str
    answer: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns to write, and questions about them."""

    turns: tuple[Message, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeLimits:
    """How conversations become examples.

    Attributes:
        context_tokens: written at most; of a longer conversation the newest remain. Becomes the card's ``block_tokens``.
        questions: of one example at most; the conversation is written anew for further ones.
        opening_tokens: of a reply that count as its opening.
        other_tokens: of another conversation, which the memory should leave alone.
    """

    context_tokens: int = 8192
    questions: int = 1
    opening_tokens: int = 2
    other_tokens: int = 64


def read_conversations(path: Path) -> list[Conversation]:
    """Read a file.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is no conversation, or there is none; the message names the line and what is wrong.
    """
    found = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    found.append(_conversation(json.loads(line)))
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path} holds no conversation")
    return found


def _conversation(raw: Any) -> Conversation:
    if not isinstance(raw, dict):
        raise TypeError(f"a conversation is an object, got {type(raw).__name__}")
    turns = tuple(_turn(turn) for turn in _list(raw, "turns"))
    if "questions" in raw:
        questions = tuple(
            Question(_text(q, "text"), _text(q, "answer"), None if q.get("value") is None else _text(q, "value"))
            for q in _list(raw, "questions")
        )
        if not questions:
            raise ValueError("questions is empty: there is nothing to learn from")
        return Conversation(turns, questions)
    if len(turns) < 3 or [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
        raise ValueError("without questions, a conversation ends in a user's turn and the assistant's answer to it")
    return Conversation(turns[:-2], (Question(turns[-2].text, turns[-1].content),))


def _turn(raw: Any) -> Message:
    role = _text(raw, "role")
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    return Message(role, _text(raw, "content"), _text(raw, "speaker") if raw.get("speaker") else "")


def _list(raw: dict[str, Any], key: str) -> list[Any]:
    value = raw.get(key)
    if not isinstance(value, list):
        raise TypeError(f"{key} must be a list, got {type(value).__name__}")
    return value


def _text(raw: Any, key: str) -> str:
    value = raw.get(key) if isinstance(raw, dict) else None
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be a text, got {value!r}")
    return value


class Episodes(Dataset[Example]):
    """The examples of a file, made when they are asked for.

    Args:
        conversations: read from it.
        encoder: of the backbone's tokenizer.
        limits: how they are cut.
        granularity: what the adapter writes.
        others: whether each comes with the beginning of another conversation.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        encoder: TurnEncoder,
        limits: EpisodeLimits,
        granularity: str = "token",
        others: bool = False,
    ) -> None:
        self._conversations, self._encoder, self._limits = conversations, encoder, limits
        self._granularity, self._others = granularity, others
        self._places = [
            (index, start)
            for index, conversation in enumerate(conversations)
            for start in range(0, len(conversation.questions), limits.questions)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> Example:
        index, start = self._places[place]
        conversation, limits = self._conversations[index], self._limits
        asked = [self._asked(q) for q in conversation.questions[start : start + limits.questions]]
        other = self._conversations[(index + 1) % len(self._conversations)]
        text = self._context(other, "token").beginning(limits.other_tokens)
        others = [text] if self._others and any(text.memory) else []
        return Example(self._context(conversation, self._granularity), asked, others)

    def _context(self, conversation: Conversation, granularity: str) -> Context:
        return self._encoder.context(conversation.turns, granularity, self._limits.context_tokens)

    def _asked(self, question: Question) -> Asked:
        reply = self._encoder.reply(question.answer)
        value = None if question.value is None else self._encoder.part(reply, question.value)
        opening = min(len(reply), self._limits.opening_tokens)
        return Asked(
            prompt=self._encoder.prompt(question.text),
            reply=reply,
            value=value or [1] * len(reply),
            opening=[1] * opening + [0] * (len(reply) - opening),
            unread=len(self._encoder.turns.bos),
        )


@dataclass(frozen=True, slots=True)
class Collator:
    """Examples to a batch."""

    weights: LossWeights

    def __call__(self, examples: list[Example]) -> dict[str, Tensor]:
        """See ``collate``."""
        return collate(examples, self.weights)
