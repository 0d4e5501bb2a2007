"""Persona dialogues as training data: drawn anew for every step, never twice the same."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset

from memfold.persona import ATTRIBUTES, UNKNOWN_ANSWER, Dialogue, Line, Question, generate, talk
from memfold_osam.turns import Message
from memfold_training.batches import Asked, Context, Example, LossWeights, collate, pad
from memfold_training.encoder import TurnEncoder

IGNORED = -100
# Tokens of one exchange, of one in words of no language, and of one question, roughly.
EXCHANGE, STRANGE, ASKING = 26, 80, 22
# Tokens of a text that is nothing to a dialogue.
OTHER = 56


@dataclass(frozen=True, slots=True)
class Curriculum:
    """What the dialogues of one training phase look like; every range is inclusive, every share of 1.

    The names are those of ``memfold.persona.generate``; ``at_end`` is the share of batches with all talk at the end.
    """

    facts: tuple[int, int]
    changes: tuple[int, int] = (0, 0)
    small_talk: tuple[int, int] = (0, 0)
    unknown: tuple[int, int] = (0, 0)
    foreign: float = 0.5
    silent: float = 0.0
    times: tuple[int, int] = (1, 1)
    strange: float = 0.0
    at_end: float = 0.0

    def draw(self, rng: random.Random, rows: int, tokens: int = 0) -> list[Dialogue]:
        """Dialogues of the training split, all of one shape: a batch of them needs little padding.

        Args:
            rng: decides everything.
            rows: how many at most.
            tokens: about so many in all at most, questions included; 0 for no limit.
        """
        facts = rng.randint(*self.facts)
        shape: dict[str, Any] = {
            "facts": facts,
            "changes": min(facts, rng.randint(*self.changes)),
            "small_talk": rng.randint(*self.small_talk),
            "unknown": min(len(ATTRIBUTES) - facts, rng.randint(*self.unknown)) if facts else 1,
        }
        if self.times != (1, 1):
            shape["times"] = rng.randint(*self.times)
        if self.at_end:
            shape["talk_at_end"] = rng.random() < self.at_end
        if tokens:
            talk_tokens = shape["small_talk"] * (EXCHANGE + (STRANGE - EXCHANGE) * self.strange)
            told_tokens = EXCHANGE * (facts + shape["changes"] * shape.get("times", 1))
            each = talk_tokens + told_tokens + ASKING * (facts + shape["unknown"])
            rows = max(2, min(rows, int(tokens / each)))
        return [
            generate(
                rng.getrandbits(48),
                foreign=self.foreign,
                silent=self.silent,
                strange=self.strange,
                split="train",
                **shape,
            )
            for _ in range(rows)
        ]


@dataclass(frozen=True, slots=True)
class Phase:
    """So many steps.

    Attributes:
        rows: dialogues a step, at most.
        curricula: each step draws from one of them.
        tokens: of a step, about, at most; 0 for no limit.
    """

    steps: int
    rows: int
    curricula: tuple[Curriculum, ...]
    tokens: int = 0

    def draw(self, rng: random.Random) -> list[Dialogue]:
        """The dialogues of one step."""
        chosen = self.curricula[0] if len(self.curricula) == 1 else rng.choice(self.curricula)
        return chosen.draw(rng, self.rows, self.tokens)


def recalled(encoder: TurnEncoder, question: Question, reply: list[int]) -> list[int]:
    """1 for the tokens of a reply that hold what is asked for: the value, or all of an admission of ignorance."""
    if question.value is None:
        return [1] * len(reply)
    found = encoder.part(reply, question.value)
    if found is None:
        raise ValueError(f"{question.answer!r} does not hold {question.value!r} as tokens of its own")
    return found


def decided(encoder: TurnEncoder, reply: list[int]) -> list[int]:
    """1 for the first tokens of a reply, up to where an answer and an admission of ignorance part ways."""
    unknown = encoder.turns.content(UNKNOWN_ANSWER)
    same = next((i for i, (x, y) in enumerate(zip(reply, unknown, strict=False)) if x != y), 1)
    return [int(i <= same) for i in range(len(reply))]


def asked(encoder: TurnEncoder, question: Question) -> Asked:
    """A question of a dialogue, as it is asked of its memory."""
    reply = encoder.reply(question.answer)
    return Asked(
        encoder.prompt(question.text),
        reply,
        recalled(encoder, question, reply),
        decided(encoder, reply),
        len(encoder.turns.bos),
    )


def messages(lines: Sequence[Line]) -> list[Message]:
    """The lines of a dialogue as turns."""
    return [Message(line.role, line.content) for line in lines]


class Batches(IterableDataset[dict[str, torch.Tensor]]):
    """The batches of all phases, one after another; the same seed gives the same batches."""

    def __init__(self, encoder: TurnEncoder, phases: Sequence[Phase], seed: int) -> None:
        self.encoder, self.phases, self.seed = encoder, tuple(phases), seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = random.Random(self.seed)
        for phase in self.phases:
            for _ in range(phase.steps):
                yield self.batch(phase.draw(rng), rng)

    def batch(self, dialogues: list[Dialogue], rng: random.Random) -> dict[str, torch.Tensor]:
        """A batch for a Trainer's forward pass."""
        raise NotImplementedError


class ContextBatches(Batches):
    """Dialogue, questions and answers in one sequence: teaches the backbone to answer from context."""

    def batch(self, dialogues: list[Dialogue], rng: random.Random) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """``input_ids``, ``labels``, ``recalled`` and ``decided``, (rows, length) each."""
        ids, values, decisions = [], [], []
        for dialogue in dialogues:
            row = self.encoder.context(messages(dialogue.lines), "token").tokens
            in_value, in_opening = [0] * len(row), [0] * len(row)
            for question in dialogue.questions:
                one = asked(self.encoder, question)
                row = row + one.prompt + one.reply
                in_value += [0] * len(one.prompt) + one.value
                in_opening += [0] * len(one.prompt) + one.opening
            ids.append(row)
            values.append(in_value)
            decisions.append(in_opening)
        return {
            "input_ids": pad(ids, self.encoder.end),
            "labels": pad(ids, IGNORED),
            "recalled": pad(values, 0).bool(),
            "decided": pad(decisions, 0).bool(),
        }


class MemoryBatches(Batches):
    """Dialogues to write, and their questions to answer from the state alone.

    Beside every other dialogue goes a text that has nothing to do with it, half small talk, half words of no language.
    """

    def __init__(self, encoder: TurnEncoder, phases: Sequence[Phase], seed: int, weights: LossWeights) -> None:
        super().__init__(encoder, phases, seed)
        self.weights = weights

    def batch(self, dialogues: list[Dialogue], rng: random.Random) -> dict[str, torch.Tensor]:
        """A batch for ``WriteThenRead``."""
        return collate([self._example(d, rng, i % 2 == 0) for i, d in enumerate(dialogues)], self.weights)

    def _example(self, dialogue: Dialogue, rng: random.Random, beside: bool) -> Example:
        others = [self._other(rng)] if beside and self.weights.leaves_alone else []
        context = self.encoder.context(messages(dialogue.lines), "token")
        return Example(context, [asked(self.encoder, q) for q in dialogue.questions], others)

    def _other(self, rng: random.Random) -> Context:
        strange = rng.choice((0.0, 1.0))
        lines = [line for _ in range(3) for line in talk(rng, strange)]
        return self.encoder.context(messages(lines), "token").beginning(OTHER)
