"""Does a curve go on rising? The verdict on what must stay flat."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from platform_load.ledger import Series

HOUR_S = 3600.0
WARM_UP = 0.2
"""The part of the run that is left out: pools, caches and allocators fill up in it."""
MEASURES = {
    # What may be: at least so much, or this part of the first half's level if that is more.
    "rss": (8.0, 0.02),
    "descriptors": (4.0, 0.05),
    "connections": (3.0, 0.05),
    "threads": (2.0, 0.0),
    "data": (2.0, 0.05),
    "keys": (20.0, 0.05),
    "clients": (4.0, 0.05),
}
# Gauges, whatever they count: slots, streams, requests, memories.
OTHERS = (3.0, 0.25)


@dataclass(frozen=True, slots=True)
class Course:
    """How one measure of one process went after the warm-up.

    Attributes:
        levels: medians of both halves.
        slopes: of both halves, an hour; the median of the slopes between any two samples (Theil and Sen).
        rise: what the second half's slope comes to over the second half.
        allowed: what that, and the step from the first half's level to the second's, may come to.
    """

    process: str
    measure: str
    levels: tuple[float, float]
    slopes: tuple[float, float]
    rise: float
    allowed: float

    @property
    def leaks(self) -> bool:
        """The second half rises by more than is allowed, and lies above the first by more: a wave does only one."""
        return min(self.rise, self.levels[1] - self.levels[0]) > self.allowed


def judge(process: str, measure: str, series: Series) -> Course | None:
    """The course of a series; None for one that is too short to have any."""
    times, values = np.asarray(series.times), np.asarray(series.values)
    if len(times) < 10:
        return None
    begin = times[-1] * WARM_UP
    middle = (begin + times[-1]) / 2
    first, second = (times >= begin) & (times < middle), times >= middle
    slopes = slope(times[first], values[first]), slope(times[second], values[second])
    levels = statistics.median(values[first]), statistics.median(values[second])
    least, part = MEASURES.get(measure, OTHERS)
    return Course(
        process,
        measure,
        (float(levels[0]), float(levels[1])),
        (slopes[0] * HOUR_S, slopes[1] * HOUR_S),
        float(slopes[1] * (times[-1] - middle)),
        max(least, part * float(levels[0])),
    )


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Theil and Sen's estimate: a burst, or a moment's dip, does not move it."""
    t, v = np.asarray(times), np.asarray(values)
    later, earlier = np.triu_indices(len(t), 1)[::-1]
    return float(np.median((v[later] - v[earlier]) / (t[later] - t[earlier])))
