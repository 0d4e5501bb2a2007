"""The console script ``memfold-writer``."""

from __future__ import annotations

import logging
import sys

from memfold.api.errors import MemfoldError


def main() -> None:
    """Run a writer until SIGTERM or SIGINT."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("celery").setLevel(logging.WARNING)  # it would tell of every single hint
    from memfold_writer.service import Writer  # noqa: PLC0415 - torch takes seconds, and wrong settings show at once
    from memfold_writer.settings import Settings  # noqa: PLC0415

    try:
        sys.exit(Writer(Settings()).run())
    except (MemfoldError, OSError, ValueError) as error:
        logging.getLogger("memfold_writer").critical("the writer cannot start: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
