"""What the answers of a run say: means with their intervals, as data, as Markdown, as a plot."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfold.evaluation.answers import Answer
from memfold.evaluation.arms import Arm

Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of scores between 0 and 1, and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, scores: Sequence[float]) -> Mean:
        """Wilson's interval where all is right or wrong, else the normal one."""
        n = len(scores)
        if not n:
            return cls(0.0, 0.0, 1.0, 0)
        value = statistics.fmean(scores)
        if all(score in (0, 1) for score in scores):
            return cls(value, *wilson(value, n), n)
        half = Z95 * statistics.stdev(scores) / math.sqrt(n) if n > 1 else 1.0
        return cls(value, max(0.0, value - half), min(1.0, value + half), n)

    def as_dict(self) -> dict[str, float | int]:
        """For programs."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4), "n": self.n}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.2f} to {self.high:.2f})"


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n."""
    z2 = Z95**2 / n
    centre = (share + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class ArmResult:
    """How well an arm answers, overall and by group, and what an answer costs in the median."""

    score: Mean
    groups: Mapping[str, Mean]
    prompt_tokens: float
    first_token_ms: float
    total_ms: float

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "score": self.score.as_dict(),
            "groups": {name: mean.as_dict() for name, mean in self.groups.items()},
            "prompt_tokens_p50": self.prompt_tokens,
            "first_token_ms_p50": self.first_token_ms,
            "total_ms_p50": self.total_ms,
        }


def results(answers: Iterable[Answer]) -> dict[Arm, ArmResult]:
    """By arm, in the arms' own order."""
    by_arm: dict[Arm, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_arm[Arm(answer.arm)].append(answer)
    return {arm: _result(by_arm[arm]) for arm in Arm if arm in by_arm}


def _result(answers: Sequence[Answer]) -> ArmResult:
    groups: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        groups[answer.group].append(answer.score)
    return ArmResult(
        Mean.of([answer.score for answer in answers]),
        {name: Mean.of(groups[name]) for name in sorted(groups)},
        statistics.median(answer.prompt_tokens for answer in answers),
        round(statistics.median(answer.first_token_ms for answer in answers), 1),
        round(statistics.median(answer.total_ms for answer in answers), 1),
    )


def markdown(title: str, facts: Mapping[str, object], arms: Mapping[Arm, ArmResult]) -> str:
    """A page: what was run, the arms, the groups."""
    groups = sorted({name for result in arms.values() for name in result.groups})
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += _table(
        ["arm", "score (95 % interval)", "n", "prompt tokens", "first token, ms", "whole answer, ms"],
        (
            [
                arm,
                str(r.score),
                str(r.score.n),
                f"{r.prompt_tokens:,.0f}",
                f"{r.first_token_ms:,.0f}",
                f"{r.total_ms:,.0f}",
            ]
            for arm, r in arms.items()
        ),
    )
    if len(groups) > 1:
        rows = (
            [name, *(f"{r.groups[name].value:.2f}" if name in r.groups else "" for r in arms.values())]
            for name in groups
        )
        lines += ["", *_table(["group", *arms], rows)]
    return "\n".join([*lines, "", "Tokens and times are medians of an answer.", ""])


def plot(path: Path, title: str, arms: Mapping[Arm, ArmResult]) -> None:
    """Score against tokens in the prompt, with intervals; the file's ending says the format."""
    from matplotlib import pyplot as plt  # noqa: PLC0415  heavy, and only needed here

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for arm, result in arms.items():
        mean = result.score
        spread = [[mean.value - mean.low], [mean.high - mean.value]]
        axes.errorbar([result.prompt_tokens], [mean.value], yerr=spread, fmt="o", capsize=3, label=arm)
        axes.annotate(arm, (result.prompt_tokens, mean.value), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="tokens in the prompt (median)", ylabel="score", title=title)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]
