"""``memfold ingest``: turns from a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from memfold.api.values import Turn
from memfold.cli.group import FAILURE
from memfold.cli.options import connect
from memfold.cli.output import console, counted, print_json, printable, say
from memfold.cli.turn_lines import BadLine, TurnLine, read_lines

if TYPE_CHECKING:  # brings gRPC, see options
    from memfold.client import Ack, Memfold

_STDIN = "-"
# A full backlog empties at the writer's pace; give up when nothing at all gets through for so long.
_PATIENCE_S = 120.0
_SAY_AGAIN_S = 10.0


def ingest(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl|-", help="One turn a line; - reads standard input.")],
    memory: Annotated[str, typer.Option(metavar="NAME", help="The memory of lines that name none.")] = "",
    source: Annotated[
        str, typer.Option(metavar="NAME", help="Goes into the ids of turns that have none; else the file's name.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Append turns from a JSONL file; memories that do not exist are made.

    A line is `{"memory": "alice", "role": "user", "content": "Hi", "id": "…", "speaker": "…", "metadata": {…}}`; all but role
    and content may be missing. A bad line is reported with its number and costs no other; the exit code is then 1.

    Reading a file again appends nothing twice: a turn without an id gets one made from the file's name, the line's number
    and its text. Two pipes into one memory each need a --source of their own.
    """
    with _opened(file) as (lines, size), connect(context) as client:
        ingesting = Ingesting(client, size)
        ingesting.run(read_lines(lines, source=source or Path(file).name, memory=memory))
    report = ingesting.report
    if as_json:
        print_json(report.as_dict())
    else:
        say(console(), report.sentence())
    if report.failed:
        raise typer.Exit(FAILURE)


@dataclass(slots=True)
class Report:
    """What became of the lines."""

    appended: int = 0
    duplicates: int = 0
    failed: list[tuple[int, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        failed = [{"line": number, "reason": reason} for number, reason in sorted(self.failed)]
        return {"appended": self.appended, "duplicates": self.duplicates, "failed": failed}

    def sentence(self) -> str:
        """For people."""
        known = f", {self.duplicates:,} already there" if self.duplicates else ""
        failed = f", {counted(len(self.failed), 'line')} failed" if self.failed else ""
        return f"{counted(self.appended, 'turn')} appended{known}{failed}"


class Ingesting:
    """Streams lines to the platform and accounts for every one."""

    def __init__(self, client: Memfold, size: int | None) -> None:
        self.report = Report()
        self._client = client
        self._progress = _progress_bar()
        self._task = self._progress.add_task("0 turns", total=size)
        self._again: deque[TurnLine] = deque()
        self._sent: deque[TurnLine] = deque()
        self._retry_after_s = 0.0
        self._waits_for = ""
        self._say_again_at = 0.0

    def run(self, lines: Iterable[TurnLine | BadLine]) -> None:
        """Append every line. What the platform has no room for yet is sent again before anything else."""
        remaining = iter(lines)
        last_success = time.monotonic()
        with self._progress:
            while True:
                got_through = self._stream(remaining)
                if not self._again:
                    return
                if got_through:
                    last_success = time.monotonic()
                elif time.monotonic() > last_success + _PATIENCE_S:
                    self._give_up()
                    return
                self._say_what_for()
                time.sleep(self._retry_after_s)

    def _stream(self, remaining: Iterator[TurnLine | BadLine]) -> int:
        """Send lines until they end or one has to be sent again; answer with how many got through."""
        self._retry_after_s = 0.0
        got_through = 0
        rejected: list[TurnLine] = []
        for ack in self._client.stream(self._pairs(remaining), create=True):
            line = self._sent.popleft()
            if ack.error is not None and ack.error.retry_after_ms:
                rejected.append(line)
                self._waits_for = f"{line.memory}: {ack.error.message}"
                self._retry_after_s = max(self._retry_after_s, ack.error.retry_after_ms / 1000)
            else:
                self._account(line, ack)
                got_through += ack.error is None
        self._again.extendleft(reversed(rejected))
        return got_through

    def _pairs(self, remaining: Iterator[TurnLine | BadLine]) -> Iterator[tuple[str, Turn]]:
        """What the stream takes, from a thread of gRPC's; ends early when something has to be sent again."""
        while not self._retry_after_s:
            line = self._again.popleft() if self._again else next(remaining, None)
            if line is None:
                return
            if isinstance(line, BadLine):
                self._fail(line, line.reason)
                continue
            self._sent.append(line)
            yield line.memory, line.turn

    def _account(self, line: TurnLine, ack: Ack) -> None:
        if ack.error is not None:
            self._fail(line, ack.error.message)
            return
        self.report.duplicates += ack.duplicate
        self.report.appended += not ack.duplicate
        self._progress.update(self._task, advance=line.size, description=self._count())

    def _count(self) -> str:
        return counted(self.report.appended + self.report.duplicates, "turn")

    def _say_what_for(self) -> None:
        """A pause looks like a standstill to whoever does not know of it."""
        self._progress.update(self._task, description=f"{self._count()}, waiting")
        now = time.monotonic()
        if now >= self._say_again_at:
            self._say_again_at = now + _SAY_AGAIN_S
            say(self._progress.console, printable(f"waiting ({self._waits_for}); this goes on by itself"))

    def _fail(self, line: TurnLine | BadLine, reason: str) -> None:
        self.report.failed.append((line.number, reason))
        say(self._progress.console, printable(f"line {line.number}: {reason}"))
        self._progress.advance(self._task, line.size)

    def _give_up(self) -> None:
        for line in self._again:
            self._fail(line, "the writer is too far behind; run this again later, nothing is appended twice")
        last = max(line.number for line in self._again)
        say(self._progress.console, f"stopped: lines after line {last} were not sent")


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    out = console(sys.stderr)
    return Progress(*columns, console=out, disable=not out.is_terminal)


@contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """A file and its size in bytes; standard input has none."""
    if file == _STDIN:
        yield sys.stdin.buffer, None
        return
    try:
        opened = Path(file).open("rb")  # noqa: SIM115 -- closed below; only opening it may be the caller's mistake
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file}: {error.strerror}", param_hint="FILE") from None
    with opened:
        yield opened, Path(file).stat().st_size
