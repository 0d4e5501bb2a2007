"""Latencies and levels over the run: as numbers for the report, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from platform_load.ledger import Series

PERCENTILES = (50, 95, 99)
PANELS = {
    "memory of the processes, MiB": ("rss",),
    "file descriptors": ("descriptors",),
    "open streams": ("open_streams",),
    "Redis: keys, and data in KiB (dotted, right)": ("keys", "data"),
}
_SHADES = {50: "#4a7fb5", 95: "#e0913a", 99: "#b5464a"}
_FEWEST = 5


def percentiles(series: Series, seconds: float) -> dict[str, list[float]]:
    """Percentiles of each of up to forty spans of the run, in milliseconds; and the spans' middles in minutes."""
    width = max(5.0, seconds / 40)
    times, values = np.asarray(series.times), np.asarray(series.values) * 1e3
    found: dict[str, list[float]] = {name: [] for name in ("minutes", *(f"p{p}" for p in PERCENTILES))}
    for begin in np.arange(0, seconds, width):
        here = values[(times >= begin) & (times < begin + width)]
        if len(here) < _FEWEST:
            continue
        found["minutes"].append(round((begin + width / 2) / 60, 3))
        for p in PERCENTILES:
            found[f"p{p}"].append(round(float(np.percentile(here, p)), 2))
    return found


def means(series: Series) -> dict[str, list[float]]:
    """Means of up to sixty spans of the run, and the spans' middles in minutes."""
    spans = np.array_split(np.column_stack([series.times, series.values]), min(60, len(series.times)))
    middles = np.array([span.mean(0) for span in spans])
    return {"minutes": np.round(middles[:, 0] / 60, 3).tolist(), "level": np.round(middles[:, 1], 2).tolist()}


def draw(path: Path, latencies: Mapping[str, Series], found: Mapping[tuple[str, str], Series], seconds: float) -> None:
    """Four panels of latencies, four of levels."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a picture is drawn

    mpl.use("svg")
    # Text stays text.
    mpl.rcParams.update({"svg.hashsalt": "memfold", "svg.fonttype": "none", "font.size": 7})
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(4, 2, figsize=(9, 10.5), sharex=True)
    panels = list(axes.flatten())
    for panel, (what, series) in zip(panels, latencies.items(), strict=False):
        _latency(panel, what, percentiles(series, seconds))
    for panel, (title, measures) in zip(panels[len(latencies) :], PANELS.items(), strict=True):
        _levels(panel, title, measures, found)
    for panel in panels[-2:]:
        panel.set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _latency(panel: Any, what: str, lines: Mapping[str, list[float]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator  # noqa: PLC0415

    for p, shade in _SHADES.items():
        panel.plot(lines["minutes"], lines[f"p{p}"], color=shade, label=f"p{p}", linewidth=1)
    panel.set_title(f"{what}, ms", fontsize=9)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.minorticks_off()
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, ncols=3)


def _levels(panel: Any, title: str, measures: tuple[str, ...], found: Mapping[tuple[str, str], Series]) -> None:
    for (process, measure), series in found.items():
        if measure not in measures:
            continue
        line = means(series)
        if measure == "data":
            beside = panel.twinx()
            beside.plot(line["minutes"], np.array(line["level"]) * 1024, linewidth=1, linestyle=":")
            beside.set_ylim(bottom=0)
            beside.spines[["top"]].set_visible(False)
        else:
            panel.plot(line["minutes"], line["level"], label=process, linewidth=1)
    panel.set_title(title, fontsize=9)
    panel.set_ylim(bottom=0)
    panel.spines[["top", "right"]].set_visible(False)
    if panel.lines:
        panel.legend(frameon=False, ncols=2)
