"""The rows about decoding: against the peers, with and without memories, in a batch and alone."""

from __future__ import annotations

import statistics
from collections import Counter

from memfold_reader.sequence import Steering
from reader_bench import peers
from reader_bench.drive import Batch
from reader_bench.greedy import compare
from reader_bench.rounds import rounds
from reader_bench.row import Row
from reader_bench.subject import Subject

PEERS = {
    # What it is called, and how many times as fast the engine must be.
    "continuous": ("transformers' continuous batching (SDPA)", 6.0),
    "static": ("`generate` on a static batch", 1.0),
}


def against_peers(subject: Subject, sequences: int, length: int, tokens: int, seconds: float) -> list[Row]:
    """The engine without memories against continuous batching, and step by step in turn with ``generate``."""
    nothing: list[Steering | None] = [None] * sequences
    speeds: dict[str, list[float]] = {name: [] for name in ("engine", *PEERS)}
    told: dict[str, Counter[str]] = {name: Counter() for name in PEERS}
    for round_ in rounds(seconds, 5):
        prompts = [subject.prompt(length, 1000 * round_ + i) for i in range(sequences)]
        batch = Batch(subject, prompts, nothing, tokens)
        steps: list[float] = []
        batch.prefill()

        def between(batch: Batch = batch, steps: list[float] = steps) -> None:
            if len(steps) < tokens - 1:
                steps.append(batch.step())

        found = {"static": peers.static(subject, prompts, tokens, between)}
        ours = batch.finish()
        # It has begun to decode before the last prompt is in, so that it needs as many tokens more.
        found["continuous"] = peers.continuous(subject, prompts, sequences + tokens // 4)
        speeds["engine"].append(sequences * len(steps) / sum(steps))
        for name, decoded in found.items():
            speeds[name].append(sequences * len(decoded.steps) / sum(decoded.steps))
            told[name] += compare(subject, prompts, nothing, ours, decoded.tokens)
    title = f"decode, {sequences} sequences × {length}-token prompts, against"
    return [
        _peer_row(f"{title} {peer}", least, speeds["engine"], speeds[name], told[name])
        for name, (peer, least) in PEERS.items()
    ]


def _peer_row(what: str, least: float, engine: list[float], peer: list[float], told: Counter[str]) -> Row:
    ours, theirs = statistics.median(engine), statistics.median(peer)
    return Row(
        what,
        f"≥ {least:g}×, same tokens",
        "tokens/s",
        round(ours, 1),
        round(theirs, 1),
        round(ours / theirs, 2),
        ours / theirs >= least and not told["different"],
        _said(told),
        {"engine": engine, "peer": peer, "tokens": dict(told)},
    )


def _said(told: Counter[str]) -> str:
    return f"sequences: {told['same']} the same, {told['tie']} differ at a tie, {told['different']} differ"


def with_memories(subject: Subject, batch: int, length: int, tokens: int, least: float, seconds: float) -> Row:
    """Two engines take turns, step by step: every sequence with a memory, and none."""
    ratios: list[float] = []
    speeds: tuple[list[float], list[float]] = [], []
    for round_ in rounds(seconds, 9):
        prompts = [subject.prompt(length, 50_000 + 1000 * round_ + i) for i in range(batch)]
        memories: list[Steering | None] = [subject.steering(i) for i in range(batch)]
        sides = Batch(subject, prompts, memories, tokens), Batch(subject, prompts, [None] * batch, tokens)
        took: tuple[list[float], list[float]] = [], []
        for side in sides:
            side.prefill()
        for step in range(tokens - 1):
            for which in (0, 1) if step % 2 else (1, 0):
                took[which].append(sides[which].step())
        assert sides[0].tokens() != sides[1].tokens(), "the memories change nothing"
        step_s = [statistics.median(one) for one in took]
        ratios.append(step_s[1] / step_s[0])
        for speed, one in zip(speeds, step_s, strict=True):
            speed.append(batch / one)
    ours, peer = (statistics.median(one) for one in speeds)
    ratio = statistics.median(ratios)
    return Row(
        f"with memories against the same engine with none, batch {batch}",
        f"≥ {least:g}×",
        "tokens/s",
        round(ours, 1),
        round(peer, 1),
        round(ratio, 3),
        ratio >= least,
        "steps of both in turn, medians",
        {"ratios": ratios},
    )


def batched_against_alone(subject: Subject, sequences: int, tokens: int) -> Row:
    """Prompts of all lengths, three of four with a memory: in one batch, and each by itself."""
    lengths = [16 + (37 * i) % 400 for i in range(sequences)]
    prompts = [subject.prompt(length, 90_000 + i) for i, length in enumerate(lengths)]
    memories = [subject.steering(i) if i % 4 else None for i in range(sequences)]
    together = Batch(subject, prompts, memories, tokens).finish()
    alone = [Batch(subject, [p], [m], tokens).finish()[0] for p, m in zip(prompts, memories, strict=True)]
    told = compare(subject, prompts, memories, together, alone)
    return Row(
        f"batched against one at a time, {sequences} sequences, {tokens} tokens each",
        "same tokens",
        holds=not told["different"],
        note=_said(told),
        details=dict(told),
    )
