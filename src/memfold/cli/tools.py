"""Commands that need the model's libraries. Those are found by entry point: this package imports none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memfold.api.errors import MemfoldError

GROUP = "memfold.tools"


class ToolMissingError(MemfoldError):
    """A command's library is not installed."""

    def __init__(self, module: str, extra: str = "model") -> None:
        super().__init__(f"{module} is not installed: pip install 'memfold[{extra}]'")


class ToolFailedError(MemfoldError):
    """What a command was given cannot be worked on."""


def run_tool(name: str, *args: Any) -> Any:
    """Call the function that is registered under a name.

    Raises:
        ToolMissingError: it, or a library that it needs, is not installed.
        ToolFailedError: it refused its arguments; the message, on one line, says why.
    """
    tool = _load(name)
    try:
        return tool(*args)
    except (OSError, TypeError, ValueError) as error:
        raise ToolFailedError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """What went wrong, on one line; of a file that cannot be read, which one and why."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"cannot read {error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _load(name: str) -> Callable[..., Any]:
    extra = "train" if name.partition(".")[0] == "train" else "model"
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow, and no help text needs it

    for entry in entry_points(group=GROUP, name=name):
        try:
            tool: Callable[..., Any] = entry.load()
        except ModuleNotFoundError as error:
            raise ToolMissingError(error.name or entry.module, extra) from error
        return tool
    raise ToolMissingError(f"the tool {name}", extra)
