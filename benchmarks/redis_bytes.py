"""What one memory takes of Redis, all in, with 1, 100 and 10,000 turns of 200 bytes; and what a million would.

    python benchmarks/redis_bytes.py        # about a minute

Memories are made through the store, as gateway and writer do: two turns a call, a fold after each call, states of
memfold-tiny's size (8 KB), an anchor where a block of 1,024 tokens fills up, history as the default policy keeps it. Two counts: MEMORY
USAGE with SAMPLES 0 over all keys of a memory (for sets that memories share, its share), and by how much used_memory
grows for each memory, over several of them. Also bytes of the append-only file after its rewrite. Writes
benchmarks/results/redis_bytes.json and .md and docs/images/redis-bytes.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from redis import Redis

from memfold.api.values import MemoryName, ModelCard, Role, Turn
from memfold.local.redis_server import RedisServer
from memfold.store import Anchor, Store
from memfold.store.digests import chain

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PICTURE = ROOT / "benchmarks" / "results", ROOT / "docs" / "images" / "redis-bytes.svg"
SHAPE = (4, 8, 8, 8)  # of memfold-tiny
CARD = ModelCard("ab" * 32, "memfold-tiny", "memfold-tiny", SHAPE, 1024, 2048)
TURN_BYTES, TURN_TOKENS = 200, 50
SIZES = {1: 200, 100: 20, 10_000: 2}  # turns -> memories that are made to take the mean


async def fill(store: Store, name: MemoryName, turns: int) -> None:
    """Talk and fold, two turns at a time."""
    dice = random.Random(name.memory)
    state = dice.randbytes(CARD.state_bytes)  # of zeros a file would hold next to nothing
    a_block = CARD.block_tokens // TURN_TOKENS
    for start in range(0, turns, 2):
        said = [Turn(f"{name.memory}-{at}", Role.USER, _text(dice)) for at in range(start, min(turns, start + 2))]
        await store.append(name, said, create=True)
        [claim] = await store.claim(CARD.fingerprint, name.partition, owner="bench", lease_s=60, limit=1)
        entries = await store.read_turns(name, after=claim.applied)
        opens = claim.head // a_block > claim.applied // a_block
        assert await store.commit(
            claim,
            applied=claim.head,
            at=claim.head,
            state=state,
            shape=SHAPE,
            anchor=Anchor(claim.applied, 0, state) if opens and claim.applied else None,
            log_digest=chain(claim.log_digest, entries),
        )


def _text(dice: random.Random) -> str:
    return "".join(dice.choices("abcdefghijklmnopqrstuvwxyz     ", k=TURN_BYTES))


def by_key(redis: Redis, name: MemoryName) -> Counter[str]:
    """MEMORY USAGE of each kind of key of a memory."""
    found: Counter[str] = Counter()
    for key in redis.scan_iter(f"memfold:*:{name.tenant}/{name.memory}:*", count=10_000):
        kind = key.decode().split(f"{name.memory}:")[1].split(":")[0]
        found[kind] += redis.memory_usage(key, samples=0) or 0
    index = f"memfold:tenant:{name.tenant}"
    found["tenant index"] += round((redis.memory_usage(index, samples=0) or 0) / redis.zcard(index))
    return found


def measure(turns: int, memories: int) -> dict[str, Any]:
    """A Redis with so many memories of so many turns."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer.start(Path(folder), appendfsync="no")
        try:
            with Redis.from_url(server.url) as redis:
                return _measured(redis, server, Path(folder), turns, memories)
        finally:
            server.stop()


def _measured(redis: Redis, server: RedisServer, folder: Path, turns: int, memories: int) -> dict[str, Any]:
    names = [MemoryName("acme", f"memory-{at:05}") for at in range(memories)]

    async def fill_all() -> int:
        store = await Store.open(server.url)
        await store.register_model(CARD)
        await fill(store, MemoryName("acme", "first"), 1)  # scripts, the pool's buffers
        before = int(redis.info("memory")["used_memory"])
        for name in names:
            await fill(store, name, turns)
        await store.close()
        return before

    before = asyncio.run(fill_all())
    time.sleep(0.5)
    used = (int(redis.info("memory")["used_memory"]) - before) / memories
    redis.config_set("aof-use-rdb-preamble", "yes")
    redis.bgrewriteaof()
    while redis.info("persistence")["aof_rewrite_in_progress"] or redis.info("persistence")["aof_rewrite_scheduled"]:
        time.sleep(0.05)
    kinds = by_key(redis, names[0])
    return {
        "turns": turns,
        "keys": dict(kinds),
        "memory_usage": sum(kinds.values()),
        "used_memory": round(used),
        "text": turns * TURN_BYTES,
        "aof": round(sum(file.stat().st_size for file in folder.glob("*.aof")) / memories),
        "memories": memories,
    }


def report(rows: list[dict[str, Any]], command: str) -> str:
    """The tables, as Markdown."""
    kinds = sorted({kind for row in rows for kind in row["keys"]})
    lines = [
        "# Bytes in Redis for one memory",
        "",
        f"`{command}` · turns of {TURN_BYTES} bytes, states of {CARD.state_bytes:,} bytes, history as by default.",
        "",
        "| turns | all keys, MEMORY USAGE | growth of used_memory | of these text | append-only file, rewritten | 1 M memories |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['turns']:,} | {row['memory_usage']:,} | {row['used_memory']:,} | {row['text']:,} | {row['aof']:,} "
        f"| {row['used_memory'] * 1e6 / 2**30:,.0f} GiB |"
        for row in rows
    ]
    lines += ["", f"| turns | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    lines += [
        f"| {row['turns']:,} | " + " | ".join(f"{row['keys'].get(kind, 0):,}" for kind in kinds) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]]) -> None:
    """Bytes by kind of key, a panel for each size."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a picture is drawn

    mpl.use("svg")
    # Text stays text, and the file the same from run to run.
    mpl.rcParams.update({"svg.hashsalt": "memfold", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt  # noqa: PLC0415

    kinds = sorted({kind for row in rows for kind in row["keys"]}, key=lambda kind: -rows[-1]["keys"].get(kind, 0))
    figure, panels = plt.subplots(1, len(rows), figsize=(9, 3.2))
    for panel, row in zip(panels, rows, strict=True):
        values = [row["keys"].get(kind, 0) / 1024 for kind in kinds]
        panel.barh(kinds, values, color="#4a7fb5")
        panel.invert_yaxis()
        panel.set_title(f"{row['turns']:,} turns: {row['memory_usage'] / 1024:,.0f} KiB", fontsize=9)
        panel.tick_params(labelsize=7)
        panel.set_xlabel("KiB", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = [measure(turns, memories) for turns, memories in SIZES.items()]
    command = "python benchmarks/redis_bytes.py"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "redis_bytes.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    (given.out / "redis_bytes.md").write_text(report(rows, command))
    print(report(rows, command))
    draw(rows)


if __name__ == "__main__":
    main()
