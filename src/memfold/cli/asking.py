"""Asking before what cannot be undone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from memfold.api.values import Role

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def agreed(yes: bool, question: str = "") -> None:
    """Ask, unless ``--yes`` was said; without a question only make sure that somebody could be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("say --yes where nobody can be asked", param_hint="--yes")
    if question:
        typer.confirm(question, abort=True)


def selection(ids: Sequence[str], range_: str, metadata: Mapping[str, str], role: Role | None, speaker: str) -> str:
    """Which turns somebody has selected, in words."""
    if ids:
        return f"the turn {ids[0]}" if len(ids) == 1 else f"the {len(ids)} turns {', '.join(ids)}"
    if range_:
        return f"the turns {range_}"
    said = [f"{key}={value}" for key, value in metadata.items()]
    said += [f"the role {role}"] if role else []
    said += [f"the speaker {speaker}"] if speaker else []
    return f"all turns with {' and '.join(said)}"
