"""How the next token is drawn."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What a request asks for.

    ``temperature`` 0 always takes the most likely token. ``max_tokens`` None: a default, or less where the
    prompt leaves less room. ``seed`` None: drawn here.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


class Sampler:
    """Draws the tokens of one sequence from a random generator of its own.

    Each token costs exactly one uniform number, so that a seed gives the same tokens whatever else runs.
    """

    def __init__(self, options: SamplingOptions) -> None:
        self._temperature = options.temperature
        self._top_p = options.top_p
        seed = secrets.randbits(63) if options.seed is None else options.seed
        self._random = torch.Generator("cpu").manual_seed(seed)

    def draw(self, logits: Tensor) -> int:
        """The next token from logits ``(vocabulary,)``."""
        if self._temperature == 0:
            return int(logits.argmax())
        scaled = logits.cpu().double() / self._temperature
        probabilities, tokens = scaled.softmax(-1).sort(descending=True, stable=True)
        mass = probabilities.cumsum(-1)
        # The smallest set that reaches top_p: all before the border, and the one that crosses it.
        kept = 1 + int((mass[:-1] < self._top_p).sum())
        uniform = torch.rand((), generator=self._random, dtype=torch.float64)
        drawn = torch.searchsorted(mass[:kept], uniform * mass[kept - 1], right=True)
        return int(tokens[min(int(drawn), kept - 1)])
