"""Exact-match recall of held-out facts, from the context and from the state alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from memfold.persona import Dialogue, Question, generate
from memfold_training.adapter import WriteThenRead
from memfold_training.batches import Asked, pad
from memfold_training.encoder import TurnEncoder
from memfold_training.episodes import asked, messages

SCORING_SEED = 1_000_000
NEVER_TOLD = "never told"


@dataclass(slots=True)
class Score:
    """Right answers and asked questions, by attribute."""

    right: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, question: Question, right: bool) -> None:
        """Count one answer; what was never told goes by that name."""
        name = question.attribute if question.value is not None else NEVER_TOLD
        self.right[name] += right
        self.asked[name] += 1

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


def matches(logits: torch.Tensor, asked: Sequence[Asked]) -> Iterable[bool]:
    """Whether greedy decoding would produce each reply: every token of it is the most likely one.

    Args:
        logits: (rows, length, vocabulary) over prompt + reply, padded on the right.
        asked: of each row.
    """
    for row, one in zip(logits, asked, strict=True):
        start = len(one.prompt) - 1
        yield row[start : start + len(one.reply)].argmax(-1).tolist() == one.reply


@torch.no_grad()
def from_context(
    model: PreTrainedModel, encoder: TurnEncoder, *, dialogues: int, facts: int = 3, **shape: Any
) -> Score:
    """Recall with the whole dialogue in the prompt, one question at a time."""
    score = Score()
    for dialogue in held_out(dialogues, facts=facts, **shape):
        said = encoder.context(messages(dialogue.lines), "token").tokens
        asks = [asked(encoder, q) for q in dialogue.questions]
        asks = [replace(one, prompt=said + one.prompt) for one in asks]
        logits = model(input_ids=pad([one.prompt + one.reply for one in asks], encoder.end)).logits
        for question, right in zip(dialogue.questions, matches(logits, asks), strict=True):
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
        states = states_of(model, encoder, chunk)
        owner = torch.tensor([i for i, d in enumerate(chunk) for _ in d.questions])
        questions = [q for d in chunk for q in d.questions]
        asks = [asked(encoder, q) for q in questions]
        logits = model.read(states[:, owner] * (0.0 if zeroed else 1.0), pad([a.prompt + a.reply for a in asks], 0))
        for question, right in zip(questions, matches(logits, asks), strict=True):
            score.add(question, right)
    return score


@torch.no_grad()
def states_of(model: WriteThenRead, encoder: TurnEncoder, dialogues: Sequence[Dialogue]) -> torch.Tensor:
    """The states that dialogues fold into, (layers, B, H, r, r)."""
    contexts = [encoder.context(messages(d.lines), "token") for d in dialogues]
    return model.write(pad([c.tokens for c in contexts], 0), pad([c.memory for c in contexts], 0).bool())


@torch.no_grad()
def perplexity_ratio(model: WriteThenRead, encoder: TurnEncoder, texts: Sequence[str], *, facts: int = 6) -> float:
    """Perplexity of texts, each with the memory of a dialogue that it has nothing to do with, over the frozen one's."""
    states = states_of(model, encoder, held_out(len(texts), facts=facts))
    rows = [encoder.turn("user", text) for text in texts]
    ids, real = pad(rows, 0), pad([[1] * len(row) for row in rows], 0).bool()[:, 1:]
    nats = []
    for bound in (states, torch.zeros_like(states)):
        losses = functional.cross_entropy(
            model.read(bound, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        nats.append(float(losses.view(real.shape)[real].mean()))
    return math.exp(nats[0] - nats[1])
