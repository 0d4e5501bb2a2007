"""Forking a memory of 100 turns and rolling one back to a kept revision, against bare round trips of the same bytes.

    python benchmarks/history.py [--times 300]

Both through the store, durably (an append-only file, synced before Redis answers), as the gateway does within a call:
the operation is entered, carried out, and its receipt kept; a rollback as far as nobody sees what is taken back and the log is
written anew, after which Redis' files follow. Bare: one round trip reads every key of the memory, one
writes the same bytes under other names, with plain commands. Taken in turn; p50 and p99. Writes
benchmarks/results/history.json and .md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from memfold.api.values import MemoryName, ModelCard, Operation, OperationKind, Role, Turn
from memfold.local.redis_server import RedisServer
from memfold.store import Durability, Store
from memfold.store.digests import chain
from memfold.store.keys import memory_keys

RESULTS = Path(__file__).resolve().parent / "results"
SHAPE, TURNS = (4, 8, 8, 8), 100
CARD = ModelCard("ab" * 32, "memfold-tiny", "memfold-tiny", SHAPE, 1024, 2048)


async def fill(store: Store, name: MemoryName) -> None:
    """A memory of 100 turns, folded ten at a time: the revision 90 is among those that are kept."""
    for start in range(0, TURNS, 10):
        said = [Turn(f"turn-{at}", Role.USER, f"{at} ".ljust(200, "x")) for at in range(start, start + 10)]
        await store.append(name, said, create=True)
        await fold(store, name)


async def fold(store: Store, name: MemoryName) -> None:
    """A writer's work."""
    [claim] = await store.claim(CARD.fingerprint, name.partition, owner="bench", lease_s=60, limit=1)
    entries = await store.read_turns(name, after=claim.applied)
    assert await store.commit(
        claim, applied=claim.head, at=claim.head, state=bytes(CARD.state_bytes), shape=SHAPE, anchor=None,
        log_digest=chain(claim.log_digest, entries),
    )  # fmt: skip


async def operate(store: Store, name: MemoryName, kind: OperationKind, args: dict[str, Any]) -> Operation:
    """As the gateway does, until nothing but Redis' files is left to be written."""
    operation = await store.request_operation(name, kind, args)
    while not operation.done and operation.progress["stage"] != "rewriting":
        operation = await store.advance(name, operation.id, until=asyncio.get_running_loop().time() + 2)
    assert not operation.error, operation
    return operation


async def end(store: Store, name: MemoryName) -> None:
    """Those that wait for files to be written."""
    for operation in await store.list_operations(name):
        while not (await store.advance(name, operation.id, until=0)).done:  # noqa: ASYNC110 - Redis sets no event
            await asyncio.sleep(0.01)


async def bare(redis: Redis, name: MemoryName) -> None:
    """Read everything, write everything."""
    keys = memory_keys(name, CARD.fingerprint)
    read = redis.pipeline(transaction=False)
    read.xrange(keys.log)
    hashes = keys.meta, keys.ids, keys.line, keys.history, keys.revisions
    for key in hashes:
        read.hgetall(key)
    read.get(keys.state)
    entries, *maps, state = await read.execute()
    write = redis.pipeline(transaction=False)
    write.unlink("bare:log")
    for entry_id, fields in entries:
        write.xadd("bare:log", fields, id=entry_id)
    for key, fields in zip(("meta", "ids", "line", "history", "revisions"), maps, strict=True):
        if fields:
            write.hset(f"bare:{key}", mapping=fields)
    write.set("bare:state", state)
    await write.execute()


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds that it takes."""
    started = time.perf_counter()
    await call()
    return (time.perf_counter() - started) * 1000


async def measure(url: str, times: int) -> dict[str, list[float]]:
    """All four, in turn."""
    store, redis = await Store.open(url, durability=Durability.FSYNC), Redis.from_url(url)
    await store.register_model(CARD)
    source = MemoryName("acme", "source")
    await fill(store, source)
    found: dict[str, list[float]] = {"fork": [], "bare fork": [], "roll back": [], "bare roll back": []}
    for at in range(times):
        copy = MemoryName("acme", f"copy-{at}")
        fork = {"target": str(copy), "revision": ""}
        found["fork"].append(await timed(lambda args=fork: operate(store, source, OperationKind.FORK, args)))
        found["bare fork"].append(await timed(lambda: bare(redis, source)))
        kept = next(one for one in await store.list_revisions(copy) if one.revision.sequence == 90)
        back = {"revision": str(kept.revision), "expected": ""}
        found["bare roll back"].append(await timed(lambda name=copy: bare(redis, name)))
        found["roll back"].append(
            await timed(lambda name=copy, args=back: operate(store, name, OperationKind.ROLLBACK, args))
        )
        memory = await store.get_memory(copy)
        assert (memory.head, memory.applied) == (90, 90)
        await end(store, copy)
        await store.delete_memory(copy)
    await store.close()
    await redis.aclose()
    return found


def percentile(values: list[float], share: float) -> float:
    """Of sorted values."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer.start(Path(folder))
        try:
            found = asyncio.run(measure(server.url, given.times))
        finally:
            server.stop()
    rows = [
        {
            "operation": name,
            "ms": {"p50": percentile(found[name], 0.5), "p99": percentile(found[name], 0.99)},
            "bare_ms": {"p50": percentile(found[f"bare {name}"], 0.5), "p99": percentile(found[f"bare {name}"], 0.99)},
        }
        for name in ("fork", "roll back")
    ]
    command = f"python benchmarks/history.py --times {given.times}"
    lines = [
        "# Forking and rolling back, a memory of 100 turns",
        "",
        f"`{command}` · milliseconds, durability fsync, bare: read all keys, write them elsewhere, two round trips. ≤ 3 is asked for.",
        "",
        "| operation | p50 | p99 | bare p50 | bare p99 | p99 to bare p99 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        row["ratio_p99"] = round(row["ms"]["p99"] / row["bare_ms"]["p99"], 2)
        figures = [row["ms"]["p50"], row["ms"]["p99"], row["bare_ms"]["p50"], row["bare_ms"]["p99"], row["ratio_p99"]]
        lines.append(f"| {row['operation']} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    report = "\n".join(lines) + "\n"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "history.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    (given.out / "history.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
