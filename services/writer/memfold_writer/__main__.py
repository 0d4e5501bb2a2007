"""``memfold-writer``: reads its settings from the environment, folds until SIGTERM.

``memfold-writer --reconcile-only`` folds nothing and loads no model: it finds what hints have missed and goes on with
operations, for all models.
"""

from __future__ import annotations

import argparse
import logging
import sys

from memfold.service import leave, run_service
from memfold_writer.settings import Settings


def main() -> int:
    """Run a writer. Returns 0 after a stop by signal, 1 when it cannot start or go on, 2 for wrong settings."""
    parser = argparse.ArgumentParser(prog="memfold-writer", description="Folds turns into states. See MEMFOLD_*.")
    parser.add_argument(
        "--reconcile-only",
        action="store_true",
        help="fold nothing, only find what hints missed and go on with operations",
    )
    alone = parser.parse_args().reconcile_only
    return run_service("writer", Settings, _run_alone if alone else _run)


def _run_alone(settings: Settings) -> int:
    from memfold_writer.alone import run  # noqa: PLC0415 - wrong settings show at once

    return run(settings)


def _run(settings: Settings) -> int:
    from memfold_writer.service import Writer  # noqa: PLC0415 - torch takes seconds, and wrong settings show at once

    logging.getLogger("celery").setLevel(logging.WARNING)  # it would tell of every single hint
    leave(Writer(settings).run())


if __name__ == "__main__":
    sys.exit(main())
