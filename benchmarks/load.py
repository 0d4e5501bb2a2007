"""The whole platform under load, as processes: how fast it answers, whether ever stale, and whether it leaks.

    make load                             # ten minutes
    make load ARGS="--minutes 1 --out /tmp/load"
    make load ARGS="--minutes 60"

Starts what ``memfold up`` starts, and puts clients to it that append, wait, ask, score and stream at set rates and random
moments, from many memories. Some go away in the middle of an answer, some give it too little time, some read slowly or
connect anew; a memory that has lived for a while is deleted and replaced, so that what is held has no reason to grow.
Every answer's revision is compared with what was acknowledged before the question. Memory, descriptors, connections
and threads of every process, the gauges of its metrics, and Redis's keys and bytes are sampled, and judged.

Writes load.json, load.md and load.svg to benchmarks/results/; the exit code is 1 where a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platform_load import report, rig
from platform_load.leaks import judge
from platform_load.ledger import Ledger
from platform_load.picture import draw
from platform_load.sampling import Sampler
from platform_load.traffic import Rates, Traffic

from memfold.local.errors import ChildDiedError

RESULTS = Path(__file__).resolve().parent / "results"
REST_S = 8.0
# What the readers hold for requests; with nobody asking, nothing.
HELD = ("open_streams", "engine_active", "engine_waiting", "engine_kv_tokens")


async def load(platform_: rig.MeasuredPlatform, rates: Rates, seconds: float, seed: int) -> tuple[Ledger, Sampler, Any]:
    """Fill the memories, let the clients loose, look on; what there is when they are gone."""
    ledger = Ledger()
    sampler = Sampler(platform_.watched, platform_.redis_url)
    traffic = Traffic(platform_.connection, rates, ledger, seed)
    try:
        await traffic.fill()
        print(f"the memories are filled after {ledger.now:.0f} s", flush=True)
        ledger.begin()
        async with asyncio.TaskGroup() as at_once:  # where a process dies, all ends
            at_once.create_task(sampler.run(seconds, max(1.0, seconds / 600), platform_.check))
            at_once.create_task(_tell(ledger, seconds))
            at_once.create_task(traffic.run(seconds))
        platform_.check()
        await traffic.count()
        await asyncio.sleep(REST_S)
        last = await asyncio.to_thread(sampler.look)
        at_rest = {f"{name} {measure}": value for (name, measure), value in last.items() if measure in HELD}
        return ledger, sampler, at_rest
    finally:
        await traffic.close()
        sampler.close()


async def _tell(ledger: Ledger, seconds: float) -> None:
    """A line now and then."""
    step = min(60.0, seconds / 6)
    for _ in range(int(seconds / step)):
        await asyncio.sleep(step)
        print(
            f"{ledger.now:6.0f} s  {ledger.turns:7,} turns  {ledger.tokens:8,} tokens  "
            f"{sum(ledger.errors.values())} errors  {len(ledger.wrong)} wrong",
            flush=True,
        )


def _about(given: argparse.Namespace, platform_: rig.MeasuredPlatform, rates: Rates) -> dict[str, Any]:
    names = [one.name for one in platform_.watched]
    return {
        "command": shlex.join(["python", "benchmarks/load.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, the clients among them",
        "platform": f"{', '.join(names)}: a process each, of one thread where it computes; memfold-tiny",
        "load": (
            f"{given.minutes:g} minutes; a second {rates.appends:g} appends, {rates.generations:g} generations of up to "
            f"{rates.max_tokens} tokens, {rates.scores:g} scores; {rates.memories} memories at a time, each for {rates.life} turns"
        ),
        "seed": given.seed,
    }


def main() -> int:
    """Run, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--appends", type=float, default=10, help="a second")
    parser.add_argument("--generations", type=float, default=4, help="a second")
    parser.add_argument("--scores", type=float, default=0.5, help="a second")
    parser.add_argument("--readers", type=int, default=2, help="processes")
    parser.add_argument("--writers", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rates, seconds = Rates(given.appends, given.generations, given.scores), given.minutes * 60
    with (
        tempfile.TemporaryDirectory() as folder,
        rig.start(Path(folder), readers=given.readers, writers=given.writers) as platform_,
    ):
        about = _about(given, platform_, rates)
        try:
            ledger, sampler, at_rest = asyncio.run(load(platform_, rates, seconds, given.seed))
        except* ChildDiedError as died:
            for error in died.exceptions:
                print(error, *getattr(error, "last_lines", ()), sep="\n", file=sys.stderr)
            raise SystemExit(1) from None
    courses = [course for (name, measure), series in sampler.found.items() if (course := judge(name, measure, series))]
    found = report.checks(ledger, courses, at_rest, seconds)
    about |= {"cpu_s": sampler.cpu}
    facts = report.record(about, ledger, sampler.found, courses, found, seconds)
    (given.out / "load.json").write_text(json.dumps(facts, indent=1) + "\n")
    (given.out / "load.md").write_text(report.markdown(facts))
    draw(given.out / "load.svg", ledger.latencies, sampler.found, seconds)
    print(report.markdown(facts))
    return int(any(check.holds is False for check in found))


if __name__ == "__main__":
    sys.exit(main())
