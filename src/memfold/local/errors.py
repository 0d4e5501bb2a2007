"""What can go wrong with a platform on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memfold.api.errors import MemfoldError


class LocalPlatformError(MemfoldError):
    """The platform on this machine cannot be started, found or kept running."""


class NotInstalledError(LocalPlatformError):
    """A program that the platform needs is not installed."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed; install memfold with its services: pip install 'memfold[local]'")


class AlreadyRunningError(LocalPlatformError):
    """Another platform runs on this data directory."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(f"a platform is running on {data_dir} already; stop it, or use another --data-dir")


class NotRunningError(LocalPlatformError):
    """No platform has left its address in this data directory."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(f"no platform is running on {data_dir}; start one with: memfold up")


class AddressInUseError(LocalPlatformError):
    """Something else listens where the gateway should."""

    def __init__(self, address: str) -> None:
        super().__init__(
            f"{address} is in use; choose another address with --listen, or --listen 127.0.0.1:0 for a free one"
        )


class ChildDiedError(LocalPlatformError):
    """A process of the platform ended by itself.

    Attributes:
        name: which one.
        returncode: how it ended, as ``subprocess`` says it: negative for a signal.
        last_lines: the end of its log.
        log: its log.
    """

    def __init__(self, name: str, returncode: int, last_lines: Sequence[str], log: Path) -> None:
        how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        super().__init__(f"the {name} died ({how})")
        self.name = name
        self.returncode = returncode
        self.last_lines = tuple(last_lines)
        self.log = log


class NotReadyError(LocalPlatformError):
    """A process of the platform runs but does not serve in time.

    Attributes:
        name: which one.
        last_lines: the end of its log.
        log: its log.
    """

    def __init__(self, name: str, timeout_s: float, last_lines: Sequence[str], log: Path) -> None:
        super().__init__(f"the {name} does not serve after {timeout_s:.0f} s")
        self.name = name
        self.last_lines = tuple(last_lines)
        self.log = log
