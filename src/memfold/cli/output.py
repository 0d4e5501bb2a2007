"""How the commands speak: tables for people, JSON for programs, never the terminal's own control codes."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

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


def print_table(out: Console, table: Table, *, whole: Collection[str] = ()) -> None:
    """Print a table. A narrow terminal folds its cells, and cuts none.

    Args:
        out: where to.
        table: what; how its columns fold is set here.
        whole: headers of the columns whose cells are for copying: not folded where the others have room beside them.
    """
    for_copying = [column for column in table.columns if column.header in whole]
    longest = sum(max((cell_len(str(cell)) for cell in column.cells), default=0) for column in for_copying)
    for column in table.columns:
        column.overflow = "fold"
        column.no_wrap = column in for_copying and longest <= out.width * 0.6
    out.print(table)


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def printable(text: str) -> str:
    """Text of unknown origin, safe for a terminal: control characters other than newline and tab are shown as ``�``."""
    return "".join(c if c in "\n\t" or not unicodedata.category(c).startswith("C") else "�" for c in text)


def counted(number: int, what: str) -> str:
    """``1 turn``, ``2 turns``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


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
