"""Children that do not outlive whoever started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def when_parent_dies(number: signal.Signals) -> Callable[[], None]:
    """What a child runs before its program, so that the kernel signals it when the thread that started it ends.

    For ``preexec_fn``; does nothing where there is no Linux.
    """
    if sys.platform != "linux":
        return lambda: None
    # Looked up here: between fork and exec nothing may be imported or loaded.
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask_the_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before we could ask
            os.kill(os.getpid(), number)

    return ask_the_kernel
