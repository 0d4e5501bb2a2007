"""An engine that is stepped by hand, so that it can take turns with what it is compared with."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from memfold.api.errors import MemfoldError
from memfold_reader.detokenize import Detokenizer, StopScanner
from memfold_reader.engine import Engine
from memfold_reader.reply import Finished, Piece, Reply
from memfold_reader.runner import Runner
from memfold_reader.sampling import Sampler, SamplingOptions
from memfold_reader.sequence import Steering
from reader_bench.subject import Subject


class Outlet:
    """Takes everything at once; stands in for the outbox, behind which a client would be."""

    def __init__(self) -> None:
        self.error: MemfoldError | None = None

    def has_room(self) -> bool:
        """Always."""
        return True

    def put(self, item: Piece | Finished) -> None:
        """Nobody looks at it."""

    def close(self, error: MemfoldError | None = None) -> None:
        """Keep the error."""
        self.error = error


def reply(subject: Subject, prompt: list[int], tokens: int, steering: Steering | None, outbox: Any) -> Reply:
    """A greedy request that ends after so many tokens."""
    served = subject.served
    return Reply(
        prompt,
        max_tokens=tokens,
        end_ids=frozenset(),
        steering=steering,
        sampler=Sampler(SamplingOptions()),
        detokenizer=Detokenizer(served.tokenizer),
        stops=StopScanner(()),
        outbox=outbox,
        deadline=math.inf,
    )


class Batch:
    """Requests in an engine of their own, whose thread is never started."""

    def __init__(
        self, subject: Subject, prompts: list[list[int]], steerings: list[Steering | None], tokens: int
    ) -> None:
        self._device = subject.served.device
        self._engine = Engine(Runner(subject.served), places=len(prompts), on_broken=_broken)
        self._outlets = [Outlet() for _ in prompts]
        self.replies = [
            reply(subject, prompt, tokens, steering, outlet)
            for prompt, steering, outlet in zip(prompts, steerings, self._outlets, strict=True)
        ]
        for one in self.replies:
            self._engine.submit(one)

    def step(self) -> float:
        """One step of the engine; its seconds."""
        began = time.perf_counter()
        self._engine._step()  # noqa: SLF001 - its loop has no other door
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        took = time.perf_counter() - began
        for outlet in self._outlets:
            if outlet.error is not None:
                raise outlet.error
        return took

    def prefill(self) -> None:
        """Until every request has its first token."""
        while not all(one.generated for one in self.replies):
            self.step()

    def finish(self) -> list[list[int]]:
        """Until every request has all of its tokens; answers with them."""
        while self._engine.open_count:
            self.step()
        return self.tokens()

    def tokens(self) -> list[list[int]]:
        """What has been generated so far."""
        return [list(one.generated) for one in self.replies]


def _broken() -> None:
    raise RuntimeError("the engine's device failed")
