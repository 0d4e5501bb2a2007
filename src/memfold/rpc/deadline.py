"""Deadlines with room to say why: a server answers a little before its client gives up."""

from __future__ import annotations

import asyncio
from typing import Any

NEVER = float("inf")


def answer_in(context: Any) -> float:
    """Seconds that a handler may take so that its answer, or its error, still reaches the client; inf without deadline.

    A tenth of what is left, and 0.2 s at most, is kept for the way back.
    """
    remaining: float | None = context.time_remaining()
    if remaining is None or remaining == NEVER:
        return NEVER
    return max(0.0, remaining - min(0.2, remaining / 10))


def answer_at(context: Any) -> float | None:
    """The same as a time of the running loop's clock, as ``asyncio.timeout_at`` takes it; None without deadline."""
    seconds = answer_in(context)
    return None if seconds == NEVER else asyncio.get_running_loop().time() + seconds
