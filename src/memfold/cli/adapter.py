"""``memfold adapter``: look at the files of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from memfold.cli.memories import AsJson
from memfold.cli.output import console, human_bytes, print_json, print_table, printable, say
from memfold.cli.tools import run_tool

adapter = typer.Typer(no_args_is_help=True, help="Look at δ-mem adapters.")

_WRITES = {
    "token": "token-state: every token writes",
    "message_mean": "sequence-state: the mean of each message writes",
    "sentence_mean": "sequence-state: the mean of each sentence writes",
}
_SIZE_FROM = {"card": "the adapter's card", "directory": "the model around the adapter", "argument": "--backbone"}


@adapter.callback()
def _group() -> None:
    """Look at δ-mem adapters."""


@adapter.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, metavar="PATH", help="The adapter's directory.")
    ],
    backbone: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Directory or hub name of the backbone, of which only the configuration is read; else the model that "
            "the adapter lies in, else what the adapter's card says.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show an adapter's shapes, parameters, bytes of state a memory, and the least RAM to serve it.

    Least RAM is what no process that folds or answers can do without: the backbone's weights (tied ones once) and the
    adapter's, both in the dtype named, and one memory's state, which is always fp32. On top come the KV cache (shown
    for one block), activations, and the libraries themselves. Without a backbone only the adapter's share is known.
    """
    facts: dict[str, Any] = run_tool("adapter.inspect", str(path), backbone)
    if as_json:
        print_json(facts)
        return
    out = console()
    print_table(out, _about(facts))
    say(out)
    print_table(out, _shapes(facts["shapes"]))
    say(out)
    _print_ram(out, facts)


def _about(facts: dict[str, Any]) -> Table:
    layers, heads, rank = len(facts["layers"]), facts["state_heads"], facts["rank"]
    unused = f" (and {facts['unused_parameters']:,} zeros of heads not in use)" if facts["unused_parameters"] else ""
    table = Table(box=None, show_header=False)
    for key, value in [
        ("adapter", facts["name"]),
        ("file", facts["format"]),
        ("backbone", _backbone(facts["backbone"])),
        ("writes", f"{_WRITES[facts['write_granularity']]}{f'; {heads} state heads' if heads > 1 else ''}"),
        ("update", facts["state_update_mode"]),
        ("corrects", ", ".join(facts["delta_heads"])),
        ("rank, alpha", f"{rank}, {facts['alpha']:g}"),
        ("layers", f"{layers}: {_ranges(facts['layers'])}"),
        ("parameters", f"{facts['parameters']:,}{unused}"),
        ("state", f"{layers} × {heads} × {rank} × {rank}, {facts['state_bytes']:,} bytes a memory"),
        ("block", f"{facts['block_tokens']:,} tokens"),
    ]:
        table.add_row(key, printable(value))
    return table


def _backbone(backbone: dict[str, Any]) -> str:
    """``Qwen/Qwen3-4B at 1a2b3c, 4,022,468,096 parameters``, as far as it is known."""
    words = [backbone["id"] or "(not named)"]
    words += [f"at {backbone['revision']}"] if backbone["revision"] else []
    if backbone["parameters"]:
        words.append(f"with {backbone['parameters']:,} parameters, by {_SIZE_FROM[backbone['size_from']]}")
    return " ".join(words)


def _shapes(kinds: list[dict[str, Any]]) -> Table:
    table = Table("parameter", "shape", "layers", "numbers", box=None)
    for kind in kinds:
        shapes = ", ".join(" × ".join(map(str, shape)) for shape in kind["shapes"])
        note = "" if kind["used"] else " (not in use)"
        table.add_row(kind["parameter"] + note, shapes, str(kind["layers"]), f"{kind['numbers']:,}")
    return table


def _print_ram(out: Console, facts: dict[str, Any]) -> None:
    serving: dict[str, dict[str, int | None]] = facts["serving"]
    table = Table("to serve in", *serving, box=None)
    rows = {
        "backbone": "backbone_bytes",
        "adapter": "adapter_bytes",
        "one state": "state_bytes",
        "least RAM": "least_ram_bytes",
        "KV cache of a block": "kv_cache_bytes_a_block",
    }
    for label, key in rows.items():
        if any(costs[key] is not None for costs in serving.values()):
            table.add_row(label, *(_bytes(costs[key]) for costs in serving.values()))
    print_table(out, table)
    if facts["backbone"]["parameters"] is None:
        say(out, "This is the adapter's share alone; say --backbone for the least RAM of a process that serves it.")


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count:,} bytes ({human_bytes(count)})"


def _ranges(numbers: list[int]) -> str:
    """``0-3, 8``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
