"""What finding turns by their words costs, in logs of 100, 10,000 and 100,000 turns.

    python benchmarks/search.py             # about two minutes

Turns are of 8 to 40 words, questions of 8, drawn from 20,000 words by Zipf's law, so that most questions hold words
that are in most turns: the hard case. On a private Redis, through ``memfold.search`` as gateway and reader use it:
the first look-up, which makes the index; one after a turn was appended; one that changes nothing (the store is still
asked what is new, and for the ten turns found). The index's own part is shown by itself. Writes
benchmarks/results/search.json and .md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

from memfold.api.values import MemoryName, ModelCard, Role, Turn
from memfold.local.redis_server import RedisServer
from memfold.search import Search
from memfold.store import Store

RESULTS = Path(__file__).resolve().parent / "results"
CARD = ModelCard("ab" * 32, "memfold-tiny", "memfold-tiny", (4, 8, 8, 8), 1024, 2048)
NAME = MemoryName("acme", "talk")
SIZES = (100, 10_000, 100_000)
WORDS = 20_000
QUESTIONS = 60
_WEIGHTS = list(accumulate(1 / (rank + 2.7) for rank in range(WORDS)))


def text(dice: random.Random, words: int) -> str:
    """Words as often as people use them."""
    return " ".join(f"w{number:x}" for number in dice.choices(range(WORDS), cum_weights=_WEIGHTS, k=words))


async def fill(store: Store, turns: int, dice: random.Random) -> None:
    """A log of so many turns."""
    for start in range(0, turns, 1000):
        said = [
            Turn(f"t{at}", Role.USER, text(dice, dice.randint(8, 40))) for at in range(start, min(turns, start + 1000))
        ]
        await store.append(NAME, said, create=True)


async def _ms(call: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await call()
    return 1000 * (time.perf_counter() - began)


async def _measure(url: str, turns: int) -> dict[str, Any]:
    dice = random.Random(turns)
    store = await Store.open(url)
    try:
        await store.register_model(CARD)
        await fill(store, turns, dice)
        search = Search(store)
        asked = [text(dice, 8) for _ in range(QUESTIONS)]
        first = await _ms(lambda: search.find(NAME, asked[0], 10))
        warm = [await _ms(lambda q=question: search.find(NAME, q, 10)) for question in asked]
        after = []
        for number, question in enumerate(asked):
            await store.append(NAME, [Turn(f"new{number}", Role.USER, text(dice, 20))])
            after.append(await _ms(lambda q=question: search.find(NAME, q, 10)))
        [entry] = search._entries.values()  # noqa: SLF001 - its own part of the time
        alone = []
        for question in asked:
            began = time.perf_counter()
            entry.index.search(question, 10)
            alone.append(1000 * (time.perf_counter() - began))
        return {
            "turns": turns,
            "first_ms": round(first, 1),
            "warm_ms_p50": round(statistics.median(warm), 2),
            "warm_ms_p99": round(sorted(warm)[int(0.99 * len(warm))], 2),
            "after_append_ms_p50": round(statistics.median(after), 2),
            "index_ms_p50": round(statistics.median(alone), 2),
            "index_bytes": entry.index.size_bytes,
        }
    finally:
        await store.close()


def measure(turns: int) -> dict[str, Any]:
    """One size, on a Redis of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer.start(Path(folder), appendfsync="no")
        try:
            return asyncio.run(_measure(server.url, turns))
        finally:
            server.stop()


def report(rows: list[dict[str, Any]], command: str) -> str:
    """The table, as Markdown."""
    lines = [
        "# Finding turns by their words",
        "",
        f"`{command}` · ten turns found, questions of 8 words by Zipf's law; milliseconds; the index in bytes.",
        "",
        "| turns | first look-up (makes the index) | look-up, p50 / p99 | after an append, p50 | of it the index | index |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['turns']:,} | {row['first_ms']:,} | {row['warm_ms_p50']} / {row['warm_ms_p99']} "
        f"| {row['after_append_ms_p50']} | {row['index_ms_p50']} | {row['index_bytes']:,} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = [measure(turns) for turns in SIZES]
    command = "python benchmarks/search.py"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "search.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    (given.out / "search.md").write_text(report(rows, command))
    print(report(rows, command))


if __name__ == "__main__":
    main()
