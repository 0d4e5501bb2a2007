"""``memfold train``: train an adapter for a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from memfold.cli.memories import AsJson
from memfold.cli.output import console, human_bytes, print_json, print_table, say
from memfold.cli.tools import run_tool


def train(
    data: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, metavar="JSONL", help="Conversations to train on.")
    ],
    backbone: Annotated[
        str, typer.Option(metavar="MODEL", help="Directory or hub name of the model; it is not changed.")
    ],
    out: Annotated[Path, typer.Option(file_okay=False, metavar="DIR", help="Becomes the adapter's directory.")],
    preset: Annotated[str, typer.Option(metavar="NAME", help="What else is not said.")] = "reference-qasper",
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", exists=True, dir_okay=False, metavar="JSONL", help="Conversations to evaluate on."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the preset: --set training.learning_rate=1e-4"),
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="The adapter's name; else its directory's.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the directory.")] = False,
    needs: Annotated[
        bool, typer.Option("--needs", help="Only say how much device memory it would take; nothing is loaded.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train an adapter on conversations: they are written into the state, and questions answered without them.

    Checkpoints in the directory are adapters too: `memfold up --backbone MODEL --adapter DIR/checkpoint-100`. All that
    transformers' Trainer can do is a `--set training.…` away; for several GPUs, put `torchrun --nproc-per-node 8
    --no-python` before the command. What a line of JSONL holds, and the presets, are in docs/training.md.
    """
    if needs:
        _say_needs(run_tool("train.needs", backbone, preset, changes or []), as_json)
        return
    found: dict[str, Any] = run_tool(
        "train", str(data), backbone, str(out), preset, changes or [], str(evaluation or ""), resume, name
    )
    if not found:  # one of several processes, and not the first
        return
    if as_json:
        print_json(found)
        return
    said = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in found.items() if key != "steps")
    say(console(), f"{out}: {found['steps']} steps, {said}")


def _say_needs(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    table = Table(box=None, show_header=False)
    for what, count in found["bytes"].items():
        table.add_row(what, human_bytes(count))
    print_table(console(), table)
    say(
        console(),
        f"Computed, for {found['trained']:,} trained weights, {found['written_tokens']:,} tokens written and "
        f"{found['asked_tokens']:,} asked on one device, "
        f"with{'' if found['gradient_checkpointing'] else 'out'} gradient checkpointing.",
    )
