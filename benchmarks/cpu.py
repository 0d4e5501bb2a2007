"""How fast the scan is on one thread of a CPU, against the plain loop and against transformers' gated delta rule.

    make bench-kernels                 # about two minutes
    python benchmarks/cpu.py --rounds 9

Every kernel is first held against the loop (`naive`) on the very inputs that are timed, gradients too; one that
disagrees gets no speed, and the exit code is 1. Rounds go around all kernels of a table, so that a busy moment
meets each of them alike; a figure is the median of its calls, in time of the processor. Writes kernels-cpu.json and
kernels-cpu.md to benchmarks/results/.

The peer, `torch_chunk_gated_delta_rule`, has one gate a head, so that both compute that variant of delta-mem
(`rankwise_gates: false`, `lambda_outside`): with beta' = erase / keep and its queries shifted by one token, since it
reads after it writes. Its inputs are prepared outside the clock, and it is spared the first token's read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule
from transformers.utils import logging

from memfold_kernels.delta_scan import Backend, delta_scan

RESULTS = Path(__file__).resolve().parent / "results"
HEADS, RANK, BATCHES = 1, 8, (1, 8)
FORWARD, BOTH = "forward", "forward + backward"
# How many times as fast as the reference, by reference, kernel, batch and pass.
AT_LEAST = {
    ("naive", "torch", 1, FORWARD): 20,
    ("naive", "torch", 1, BOTH): 40,
    ("naive", "torch", 8, FORWARD): 5,
    ("naive", "torch", 8, BOTH): 15,
    ("naive", "cpu", 1, FORWARD): 300,
    ("naive", "cpu", 8, FORWARD): 60,
    **{("transformers", kernel, batch, FORWARD): 1 for kernel in ("torch", "cpu") for batch in BATCHES},
    **{("transformers", kernel, batch, BOTH): 1 for kernel in ("torch", "cpu") for batch in BATCHES},
}
GPU_ROWS = (
    "a layer's scan, batch 1 / 32, T 8192",
    "against a serial kernel with a program a row",
    "against fla's fused_recurrent_gated_delta_rule",
    "share of prefill, T 8192 / of a decode step, batch 1 / 32",
)
# Largest difference from the loop over the largest number, fp32; and the same for gradients.
LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]


@dataclass
class Kernel:
    """One way to compute the scan, and the inputs it takes."""

    name: str
    function: Function
    inputs: Tensors
    seconds: dict[str, list[float]] = field(default_factory=lambda: {FORWARD: [], BOTH: []})
    wrong: str = ""

    def forward(self) -> Tensors:
        """Results, without a graph."""
        with torch.no_grad():
            return self.function(*self.inputs)

    def both(self) -> Tensors:
        """Results, and gradients of their sum."""
        inputs = [x.detach().requires_grad_() for x in self.inputs]
        results = self.function(*inputs)
        return (*results, *torch.autograd.grad(results, inputs, [torch.ones_like(x) for x in results]))

    def median(self, what: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[what])


def tokens(batch: int, length: int) -> Tensors:
    """Queries, keys and values as the mechanism makes them."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, length, HEADS, RANK, generator=g) for _ in range(3))
    return normalize(q.tanh(), dim=-1), normalize(k.tanh(), dim=-1), v


def scan(backend: Backend) -> Function:
    """The scan by one backend."""
    return lambda *x: delta_scan(*x, backend=backend)


def rowwise(batch: int, length: int) -> list[Kernel]:
    """The loop and our kernels, a gate for each row of the state, coupled: keep = 1 - beta, erase = write = beta."""
    g = torch.Generator().manual_seed(1)
    beta = (torch.randn(batch, length, HEADS, RANK, generator=g) - 1.5).sigmoid()
    x = (*tokens(batch, length), 1 - beta, beta, beta, torch.randn(batch, HEADS, RANK, RANK, generator=g))
    return [Kernel(name, scan(name), x) for name in ("naive", "torch", "cpu")]


def headwise(batch: int, length: int) -> list[Kernel]:
    """The loop, the peer and our kernels, one gate a head: keep = lambda, erase = lambda beta, write = beta."""
    q, k, v = tokens(batch, length)
    g = torch.Generator().manual_seed(1)
    beta = (torch.randn(batch, length, HEADS, generator=g) - 1.5).sigmoid()
    keep, state = 1 - beta, torch.randn(batch, HEADS, RANK, RANK, generator=g)

    def ours(backend: Backend) -> Function:
        def function(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, beta: Tensor, state: Tensor) -> Tensors:
            keep, erase, write = (x[..., None].expand_as(q) for x in (keep, keep * beta, beta))
            return delta_scan(q, k, v, keep, erase, write, state, backend=backend)

        return function

    def peer(q: Tensor, k: Tensor, v: Tensor, log_keep: Tensor, beta: Tensor, state: Tensor) -> Tensors:
        reads, after = torch_chunk_gated_delta_rule(
            q, k, v, log_keep, beta, initial_state=state, output_final_state=True
        )
        return reads, after

    shifted = torch.cat([q[:, 1:], torch.zeros_like(q[:, :1])], 1) * RANK**0.5  # the peer divides by it
    x = (q, k, v, keep, beta, state)
    theirs = (shifted, k, v, keep.log(), beta, state.transpose(-1, -2).contiguous())
    return [
        Kernel("naive", ours("naive"), x),
        Kernel("transformers", peer, theirs),
        Kernel("torch", ours("torch"), x),
        Kernel("cpu", ours("cpu"), x),
    ]


def difference(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest number; NaN if there is one."""
    return float((got - wanted).detach().abs().max() / wanted.detach().abs().max())


def check(kernels: list[Kernel]) -> None:
    """Hold each against the first, which is the loop. A kernel that disagrees is marked."""
    wanted = kernels[0].both()
    for kernel in kernels[1:]:
        if kernel.name == "transformers":  # reads shifted by one, the state transposed; gradients are its own affair
            reads, after = kernel.forward()
            pairs = [(reads[:, :-1], wanted[0][:, 1:]), (after.transpose(-1, -2), wanted[1])]
        else:
            pairs = list(zip(kernel.both(), wanted, strict=True))
        for i, pair in enumerate(pairs):
            if not (found := difference(*pair)) <= (LIMIT if i < 2 else GRADIENT_LIMIT):
                kernel.wrong = f"wrong by {found:.1e}"


def timed(call: Callable[[], Any]) -> float:
    """Seconds of the processor that a call takes: what else runs on the machine does not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(kernels: list[Kernel], rounds: int) -> None:
    """Time all kernels that are right, in turns; short ones several times a turn."""
    right = [kernel for kernel in kernels if not kernel.wrong]
    calls: list[tuple[Kernel, str, Callable[[], Any]]] = []
    for kernel in right:
        calls += [(kernel, FORWARD, kernel.forward), (kernel, BOTH, kernel.both)]
    times = [max(1, min(50, int(0.1 / timed(call)))) if kernel.name != "naive" else 1 for kernel, _, call in calls]
    for _ in range(rounds):
        for (kernel, what, call), count in zip(calls, times, strict=True):
            kernel.seconds[what] += [timed(call) for _ in range(count)]


def kept_bytes(backend: Backend, length: int) -> float:
    """Bytes a token that a layer of one head keeps for the backward pass, beside its inputs."""
    x = rowwise(1, length)[0].inputs
    inputs = [t.detach().requires_grad_() for t in x]
    given = {t.untyped_storage().data_ptr() for t in inputs}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        results = delta_scan(*inputs, backend=backend)
    del results
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in given) / length


def rows(kernels: list[Kernel], batch: int, reference: Kernel) -> list[dict[str, Any]]:
    """What a table shows of each kernel, as numbers; ``times`` is how many times as fast as the reference it is."""
    found = []
    for kernel in kernels:
        for what in (FORWARD, BOTH):
            row: dict[str, Any] = {"kernel": kernel.name, "batch": batch, "pass": what}
            if kernel.wrong:
                row["wrong"] = kernel.wrong
            else:
                row["milliseconds"] = round(kernel.median(what) * 1e3, 3)
                row["fastest_milliseconds"] = round(min(kernel.seconds[what]) * 1e3, 3)
                row["calls"] = len(kernel.seconds[what])
                if not reference.wrong:
                    row["times"] = round(reference.median(what) / kernel.median(what), 1)
            found.append(row)
    return found


def contest_table(found: list[dict[str, Any]], reference: str) -> list[list[str]]:
    """Header and rows of one contest."""
    table = [["kernel", "batch", "pass", "ms", f"times {reference}", "at least"]]
    for row in found:
        speed = ["-", row["wrong"]] if "wrong" in row else [f"{row['milliseconds']:.2f}", str(row.get("times", "-"))]
        at_least = AT_LEAST.get((reference, row["kernel"], row["batch"], row["pass"]), "")
        table.append([row["kernel"], str(row["batch"]), row["pass"], *speed, str(at_least)])
    return table


def memory_table(kept: dict[str, float]) -> list[list[str]]:
    """Header and rows of what is kept for the backward pass."""
    return [
        ["kernel", "bytes a token and layer"],
        *([name, f"{size:.1f}"] for name, size in kept.items()),
        ["triton", "see kernels-gpu.md" if (RESULTS / "kernels-gpu.json").exists() else "not measured"],
    ]


def gpu_table() -> list[list[str]]:
    """The rows that need a GPU; their figures are those of `make gpu`."""
    said = "see kernels-gpu.md" if (RESULTS / "kernels-gpu.json").exists() else "not measured"
    return [["on a GPU", "figure"], *([row, said] for row in GPU_ROWS)]


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def markdown(about: dict[str, Any], tables: dict[str, list[list[str]]]) -> str:
    """The tables as a page."""
    lines = ["# The scan on one thread of a CPU", "", f"{about['date']}, {about['processor']}, T {about['length']}, "]
    lines[-1] += f"rank {RANK}, one head, fp32; " + ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines[-1] += f". Medians of {about['rounds']} rounds. Command: `{about['command']}`"
    for title, (head, *body) in tables.items():
        lines += ["", f"## {title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        lines += [f"| {' | '.join(row)} |" for row in body]
    return "\n".join(lines) + "\n"


def show(tables: dict[str, list[list[str]]]) -> None:
    """Print the tables."""
    for title, (head, *body) in tables.items():
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i > 2 else "left", no_wrap=i < 3)
        for row in body:
            table.add_row(*row)
        Console().print(table)


def one_thread() -> None:
    """Compute on one thread, and hold it on one core where the system can."""
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> int:
    """Check, measure, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192, help="tokens in a sequence")
    parser.add_argument("--rounds", type=int, default=5, help="turns around all kernels")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory to write to")
    options = parser.parse_args()
    one_thread()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it says that the peer is not the fastest there is, on a GPU

    contests: dict[str, list[dict[str, Any]]] = {"naive": [], "transformers": []}
    for batch in BATCHES:
        kernels = rowwise(batch, options.length)
        check(kernels)
        measure(kernels, options.rounds)
        contests["naive"] += rows(kernels, batch, kernels[0])
        kernels = headwise(batch, options.length)
        check(kernels)
        measure(kernels[1:], options.rounds)
        contests["transformers"] += rows(kernels[1:], batch, kernels[1])
    names: tuple[Backend, ...] = ("naive", "torch", "cpu")
    kept: dict[str, float] = {name: round(kept_bytes(name, 1024), 1) for name in names}

    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numba", "transformers")},
        "command": shlex.join(["python", "benchmarks/cpu.py", *sys.argv[1:]]),
        "length": options.length,
        "rounds": options.rounds,
    }
    tables = {
        "Against the loop, a gate for each row of the state": contest_table(contests["naive"], "naive"),
        "Against transformers' torch_chunk_gated_delta_rule, one gate a head": contest_table(
            contests["transformers"], "transformers"
        ),
        "Memory kept for the backward pass, beside the inputs": memory_table(kept),
        "On a GPU": gpu_table(),
    }
    show(tables)
    options.results.mkdir(parents=True, exist_ok=True)
    numbers = about | {"against": contests, "kept_bytes": kept}
    (options.results / "kernels-cpu.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (options.results / "kernels-cpu.md").write_text(markdown(about, tables))
    return int(any("wrong" in row for found in contests.values() for row in found))


if __name__ == "__main__":
    sys.exit(main())
