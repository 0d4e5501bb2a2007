"""The long form: the same platform, load and faults, one after another as the dice fall, for as long as asked.

    make faults-long ARGS="--minutes 20 --seed 1"

Prints each fault, then duration, seed, counts and verdict, and writes them to benchmarks/results/faults-long.json. Ends
with status 1 if anything was lost, doubled, reordered, foreign or wrong, a killed writer's work waited too long, or a
mutated request got an undocumented answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from memfold_faults.fuzz import fuzz, resident_mib
from memfold_faults.proxy import MODES
from memfold_faults.rig import API_KEY, Nursery, Rig
from memfold_faults.world import POINTS, World, waits

from memfold.api.values import Role, Turn
from memfold.client import AsyncMemfold

LEASE_S, RECONCILE_S = 1.5, 0.5
MOST_GROWTH_MIB = 24
RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"

Fault = tuple[str, Callable[[], Awaitable[object]]]


async def faults_for(seed: int, seconds: float, nursery: Nursery) -> dict[str, Any]:
    """Run for so long; what became of it."""
    totals: dict[str, Any] = {"seed": seed, "lease_s": LEASE_S, "reconcile_s": RECONCILE_S, "rounds": 0}
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        left = seconds - (time.monotonic() - started)
        with tempfile.TemporaryDirectory() as folder:
            part = await one_world(Path(folder), nursery, seed + totals["rounds"], min(left, 300))
        totals["rounds"] += 1
        for key, value in part.items():
            totals[key] = _merged(totals.get(key), value)
    waited = sorted(totals.pop("waits"))
    totals |= {
        "duration_s": round(time.monotonic() - started),
        "kill_to_folded_s": {
            "kills": len(waited),
            "p50": round(waited[len(waited) // 2], 3),
            "p99": round(waited[min(len(waited) - 1, int(0.99 * len(waited)))], 3),
            "worst": round(waited[-1], 3),
            "bound": LEASE_S + 2 * RECONCILE_S,
        },
    }
    return totals


async def one_world(folder: Path, nursery: Nursery, seed: int, seconds: float) -> dict[str, Any]:
    """A platform of its own, which ends with a verdict: the memories of a longer one would grow without bound."""
    world = World(folder, nursery, seed, lease_s=LEASE_S, reconcile_s=RECONCILE_S)
    try:
        await world.start(pause_s=0.07)
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            name, fault = _choose(world)
            print(f"{time.monotonic() - started:6.1f} s  {world.acknowledged:7d} turns  {name}", flush=True)
            await fault()
            await world.recover()
        verdict = await world.finish()
        return {
            "faults": dict(world.counts),
            "hints": dict(world.hints()),
            "history": verdict.counts(),
            "operations": _merged_all([getattr(client, "done", {}) for client in world.clients]),
            "broken": verdict.broken,
            "waits": waits(world.kills),
        }
    finally:
        await world.close()


async def fuzz_for(seed: int, requests: int, nursery: Nursery) -> dict[str, Any]:
    """Mutated requests against a gateway with a writer behind it."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), nursery, lease_s=LEASE_S, reconcile_s=RECONCILE_S)
        try:
            await rig.start()
            await rig.start_writer()
            gateway = await rig.start_gateway()
            async with AsyncMemfold(rig.target, API_KEY) as memfold:
                appended = await memfold.append("alice", [Turn("t-0", Role.USER, "hello")], create=True)
            revision = str(appended.revision)
            warm = await fuzz(rig.target, requests // 10, seed, revision)
            before, started = resident_mib(gateway.pid), time.monotonic()
            found = await fuzz(rig.target, requests, seed + 1, revision)
            return {
                "requests": requests + requests // 10,
                "per_s": round(requests / (time.monotonic() - started)),
                "codes": dict(found.codes + warm.codes),
                "bad": found.bad + warm.bad,
                "gateway_mib": [round(before), round(resident_mib(gateway.pid))],
                "gateway_alive": gateway.alive,
            }
        finally:
            await rig.close()


def _choose(world: World) -> Fault:
    dice = world.dice
    link, mode, point = dice.choice([*world.rig.links]), dice.choice(MODES), dice.choice(POINTS)

    async def kill_writers() -> None:
        await asyncio.gather(*(world.kill_writer(point, dice.randint(1, 6)) for _ in range(dice.randint(1, 3))))

    async def kill_both() -> None:
        await asyncio.gather(kill_writers(), world.kill_redis())

    async def at_once(act: Callable[[], object]) -> None:
        act()

    faults: list[Fault] = [
        (f"writers killed {point}", kill_writers),
        (f"writers killed {point}", kill_writers),
        (f"writers killed {point}", kill_writers),
        ("a writer stopped past its lease", world.stop_writer),
        ("redis killed", world.kill_redis),
        (f"redis killed, writers killed {point}", kill_both),
        ("broker killed", world.kill_broker),
        ("broker wiped", lambda: at_once(world.wipe_broker)),
        ("scripts flushed", lambda: at_once(world.flush_scripts)),
        ("store full", world.fill_store),
        ("gateway killed", world.kill_gateway),
        (f"{link}: {mode}", lambda: world.break_link(link, mode, dice.uniform(0.5, 6))),
        (f"{link}: {mode}", lambda: world.break_link(link, mode, dice.uniform(0.5, 6))),
    ]
    return dice.choice(faults)


def _merged(one: Any, other: Any) -> Any:
    if one is None:
        return other
    if isinstance(one, dict):
        return _merged_all([one, other])
    return one + other


def _merged_all(parts: list[dict[Any, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for part in parts for key in part)
    empty = {str(key): None for key in keys}
    for part in parts:
        for key, value in part.items():
            empty[str(key)] = _merged(empty[str(key)], value)
    return empty


def main() -> int:
    """Run, tell, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None, help="random by default, and told in any case")
    parser.add_argument("--requests", type=int, default=100_000, help="mutated requests, after that")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults-long.json")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    nursery = Nursery()
    try:
        found = asyncio.run(faults_for(seed, arguments.minutes * 60, nursery)) if arguments.minutes else {}
        if arguments.requests:
            found["bad_input"] = asyncio.run(fuzz_for(seed, arguments.requests, nursery))
    finally:
        nursery.close()
    arguments.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(json.dumps(found, indent=1, sort_keys=True))
    waited, fuzzed = found.get("kill_to_folded_s"), found.get("bad_input")
    failed = [
        bool(found.get("broken")),
        bool(waited) and waited["p99"] > waited["bound"],
        bool(fuzzed) and (bool(fuzzed["bad"]) or fuzzed["gateway_mib"][1] - fuzzed["gateway_mib"][0] > MOST_GROWTH_MIB),
    ]
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
