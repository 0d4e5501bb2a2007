"""``memfold memories``, ``show``, ``turns`` and ``delete``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table

from memfold.api.values import Memory, Turn
from memfold.cli.options import connect
from memfold.cli.output import console, human_bytes, iso_time, print_json, printable, say

Name = Annotated[str, typer.Argument(metavar="NAME", help="The memory: its id, or its whole resource name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SECONDS = len("2026-01-01T00:00:00")


def memories(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0 for all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List the memories."""
    with connect(context) as client:
        found = list(islice(client.list_memories(), limit or None))
    if as_json:
        print_json([memory_as_dict(memory) for memory in found])
        return
    if not found:
        say(console(), "no memories yet; memfold chat or memfold ingest makes one")
        return
    table = Table("memory", "turns", "lag", "log", "state", "revision", "last change (UTC)", box=None)
    for memory in found:
        table.add_row(
            memory.name.memory,
            str(memory.turn_count),
            str(lag(memory)),
            human_bytes(memory.log_bytes),
            human_bytes(memory.state_bytes),
            str(memory.revision),
            iso_time(memory.update_ms)[:_SECONDS],
        )
    console().print(table)


def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show where a memory stands: revision, lag, bytes, and how strongly each layer is written."""
    with connect(context) as client:
        memory = client.get_memory(name)
        state = client.state(name) if memory.applied else None
    norms = list(state.layer_norms) if state else []
    if as_json:
        print_json({**memory_as_dict(memory), "state_shape": list(state.shape) if state else [], "layer_norms": norms})
        return
    table = Table(box=None, show_header=False)
    for key, value in _facts(memory):
        table.add_row(key, value)
    for layer, norm in enumerate(norms):
        table.add_row(f"norm, adapted layer {layer}", f"{norm:.4f}")
    console().print(table)


def _facts(memory: Memory) -> list[tuple[str, str]]:
    facts = [
        ("memory", str(memory.name)),
        ("display name", memory.display_name),
        ("labels", ", ".join(f"{key}={value}" for key, value in memory.labels.items())),
        ("created", iso_time(memory.create_ms)),
        ("last change", iso_time(memory.update_ms)),
        ("revision", str(memory.revision)),
        ("folded", str(memory.folded_revision)),
        ("lag", f"{lag(memory)} turns"),
        ("log", f"{memory.turn_count} turns, {human_bytes(memory.log_bytes)}"),
        ("state", f"{memory.state_bytes:,} bytes"),
        ("fingerprint", memory.fingerprint),
    ]
    return [(key, printable(value)) for key, value in facts if value]


def turns(
    context: typer.Context,
    name: Name,
    limit: Annotated[int, typer.Option(min=0, help="At most so many, from the oldest; 0 for all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the turns of a memory in log order."""
    with connect(context) as client:
        found = islice(client.turns(name), limit or None)
        if as_json:
            print_json([turn_as_dict(turn) for turn in found])
            return
        out = console()
        for turn in found:
            speaker = f"{turn.role} {turn.speaker}".strip()
            say(out, printable(f"{turn.sequence:>5}  {speaker}: {turn.content}"))


def delete(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a memory: its log, its state and everything that was made of them. Cannot be undone."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("say --yes where nobody can be asked", param_hint="--yes")
    with connect(context) as client:
        memory = client.get_memory(name)
        if not yes:
            typer.confirm(f"Delete {memory.name} with its {memory.turn_count} turns?", abort=True)
        client.delete_memory(name)
    say(console(), f"deleted {memory.name}")


def lag(memory: Memory) -> int:
    """Turns that are in the log, but not yet in the state."""
    return memory.head - memory.applied


def memory_as_dict(memory: Memory) -> dict[str, Any]:
    """A memory for programs."""
    return {
        "name": str(memory.name),
        "display_name": memory.display_name,
        "labels": dict(memory.labels),
        "create_time": iso_time(memory.create_ms),
        "update_time": iso_time(memory.update_ms),
        "revision": str(memory.revision),
        "folded_revision": str(memory.folded_revision),
        "turn_count": memory.turn_count,
        "lag_turns": lag(memory),
        "log_bytes": memory.log_bytes,
        "state_bytes": memory.state_bytes,
        "fingerprint": memory.fingerprint,
    }


def turn_as_dict(turn: Turn) -> dict[str, Any]:
    """A turn for programs; ``memfold ingest`` understands all of it but the last two."""
    said = asdict(turn)
    append_ms = said.pop("append_ms")
    return {**said, "role": str(turn.role), "metadata": dict(turn.metadata), "append_time": iso_time(append_ms)}
