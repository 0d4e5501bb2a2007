"""``memfold eval``: how good the memory of a running platform is, arm by arm."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from memfold.api.values import Message, Turn
from memfold.cli.group import MemfoldGroup
from memfold.cli.options import connect
from memfold.cli.output import console, print_json, print_table, say
from memfold.cli.tools import ToolFailedError, ToolMissingError
from memfold.evaluation.arms import Arm, Budgets

if TYPE_CHECKING:  # the client brings gRPC, see options
    from memfold.client import Memfold, Model
    from memfold.evaluation.suite import Suite

evaluate = typer.Typer(
    cls=MemfoldGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Score the memory of a running platform, arm by arm.",
)

Arms = Annotated[
    list[Arm] | None, typer.Option("--arm", help="What an answer may rest on; may be given several times. Else all.")
]
Output = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep answers and report there; the same command goes on where it was stopped."),
]
Parallel = Annotated[int, typer.Option(min=1, max=256, help="Questions at a time.")]
Window = Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Of the newest turns, on the window arms.")]
Recall = Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Of passages found, on the recall arms.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on the last line.")]


@evaluate.command()
def persona(
    context: typer.Context,
    dialogues: Annotated[int, typer.Option(min=1, help="Held-out dialogues.")] = 50,
    facts: Annotated[int, typer.Option(min=0, help="Facts told in each.")] = 3,
    changes: Annotated[int, typer.Option(min=0, help="Facts of those that change later.")] = 0,
    unknown: Annotated[int, typer.Option(min=0, help="Questions about what was never told.")] = 0,
    filler: Annotated[int, typer.Option(min=0, metavar="TOKENS", help="Of unrelated talk after the last fact.")] = 0,
    talk: Annotated[
        Path | None, typer.Option(metavar="FILE", help="LoCoMo's locomo10.json: its turns are the unrelated talk.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first dialogue.")] = 5_000_000,
    arms: Arms = None,
    window: Window = 256,
    recall: Recall = 256,
    parallel: Parallel = 8,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Facts that people tell about themselves: told, changed, talked over, asked for."""
    from memfold.evaluation.suites.persona import Persona, small_talk, talk_of  # noqa: PLC0415  see _run

    with connect(context) as client:
        chatter = None
        if filler and talk is not None:
            chatter = talk_of(_talk(talk), filler, lambda turns: _tokens(client, turns))
        elif filler:
            chatter = small_talk(filler, lambda turns: _tokens(client, turns))
        suite = Persona(
            dialogues, facts, changes, unknown, filler, seed, chatter, talk.name if talk is not None else "small talk"
        )
        _run(client, suite, arms, window, recall, parallel, output, as_json)


@evaluate.command()
def locomo(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="LoCoMo's locomo10.json.")],
    conversations: Annotated[int, typer.Option(min=0, help="Only so many; 0: all.")] = 0,
    questions: Annotated[int, typer.Option(min=0, help="Only so many of each conversation; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
    arms: Arms = None,
    window: Window = 1024,
    recall: Recall = 1024,
    parallel: Parallel = 8,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """LoCoMo: long conversations of two people, scored as its authors do."""
    try:
        from memfold.evaluation.suites.locomo import Locomo  # noqa: PLC0415  see _run
    except ModuleNotFoundError as error:
        raise _missing(error) from error

    with connect(context) as client:
        _run(client, Locomo(file, conversations, questions, seed), arms, window, recall, parallel, output, as_json)


def _run(
    client: Memfold,
    suite: Suite,
    arms: Sequence[Arm] | None,
    window: int,
    recall: int,
    parallel: int,
    output: Path | None,
    as_json: bool,
) -> None:
    # Here and not above: other commands start without it.
    from memfold.evaluation.answers import Answers  # noqa: PLC0415
    from memfold.evaluation.report import results  # noqa: PLC0415
    from memfold.evaluation.runner import Runner  # noqa: PLC0415

    chosen = list(dict.fromkeys(arms or Arm))
    model = client.model()
    budgets = Budgets(window, recall, model.context_tokens)
    facts = _facts(suite, model, budgets)
    try:
        episodes = suite.episodes()
    except (OSError, ValueError) as error:
        raise ToolFailedError(str(error)) from error
    out = console(sys.stderr if as_json else None)
    answers_file = output / "answers.jsonl" if output else None
    with Answers(answers_file, facts) as answers, _progress(out) as progress:
        task = progress.add_task("asking")
        runner = Runner(
            client,
            answers,
            budgets=budgets,
            max_tokens=suite.max_tokens,
            parallel=parallel,
            on_step=lambda: progress.advance(task),
        )
        progress.update(task, total=runner.steps(episodes, chosen))
        runner.run(episodes, chosen)
        found = {arm: result for arm, result in results(answers).items() if arm in chosen}
    if output:
        _write(output, suite.name, facts, found)
    if as_json:
        print_json(facts | {"arms": {arm: result.as_dict() for arm, result in found.items()}})
    else:
        _show(out, found)


def _facts(suite: Suite, model: Model, budgets: Budgets) -> dict[str, Any]:
    return {
        "suite": suite.name,
        **suite.settings,
        "model": f"{model.backbone} with {model.adapter}",
        "fingerprint": model.fingerprint,
        "state_bytes": model.state_bytes,
        "window_tokens": budgets.window,
        "recall_tokens": budgets.recall,
    }


def _write(output: Path, name: str, facts: dict[str, Any], found: dict[Arm, Any]) -> None:
    import json  # noqa: PLC0415

    from memfold.evaluation.report import markdown, plot  # noqa: PLC0415

    arms = {arm: result.as_dict() for arm, result in found.items()}
    (output / "report.json").write_text(json.dumps(facts | {"arms": arms}, indent=2) + "\n", encoding="utf-8")
    (output / "report.md").write_text(markdown(name, facts, found), encoding="utf-8")
    try:
        plot(output / "report.svg", name, found)
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _show(out: Any, found: dict[Arm, Any]) -> None:
    table = Table("arm", "score", "95 % interval", "n", "prompt tokens", "first token")
    for arm, result in found.items():
        score = result.score
        table.add_row(
            arm,
            f"{score.value:.3f}",
            f"{score.low:.2f} to {score.high:.2f}",
            str(score.n),
            f"{result.prompt_tokens:,.0f}",
            f"{result.first_token_ms:,.0f} ms",
        )
    print_table(out, table)
    say(out, "Tokens and times are medians of an answer.")


def _progress(out: Any) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=out
    )


def _tokens(client: Memfold, turns: Sequence[Turn]) -> int:
    """How many tokens some turns are for the model that serves."""
    with client.generate([Message(turn.role, turn.content) for turn in turns], max_tokens=1) as reply:
        reply.text()
    assert reply.summary is not None, "a reply that ended has a summary"
    return reply.summary.prompt_tokens


def _talk(file: Path) -> list[Turn]:
    import json  # noqa: PLC0415

    from memfold.evaluation.suites.locomo import conversation  # noqa: PLC0415

    try:
        samples = json.loads(file.read_text(encoding="utf-8"))
        return [turn for sample in samples for turn in conversation(sample)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolFailedError(f"cannot read turns from {file}: {error}") from error


def _missing(error: ModuleNotFoundError) -> ToolMissingError:
    return ToolMissingError(error.name or "a library")
