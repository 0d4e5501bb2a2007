"""Ends a command properly when the system asks for it."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def exit_on_termination() -> None:
    """From now on SIGTERM and SIGHUP unwind like ctrl-C does, so that children are stopped and files removed.

    SIGINT too is taken on purpose: a shell starts background jobs deaf to it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
