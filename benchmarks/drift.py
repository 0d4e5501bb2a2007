"""What becomes of a state that is kept in bf16, and of ours in fp32, over 100,000 tokens of writes.

    python benchmarks/drift.py        # about ten seconds; the same numbers every time

Random tokens are written into four states of rank 8 for each setting of the gates, three times: in fp64, which is
the truth, in fp32, and with the state rounded to bf16 after every token, as a model does that keeps it in its
weights' type. The rest of that third run is fp32, which is kind to it. Prints the distance from the truth relative
to the truth's norm (mean of the four), and writes it to benchmarks/results/drift.json and docs/images/drift.svg.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from memfold_kernels.delta_scan import delta_scan

ROOT = Path(__file__).resolve().parent.parent
SEQUENCES, RANK, SEED = 4, 8, 0


@dataclass(frozen=True)
class Setting:
    """How strongly a token writes on average, and whether the rest of the state decays with it."""

    name: str
    beta: float
    decays: bool


SETTINGS = (
    Setting("untrained gates, beta 0.18", 0.18, True),
    Setting("published target, beta 0.05", 0.05, True),
    Setting("sparse writes, beta 0.005", 0.005, True),
    Setting("sparser writes, beta 0.0005", 0.0005, True),
    Setting("no_lambda, beta 0.05", 0.05, False),
)


def tokens(setting: Setting, count: int) -> tuple[Tensor, ...]:
    """Keys, values and gates as the mechanism makes them, fp64 (SEQUENCES, count, 1, RANK)."""
    g = torch.Generator().manual_seed(SEED)
    shape = (SEQUENCES, count, 1, RANK)
    k = normalize(torch.randn(shape, generator=g, dtype=torch.float64).tanh(), dim=-1)
    v = torch.randn(shape, generator=g, dtype=torch.float64)
    logit = torch.logit(torch.tensor(setting.beta, dtype=torch.float64))
    beta = (logit + 0.5 * torch.randn(shape, generator=g, dtype=torch.float64)).sigmoid()
    return k, v, 1 - beta if setting.decays else torch.ones_like(beta), beta


def scanned(written: tuple[Tensor, ...], marks: list[int], dtype: torch.dtype) -> list[Tensor]:
    """The states at the marks by the scan."""
    k, v, keep, beta = (t.to(dtype) for t in written)
    state = torch.zeros(len(k), 1, RANK, RANK, dtype=dtype)
    states = []
    for begin, end in zip([0, *marks], marks, strict=False):
        part = slice(begin, end)
        _, state = delta_scan(
            torch.zeros_like(k[:, part]), k[:, part], v[:, part], keep[:, part], beta[:, part], beta[:, part], state
        )
        states.append(state)
    return states


def rounded(written: tuple[Tensor, ...], marks: list[int]) -> list[Tensor]:
    """The states at the marks where the state is rounded to bf16 after every token."""
    k, v, keep, beta = (t[:, :, 0].float().transpose(0, 1)[..., None].contiguous() for t in written)
    state = torch.zeros(k.shape[1], RANK, RANK)
    states, write, keys = [], beta * v, k.mT
    for t in range(marks[-1]):
        update = write[t] - beta[t] * (state @ k[t])
        state = torch.baddbmm(keep[t] * state, update, keys[t]).bfloat16().float()
        if t + 1 in marks:
            states.append(state[:, None])
    return states


def distances(states: list[Tensor], truth: list[Tensor]) -> Tensor:
    """Relative distance at each mark, mean over each setting's sequences: (settings, marks)."""
    far = torch.stack(
        [(s - t).flatten(1).norm(dim=1) / t.flatten(1).norm(dim=1) for s, t in zip(states, truth, strict=True)]
    )
    return far.view(len(truth), len(SETTINGS), SEQUENCES).mean(-1).T


def measure(count: int) -> dict[str, Any]:
    """The distances by setting and by the state's type, at the marks."""
    marks = sorted({round(10 ** (half / 2)) for half in range(20) if 10 ** (half / 2) < count} | {count})
    written = tuple(torch.cat(parts) for parts in zip(*(tokens(s, count) for s in SETTINGS), strict=True))
    truth = scanned(written, marks, torch.float64)
    kinds = {"fp32": scanned(written, marks, torch.float32), "bf16": rounded(written, marks)}
    far = {kind: distances(states, truth).tolist() for kind, states in kinds.items()}
    return {"tokens": marks} | {
        setting.name: {kind: [float(f"{x:.2e}") for x in far[kind][i]] for kind in far}
        for i, setting in enumerate(SETTINGS)
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """The distances over the tokens written, on logarithmic axes."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a picture is drawn

    mpl.use("svg")
    # Text stays text, and the file the same from run to run.
    mpl.rcParams.update({"svg.hashsalt": "memfold", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for number, setting in enumerate(SETTINGS):
        for kind, style in (("bf16", "-"), ("fp32", "--")):
            label = setting.name if kind == "bf16" else None
            axes.loglog(results["tokens"], results[setting.name][kind], style, color=f"C{number}", label=label)
    axes.set(xlabel="tokens written", ylabel="relative distance from fp64", title="bf16 state —    fp32 state - -")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    torch.set_num_threads(1)
    results = measure(parser.parse_args().tokens)
    print(f"{'':32}" + "".join(f"{n:>9}" for n in results["tokens"]))
    for setting in SETTINGS:
        for kind, values in results[setting.name].items():
            print(f"{setting.name:28}{kind:4}" + "".join(f"{x:9.1e}" for x in values))
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    found = {"command": "python benchmarks/drift.py", "torch": torch.__version__} | results
    (ROOT / "benchmarks" / "results" / "drift.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(results, ROOT / "docs" / "images" / "drift.svg")


if __name__ == "__main__":
    main()
