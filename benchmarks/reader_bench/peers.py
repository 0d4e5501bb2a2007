"""The same prompts by transformers itself: ``generate`` on a static batch, and its continuous batching."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from reader_bench.subject import Subject

_PAGE = 256


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came out, and the seconds of each step in which every sequence got a token."""

    tokens: list[list[int]]
    steps: list[float]


class _EachStep:
    """A stopping criterion that never stops, but sees each step end, and lets others in between two."""

    def __init__(self, between: Callable[[], None]) -> None:
        self.steps: list[float] = []
        self._between = between
        self._began: float | None = None

    def __call__(self, ids: torch.Tensor, _scores: torch.Tensor, **_: Any) -> torch.Tensor:
        if self._began is not None:  # the first token is the prompt's
            self.steps.append(time.perf_counter() - self._began)
        self._between()
        self._began = time.perf_counter()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def static(subject: Subject, prompts: list[list[int]], tokens: int, between: Callable[[], None]) -> Decoded:
    """``generate`` on all prompts, which are of one length; ``between`` is called after each step."""
    ids = torch.tensor(prompts, device=subject.plain.device)
    watch = _EachStep(between)
    model: Any = subject.plain
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            stopping_criteria=[watch],
        )
    return Decoded(out[:, ids.shape[1] :].tolist(), watch.steps)


def continuous(subject: Subject, prompts: list[list[int]], tokens: int) -> Decoded:
    """Transformers' continuous batching with SDPA, prompts in pieces of 512.

    It has room for twice what is needed: where it runs short, it lets prompts wait until others have ended.
    """
    pages = sum(-(-(len(prompt) + tokens) // _PAGE) for prompt in prompts)
    model, settings = cast("Any", subject.plain), cast("Any", GenerationConfig)
    results = model.generate_batch(
        prompts,
        generation_config=settings(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=_PAGE, num_blocks=2 * pages, max_batch_tokens=512, auto_switch_to_flash=False
        ),
        record_timestamps=True,
        warmup=False,
    )
    found = list(results.values())
    assert len(found) == len(prompts), "some requests did not come back"
    if found[0].error is not None:
        raise RuntimeError(found[0].error)
    # Steps in which all get a token: from the last one's first until the first one's last.
    begin, end = max(one.timestamps[0] for one in found), min(one.timestamps[-1] for one in found)
    ends = sorted(at for at in found[0].timestamps if begin <= at <= end)
    steps = [later - earlier for earlier, later in pairwise(ends)]
    return Decoded([list(one.generated_tokens) for one in found], steps)
