"""The whole platform as a user starts it, with a model of random weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "memfold.cli"]
PATIENCE_S = 300  # a deadline, not a measure: pytest-timeout is stricter


@dataclass
class Running:
    """A ``memfold up`` and what it printed when it was ready."""

    process: subprocess.Popen[str]
    target: str
    api_key: str
    data_dir: Path
    pids: dict[str, int]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send it a signal; answer with its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@dataclass
class Cli:
    """Runs commands as a user would: in processes of their own, with nothing but their arguments."""

    environment: dict[str, str]

    @staticmethod
    def command(*args: str, data_dir: Path | None = None) -> list[str]:
        """A command line."""
        return [*COMMAND, *(["--data-dir", str(data_dir)] if data_dir else []), *args]

    def run(self, *args: str, stdin: str = "", data_dir: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args, data_dir=data_dir),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=self.environment,
            check=False,
        )

    @contextmanager
    def up(self, data_dir: Path, *args: str) -> Iterator[Running]:
        """A platform in the foreground of another process."""
        with subprocess.Popen(
            [*COMMAND, "up", "--json", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        ) as process:
            try:
                ready = process.stdout.readline()
                assert ready, process.stderr.read()
                facts: dict[str, Any] = json.loads(ready)
                yield Running(process, facts["target"], facts["api_key"], Path(facts["data_dir"]), facts["pids"])
            finally:
                if process.poll() is None:
                    process.terminate()


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line, with a random model, and deaf to what the developer's own environment says."""
    from memfold_osam.testing import write_random_model  # noqa: PLC0415 - brings torch

    model = write_random_model(tmp_path_factory.mktemp("model"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMFOLD_")}
    return Cli(
        environment
        | {
            "MEMFOLD_BACKBONE": str(model),
            "MEMFOLD_ADAPTER": str(model / "adapter"),
            "MEMFOLD_THREADS": "1",
            "MEMFOLD_DATA_DIR": str(tmp_path_factory.mktemp("nobody")),
        }
    )


@pytest.fixture(scope="session")
def platform(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A platform for all tests that leave it running."""
    with cli.up(tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture
def memfold(cli: Cli, platform: Running):
    """Runs one command against that platform."""

    def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return cli.run(*args, stdin=stdin, data_dir=platform.data_dir)

    return run
