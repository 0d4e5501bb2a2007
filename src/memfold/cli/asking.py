"""Asking before what cannot be undone."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def agreed(yes: bool, question: str = "") -> None:
    """Ask, unless ``--yes`` was said; without a question only make sure that somebody could be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("say --yes where nobody can be asked", param_hint="--yes")
    if question:
        typer.confirm(question, abort=True)
