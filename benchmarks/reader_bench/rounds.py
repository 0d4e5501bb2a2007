"""As many rounds as the time allows."""

from __future__ import annotations

import time
from collections.abc import Iterator


def rounds(seconds: float, most: int) -> Iterator[int]:
    """Count up while one more round, as long as those before, would end within the time; once in any case."""
    began = time.monotonic()
    for done in range(most):
        yield done
        if (time.monotonic() - began) * (done + 2) / (done + 1) > seconds:
            return
