"""``memfold create`` and ``memfold update``: what a memory is called, and how long things of it are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.table import Table

from memfold.api.values import Memory, Policy
from memfold.cli.memories import AsJson, Name, memory_as_dict, told
from memfold.cli.options import connect
from memfold.cli.output import console, print_json, print_table, say
from memfold.cli.values import key_value, seconds_of

DisplayName = Annotated[
    str | None, typer.Option("--display-name", metavar="TEXT", help="A name for people; an empty one takes it away.")
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Give it this label; may be repeated.")
]
Ttl = Annotated[
    int | None,
    typer.Option(
        "--ttl",
        parser=seconds_of,
        metavar="DURATION",
        help="Delete the memory so long after its last turn came in: 30d, 12h, 90m, 2w; never.",
    ),
]
Retention = Annotated[
    int | None,
    typer.Option(
        "--retention",
        parser=seconds_of,
        metavar="DURATION",
        help="Forget each turn so long after it came in; never. Turns go in batches: up to an eighth of that time late, a "
        "day at most.",
    ),
]
KeepLast = Annotated[
    int | None,
    typer.Option(
        "--keep-last",
        min=1,
        max=1000,
        metavar="NUMBER",
        help="Keep so many of the newest states for fork and rollback, besides ever fewer older ones.",
    ),
]


def create(
    context: typer.Context,
    name: Name,
    display_name: DisplayName = None,
    label: Labels = None,
    ttl: Ttl = None,
    retention: Retention = None,
    keep_last: KeepLast = None,
    as_json: AsJson = False,
) -> None:
    """Make an empty memory. `chat` and `ingest` make theirs by themselves, to be kept for ever."""
    labels, policy = _labels(label), _policy(Policy(), ttl, retention, keep_last)
    with connect(context) as client:
        memory = client.create_memory(name, display_name=display_name or "", labels=labels, policy=policy)
    _report("made", memory, as_json)


def update(
    context: typer.Context,
    name: Name,
    display_name: DisplayName = None,
    label: Labels = None,
    remove_label: Annotated[
        list[str] | None, typer.Option("--remove-label", metavar="KEY", help="Take this label away; may be repeated.")
    ] = None,
    ttl: Ttl = None,
    retention: Retention = None,
    keep_last: KeepLast = None,
    as_json: AsJson = False,
) -> None:
    """Change a memory's display name, its labels, or how long things of it are kept; what is not named stays."""
    added = _labels(label)
    policy_given = any(given is not None for given in (ttl, retention, keep_last))
    if display_name is None and not (added or remove_label or policy_given):
        raise typer.BadParameter("say what to change, such as --ttl 30d")
    with connect(context) as client:
        memory = client.get_memory(name)
        kept = {key: value for key, value in memory.labels.items() if key not in (remove_label or ())}
        memory = client.update_memory(
            name,
            display_name=display_name,
            labels=kept | added if added or remove_label else None,
            policy=_policy(memory.policy, ttl, retention, keep_last) if policy_given else None,
        )
    _report("updated", memory, as_json)


def _policy(policy: Policy, ttl: int | None, retention: int | None, keep_last: int | None) -> Policy:
    given: dict[str, Any] = {"ttl_s": ttl, "retention_s": retention, "keep_last": keep_last}
    return replace(policy, **{field: value for field, value in given.items() if value is not None})


def _labels(given: Sequence[str] | None) -> dict[str, str]:
    return dict(key_value(text, "--label") for text in given or ())


def _report(done: str, memory: Memory, as_json: bool) -> None:
    if as_json:
        print_json(memory_as_dict(memory))
        return
    say(console(), f"{done} {memory.name}")
    table = Table(box=None, show_header=False)
    for key, value in told(memory):
        table.add_row(key, value)
    print_table(console(), table)
