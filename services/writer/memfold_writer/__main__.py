"""``memfold-writer``: reads its settings from the environment, folds until SIGTERM."""

from __future__ import annotations

import logging
import sys

from memfold.service import run_service
from memfold_writer.settings import Settings


def main() -> int:
    """Run a writer. Returns 0 after a stop by signal, 1 when it cannot start or go on, 2 for wrong settings."""
    return run_service("writer", Settings, _run)


def _run(settings: Settings) -> int:
    from memfold_writer.service import Writer  # noqa: PLC0415 - torch takes seconds, and wrong settings show at once

    logging.getLogger("celery").setLevel(logging.WARNING)  # it would tell of every single hint
    return Writer(settings).run()


if __name__ == "__main__":
    sys.exit(main())
