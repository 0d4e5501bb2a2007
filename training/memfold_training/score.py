"""Exact-match recall of held-out facts, from the context and from the state alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from memfold.persona import Dialogue, Question, generate
from memfold_training.adapter import WriteThenRead
from memfold_training.episodes import TurnEncoder, pad

SCORING_SEED = 1_000_000


@dataclass(slots=True)
class Score:
    """Right answers and asked questions, by attribute."""

    right: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, question: Question, right: bool) -> None:
        """Count one answer."""
        self.right[question.attribute] += right
        self.asked[question.attribute] += 1

    @property
    def n(self) -> int:
        """Questions asked."""
        return sum(self.asked.values())

    @property
    def overall(self) -> float:
        """Share of right answers."""
        return sum(self.right.values()) / self.n

    def by_attribute(self) -> dict[str, float]:
        """Share of right answers of each attribute."""
        return {a: self.right[a] / n for a, n in sorted(self.asked.items())}


def held_out(dialogues: int, *, seed: int = SCORING_SEED, **shape: Any) -> list[Dialogue]:
    """Dialogues that share no fact and no wording with training."""
    return [generate(seed + i, split="held_out", **shape) for i in range(dialogues)]


def matches(logits: torch.Tensor, prompts: list[list[int]], replies: list[list[int]]) -> Iterable[bool]:
    """Whether greedy decoding would produce each reply: every token of it is the most likely one.

    Args:
        logits: (rows, length, vocabulary) over prompt + reply, padded on the right.
    """
    for row, prompt, reply in zip(logits, prompts, replies, strict=True):
        start = len(prompt) - 1
        yield row[start : start + len(reply)].argmax(-1).tolist() == reply


@torch.no_grad()
def from_context(
    model: PreTrainedModel, encoder: TurnEncoder, *, dialogues: int, facts: int = 3, **shape: Any
) -> Score:
    """Recall with the whole dialogue in the prompt, one question at a time."""
    score = Score()
    for dialogue in held_out(dialogues, facts=facts, **shape):
        context = encoder.lines(dialogue.lines)
        asked = [encoder.question(q) for q in dialogue.questions]
        rows = [context + p + r for p, r in asked]
        logits = model(input_ids=pad(rows, encoder.end)).logits
        found = matches(logits, [context + p for p, _ in asked], [r for _, r in asked])
        for question, right in zip(dialogue.questions, found, strict=True):
            score.add(question, right)
    return score


@torch.no_grad()
def from_state(
    model: WriteThenRead,
    encoder: TurnEncoder,
    *,
    dialogues: int,
    facts: int = 3,
    rows: int = 20,
    zeroed: bool = False,
    **shape: Any,
) -> Score:
    """Recall from the state alone; ``zeroed`` asks the frozen backbone, which has nothing to go by."""
    score = Score()
    said = held_out(dialogues, facts=facts, **shape)
    for start in range(0, len(said), rows):
        chunk = said[start : start + rows]
        context = [encoder.lines(d.lines) for d in chunk]
        states = model.write(pad(context, encoder.end), pad([[1] * len(c) for c in context], 0).bool())
        owner = torch.tensor([i for i, d in enumerate(chunk) for _ in d.questions])
        questions = [q for d in chunk for q in d.questions]
        asked = [encoder.question(q) for q in questions]
        states = states[:, owner] * (0.0 if zeroed else 1.0)
        logits = model.read(states, pad([p + r for p, r in asked], encoder.end))
        for question, right in zip(
            questions, matches(logits, [p for p, _ in asked], [r for _, r in asked]), strict=True
        ):
            score.add(question, right)
    return score
