"""Dialogues as token sequences, in the same turn format in which the writer folds them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from memfold.persona import UNKNOWN_ANSWER, Dialogue, Line, Question, generate

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Curriculum:
    """What the dialogues of one training phase look like; every range is inclusive."""

    facts: tuple[int, int]
    changes: tuple[int, int] = (0, 0)
    small_talk: tuple[int, int] = (0, 0)
    unknown: tuple[int, int] = (0, 0)
    foreign: float = 0.5
    silent: float = 0.0

    def draw(self, rng: random.Random, rows: int) -> list[Dialogue]:
        """Dialogues of the training split, all of one shape: a batch of them needs little padding."""
        facts = rng.randint(*self.facts)
        shape: dict[str, Any] = {
            "facts": facts,
            "changes": min(facts, rng.randint(*self.changes)),
            "small_talk": rng.randint(*self.small_talk),
            "unknown": rng.randint(*self.unknown) if facts else 1,
        }
        return [
            generate(rng.getrandbits(48), foreign=self.foreign, silent=self.silent, split="train", **shape)
            for _ in range(rows)
        ]


@dataclass(frozen=True, slots=True)
class Phase:
    """So many steps of one curriculum, with so many dialogues a step."""

    steps: int
    rows: int
    curriculum: Curriculum


class TurnEncoder:
    """Turns into token ids: role marker, content, end marker (the template of memfold-tiny)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.end = self._id("<|end|>")

    def _id(self, token: str) -> int:
        return self.tokenizer.get_vocab()[token]

    def turn(self, role: str, content: str) -> list[int]:
        """A whole turn."""
        return [*self.opening(role), *self.tokenizer.encode(content, add_special_tokens=False), self.end]

    def opening(self, role: str) -> list[int]:
        """What stands before a turn's content."""
        return [self._id(f"<|{role}|>")]

    def lines(self, lines: tuple[Line, ...]) -> list[int]:
        """Several turns, one after another."""
        return [i for line in lines for i in self.turn(line.role, line.content)]

    def question(self, question: Question) -> tuple[list[int], list[int]]:
        """The prompt that asks, and the reply with its end marker."""
        prompt = self.turn("user", question.text) + self.opening("assistant")
        return prompt, [*self.tokenizer.encode(question.answer, add_special_tokens=False), self.end]

    def recalled(self, question: Question, reply: list[int]) -> list[int]:
        """1 for the tokens of a reply that hold what is asked for: the value, or all of an admission of ignorance."""
        if question.value is None:
            return [1] * len(reply)
        value = self.tokenizer.encode(" " + question.value, add_special_tokens=False)
        for start in range(len(reply)):
            if reply[start : start + len(value)] == value:
                return [int(start <= i < start + len(value)) for i in range(len(reply))]
        raise ValueError(f"{question.answer!r} does not hold {question.value!r} as tokens of its own")

    def decided(self, reply: list[int]) -> list[int]:
        """1 for the first tokens of a reply, up to where an answer and an admission of ignorance part ways."""
        unknown = self.tokenizer.encode(UNKNOWN_ANSWER, add_special_tokens=False)
        same = next((i for i, (x, y) in enumerate(zip(reply, unknown, strict=False)) if x != y), 1)
        return [int(i <= same) for i in range(len(reply))]


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """Rows of ids to one (rows, longest) tensor, padded on the right."""
    width = max(len(r) for r in rows)
    return torch.tensor([r + [value] * (width - len(r)) for r in rows], dtype=torch.long)


class Batches(IterableDataset[dict[str, torch.Tensor]]):
    """The batches of all phases, one after another; the same seed gives the same batches."""

    def __init__(self, encoder: TurnEncoder, phases: Sequence[Phase], seed: int) -> None:
        self.encoder, self.phases, self.seed = encoder, tuple(phases), seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = random.Random(self.seed)
        for phase in self.phases:
            for _ in range(phase.steps):
                yield self.batch(phase.curriculum.draw(rng, phase.rows))

    def batch(self, dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
        """A batch for a Trainer's forward pass."""
        raise NotImplementedError


class ContextBatches(Batches):
    """Dialogue, questions and answers in one sequence: teaches the backbone to answer from context."""

    def batch(self, dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``labels``, ``recalled`` and ``decided``, (rows, length) each."""
        ids, recalled, decided = [], [], []
        for dialogue in dialogues:
            row = self.encoder.lines(dialogue.lines)
            values, decisions = [0] * len(row), [0] * len(row)
            for question in dialogue.questions:
                prompt, reply = self.encoder.question(question)
                row += prompt + reply
                values += [0] * len(prompt) + self.encoder.recalled(question, reply)
                decisions += [0] * len(prompt) + self.encoder.decided(reply)
            ids.append(row)
            recalled.append(values)
            decided.append(decisions)
        return {
            "input_ids": pad(ids, self.encoder.end),
            "labels": pad(ids, IGNORED),
            "recalled": pad(recalled, 0).bool(),
            "decided": pad(decided, 0).bool(),
        }


class MemoryBatches(Batches):
    """Dialogues to write, and their questions to answer from the state alone."""

    def batch(self, dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
        """``context_ids`` and ``context_mask`` by dialogue, the rest by question; ``owner`` joins them."""
        context, asked, replies, recalled, decided, owner = [], [], [], [], [], []
        for i, dialogue in enumerate(dialogues):
            context.append(self.encoder.lines(dialogue.lines))
            for question in dialogue.questions:
                prompt, reply = self.encoder.question(question)
                asked.append(prompt + reply)
                replies.append([0] * len(prompt) + [1] * len(reply))
                recalled.append([0] * len(prompt) + self.encoder.recalled(question, reply))
                decided.append([0] * len(prompt) + self.encoder.decided(reply))
                owner.append(i)
        return {
            "context_ids": pad(context, self.encoder.end),
            "context_mask": pad([[1] * len(c) for c in context], 0).bool(),
            "input_ids": pad(asked, self.encoder.end),
            "replies": pad(replies, 0).bool(),
            "recalled": pad(recalled, 0).bool(),
            "decided": pad(decided, 0).bool(),
            "owner": torch.tensor(owner),
        }
