"""One forward pass for one request."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from memfold_osam.serving import ServedModel
from memfold_osam.state import OsamState


@dataclass(frozen=True, slots=True)
class Steering:
    """The memory that a request reads: ``state`` of one row, on the model's device, and its strength.

    The first ``unread`` tokens of the prompt (BOS) take no part in it.
    """

    state: OsamState
    gain: float = 1.0
    unread: int = 0


class Runner:
    """Runs the served model. Used by one thread at a time."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served

    def new_cache(self) -> DynamicCache:
        """An empty KV cache of one sequence."""
        return DynamicCache(config=self.served.model.config)

    def warm_up(self) -> None:
        """Run once with and once without a memory: first passes are slow, and nobody should have to wait for them."""
        nothing = Steering(self.served.memory.init_state(1))
        for steering in (None, nothing):
            cache = self.new_cache()
            end = [min(self.served.turns.end_ids)]
            # Mistral's replies need no opening of their own.
            for tokens in (list(self.served.turns.generation_prompt) or end, end):
                self.forward(tokens, cache, steering)

    @torch.inference_mode()
    def forward(self, tokens: list[int], cache: DynamicCache, steering: Steering | None, keep: int = 1) -> Tensor:
        """Append tokens to a sequence.

        Without steering this is the frozen backbone and nothing else. The state stays as it is.

        Returns:
            Logits of the last ``keep`` positions, fp32 ``(keep, vocabulary)``.
        """
        assert 0 < keep <= len(tokens)
        ids = torch.tensor([tokens], device=self.served.device)
        with self._bound(steering, cache.get_seq_length(), len(tokens)):
            output = self.served.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep)
        logits: Tensor = output.logits[0]
        return logits.float()

    def _bound(self, steering: Steering | None, begin: int, count: int) -> AbstractContextManager[object]:
        if steering is None:
            return nullcontext()
        mask = None
        if begin < steering.unread:
            positions = torch.arange(begin, begin + count, device=self.served.device)
            mask = (positions >= steering.unread).unsqueeze(0)
        return self.served.memory.bind(steering.state, write=False, token_mask=mask, gain=steering.gain)
