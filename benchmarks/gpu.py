"""The kernels on a GPU: first their tests, then how fast they are.

    make gpu
    PYTHONPATH=src:kernels python3 benchmarks/gpu.py
    PYTHONPATH=src:kernels python3 benchmarks/gpu.py --dry-run    # no GPU: tiny shapes, the interpreter, no figures

Needs torch, triton, transformers and pytest, nothing of ours installed. A kernel whose result differs from the
reference on the very inputs that are timed gets no speed, and the exit code is 1. Kernels are timed as replays of
a CUDA graph (a call's launches cost the host more than the card, and a graph shows the card), medians; their inputs
may lie in the L2 cache, as they do behind the projections that make them. Writes kernels-gpu.json and
kernels-gpu.md to benchmarks/results/.

Models are of Qwen3-4B's shape with random weights in bf16 and fewer layers, all of them adapted; a layer's share does
not depend on how many there are. A decode step is the layers alone, one token a sequence, without a context to
attend to: the least there is to hide behind. Shares are extra time over the time without memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import Qwen3Config, Qwen3ForCausalLM

from memfold_kernels.delta_scan import chunked, triton_scan
from memfold_kernels.delta_step import StepWeights, read, steer, step_buffers
from memfold_osam.attach import DeltaMemory
from memfold_osam.config import AdapterConfig
from memfold_osam.layer import LayerMemory
from memfold_osam.state import OsamState

ROOT = Path(__file__).resolve().parents[1]
LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4
RANK = 8


@dataclass(frozen=True)
class Sizes:
    """What is run: on a GPU, and in a dry run."""

    device: str
    length: int
    batches: tuple[int, ...]
    layers: int
    hidden: int
    attention: int
    thresholds: tuple[tuple[int, int], ...]


GPU = Sizes(
    device="cuda",
    length=8192,
    batches=(1, 32),
    layers=12,
    hidden=2560,
    attention=4096,
    thresholds=tuple((n, t) for n in (1, 8, 32, 128, 512, 2048) for t in (64, 256, 1024, 8192) if n * t <= 1 << 20),
)
DRY = Sizes("cpu", 9, (1, 2), 2, 32, 64, ((2, 5),))

Row = dict[str, Any]
Tensors = tuple[Tensor, ...]


@triton.jit
def _program_a_row(q, k, v, keep, erase, write, state, reads, after, length, R: tl.constexpr):  # noqa: ANN001, ANN202, N803
    """The scan as the published implementation does it, written anew: a program a row, its columns across threads."""
    row = tl.program_id(0)
    column = tl.arange(0, R)
    s = tl.load(state + row * R + column)
    token = (row // R).to(tl.int64) * length * R
    for _ in range(length):
        key = tl.load(k + token + column)
        tl.store(reads + token + row % R, tl.sum(s * tl.load(q + token + column), axis=0))
        recalled = tl.sum(s * key, axis=0)
        written = tl.load(write + token + row % R) * tl.load(v + token + row % R)
        update = written - tl.load(erase + token + row % R) * recalled
        s = tl.load(keep + token + row % R) * s + update * key
        token += R
    tl.store(after + row * R + column, s)


def program_a_row(*x: Tensor) -> Tensors:
    """The serial peer; one head."""
    reads, after = torch.empty_like(x[0]), torch.empty_like(x[6])
    _program_a_row[(len(x[0]) * RANK,)](*x, reads, after, x[0].shape[1], R=RANK, num_warps=1, enable_fp_fusion=True)
    return reads, after


def inputs(batch: int, length: int, device: str) -> Tensors:
    """One head's tokens as the mechanism makes them, coupled gates, and states."""
    g = torch.Generator().manual_seed(0)
    q, k, v, gate = (torch.randn(batch, length, 1, RANK, generator=g) for _ in range(4))
    beta = (gate - 1.5).sigmoid()
    state = torch.randn(batch, 1, RANK, RANK, generator=g)
    tensors = (normalize(q.tanh(), dim=-1), normalize(k.tanh(), dim=-1), v, 1 - beta, beta, beta.clone(), state)
    return tuple(x.to(device) for x in tensors)


def wrong_by(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest number."""
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


def microseconds(call: Callable[[], Any], device: str) -> float | None:
    """Median of a call in a CUDA graph; None in a dry run, where it is only made."""
    call()
    if device != "cuda":
        return None
    median: float = triton.testing.do_bench_cudagraph(call, return_mode="median")
    return round(median * 1e3, 2)


def milliseconds(call: Callable[[], Any], device: str) -> float | None:
    """Median of a call between CUDA events, the gaps between its launches included; None in a dry run."""
    call()
    if device != "cuda":
        return None
    median: float = triton.testing.do_bench(call, warmup=200, rep=2000, return_mode="median")
    return round(median, 3)


def packed(*x: Tensor) -> Tensors:
    """The same states and tokens as one packed batch; states are written to a copy of the pool."""
    batch, length = x[0].shape[:2]
    pool = torch.cat([x[6][:1], x[6]])
    bounds = torch.arange(batch + 1, device=pool.device) * length
    slots = torch.arange(1, batch + 1, device=pool.device)
    reads = triton_scan.scan_packed(*(t.flatten(0, 1)[None] for t in x[:6]), pool, bounds, slots)
    return reads.view_as(x[0]), pool[1:]


def fla() -> Callable[..., Tensors] | None:
    """Flash-linear-attention's kernel, where it is installed: gates of one number a head, reads after each write."""
    if find_spec("fla") is None:
        return None
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule  # noqa: PLC0415

    def scan(q: Tensor, k: Tensor, v: Tensor, log_keep: Tensor, beta: Tensor, state: Tensor) -> Tensors:
        reads, after = fused_recurrent_gated_delta_rule(
            q, k, v, log_keep, beta, scale=1.0, initial_state=state, output_final_state=True
        )
        return reads, after

    return scan


def scans(sizes: Sizes) -> Iterator[Row]:
    """The scan of one layer, and its peers, at the length that the targets name."""
    for batch in sizes.batches:
        x = inputs(batch, sizes.length, sizes.device)
        wanted = chunked.scan(*(t.double() for t in x))
        kernels: dict[str, Callable[[], Tensors]] = {
            "triton (auto)": lambda x=x: triton_scan.scan(*x),
            "triton (serial)": lambda x=x: triton_scan.scan(*x, split=False),
            "triton (split)": lambda x=x: triton_scan.scan(*x, split=True),
            "triton (packed)": lambda x=x: packed(*x),
            "a program a row": lambda x=x: program_a_row(*x),
        }
        for name, kernel in kernels.items():
            yield scan_row(name, batch, kernel, wanted, sizes)
        yield from fla_rows(batch, x, sizes)
        yield from gradient_rows(batch, x, sizes)


def scan_row(name: str, batch: int, kernel: Callable[[], Tensors], wanted: Tensors, sizes: Sizes) -> Row:
    """Check one kernel, and time it if it is right."""
    row: Row = {"table": "scan", "kernel": name, "batch": batch, "length": sizes.length}
    found = max(wrong_by(got, want) for got, want in zip(kernel(), wanted, strict=True))
    if not found <= LIMIT:
        return row | {"wrong": f"wrong by {found:.1e}"}
    return row | {"us": microseconds(kernel, sizes.device), "error": found}


def fla_rows(batch: int, x: Tensors, sizes: Sizes) -> Iterator[Row]:
    """The peer and we on the function that both compute: one gate a head, lambda outside."""
    peer = fla()
    if peer is None:
        yield {"table": "scan", "kernel": "fla fused_recurrent", "batch": batch, "note": "fla is not installed"}
        return
    q, k, v, keep, beta, _, state = x
    keep, beta = (gate[..., :1].expand_as(q).contiguous() for gate in (keep, beta))
    ours = (q, k, v, keep, keep * beta, beta, state)
    reads, after = chunked.scan(*(t.double() for t in ours))
    shifted = torch.cat([q[:, 1:], torch.zeros_like(q[:, :1])], 1)
    theirs = (shifted, k, v, keep[..., 0].log(), beta[..., 0].contiguous(), state.transpose(-1, -2).contiguous())

    def aligned() -> Tensors:
        got, end = peer(*theirs)
        return torch.cat([reads[:, :1].to(got.dtype), got[:, :-1]], 1), end.transpose(-1, -2)

    row = scan_row("fla fused_recurrent", batch, aligned, (reads, after), sizes)
    if "us" in row:  # without the alignment's own kernels
        row["us"] = microseconds(lambda: peer(*theirs), sizes.device)
    yield row
    yield scan_row("triton on fla's function", batch, lambda: triton_scan.scan(*ours), (reads, after), sizes)


def gradient_rows(batch: int, x: Tensors, sizes: Sizes) -> Iterator[Row]:
    """Forward and backward, both ways, not in a graph. The chunked form in fp64 is the reference."""

    def both(scan: Callable[..., Tensors], given: Tensors) -> Tensors:
        leaves = [t.detach().requires_grad_() for t in given]
        results = scan(*leaves)
        return torch.autograd.grad(results, leaves, [torch.ones_like(t) for t in results])

    wanted = both(chunked.scan, tuple(t.double() for t in x))
    for split in (False, True):
        name = "split" if split else "serial"

        def call(split: bool = split) -> Tensors:
            return both(lambda *t: triton_scan.scan(*t, split=split), x)

        found = max(wrong_by(got, want) for got, want in zip(call(), wanted, strict=True))
        row: Row = {"table": "gradients", "kernel": name, "batch": batch, "error": found}
        if not found <= GRADIENT_LIMIT:
            yield row | {"wrong": f"wrong by {found:.1e}"}
        else:
            yield row | {"ms": milliseconds(call, sizes.device), "kept_bytes_a_token": kept_bytes(x, split)}


def kept_bytes(x: Tensors, split: bool) -> float:
    """Bytes a token and layer that the scan keeps for the backward pass, beside its inputs."""
    leaves = [t.detach().requires_grad_() for t in x]
    given = {t.data_ptr() for t in leaves}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        results = triton_scan.scan(*leaves, split=split)
    del results
    size = sum(t.numel() * t.element_size() for t in kept if t.data_ptr() not in given)
    return size / (x[0].shape[0] * x[0].shape[1])


def thresholds(sizes: Sizes) -> Iterator[Row]:
    """Both ways of the scan by sequences and tokens: where to change from one to the other."""
    for batch, length in sizes.thresholds:
        x = inputs(batch, length, sizes.device)
        row: Row = {"table": "thresholds", "batch": batch, "length": length}
        for way in (False, True):
            name = "split" if way else "serial"
            row[name] = microseconds(lambda x=x, way=way: triton_scan.scan(*x, split=way), sizes.device)
        yield row | {"chosen": "split" if triton_scan.splits(batch, length, RANK) else "serial"}


def adapted_model(sizes: Sizes) -> tuple[nn.Module, DeltaMemory]:
    """A random model of Qwen3-4B's shape, smaller in a dry run, with a random adapter on every layer."""
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.hidden * 19 // 5,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.attention // 128 or 1,
        num_key_value_heads=max(1, sizes.attention // 512),
        head_dim=min(128, sizes.attention),
        max_position_embeddings=2 * sizes.length,
    )
    torch.manual_seed(0)
    with torch.device(sizes.device):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)
    memory = DeltaMemory(model, AdapterConfig(rank=RANK)).requires_grad_(False)
    for parameter in memory.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model, memory


def prefill(sizes: Sizes, model: nn.Module, memory: DeltaMemory) -> Iterator[Row]:
    """A prompt through the model: without memory, reading, and reading and writing; not in a graph."""
    ids = torch.randint(0, 1024, (1, sizes.length), device=sizes.device)
    frozen = milliseconds(lambda: model.model(input_ids=ids, use_cache=False), sizes.device)
    for name, write in (("reading", False), ("reading and writing", True)):

        def call(write: bool = write) -> None:
            with memory.bind(memory.init_state(1), write=write):
                model.model(input_ids=ids, use_cache=False)

        took = milliseconds(call, sizes.device)
        yield {"table": "prefill", "what": name, "ms": took, "frozen_ms": frozen, "share": share(took, frozen)}


def share(took: float | None, without: float | None) -> float | None:
    """The extra time, as a part of the time without it."""
    return None if took is None or without is None else round(took / without - 1, 4)


def decode(sizes: Sizes, model: nn.Module, memory: DeltaMemory) -> Iterator[Row]:
    """One token of each sequence through the layers: frozen, with the hooks of a bind, and with the step kernels."""
    for batch in sizes.batches:
        hidden = torch.randn(batch, 1, sizes.hidden, device=sizes.device, dtype=torch.bfloat16)
        position = torch.zeros(batch, 1, dtype=torch.long, device=sizes.device)
        cosine_sine = model.model.rotary_emb(hidden, position)
        state = torch.randn(memory.state_shape[0], batch + 1, *memory.state_shape[1:], device=sizes.device)

        def layers(hidden: Tensor = hidden, cosine_sine: Any = cosine_sine) -> Tensor:
            for layer in model.model.layers:
                hidden = layer(hidden, attention_mask=None, position_embeddings=cosine_sine)
            return hidden

        def bound(state: Tensor = state, layers: Callable[[], Tensor] = layers) -> Tensor:
            with memory.bind(OsamState(state[:, 1:].contiguous()), write=True):
                return layers()

        frozen = microseconds(layers, sizes.device)
        row: Row = {"table": "decode", "batch": batch, "frozen_us": frozen}
        wanted = bound()
        with step_hooks(model, memory, state.clone(), batch) as reset:
            difference = wrong_by(layers(), wanted.double())
            if difference <= 0.05:  # bf16, rounded in other places
                reset(state)
                took = microseconds(layers, sizes.device)
                yield row | {"what": "step kernels", "us": took, "share": share(took, frozen), "error": difference}
            else:
                yield row | {"what": "step kernels", "wrong": f"wrong by {difference:.1e}"}
        try:
            took = microseconds(bound, sizes.device)
            yield row | {"what": "bind", "us": took, "share": share(took, frozen)}
        except RuntimeError as error:  # what waits for the device cannot be captured
            yield row | {"what": "bind", "note": f"no graph: {str(error).splitlines()[0]}"}


@contextmanager
def step_hooks(
    model: nn.Module, memory: DeltaMemory, pools: Tensor, batch: int
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The step kernels in the places of the hooks of ``bind``; yields what sets the states."""
    slots = torch.arange(1, batch + 1, device=pools.device)
    handles = []
    for index, block in enumerate(model.model.layers):
        weights = step_weights(memory.layer(index))
        handles += hook(block.self_attn, weights, pools[index], slots, step_buffers(weights, batch))
    try:
        yield pools.copy_
    finally:
        for handle in handles:
            handle.remove()


def hook(attention: nn.Module, weights: StepWeights, pool: Tensor, slots: Tensor, buffers: Tensor) -> list[Any]:
    """The two launches of one block."""
    seen: list[Tensor] = []
    backend = "triton"  # also in a dry run

    def before(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        seen[:] = [kwargs["hidden_states"].flatten(0, 1)]

    def after_q(_: nn.Module, __: Any, out: Tensor) -> None:
        read(weights, seen[0], pool, slots, buffers, out=out.flatten(0, 1), head="q", writes=True, backend=backend)

    def after_o(_: nn.Module, __: Any, out: Tensor) -> None:
        steer(weights, pool, slots, buffers, out=out.flatten(0, 1), head="o", writes=True, backend=backend)

    return [
        attention.register_forward_pre_hook(before, with_kwargs=True),
        attention.q_proj.register_forward_hook(after_q),
        attention.o_proj.register_forward_hook(after_o),
    ]


def step_weights(layer: LayerMemory) -> StepWeights:
    """A layer of the default adapter, laid out for the step."""
    scale = layer.config.alpha / layer.config.rank
    return StepWeights.stack(
        q=layer.memory_q_proj,
        k=layer.memory_k_proj,
        v=layer.memory_v_proj,
        beta=(layer.beta_proj, layer.beta_bias),
        outputs={head: getattr(layer, f"delta_{head}_proj") for head in layer.config.delta_heads},
        scales=dict.fromkeys(layer.config.delta_heads, scale),
        heads=layer.config.num_state_heads,
    )


def tests() -> bool:
    """Run the kernels' tests on the GPU; in a dry run in the interpreter."""
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    command += ["--import-mode=importlib", "-o", "markers=gpu: needs a CUDA device", "tests/kernels/on_triton"]
    if torch.cuda.is_available() and find_spec("xdist"):  # most of the time goes into compiling
        command += ["-n", "8"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def judged(rows: list[Row]) -> list[list[str]]:
    """The targets, and what was measured of them."""

    def figure(key: str, **wanted: Any) -> float | None:
        found = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
        return found[0].get(key) if found else None

    def times(batch: int, peer: str, ours: str) -> float | None:
        theirs, own = figure("us", kernel=peer, batch=batch), figure("us", kernel=ours, batch=batch)
        return None if theirs is None or own is None else round(theirs / own, 2)

    table = [["target", "batch", "asked", "measured"]]
    for batch, most in ((1, 60), (32, 150)):
        table.append(
            ["scan of a layer, us", str(batch), f"<= {most}", figure("us", kernel="triton (auto)", batch=batch)]
        )
    kept = figure("kept_bytes_a_token", kernel="split", batch=1)
    table.append(["bytes kept a token for the backward pass", "1", "<= 8", kept])
    for batch in (1, 32):
        times_row = times(batch, "a program a row", "triton (auto)")
        table.append(["times as fast as a program a row", str(batch), ">= 5", times_row])
        times_fla = times(batch, "fla fused_recurrent", "triton on fla's function")
        table.append(["times as fast as fla's fused_recurrent", str(batch), ">= 1", times_fla])
    table.append(["share of prefill", "1", "<= 0.03", figure("share", what="reading and writing")])
    for batch, most_share in ((1, 0.10), (32, 0.05)):
        for what in ("bind", "step kernels"):
            found = figure("share", table="decode", batch=batch, what=what)
            table.append([f"share of a decode step, {what}", str(batch), f"<= {most_share}", found])
    return [["not measured" if cell is None else str(cell) for cell in line] for line in table]


def markdown(about: Row, rows: list[Row]) -> str:
    """The page of results: the targets, then every row."""
    head, *body = judged(rows)
    lines = ["# The kernels on a GPU", "", ", ".join(f"{name} {value}" for name, value in about.items()), ""]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(line)} |" for line in body)]
    for name in ("scan", "gradients", "thresholds", "prefill", "decode"):
        found = [row for row in rows if row["table"] == name]
        keys = list(dict.fromkeys(key for row in found for key in row if key != "table"))
        lines += ["", f"## {name}", "", f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
        lines += [f"| {' | '.join(str(row.get(key, '')) for key in keys)} |" for row in found]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Test, measure, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes in Triton's interpreter, no figures")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="directory to write to")
    options = parser.parse_args()
    if options.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        return subprocess.run(
            [sys.executable, *sys.argv], env={**os.environ, "TRITON_INTERPRET": "1"}, check=False
        ).returncode
    if not options.dry_run and not torch.cuda.is_available():
        print("There is no GPU here: torch sees no CUDA device. (--dry-run goes without.)", file=sys.stderr)
        return 2
    if not tests():
        print("The kernels' tests fail: nothing is measured.", file=sys.stderr)
        return 1
    sizes = DRY if options.dry_run else GPU
    with torch.no_grad():
        model, memory = adapted_model(sizes)
    rows: list[Row] = []
    for table in (scans(sizes), thresholds(sizes)):
        rows += table
    with torch.no_grad():
        for table in (prefill(sizes, model, memory), decode(sizes, model, memory)):
            rows += table
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "card": "none: a dry run" if options.dry_run else torch.cuda.get_device_name(),
        **{name: version(name) for name in ("torch", "triton", "transformers")},
        "command": "make gpu",
    }
    page = markdown(about, rows)
    print(page)
    if not options.dry_run:
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "kernels-gpu.json").write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")
        (options.results / "kernels-gpu.md").write_text(page)
    return int(any("wrong" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
