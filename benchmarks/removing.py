"""Taking 50,000 of 100,000 turns out of a memory: for how long Redis does nothing else, and when they are gone.

    python benchmarks/removing.py [--turns 100000] [--runs 3]

Through operations, durably (an append-only file, synced before Redis answers). For each kind of removal a memory is filled, the
operation is carried out as far as Redis' files are written anew (folding what is left is no part of it), and Redis' SLOWLOG is asked
for its scripts: for the longest nobody else was served. Since other programs hold Redis up too, the run counts in which the longest
was the shortest; and the 99th percentile of those that took a millisecond is told. "gone" is when nobody sees the turns any more, "erased" when neither memory nor files hold them. Writes
benchmarks/results/removing.json and .md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from redis import Redis

from memfold.api.values import MemoryName, ModelCard, OperationKind, Role, Turn
from memfold.local.redis_server import RedisServer
from memfold.store import Durability, Store

RESULTS = Path(__file__).resolve().parent / "results"
CARD = ModelCard("ab" * 32, "memfold-tiny", "memfold-tiny", (4, 8, 8, 8), 1024, 2048)
BATCH, SLOW_US, TIMEOUT_S = 1000, 1000, 600
FILES_DONE = ("folding", "following", "done")


def asked(kind: str, turns: int, incarnation: str) -> tuple[OperationKind, dict[str, Any]]:
    """Each kind of removal takes half of the turns, or a hundred."""
    half, quarter = turns // 2, turns // 4
    selectors: dict[str, dict[str, Any]] = {
        "forget half, in a row": {"first": quarter + 1, "last": quarter + half},
        "forget every other": {"metadata": {"odd": "1"}, "role": "", "speaker": ""},
        "forget 100": {"first": half + 1, "last": half + 100},
    }
    if kind in selectors:
        return OperationKind.FORGET, {"selector": selectors[kind], "include_forks": False}
    return OperationKind.ROLLBACK, {"revision": f"{incarnation}.{half}", "expected": ""}


KINDS = ("forget half, in a row", "forget every other", "forget 100", "roll back over half")


async def fill(store: Store, name: MemoryName, turns: int) -> str:
    """Append the turns; the incarnation that they are in."""
    for start in range(1, turns + 1, BATCH):
        said = [
            Turn(f"turn-{at}", Role.USER, f"{at} ".ljust(200, "x"), "", {"odd": str(at % 2)})
            for at in range(start, start + BATCH)
        ]
        incarnation = (await store.append(name, said, create=True)).revision.incarnation
    return incarnation


async def carry_out(store: Store, name: MemoryName, kind: OperationKind, args: dict[str, Any]) -> dict[str, float]:
    """Until the files are written anew; seconds."""
    before, started, gone = (await store.get_memory(name)).incarnation, time.perf_counter(), 0.0
    operation = await store.request_operation(name, kind, args)
    while operation.progress.get("stage") not in FILES_DONE:
        operation = await store.advance(name, operation.id, until=0)
        if not gone and (await store.get_memory(name)).incarnation != before:
            gone = time.perf_counter() - started
        if operation.progress["stage"] == "rewriting":
            await asyncio.sleep(0.05)
    assert not operation.error, operation
    return {"gone_s": round(gone, 2), "erased_s": round(time.perf_counter() - started, 2)}


def scripts(redis: Redis) -> list[float]:
    """How long they took, of those that took long; ascending milliseconds."""
    commands = redis.slowlog_get(100_000)
    return sorted(one["duration"] / 1000 for one in commands if one["command"].startswith(b"EVAL"))


async def run(url: str, kind: str, turns: int) -> dict[str, float]:
    """One memory, filled and emptied of half of it."""
    store, name = await Store.open(url, durability=Durability.FSYNC), MemoryName("acme", "long")
    with Redis.from_url(url, socket_timeout=TIMEOUT_S) as redis:
        redis.flushall()
        await store.register_model(CARD)
        incarnation = await fill(store, name, turns)
        redis.config_set("slowlog-max-len", 100_000)
        redis.config_set("slowlog-log-slower-than", SLOW_US)
        redis.slowlog_reset()
        found = await carry_out(store, name, *asked(kind, turns, incarnation))
        took = scripts(redis) or [0.0]
    await store.close()
    return {
        "longest_script_ms": round(took[-1], 1),
        "p99_script_ms": round(took[int(0.99 * (len(took) - 1))], 1),
        **found,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer.start(Path(folder))
        try:
            for kind in KINDS:
                found = [asyncio.run(run(server.url, kind, given.turns)) for _ in range(given.runs)]
                rows.append({"removal": kind, **min(found, key=lambda one: one["longest_script_ms"])})
        finally:
            server.stop()
    command = f"python benchmarks/removing.py --turns {given.turns} --runs {given.runs}"
    lines = [
        f"# Taking turns out of a memory of {given.turns:,}",
        "",
        f"`{command}` · durability fsync; the best of {given.runs} runs.",
        "",
        "| removal | longest script, ms | p99 | gone after, s | erased after, s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['removal']} | {row['longest_script_ms']:.1f} | {row['p99_script_ms']:.1f} | {row['gone_s']:.2f} | {row['erased_s']:.2f} |"
        for row in rows
    ]
    report = "\n".join(lines) + "\n"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "removing.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    (given.out / "removing.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
