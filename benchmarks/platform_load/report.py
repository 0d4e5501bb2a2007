"""The report: figures, checks and verdict, as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from platform_load.leaks import Course
from platform_load.ledger import Ledger, Series
from platform_load.picture import means, percentiles

TELLING_S = 300.0  # in less, what only fills up looks like a leak
_SHOWN_WRONG = 20
_VERDICT = {True: "yes", False: "**NO**", None: "too short to tell"}


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold; None where the run was too short to tell."""

    what: str
    holds: bool | None
    found: str


def checks(ledger: Ledger, courses: list[Course], at_rest: dict[str, float], seconds: float) -> list[Check]:
    """All that a run of so many seconds must show."""
    errors = sum(ledger.errors.values())
    leaks = [f"{course.process} {course.measure}" for course in courses if course.leaks]
    held = {name: value for name, value in at_rest.items() if value}
    return [
        Check(
            "no answer is stale, foreign or from the future",
            not ledger.wrong,
            f"{len(ledger.wrong)} of {ledger.checked:,}",
        ),
        Check("no call fails", not errors, f"{errors} of {errors + sum(ledger.done.values()):,}"),
        Check(
            "nothing leaks",
            not leaks if seconds >= TELLING_S else None,
            f"rising: {', '.join(leaks)}" if leaks else f"{len(courses)} curves are flat",
        ),
        Check("no stream or slot is held after the last call", not held, str(held or "0 everywhere")),
    ]


def summary(series: Series) -> dict[str, float]:
    """A latency's figures, in milliseconds."""
    values = np.asarray(series.values) * 1e3
    if not len(values):
        return {"count": 0}
    p50, p95, p99 = (round(float(p), 2) for p in np.percentile(values, (50, 95, 99)))
    return {"count": len(values), "p50": p50, "p95": p95, "p99": p99, "most": round(float(values.max()), 2)}


def record(
    about: dict[str, Any],
    ledger: Ledger,
    levels: Mapping[tuple[str, str], Series],
    courses: list[Course],
    found: list[Check],
    seconds: float,
) -> dict[str, Any]:
    """Everything, for the JSON file."""
    return about | {
        "checks": [asdict(check) for check in found],
        "latency_ms": {what: summary(series) for what, series in ledger.latencies.items()},
        "latency_ms_over_time": {what: percentiles(series, seconds) for what, series in ledger.latencies.items()},
        "turns": ledger.turns,
        "tokens": ledger.tokens,
        "calls": dict(ledger.done),
        "errors": dict(ledger.errors),
        "expected": dict(ledger.expected),
        "wrong": ledger.wrong[:_SHOWN_WRONG],
        "levels_over_time": {f"{process} {measure}": means(series) for (process, measure), series in levels.items()},
        "courses": [asdict(course) | {"leaks": course.leaks} for course in courses],
    }


def markdown(facts: dict[str, Any]) -> str:
    """The same for people."""
    lines = ["# The platform under load", "", f"`{facts['command']}` · {facts['date']} · {facts['machine']}.", ""]
    lines += [f"{facts['platform']}. {facts['load']}.", ""]
    lines += ["| | | |", "|---|---|---|"]
    lines += [f"| {c['what']} | {_VERDICT[c['holds']]} | {c['found']} |" for c in facts["checks"]]
    lines += ["", "| latency, ms | count | p50 | p95 | p99 | most |", "|---|---|---|---|---|---|"]
    for what, row in facts["latency_ms"].items():
        cells = [f"{row[key]:,}" if key in row else "–" for key in ("count", "p50", "p95", "p99", "most")]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    lines += ["", "![Latencies and levels over the run](load.svg)", ""]
    lines += [_counts("Calls that ended well", facts["calls"])]
    lines += [_counts("Given up or cut short on purpose", facts["expected"])]
    lines += [_counts("Failed, by code", facts["errors"])]
    lines += [f"{facts['turns']:,} turns appended, {facts['tokens']:,} tokens generated in whole replies.", ""]
    lines += [_counts("Seconds of the processor", facts["cpu_s"]), ""]
    lines += facts["wrong"]
    lines += [
        "Flat or not: the first fifth of the run is left out, the rest cut in two. A curve leaks where the second half's",
        "slope (Theil and Sen), carried over that half, *and* the step between the halves' medians are more than allowed.",
        "",
        "| process | measure | first half | second half | slopes, an hour | rise | allowed | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    still = []
    for course in facts["courses"]:
        (first, second), (one, other) = course["levels"], course["slopes"]
        if first == second and not one and not other:
            still.append(f"{course['process']} {course['measure']} {first:g}")
            continue
        lines.append(
            f"| {course['process']} | {course['measure']} | {first:,.1f} | {second:,.1f} | {one:+,.1f}, {other:+,.1f} "
            f"| {course['rise']:+,.2f} | {course['allowed']:,.1f} | {'**leaks**' if course['leaks'] else 'flat'} |"
        )
    lines += ["", f"At one level in both halves: {', '.join(still)}."]
    return "\n".join(lines) + "\n"


def _counts(title: str, counts: dict[str, Any]) -> str:
    said = ", ".join(f"{what} {count:,}" for what, count in sorted(counts.items())) or "none"
    return f"{title}: {said}.  "
