"""Are two lists of greedy tokens the same? Where the two likeliest tokens lie too close together, rounding decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from memfold_reader.sequence import Steering
from reader_bench.subject import Subject

TIE = 1e-4


def compare(
    subject: Subject,
    prompts: Sequence[list[int]],
    steerings: Sequence[Steering | None],
    ours: Sequence[list[int]],
    theirs: Sequence[list[int]],
) -> Counter[str]:
    """Count sequences by what became of them: ``same``, ``tie`` (the first difference is one), ``different``."""
    found: Counter[str] = Counter(same=0, tie=0, different=0)
    for prompt, steering, one, other in zip(prompts, steerings, ours, theirs, strict=True):
        shared = min(len(one), len(other))
        at = next((i for i in range(shared) if one[i] != other[i]), None)
        if at is None:
            found["same"] += 1
        else:
            found["tie" if _gap(subject, [*prompt, *one[:at]], steering) < TIE else "different"] += 1
    return found


@torch.inference_mode()
def _gap(subject: Subject, tokens: list[int], steering: Steering | None) -> float:
    """Between the two largest logits after these tokens: one plain pass, no cache, no batch."""
    served = subject.served
    ids = torch.tensor([tokens], device=served.device)
    if steering is None:
        logits = subject.plain(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    else:
        with served.memory.bind(steering.state, write=False, gain=steering.gain):
            logits = served.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    first, second = logits[0, -1].float().topk(2).values.tolist()
    return float(first - second)
