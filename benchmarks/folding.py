"""What folding costs: tokens run through the model for each token appended.

    make bench-folding                 # under a minute
    python benchmarks/folding.py --turns 65

A writer without its process, its parts put together as the service does, on a Redis of its own and with the embedded
model. Each row is one way in which turns come in; after each run every state is compared with the fold of the whole log
at once. Writes folding.json and folding.md to benchmarks/results/; the exit code is 1 where a bound or a state is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from memfold.api.values import MemoryName, ModelCard, Role, Turn
from memfold.local.redis_server import RedisServer
from memfold.store import Store
from memfold_osam.fold import Folder, FoldJob
from memfold_osam.serving import ServedModel, load_served_model
from memfold_osam.state import state_from_bytes
from memfold_writer.claims import Claims
from memfold_writer.device import Device, message_of
from memfold_writer.drainer import Drainer
from memfold_writer.gatherer import Gatherer
from memfold_writer.metrics import Metrics
from memfold_writer.open_blocks import OpenBlocks
from memfold_writer.stopping import Stopping
from memfold_writer.verifier import relative_error

RESULTS = Path(__file__).resolve().parent / "results"
CACHE_BYTES = 512 << 20
BATCH_TOKENS = 16384
SAME = 1e-5
WORDS = ("the harbour was quiet", "we talked about the garden", "my train left at nine", "it rained all day")


@dataclass(frozen=True)
class Row:
    """One run. ``ratio``: tokens run for each appended; ``limit``: what it may be; ``error`` of the worst state."""

    name: str
    memories: int
    turns: int
    tokens_appended: int
    tokens_run: int
    turns_a_block: float
    ratio: float
    limit: float
    error: float
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the bound was met and the states are right."""
        return self.ratio <= self.limit and self.error <= SAME


class Counts(Metrics):
    """The writer's metrics, to be read here."""

    def __init__(self) -> None:
        super().__init__()
        self.ran = 0
        self.appended = 0

    def batch(self, seconds: float, tokens: int) -> None:
        """A batch came back."""
        super().batch(seconds, tokens)
        self.ran += tokens

    def committed(self, turns: Sequence[Turn], tokens: int) -> None:
        """A state is in the store."""
        super().committed(turns, tokens)
        self.appended += tokens


class Bench:
    """One writer, put together anew for each run."""

    def __init__(self, store: Store, served: ServedModel) -> None:
        self._store = store
        self._served = served
        self._runs = 0

    async def run(
        self,
        name: str,
        *,
        cache: bool,
        turns: int,
        memories: int = 1,
        at_once: int = 1,
        backlog: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ) -> Row:
        """Append ``at_once`` turns to each memory and fold them, until all have so many."""
        self._runs += 1
        names = [MemoryName("bench", f"run-{self._runs}-{at}") for at in range(memories)]
        counts, keep = Counts(), CACHE_BYTES if cache else 0
        fingerprint, device = self._served.fingerprint, Device(self._served, batch_tokens, keep)
        claims = Claims(self._store, counts, fingerprint=fingerprint, owner="bench", lease_s=60)
        blocks = OpenBlocks(keep)
        gatherer = Gatherer(self._store, claims, device, blocks, counts, batch_tokens=batch_tokens)
        shape, stopping = self._served.state_shape, Stopping(60)
        drainer = Drainer(
            self._store, claims, gatherer, device, blocks, counts, stopping=stopping, hint=lambda _: None, shape=shape
        )
        await device.warm_up()
        logs = [_talk(turns, seed) for seed in range(memories)]
        started = time.perf_counter()
        for first in range(0, turns, at_once):
            for each, log in zip(names, logs, strict=True):
                await self._store.append(each, log[first : first + at_once], create=True)
            while due := await self._store.due_partitions(fingerprint):
                gatherer.note_due(due)
                await drainer.drain(due[0])
        seconds = time.perf_counter() - started
        device.close()
        error = max([await self._error(each, log) for each, log in zip(names, logs, strict=True)])
        a_block = self._turns_a_block(logs[0])
        limit = 1.5 if cache else (3.0 if backlog else 1.1 * (a_block + 1) / 2)
        return Row(
            name, memories, turns, counts.appended, counts.ran, round(a_block, 1),
            round(counts.ran / counts.appended, 3), round(limit, 2), error, round(seconds, 2),
        )  # fmt: skip

    def _turns_a_block(self, log: list[Turn]) -> float:
        tokens = sum(len(self._served.turns.encode(message_of(turn))) for turn in log)
        return self._served.block_tokens / (tokens / len(log))

    async def _error(self, name: MemoryName, log: list[Turn]) -> float:
        _, state = await self._store.read_state(name)
        assert state is not None
        assert state.revision.sequence == len(log)
        [whole] = Folder(self._served).fold([FoldJob(None, 0, [message_of(turn) for turn in log])])
        return relative_error(state_from_bytes(state.data, state.shape), whole.state)


def _talk(turns: int, seed: int) -> list[Turn]:
    roles = (Role.USER, Role.ASSISTANT)
    return [
        Turn(f"turn-{at}", roles[at % 2], f"{WORDS[(at + seed) % 4]}, and {WORDS[(at * 7 + seed) % 4]} ({at}).")
        for at in range(turns)
    ]


async def _measure(redis_url: str, served: ServedModel, turns: int) -> list[Row]:
    store = await Store.open(redis_url)
    try:
        await store.register_model(ModelCard.of(served))
        bench = Bench(store, served)
        return [
            await bench.run("steady, one turn at a time, cache on", cache=True, turns=turns),
            await bench.run("steady, one turn at a time, cache off", cache=False, turns=turns),
            await bench.run("steady, 16 memories, cache on", cache=True, turns=turns // 5, memories=16),
            await bench.run("backlog of 200 turns each time, cache on", cache=True, turns=800, at_once=200),
            await bench.run(
                "backlog of 200 turns each time, cache off", cache=False, turns=800, at_once=200, backlog=True
            ),
            await bench.run(
                "backlog, 16 memories, batches of two blocks, cache off",
                cache=False,
                turns=200,
                memories=16,
                at_once=100,
                backlog=True,
                batch_tokens=2 * served.block_tokens,
            ),
        ]
    finally:
        await store.close()


def _write(rows: list[Row], served: ServedModel) -> None:
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/folding.py",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, 1 thread",
        "model": f"{served.backbone}, blocks of {served.block_tokens} tokens",
    }
    record = facts | {"rows": [asdict(row) | {"holds": row.holds} for row in rows]}
    (RESULTS / "folding.json").write_text(json.dumps(record, indent=2) + "\n")
    head = [
        "turns come in",
        "turns",
        "tokens appended",
        "tokens run",
        "turns a block",
        "run / appended",
        "at most",
        "error",
        "s",
    ]
    lines = ["# What folding costs", "", ". ".join(facts.values()) + ".", ""]
    lines += ["Error: of the worst state, relative to its largest number, against a fold of the whole log at once.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [
            row.name, f"{row.memories} × {row.turns}", f"{row.tokens_appended:,}", f"{row.tokens_run:,}",
            f"{row.turns_a_block}", f"{row.ratio}", f"{row.limit}", f"{row.error:.1e}", f"{row.seconds}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    (RESULTS / "folding.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[-len(rows) - 2 :]))
    for row in rows:
        if not row.holds:
            print(f"MISSED: {row.name}: {row.ratio} of at most {row.limit}, error {row.error:.1e}")


def main() -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=130, help="of the steady runs")
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    served = load_served_model(device="cpu")
    with tempfile.TemporaryDirectory() as directory:
        redis = RedisServer.start(Path(directory) / "redis")
        try:
            rows = asyncio.run(_measure(redis.url, served, turns))
        finally:
            redis.stop()
    _write(rows, served)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
