"""A line of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """What was asked and what was found.

    Attributes:
        what: was measured.
        asked: as the table says it.
        unit: of ``ours`` and ``peer``.
        ours, peer: both figures; None where there is only a verdict, or nothing was measured.
        ratio: ours to the peer's as it was asked for; more is better.
        holds: whether it was reached; None where it was not measured.
        note: what else is to be known.
        details: for the JSON file.
    """

    what: str
    asked: str
    unit: str = ""
    ours: float | None = None
    peer: float | None = None
    ratio: float | None = None
    holds: bool | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
