"""Appends through the gateway, against a bare gRPC server that does one script a call: turns a second.

    python benchmarks/append.py [--rounds 25] [--seconds 0.4] [--concurrency 16]

Each durability gets a Redis of its own, which both servers use; they are measured in turn, in many short rounds so that
what else the machine does meets both alike, by the same client with the same requests (new turns of 200 bytes of words,
each call for another of 64 memories). ``fsync``: an append-only file that is synced before Redis answers. ``none``: no file. The bare server parses the same request, and its script does nothing but count and XADD.
Prints the medians and writes benchmarks/results/append.json and .md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from redis.asyncio import BlockingConnectionPool, Redis

from memfold.api.v1 import memory_service_pb2 as pb
from memfold.api.values import ModelCard
from memfold.local.keys import write_keys_file
from memfold.local.redis_server import RedisServer
from memfold.store import Store

RESULTS = Path(__file__).resolve().parent / "results"
KEY, METHOD = "mfk_acme_bench", "/memfold.api.v1.MemoryService/AppendTurns"
BATCHES = (1, 100)
MEMORIES = 64
CARD = ModelCard("ab" * 32, "tiny", "none", (2, 1, 4, 4), 256, 512)

_DICE = random.Random(0)
# As different as people's words are: Redis's Lua looks at some characters of a string only, and is slow with strings that
# agree in those.
TEXTS = [
    " ".join("".join(_DICE.choices("etaoinshrdlu", k=_DICE.randint(2, 8))) for _ in range(60))[:200]
    for _ in range(1000)
]

BARE = """
local last = redis.call('INCRBY', KEYS[2], #ARGV)
for at, turn in ipairs(ARGV) do
  redis.call('XADD', KEYS[1], string.format('%.0f', last - #ARGV + at) .. '-0', 'turn', turn)
end
return last
"""


async def serve_bare(url: str, ready: Path) -> None:
    """The other server: one EVALSHA a call, and nothing else."""
    redis = Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=64, timeout=10))
    digest = await redis.script_load(BARE)

    async def append(request: pb.AppendTurnsRequest, _: Any) -> pb.AppendTurnsResponse:
        turns = [turn.SerializeToString() for turn in request.turns]
        keys = f"{{{request.memory}}}:log", f"{{{request.memory}}}:last"
        last = await redis.evalsha(digest, 2, *keys, *turns)
        first = last - len(turns) + 1
        placed = [pb.AppendedTurn(id=turn.id, sequence=first + at) for at, turn in enumerate(request.turns)]
        return pb.AppendTurnsResponse(revision=str(last), turns=placed)

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        append, pb.AppendTurnsRequest.FromString, pb.AppendTurnsResponse.SerializeToString
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("memfold.api.v1.MemoryService", {"AppendTurns": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready.with_suffix(".part").write_text(json.dumps({"address": f"127.0.0.1:{port}"}))
    ready.with_suffix(".part").replace(ready)
    await server.wait_for_termination()


@contextmanager
def process(command: list[str], ready: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run a server; its address."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MEMFOLD_", "OTEL_"))}
    with subprocess.Popen(
        [sys.executable, "-P", *command], env=inherited | environment, stderr=subprocess.DEVNULL
    ) as run:
        try:
            while not ready.exists():
                if run.poll() is not None:
                    raise RuntimeError(f"{command} ended with {run.returncode}")
                time.sleep(0.02)
            yield json.loads(ready.read_text())["address"]
        finally:
            run.terminate()


@contextmanager
def servers(folder: Path, durability: str) -> Iterator[dict[str, str]]:
    """A Redis and both servers on it: name -> address."""
    settings = {} if durability == "fsync" else {"appendonly": "no"}
    redis = RedisServer.start(folder / "redis", settings=settings)
    with ExitStack() as stack:
        stack.callback(redis.stop)
        asyncio.run(_register(redis.url))
        write_keys_file(folder / "keys.json", {KEY: "acme"})
        environment = {
            "MEMFOLD_REDIS_URL": redis.url,
            "MEMFOLD_LISTEN": "127.0.0.1:0",
            "MEMFOLD_API_KEYS_FILE": str(folder / "keys.json"),
            "MEMFOLD_READY_FILE": str(folder / "gateway.json"),
            "MEMFOLD_BACKLOG_TURNS": "0",
            "MEMFOLD_DURABILITY": durability,
        }
        gateway = stack.enter_context(process(["-m", "memfold_gateway"], folder / "gateway.json", environment))
        bare_ready = folder / "bare.json"
        command = [__file__, "--serve-bare", redis.url, "--ready", str(bare_ready)]
        yield {"gateway": gateway, "bare": stack.enter_context(process(command, bare_ready, {}))}


async def _register(url: str) -> None:
    store = await Store.open(url)
    await store.register_model(CARD)
    await store.close()


async def turns_a_second(address: str, batch: int, seconds: float, concurrency: int) -> float:
    """What comes through: so many calls at a time, each with a batch."""
    done = 0
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)

        async def send(worker: int, until: float) -> None:
            nonlocal done
            at, serial = 0, secrets.token_hex(4)  # of its own: a turn sent again is no append
            while time.perf_counter() < until:
                at += 1
                request = _request(f"{serial}-{at}", (worker + at) % MEMORIES, batch)
                await call(request, metadata=(("authorization", f"Bearer {KEY}"),), timeout=30)
                done += batch

        await asyncio.gather(*(send(worker, time.perf_counter() + 0.1) for worker in range(concurrency)))
        done, started = 0, time.perf_counter()
        await asyncio.gather(*(send(worker, started + seconds) for worker in range(concurrency)))
        return done / (time.perf_counter() - started)


def _request(serial: str, memory: int, batch: int) -> bytes:
    start = random.randrange(len(TEXTS) - batch)
    turns = [pb.Turn(id=f"{serial}-{at}", role="user", content=TEXTS[start + at]) for at in range(batch)]
    name = f"tenants/acme/memories/m{memory}"
    data: bytes = pb.AppendTurnsRequest(memory=name, turns=turns, allow_missing=True).SerializeToString()
    return data


def measure(durability: str, rounds: int, seconds: float, concurrency: int) -> list[dict[str, Any]]:
    """Both servers, in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder), durability) as addresses:
        for batch in BATCHES:
            found: dict[str, list[float]] = {name: [] for name in addresses}
            for at in range(rounds):
                for name in sorted(addresses, reverse=bool(at % 2)):
                    speed = asyncio.run(turns_a_second(addresses[name], batch, seconds, concurrency))
                    found[name].append(speed)
            medians = {name: statistics.median(speeds) for name, speeds in found.items()}
            row = {
                "durability": durability,
                "batch": batch,
                **{name: round(speed) for name, speed in medians.items()},
                "ratio": round(medians["gateway"] / medians["bare"], 3),
                "ratios": [round(one / other, 3) for one, other in zip(found["gateway"], found["bare"], strict=True)],
            }
            print(row, flush=True)
            rows.append(row)
    return rows


def report(rows: list[dict[str, Any]], command: str) -> str:
    """The table, as Markdown."""
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, grpcio {grpc.__version__}"
    lines = [
        "# Appends through the gateway, turns a second",
        "",
        f"`{command}` · {machine}. Medians of interleaved rounds; ≥ 0.7 is asked for.",
        "",
        "| durability | turns a call | gateway | bare gRPC server, one script | ratio | lowest and highest round |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['durability']} | {row['batch']} | {row['gateway']:,} | {row['bare']:,} | {row['ratio']:.2f} "
        f"| {min(row['ratios']):.2f} to {max(row['ratios']):.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve-bare", default="", help=argparse.SUPPRESS)
    parser.add_argument("--ready", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_bare:
        asyncio.run(serve_bare(given.serve_bare, given.ready))
        return
    rows = [row for one in ("fsync", "none") for row in measure(one, given.rounds, given.seconds, given.concurrency)]
    command = f"python benchmarks/append.py --rounds {given.rounds} --seconds {given.seconds:g} --concurrency {given.concurrency}"
    given.out.mkdir(parents=True, exist_ok=True)
    said = {"command": command, "cores": os.cpu_count(), "python": platform.python_version(), "rows": rows}
    (given.out / "append.json").write_text(json.dumps(said, indent=1) + "\n")
    (given.out / "append.md").write_text(report(rows, command))
    print(report(rows, command))


if __name__ == "__main__":
    main()
