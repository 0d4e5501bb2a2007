"""Examples as tensors: what is written into the memory, and what is then asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Context:
    """Tokens to write, as the writer folds them.

    Attributes:
        tokens: BOS where the model has one, then the turns.
        memory: 1 for those that read and write, 0 for BOS.
        segments: the turn of each, -1 for none; for adapters that write means.
        writes: 0 for tokens of system turns, which such adapters do not write.
        sentences: the sentence of each within its turn, -1 for none; for adapters that write sentences.
    """

    tokens: list[int]
    memory: list[int]
    segments: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    sentences: list[int] = field(default_factory=list)

    def beginning(self, tokens: int) -> Context:
        """So many of its tokens, to read and not to write."""
        return Context(self.tokens[:tokens], self.memory[:tokens])


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer, seen without the context.

    Attributes:
        prompt: BOS where the model has one, the question's turn, the header of the reply.
        reply: the answer and the token that ends it.
        value: which of the reply's tokens hold what only the memory can tell.
        opening: which of them begin the reply.
        unread: tokens of BOS.
    """

    prompt: list[int]
    reply: list[int]
    value: list[int]
    opening: list[int]
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and its questions.

    Attributes:
        others: texts that it has nothing to do with, which its memory should leave alone.
    """

    context: Context
    asked: Sequence[Asked]
    others: Sequence[Context] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """What counts how much; each is a mean over its tokens.

    Attributes:
        reply: all of a reply.
        value: the part that only the memory can tell.
        opening: a reply's first tokens, which decide whether there is an answer at all.
        steady: KL divergence, in nats a token, of the frozen model from the steered one on unrelated text.
        likelihood: by how many nats the log-likelihood of a token of unrelated text changes. The divergence hardly looks
            at tokens that the frozen model thinks improbable, and of such is text that it was never made for.
        sparsity: of (mean write gate - sparsity_target)².
    """

    reply: float = 1.0
    value: float = 0.0
    opening: float = 0.0
    steady: float = 0.0
    likelihood: float = 0.0
    sparsity: float = 0.0
    sparsity_target: float = 0.05

    @property
    def leaves_alone(self) -> bool:
        """Whether unrelated text counts."""
        return bool(self.steady or self.likelihood)


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of ids to one (rows, longest) tensor, padded on the right; one wide at least."""
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def collate(examples: Sequence[Example], weights: LossWeights) -> dict[str, Tensor]:
    """A batch for ``WriteThenRead``: B examples with Q questions in all.

    Padding is the token 0, which is masked out, or behind everything that is looked at.
    """
    contexts = [example.context for example in examples]
    asked = [a for example in examples for a in example.asked]
    batch = {
        "context_ids": pad([c.tokens for c in contexts], 0),
        "context_mask": pad([c.memory for c in contexts], 0).bool(),
        "input_ids": pad([[*a.prompt, *a.reply] for a in asked], 0),
        "input_mask": pad([[0] * a.unread + [1] * (len(a.prompt) + len(a.reply) - a.unread) for a in asked], 0).bool(),
        "weights": _weights(asked, weights),
        "owner": torch.tensor([i for i, example in enumerate(examples) for _ in example.asked]),
    }
    if any(c.segments for c in contexts):
        batch["segment_ids"] = pad([c.segments for c in contexts], -1)
        batch["write_mask"] = pad([c.writes for c in contexts], 0).bool()
    if any(c.sentences for c in contexts):
        batch["sentence_ids"] = pad([c.sentences for c in contexts], -1)
    others = [text for example in examples for text in example.others]
    if others and weights.leaves_alone:
        batch["other_ids"] = pad([c.tokens for c in others], 0)
        batch["other_mask"] = pad([c.memory for c in others], 0).bool()
        batch["other_owner"] = torch.tensor([i for i, example in enumerate(examples) for _ in example.others])
    return batch


def _weights(asked: Sequence[Asked], weights: LossWeights) -> Tensor:
    """The weight of each token of ``input_ids`` in the loss, (Q, T)."""
    kinds = [
        (weights.reply, [[1] * len(a.reply) for a in asked]),
        (weights.value, [a.value for a in asked]),
        (weights.opening, [a.opening for a in asked]),
    ]
    total = torch.zeros(())
    for weight, replies in kinds:
        chosen = pad([[0] * len(a.prompt) + flags for a, flags in zip(asked, replies, strict=True)], 0).float()
        total = total + weight * chosen / chosen.sum().clamp(min=1.0)
    return total
