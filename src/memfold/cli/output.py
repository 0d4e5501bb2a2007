"""How the commands speak: tables for people, JSON for programs, never the terminal's own control codes."""

from __future__ import annotations

import json
import sys
import unicodedata
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console

_PIPED_WIDTH = 200


def console(stream: TextIO | None = None) -> Console:
    """A console that prints text as it is: no markup, no highlighting, no emoji codes.

    Args:
        stream: standard output where it is None.
    """
    stream = stream or sys.stdout
    width = None if stream.isatty() else _PIPED_WIDTH
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width, soft_wrap=False)


def say(out: Console, text: str = "", *, style: str | None = None, end: str = "\n") -> None:
    """Print a line that the terminal may wrap, but nobody cuts."""
    out.print(text, style=style, end=end, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def printable(text: str) -> str:
    """Text of unknown origin, safe for a terminal: control characters other than newline and tab are shown as ``�``."""
    return "".join(c if c in "\n\t" or not unicodedata.category(c).startswith("C") else "�" for c in text)


def human_bytes(count: int) -> str:
    """``9.2 KB``."""
    size = float(count)
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"


def iso_time(ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339, in UTC; empty for 0."""
    return (
        datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if ms else ""
    )
