"""The first token after a long history: from its state and a window, against all of it in the prompt."""

from __future__ import annotations

import statistics

from memfold_reader.sequence import Steering
from reader_bench.drive import Batch
from reader_bench.rounds import rounds
from reader_bench.row import Row
from reader_bench.subject import Subject

LEAST, QUESTION = 10.0, 32


def first_token(subject: Subject, history: int, window: int, seconds: float) -> Row:
    """Both with a question behind; other tokens in every round, so that nothing is there already."""
    with_state: list[float] = []
    in_prompt: list[float] = []
    for round_ in rounds(seconds, 3):
        seed = 300_000 + 10 * round_
        in_prompt.append(_seconds(subject, history + QUESTION, None, seed))
        seeds = range(seed + 1, seed + 4)
        with_state += [_seconds(subject, window + QUESTION, subject.steering(one), one) for one in seeds]
    ours, peer = statistics.median(with_state), statistics.median(in_prompt)
    return Row(
        f"first token, {history:,}-token history: state + {window}-token window against the history in the prompt",
        f"≥ {LEAST:g}× sooner",
        "ms",
        round(ours * 1e3, 1),
        round(peer * 1e3, 1),
        round(peer / ours, 1),
        peer / ours >= LEAST,
        f"a question of {QUESTION} tokens behind both",
        {"with_state_s": with_state, "in_prompt_s": in_prompt},
    )


def _seconds(subject: Subject, length: int, steering: Steering | None, seed: int) -> float:
    batch, took = Batch(subject, [subject.prompt(length, seed)], [steering], 1), 0.0
    while not batch.replies[0].generated:
        took += batch.step()
    return took
