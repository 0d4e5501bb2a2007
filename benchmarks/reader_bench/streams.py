"""Many open streams with arrivals at random, through the engine's own thread to clients on an event loop."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

from memfold_reader.engine import Engine
from memfold_reader.outbox import Outbox
from memfold_reader.reply import Finished, Piece
from memfold_reader.runner import Runner
from reader_bench.drive import reply
from reader_bench.rounds import rounds
from reader_bench.row import Row
from reader_bench.subject import Subject

PIECES = 64
LEAST_SPEED, LONGEST_GAP = 5.0, 4.0


@dataclass(frozen=True, slots=True)
class Stream:
    """A request to come: when, of how many tokens, for how many."""

    at: float
    prompt: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What the clients saw: the times of each stream's tokens, from the first arrival on, in seconds."""

    tokens: list[list[float]]

    @property
    def speed(self) -> float:
        """Tokens a second, from the first arrival to the last token, prompts included."""
        return sum(map(len, self.tokens)) / max(times[-1] for times in self.tokens)

    @property
    def gaps(self) -> list[float]:
        """Of each stream the longest gap between two tokens, over its median."""
        found = []
        for times in self.tokens:
            gaps = [later - earlier for earlier, later in pairwise(times)]
            found.append(max(gaps) / statistics.median(gaps))
        return found

    @property
    def most_open(self) -> int:
        """Streams that were between their first and their last token at one time."""
        events = sorted([(times[0], 1) for times in self.tokens] + [(times[-1], -1) for times in self.tokens])
        now = most = 0
        for _, change in events:
            now += change
            most = max(most, now)
        return most


def arrivals(streams: int, within_s: float, seed: int) -> list[Stream]:
    """At random moments (uniform, so Poisson given their number), of random sizes; every other one has a memory."""
    dice = random.Random(seed)
    moments = sorted(dice.uniform(0, within_s) for _ in range(streams))
    return [Stream(at - moments[0], dice.randint(32, 192), dice.randint(96, 160)) for at in moments]


async def serve(subject: Subject, streams: list[Stream], seed: int) -> Seen:
    """Send all, and note when each token comes."""
    engine = Engine(Runner(subject.served), places=len(streams), on_broken=lambda: None)
    engine.start()
    try:
        begin = time.perf_counter()
        return Seen(
            await asyncio.gather(*(_client(subject, engine, one, seed + i, begin) for i, one in enumerate(streams)))
        )
    finally:
        engine.stop()


async def _client(subject: Subject, engine: Engine, stream: Stream, seed: int, begin: float) -> list[float]:
    await asyncio.sleep(max(0.0, begin + stream.at - time.perf_counter()))
    outbox: Outbox[Piece | Finished] = Outbox(PIECES, engine.wake)
    steering = subject.steering(seed) if seed % 2 else None
    engine.submit(reply(subject, subject.prompt(stream.prompt, seed), stream.tokens, steering, outbox))
    times = [time.perf_counter() - begin async for item in outbox if isinstance(item, Piece)]
    assert len(times) == stream.tokens, "every token has a text of its own"
    return times


def open_streams(subject: Subject, streams: int, within_s: float, seconds: float) -> tuple[Row, Seen]:
    """The row, and what was seen in the last round."""
    alone, together, worst, most_open = [], [], [], []
    for round_ in rounds(seconds, 5):
        seed = 200_000 + 1000 * round_
        alone.append(asyncio.run(serve(subject, [Stream(0.0, 112, 128)], seed + 1)).speed)
        seen = asyncio.run(serve(subject, arrivals(streams, within_s, seed), seed))
        together.append(seen.speed)
        worst.append(max(seen.gaps))
        most_open.append(seen.most_open)
    ratio = statistics.median(a / b for a, b in zip(together, alone, strict=True))
    gap = statistics.median(worst)
    row = Row(
        f"{streams} open streams, arrivals at random within {within_s:g} s, against one stream alone",
        f"≥ {LEAST_SPEED:g}×, longest gap ≤ {LONGEST_GAP:g} × the median",
        "tokens/s",
        round(statistics.median(together), 1),
        round(statistics.median(alone), 1),
        round(ratio, 2),
        ratio >= LEAST_SPEED and gap <= LONGEST_GAP,
        f"longest gap of any row {gap:.2f} × its median (worst round {max(worst):.2f}); up to {max(most_open)} open; "
        "prompts of 32 to 192 tokens, replies of 96 to 160, prompts' time included",
        {"together": together, "alone": alone, "worst_gap": worst, "most_open": most_open},
    )
    return row, seen
