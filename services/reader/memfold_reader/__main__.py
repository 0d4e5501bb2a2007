"""``memfold-reader``: reads its settings from the environment, serves until SIGTERM."""

from __future__ import annotations

import asyncio
import sys

from memfold.service import leave, run_service
from memfold_reader.settings import Settings


def main() -> int:
    """Serve. Returns 0 after a stop by signal, 1 when the reader cannot start or go on, 2 for wrong settings."""
    return run_service("reader", Settings, _run)


def _run(settings: Settings) -> int:
    from memfold_reader.app import serve  # noqa: PLC0415 - torch takes seconds, and wrong settings show at once

    leave(asyncio.run(serve(settings)))


if __name__ == "__main__":
    sys.exit(main())
