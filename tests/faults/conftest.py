"""The helpers are in ``memfold_faults``, a folder of this one, which child processes use too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

sys.path.append(str(Path(__file__).parent))

settings.register_profile("long", max_examples=2000, print_blob=True)

if TYPE_CHECKING:
    from memfold_faults.rig import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where services are forked: nobody wants to wait ten seconds for each."""
    from memfold_faults.rig import Nursery  # noqa: PLC0415 -- found only now

    nursery = Nursery()
    yield nursery
    nursery.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was put on the platform, and what became of it."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "told":
                terminalreporter.write_line(value)
