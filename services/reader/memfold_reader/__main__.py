"""Starts a reader."""

from __future__ import annotations

import asyncio
import logging
import sys

from memfold_reader.app import serve
from memfold_reader.settings import Settings


def main() -> None:
    """Run the reader until it is told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(asyncio.run(serve(Settings())))


if __name__ == "__main__":
    main()
