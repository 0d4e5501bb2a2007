"""One process of the platform."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from memfold.local.errors import NotInstalledError
from memfold.local.parent import when_parent_dies

LAST_LINES = 20
_LONGEST_LINE = 400


def program(name: str) -> Path:
    """A console script installed beside this interpreter.

    Raises:
        NotInstalledError: it is not there.
    """
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        raise NotInstalledError(name)
    return path


def last_lines(log: Path, count: int = LAST_LINES) -> tuple[str, ...]:
    """The end of a log; long lines are cut."""
    if not log.exists():
        return ()
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - count * _LONGEST_LINE))
        text = file.read().decode(errors="replace")
    return tuple(line[:_LONGEST_LINE] for line in text.splitlines()[-count:])


@dataclass(slots=True)
class Child:
    """A service that runs as a process of its own.

    It leads its own session: ctrl-C at the terminal reaches the platform alone, which then stops its children in order.
    """

    name: str
    log: Path
    ready_file: Path
    _process: subprocess.Popen[bytes]
    _asked: bool = False

    @classmethod
    def start(cls, name: str, environment: Mapping[str, str], *, log: Path, ready_file: Path) -> Self:
        """Start the console script ``memfold-NAME``; the log of its last run is kept beside the new one.

        What follows a hyphen in the name is not of the script's: ``reader-2`` runs ``memfold-reader``.

        Must be called from a thread that lives as long as the child should.

        Raises:
            NotInstalledError: there is no such script.
        """
        command = [sys.executable, str(program(f"memfold-{name.partition('-')[0]}"))]
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        ready_file.unlink(missing_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 -- our own program
                command,
                env={**environment, "MEMFOLD_READY_FILE": str(ready_file), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # SIGKILL, because it must not fail; every process of memfold is built to be killed.
                preexec_fn=when_parent_dies(signal.SIGKILL),  # noqa: PLW1509 -- before any thread or channel exists
            )
        return cls(name, log, ready_file, process)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def address(self) -> str | None:
        """Where it serves; None while it does not yet."""
        if not self.ready_file.exists():
            return None
        return str(json.loads(self.ready_file.read_text())["address"])

    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def last_lines(self) -> tuple[str, ...]:
        """The end of its log."""
        return last_lines(self.log)

    def ask_to_stop(self) -> None:
        """Send it SIGTERM, the first time that this is called."""
        if not self._asked and self.returncode() is None:
            self._process.terminate()
        self._asked = True

    def stop(self, grace_s: float) -> None:
        """Ask it to end, unless it has been asked; after the grace, end it."""
        self.ask_to_stop()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.ready_file.unlink(missing_ok=True)
