"""What holds for every command: global options in any place, and the one edge where errors become lines."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from memfold.api.errors import MemfoldError
from memfold.local.errors import ChildDiedError, NotReadyError

FAILURE = 1
USAGE = 2
INTERRUPTED = 130
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
GLOBAL_OPTIONS = ("--target", "--api-key", "--data-dir")

_LAST_ERROR = re.compile(r"^.*last error: (?:[A-Z]+: )?")  # gRPC's own frame around what went wrong

_HINTS = {
    "API_KEY_INVALID": "set --api-key or MEMFOLD_API_KEY",
    "TENANT_MISMATCH": "use a key of that tenant",
    "MEMORY_NOT_FOUND": "memfold memories lists what there is",
    "MEMORY_ALREADY_EXISTS": "memfold show shows it; choose another name",
    "MODEL_LOADING": "it may still be loading; try again in a moment",
    "MODEL_MISMATCH": "start the platform with the model that folded this memory, or use another memory",
    "STORE_UNAVAILABLE": "is Redis running?",
    "READER_UNAVAILABLE": "is the reader running?",
    "UNREACHABLE": "is a platform running there? memfold up starts one",
    "SHUTTING_DOWN": "try again in a moment",
    "BACKLOG_FULL": "the writer is behind; try again in a moment",
    "REVISION_MISMATCH": "it has changed meanwhile; look again, then repeat",
    "REVISION_NOT_KEPT": "memfold revisions lists those that are kept",
    "REVISION_FOREIGN": "something was forgotten or taken back since; memfold revisions lists what there is now",
    "OPERATION_NOT_FOUND": "memfold operations lists what there is",
}


def describe(error: MemfoldError) -> str:
    """An error as people read it: one line with a hint; a process that died, with the end of its log."""
    hint = _HINTS.get(error.reason)
    what = f"nothing answers: {_LAST_ERROR.sub('', error.message)}" if error.reason == "UNREACHABLE" else error.message
    line = f"memfold: {what}" + (f" ({hint})" if hint else "")
    if isinstance(error, ChildDiedError | NotReadyError):
        said = error.last_lines or ("(nothing)",)
        return "\n  ".join([f"{line}; its last lines:", *said, f"whole log: {error.log}"])
    return line


def hoisted(args: Sequence[str]) -> list[str]:
    """The arguments with the global options in front, wherever they were given."""
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(args)
    for arg in remaining:
        if arg == "--":
            return [*front, *rest, arg, *remaining]
        if arg in GLOBAL_OPTIONS:
            front += [arg, *[value for value in [next(remaining, None)] if value is not None]]
        elif arg.startswith(tuple(f"{option}=" for option in GLOBAL_OPTIONS)):
            front.append(arg)
        else:
            rest.append(arg)
    return front + rest


def _said(error: OSError) -> str:
    what = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {what}"
    return f"cannot write the output: {what}" if error.errno in _CANNOT_WRITE else what


def _open_closed() -> None:
    """A shell may close the output (``>&-``); Python then has none, and whoever prints would stumble."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 -- for as long as the process lives


def _silence_output() -> None:
    """Let nothing be written any more: what is still in the buffers cannot be."""
    with suppress(OSError, ValueError):  # where it is no file of the system's, there is nothing to be done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class MemfoldGroup(TyperGroup):
    """All commands. Expected failures end in one line on stderr and exit code 1, never in a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the global options from any place."""
        return super().parse_args(ctx, hoisted(args))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a process does. A file that cannot be written or read is one line; a reader that went away is none."""
        _open_closed()
        try:
            try:
                return super().main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # what is left would fail at the interpreter's end, where nobody can say why
        except OSError as error:
            _silence_output()
            if error.errno != errno.EPIPE:
                print(f"memfold: {_said(error)}", file=sys.stderr)
            raise SystemExit(FAILURE) from None

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except MemfoldError as error:
            print(describe(error), file=sys.stderr)
            raise typer.Exit(FAILURE) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
