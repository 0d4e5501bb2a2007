"""All commands, and the options that hold for every one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memfold.cli.adapter import adapter
from memfold.cli.chat import chat
from memfold.cli.demo import demo
from memfold.cli.evaluate import evaluate
from memfold.cli.group import MemfoldGroup
from memfold.cli.history import forget, fork, operations, rebuild, revisions, rollback, skip, verify
from memfold.cli.ingest import ingest
from memfold.cli.memories import delete, memories, search, show, turns
from memfold.cli.options import Options
from memfold.cli.train import train
from memfold.cli.up import up
from memfold.cli.update import create, update

app = typer.Typer(
    cls=MemfoldGroup,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow, and seldom asked for

    try:
        print(f"memfold {version('memfold')}")
    except PackageNotFoundError:
        print("memfold (not installed)")
    raise typer.Exit


@app.callback()
def global_options(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Option(envvar="MEMFOLD_TARGET", metavar="HOST:PORT", help="The gateway; else the local platform's."),
    ] = "",
    api_key: Annotated[
        str, typer.Option(envvar="MEMFOLD_API_KEY", metavar="KEY", help="The API key; else the local platform's.")
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="MEMFOLD_DATA_DIR", metavar="DIR", help="Where the local platform keeps its data."),
    ] = None,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Memory for LLM applications: conversations in, answers from their memory out.

    `memfold demo` shows it all in a few minutes; `memfold up` leaves a platform running, and the other commands talk to
    it.
    """
    context.obj = Options(target, api_key, data_dir)


_RUN = "Run a platform"
_USE = "Use a platform"
_BACK = "Look back, go back, forget"
app.command(rich_help_panel=_RUN)(demo)
app.command(rich_help_panel=_RUN)(up)
app.command(rich_help_panel=_USE)(chat)
app.command(rich_help_panel=_USE)(ingest)
app.command(rich_help_panel=_USE)(memories)
app.command(rich_help_panel=_USE)(show)
app.command(rich_help_panel=_USE)(turns)
app.command(rich_help_panel=_USE)(search)
app.command(rich_help_panel=_USE)(create)
app.command(rich_help_panel=_USE)(update)
app.command(rich_help_panel=_USE)(delete)
app.command(rich_help_panel=_BACK)(revisions)
app.command(rich_help_panel=_BACK)(fork)
app.command(rich_help_panel=_BACK)(rollback)
app.command(rich_help_panel=_BACK)(forget)
app.command(rich_help_panel=_BACK)(skip)
app.command(rich_help_panel=_BACK)(rebuild)
app.command(rich_help_panel=_BACK)(verify)
app.command(rich_help_panel=_BACK)(operations)
app.add_typer(evaluate, name="eval", rich_help_panel="Measure")
app.add_typer(adapter, name="adapter", rich_help_panel="Adapters")
app.command(rich_help_panel="Adapters")(train)
