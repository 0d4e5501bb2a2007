"""``memfold memories``, ``show``, ``turns`` and ``delete``."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table

from memfold.api.values import Memory, Turn
from memfold.cli.asking import Yes, agreed
from memfold.cli.options import connect
from memfold.cli.output import console, counted, human_bytes, iso_time, print_json, print_table, printable, say
from memfold.cli.values import human_duration

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
    print_table(console(), table, whole=("memory", "revision"))


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
    print_table(console(), table)


def _facts(memory: Memory) -> list[tuple[str, str]]:
    facts = [
        ("memory", str(memory.name)),
        *told(memory),
        ("created", iso_time(memory.create_ms)),
        ("last change", iso_time(memory.update_ms)),
        ("revision", str(memory.revision)),
        ("folded", str(memory.folded_revision)),
        ("lag", counted(lag(memory), "turn")),
        ("log", f"{counted(memory.turn_count, 'turn')}, {human_bytes(memory.log_bytes)}"),
        ("state", f"{memory.state_bytes:,} bytes"),
        ("fingerprint", memory.fingerprint),
        (
            "rebuilding",
            f"{memory.building}, {memory.head - memory.building_applied} turns to go" if memory.building else "",
        ),
        ("quarantined", f"turn {memory.quarantined} cannot be folded" if memory.quarantined else ""),
        ("forked from", memory.forked_from),
    ]
    return [(key, printable(value)) for key, value in facts if value]


def told(memory: Memory) -> list[tuple[str, str]]:
    """What people have said of a memory: names, labels, how long things of it are kept."""
    policy = memory.policy
    facts = [
        ("display name", memory.display_name),
        ("labels", ", ".join(f"{key}={value}" for key, value in memory.labels.items())),
        ("deleted", f"{human_duration(policy.ttl_s)} after its last turn" if policy.ttl_s else ""),
        ("forgets", f"each turn after {human_duration(policy.retention_s)}" if policy.retention_s else ""),
        ("keeps", f"the newest {counted(policy.keep_last, 'state')}, and ever fewer older ones"),
    ]
    return [(key, printable(value)) for key, value in facts if value]


def turns(
    context: typer.Context,
    name: Name,
    limit: Annotated[int, typer.Option(min=0, help="At most so many, from the oldest; 0 for all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the turns of a memory in log order, with the numbers that `forget --range` takes; `--json` has their ids too."""
    with connect(context) as client:
        found = islice(client.turns(name), limit or None)
        if as_json:
            print_json([turn_as_dict(turn) for turn in found])
            return
        out, turn = console(), None
        for turn in found:
            say(out, printable(f"{turn.sequence:>5}  {_said(turn)}"))
        if turn is None:
            say(out, "no turns yet")


def search(
    context: typer.Context,
    name: Name,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A turn is found if it holds any of these words.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Find turns by their words, the best first."""
    with connect(context) as client:
        found = client.search(name, query, limit=limit)
    if as_json:
        print_json([turn_as_dict(one.turn) | {"score": round(one.score, 4)} for one in found])
        return
    out = console()
    for one in found:
        say(out, printable(f"{one.score:>7.2f} {one.turn.sequence:>6}  {_said(one.turn)}"))
    if not found:
        say(out, "No turn holds any of these words.")


def _said(turn: Turn) -> str:
    if turn.skips:
        return f"(turn {turn.skips} is not folded)"
    speaker = f"{turn.role} {turn.speaker}".strip()
    return f"{speaker}: {turn.content}{' (not folded)' if turn.skipped else ''}"


def delete(
    context: typer.Context,
    name: Name,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a memory: its log, its state and everything that was made of them. Cannot be undone."""
    agreed(yes)
    with connect(context) as client:
        memory = client.get_memory(name)
        agreed(yes, f"Delete {memory.name} with its {counted(memory.turn_count, 'turn')}?")
        client.delete_memory(name)
    if as_json:
        print_json({"name": str(memory.name), "turn_count": memory.turn_count})
    else:
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
        "building_fingerprint": memory.building,
        "building_lag_turns": memory.head - memory.building_applied if memory.building else 0,
        "quarantined_sequence": memory.quarantined,
        "forked_from": memory.forked_from,
        "policy": {
            "ttl_s": memory.policy.ttl_s,
            "retention_s": memory.policy.retention_s,
            "keep_last": memory.policy.keep_last,
        },
    }


def turn_as_dict(turn: Turn) -> dict[str, Any]:
    """An entry of a log for programs; ``memfold ingest`` understands the first five fields of a turn."""
    return {
        "id": turn.id,
        "role": str(turn.role),
        "content": turn.content,
        "speaker": turn.speaker,
        "metadata": dict(turn.metadata),
        "sequence": turn.sequence,
        "append_time": iso_time(turn.append_ms),
        "skips": turn.skips,
        "skipped": turn.skipped,
    }
