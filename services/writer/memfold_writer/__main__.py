"""The console script ``memfold-writer``."""

from __future__ import annotations

import logging
import sys

from pydantic import ValidationError

from memfold.api.errors import MemfoldError
from memfold_writer.settings import Settings


def main() -> int:
    """Run a writer. Returns 0 after a stop by signal, 1 when it cannot start or go on, 2 for wrong settings."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("celery").setLevel(logging.WARNING)  # it would tell of every single hint
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            print(f"MEMFOLD_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}", file=sys.stderr)
        return 2
    from memfold_writer.service import Writer  # noqa: PLC0415 - torch takes seconds, and wrong settings show at once

    try:
        return Writer(settings).run()
    except (MemfoldError, OSError, ValueError) as error:
        print(f"the writer cannot start: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
