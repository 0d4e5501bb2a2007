"""How the next token is drawn."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

_LIKELY = 1024  # tokens among which the nucleus mostly lies; sorting a whole vocabulary takes longer than a step


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What a request asks for.

    ``temperature`` 0 always takes the most likely token. ``top_k`` 0: any. ``max_tokens`` None: a default, or less where
    the prompt leaves less room. ``stop`` and ``stop_tokens`` end the reply and are not shown. ``seed`` None: drawn here.
    ``top_logprobs``: how many alternatives to tell of each token; None for no probabilities at all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None


class Sampler:
    """Draws the tokens of one sequence from a random generator of its own.

    Each token costs exactly one uniform number, so that a seed gives the same tokens whatever else runs.

    Attributes:
        greedy: the most likely token is always taken; nobody need ask ``draw``.
    """

    def __init__(self, options: SamplingOptions) -> None:
        self._temperature = options.temperature
        self._top_p = options.top_p
        self._top_k = options.top_k
        self.greedy = options.temperature == 0
        seed = secrets.randbits(63) if options.seed is None else options.seed
        self._random = torch.Generator("cpu").manual_seed(seed)

    def draw(self, logits: Tensor) -> int:
        """The next token from logits ``(vocabulary,)``: the ``top_k`` most likely, of those the nucleus."""
        if self.greedy:
            return int(logits.argmax())
        uniform = float(torch.rand((), generator=self._random, dtype=torch.float64))
        scaled = logits.double() / self._temperature
        if 0 < self._top_k < len(scaled):
            values, tokens = scaled.topk(self._top_k)
            mass = values.softmax(-1).cumsum(-1)
        elif self._top_p < 1.0:
            mass, tokens = self._nucleus(scaled)
        else:
            return _search(scaled.softmax(-1).cumsum(-1), uniform)
        # The smallest set that reaches top_p: all before the border, and the one that crosses it.
        kept = 1 + int((mass[:-1] < self._top_p).sum())
        return int(tokens[_search(mass[:kept], uniform)])

    def _nucleus(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the likeliest tokens, falling and summed up, until they reach top_p; and these tokens."""
        whole = scaled.logsumexp(-1)
        values, tokens = scaled.topk(min(_LIKELY, len(scaled)))
        mass = (values - whole).exp().cumsum(-1)
        if mass[-1] < self._top_p:
            values, tokens = scaled.sort(descending=True)
            mass = (values - whole).exp().cumsum(-1)
        return mass, tokens


def _search(mass: Tensor, uniform: float) -> int:
    """Where a number from 0 to 1 falls in a rising sum."""
    drawn = torch.searchsorted(mass, uniform * mass[-1], right=True)
    return min(int(drawn), len(mass) - 1)
