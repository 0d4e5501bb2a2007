"""The reader's engine against its peers, on one pinned thread, in the same run.

    make bench-reader                                   # up to eight minutes
    make bench-reader ARGS="--only streams --out /tmp/reader"
    PYTHONPATH=benchmarks:src:kernels:services/reader python3 benchmarks/reader.py --device cuda

The model is a random one of Qwen3's kind with a random adapter on every layer; all replies are greedy. Its weights serve
the engine and the peers. Two that are compared run in turn, step by step where they can, and each figure is a median.
Every row has a share of the time, and runs as many rounds as fit. Greedy tokens are compared: a difference counts unless
the two largest logits lie within 1e-4.

Writes reader.json, reader.md and reader.svg to benchmarks/results/, reader-gpu.json and .md with --device cuda, which
runs only the rows for a GPU on a model of Qwen3-4B's shape. The exit code is 1 where a row misses what is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from reader_bench import decoding, history, report, streams
from reader_bench.row import Row
from reader_bench.subject import CPU, DRY, GPU, Shape, Subject, make
from transformers.utils import logging

RESULTS = Path(__file__).resolve().parent / "results"
GPU_ROWS = ((1, 0.90), (32, 0.95))
Part = Callable[[Subject], Iterator[Row]]


class Bench:
    """The parts of the run, by name; each yields its rows.

    Args:
        share: of the time that each part may take; 0: one round.

    Attributes:
        seen: by the clients of the open streams, once these have run.
    """

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self.seen: streams.Seen | None = None
        self.parts: dict[str, Part] = {
            "peers": self._peers,
            "memories": self._memories,
            "alone": self._alone,
            "streams": self._streams,
            "history": self._history,
        }

    def _peers(self, subject: Subject) -> Iterator[Row]:
        yield from decoding.against_peers(subject, sequences=16, length=512, tokens=64, seconds=170 * self._share)

    def _memories(self, subject: Subject) -> Iterator[Row]:
        yield decoding.with_memories(subject, batch=1, length=512, tokens=96, least=0.93, seconds=30 * self._share)
        yield decoding.with_memories(subject, batch=16, length=512, tokens=64, least=0.96, seconds=70 * self._share)

    def _alone(self, subject: Subject) -> Iterator[Row]:
        yield decoding.batched_against_alone(subject, sequences=16, tokens=32)

    def _streams(self, subject: Subject) -> Iterator[Row]:
        row, self.seen = streams.open_streams(subject, streams=64, within_s=5, seconds=90 * self._share)
        yield row

    def _history(self, subject: Subject) -> Iterator[Row]:
        yield history.first_token(subject, history=8000, window=256, seconds=60 * self._share)

    def gpu(self, subject: Subject) -> Iterator[Row]:
        """The rows for a GPU: decode with memories against without."""
        for batch, least in GPU_ROWS:
            yield decoding.with_memories(subject, batch, length=512, tokens=128, least=least, seconds=120 * self._share)


def not_measured() -> Iterator[Row]:
    """The rows for a GPU where there is none."""
    for batch, least in GPU_ROWS:
        what = f"on a GPU, Qwen3-4B's shape: with memories against the same engine with none, batch {batch}"
        yield Row(what, f"≥ {least:.2f}×", note="`make bench-reader ARGS='--device cuda'`")


def _about(shape: Shape, device: str, seconds: float) -> dict[str, Any]:
    where = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    return {
        "command": shlex.join(["python", "benchmarks/reader.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{where}, one pinned thread, torch {torch.__version__}, transformers {version('transformers')}",
        "model": f"A random model of Qwen3's kind, {shape.name}, with a random adapter (rank 8) on every layer",
        "how": "Medians of rounds in turn; a decoded step is one token of every sequence, its prompts' time left out.",
        "seconds": round(seconds),
    }


def _write(out: Path, name: str, about: dict[str, Any], rows: list[Row], seen: streams.Seen | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    page = report.markdown(about, rows, picture=f"{name}.svg" if seen else "")
    (out / f"{name}.json").write_text(json.dumps(report.record(about, rows), indent=1) + "\n")
    (out / f"{name}.md").write_text(page)
    if seen is not None:
        report.draw(out / f"{name}.svg", rows, seen)
    print(page)
    print(f"written to {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=tuple(Bench().parts), action="append", help="a part; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--dry-run", action="store_true", help="everything on a small model, to try the code: the figures mean nothing"
    )
    return parser.parse_args()


def main() -> int:
    """Measure, show, write."""
    given = _arguments()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here: torch sees no CUDA device.", file=sys.stderr)
        return 2
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    bench, on_gpu, began = Bench(0.0 if given.dry_run else 1.0), given.device == "cuda", time.monotonic()
    parts = [] if on_gpu else [bench.parts[name] for name in given.only or bench.parts]
    if on_gpu or (given.dry_run and not given.only):
        parts.append(bench.gpu)
    shape = DRY if given.dry_run else (GPU if on_gpu else CPU)
    subject, rows = make(shape, given.device), []
    for part in parts:
        for row in part(subject):
            rows.append(row)
            print(f"{time.monotonic() - began:4.0f} s  {row.what}: {row.ratio} {row.holds}; {row.note}", flush=True)
    rows += [] if on_gpu or given.dry_run else not_measured()
    about = _about(shape, given.device, time.monotonic() - began)
    out = Path(tempfile.mkdtemp()) if given.dry_run else given.out
    _write(out, "reader-gpu" if on_gpu else "reader", about, rows, bench.seen)
    return int(any(row.holds is False for row in rows) and not given.dry_run)


if __name__ == "__main__":
    sys.exit(main())
