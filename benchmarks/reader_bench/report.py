"""The report: JSON, a table, a picture."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from reader_bench.row import Row
from reader_bench.streams import Seen

_OURS, _PEER, _THIRD = "#4a7fb5", "#b9bec4", "#e0913a"
_SPANS = 60


def record(about: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """For the JSON file."""
    return about | {"rows": [asdict(row) for row in rows]}


def markdown(about: dict[str, Any], rows: list[Row], picture: str) -> str:
    """The table, and the picture's name behind it; empty for none."""
    lines = ["# The reader's engine", "", f"`{about['command']}` · {about['date']} · {about['machine']}.", ""]
    lines += [f"{about['model']}. {about['how']}", ""]
    lines += ["| | asked | | ours | peer | ratio | | |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        verdict = {True: "yes", False: "**NO**", None: "not measured"}[row.holds]
        figures = [f"{x:,}" if x is not None else "" for x in (row.ours, row.peer)]
        ratio = "" if row.ratio is None else f"{row.ratio:g}×"
        lines.append(
            f"| {row.what} | {row.asked} | {row.unit} | {' | '.join(figures)} | {ratio} | {verdict} | {row.note} |"
        )
    lines += ["", f"![The same as a picture]({picture})"] if picture else []
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: list[Row], seen: Seen) -> None:
    """Both figures of each row as bars, and the open streams over time."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a picture is drawn

    mpl.use("svg")
    # Text stays text.
    mpl.rcParams.update({"svg.hashsalt": "memfold", "svg.fonttype": "none", "font.size": 7})
    from matplotlib import pyplot as plt  # noqa: PLC0415

    measured = [row for row in rows if row.ours is not None and row.peer is not None]
    figure = plt.figure(figsize=(8, 2.6 + 0.55 * len(measured)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(0.55 * len(measured), 2.6))
    above, below = parts
    _bars(above.subplots(), measured)
    speed, gaps = below.subplots(1, 2)
    _over_time(speed, seen)
    _gaps(gaps, seen)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bars(panel: Any, rows: list[Row]) -> None:
    for at, row in enumerate(reversed(rows)):
        figures = row.ours or 0.0, row.peer or 0.0
        for value, up, shade in zip(figures, (0.2, -0.2), (_OURS, _PEER), strict=True):
            share = value / max(figures)
            panel.barh(at + up, share, height=0.38, color=shade)
            panel.text(share + 0.01, at + up, f"{value:,} {row.unit}", va="center")
    panel.set_yticks(range(len(rows)), [textwrap.fill(row.what, 48) for row in reversed(rows)])
    panel.set_xlim(0, 1.2)
    panel.set_xticks([])
    panel.set_title("ours (blue) and the peer (grey), each pair on a scale of its own", fontsize=9)
    panel.spines[["top", "right", "bottom"]].set_visible(False)


def _over_time(panel: Any, seen: Seen) -> None:
    width = max(times[-1] for times in seen.tokens) / _SPANS
    middles = [width * (i + 0.5) for i in range(_SPANS)]
    tokens = Counter(min(_SPANS - 1, int(at / width)) for times in seen.tokens for at in times)
    panel.plot(middles, [tokens[i] / width for i in range(_SPANS)], color=_OURS, label="tokens/s")
    open_now = [sum(times[0] <= at <= times[-1] for times in seen.tokens) for at in middles]
    panel.plot(middles, open_now, color=_THIRD, label="open streams")
    panel.set_title(f"{len(seen.tokens)} streams, over seconds", fontsize=9)
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)


def _gaps(panel: Any, seen: Seen) -> None:
    """Each stream as a line from its median gap up to its longest, in the order of arrival."""
    for at, times in enumerate(seen.tokens):
        gaps = [(later - earlier) * 1e3 for earlier, later in pairwise(times)]
        panel.plot([at, at], [statistics.median(gaps), max(gaps)], color=_PEER, linewidth=1)
        panel.plot(at, statistics.median(gaps), ".", color=_OURS, markersize=4)
        panel.plot(at, max(gaps), ".", color=_THIRD, markersize=4)
    panel.set_title("gap between tokens: median (blue), longest; ms", fontsize=9)
    panel.set_xlabel("streams in the order of their arrival")
    panel.set_ylim(bottom=0)
    panel.spines[["top", "right"]].set_visible(False)
