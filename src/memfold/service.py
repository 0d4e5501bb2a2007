"""What the ``main`` of every service does: logging, settings, exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from pydantic import ValidationError

from memfold.api.errors import MemfoldError

S = TypeVar("S")


def run_service(name: str, settings: Callable[[], S], serve: Callable[[S], int]) -> int:
    """Read the settings and serve.

    Returns:
        What ``serve`` returns; 1 when the service cannot start, 2 for wrong settings, each of which is named.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        given = settings()
    except ValidationError as error:
        for problem in error.errors():
            print(f"MEMFOLD_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}", file=sys.stderr)
        return 2
    try:
        return serve(given)
    except (MemfoldError, OSError, ValueError, TypeError) as error:
        print(f"the {name} cannot start: {error}", file=sys.stderr)
        return 1


def leave(code: int) -> NoReturn:
    """End the process here and now, once everything in it is closed.

    An interpreter that has loaded torch takes seconds to take itself apart, and waits for a computation that hangs.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
