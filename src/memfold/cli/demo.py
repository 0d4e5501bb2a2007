"""``memfold demo``: the whole path in front of the reader, then the figures."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from memfold.api.values import Turn
from memfold.cli.output import console, human_bytes, print_json, printable, say
from memfold.cli.probe import Probe, Told
from memfold.cli.scoring import FACTS, Arm, Scorer, Scores, held_out
from memfold.cli.signals import exit_on_termination
from memfold.cli.up import announce
from memfold.local.errors import LocalPlatformError
from memfold.local.platform import Platform
from memfold.local.settings import ANY_PORT, PlatformSettings
from memfold.persona import UNKNOWN_ANSWER, Dialogue, Question, generate, is_correct

if TYPE_CHECKING:  # brings gRPC, see options
    from memfold.client import Memfold, Model

_STORY = "story"
_STORY_TALK = 2
_SEED = 2_000_000
_ARM_TITLES = {
    Arm.STATE: "state alone",
    Arm.FROZEN: "neither (frozen backbone)",
    Arm.FULL_CONTEXT: "whole conversation in the prompt",
}


def demo(
    *,
    questions: Annotated[int, typer.Option(min=1, help="Held-out questions to score with.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the dialogues.")] = _SEED,
    backbone: Annotated[
        str,
        typer.Option(
            envvar="MEMFOLD_BACKBONE", metavar="MODEL", help="Directory or hub name; else the embedded model."
        ),
    ] = "",
    adapter: Annotated[
        str, typer.Option(envvar="MEMFOLD_ADAPTER", metavar="ADAPTER", help="The δ-mem adapter of that backbone.")
    ] = "",
    threads: Annotated[
        int,
        typer.Option(envvar="MEMFOLD_THREADS", min=0, help="Threads of writer and reader each; 0: half the machine."),
    ] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary data directory.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object on the last line.")
    ] = False,
) -> None:
    """Show the whole path: a conversation in, answers from its memory out, and what they are worth.

    Starts a platform of its own in a temporary directory, streams a conversation in, waits until it is folded, and asks
    questions without sending the conversation along. Then it scores on held-out dialogues and stops everything.
    """
    exit_on_termination()
    out = console(sys.stderr if as_json else None)
    data_dir = Path(tempfile.mkdtemp(prefix="memfold-demo-"))
    settings = PlatformSettings(data_dir, listen=ANY_PORT, backbone=backbone, adapter=adapter, threads=threads)
    try:
        facts = _run(settings, out, questions=questions, seed=seed)
    except LocalPlatformError:
        keep = True  # its logs say why
        raise
    finally:
        if keep:
            say(out, f"kept {data_dir}")
        else:
            shutil.rmtree(data_dir, ignore_errors=True)
    if as_json:
        print_json(facts)


def _run(settings: PlatformSettings, out: Console, *, questions: int, seed: int) -> dict[str, Any]:
    from memfold.client import Memfold  # noqa: PLC0415 - see above

    say(out, "Starting Redis, writer, reader and gateway as processes of their own:")
    with Platform.start(settings, on_ready=lambda member: announce(out, member)) as platform:
        with Memfold(platform.target, platform.api_key) as client:
            shown = Demo(client, out)
            try:
                shown.tell_a_story(generate(seed, facts=FACTS, small_talk=_STORY_TALK))
                scores = shown.score(held_out(questions, seed=seed + 1))
            except Exception:
                platform.check()  # a process that died is the better explanation
                raise
            shown.conclude(scores)
        say(out, "Stopping everything.")
    return shown.facts(scores) | {"seed": seed}


class Demo:
    """What the reader of the terminal sees."""

    def __init__(self, client: Memfold, out: Console) -> None:
        self._client = client
        self._out = out
        self._probe = Probe(client)
        self._model: Model = client.model()
        self._state_bytes = 0

    def tell_a_story(self, story: Dialogue) -> None:
        """One conversation, and what is left of it once only the state is asked."""
        say(self._out, "\nA conversation goes in, turn by turn, over gRPC:")
        told = self._probe.tell(_STORY, story.lines, on_turn=self._show_turn)
        state = self._client.state(_STORY, min_revision=told.revision)
        self._state_bytes = len(state.data)
        said = sum(len(line.content.encode()) for line in story.lines)
        say(
            self._out,
            f"\nFolded: {len(story.lines)} turns ({human_bytes(said)}) are now a state of {self._state_bytes:,} bytes, and will "
            "be however long the conversation gets.\nQuestions, sent without the conversation:",
        )
        for question in story.questions:
            self._ask_twice(told, question)

    def score(self, dialogues: list[Dialogue]) -> Scores:
        """Recall on dialogues that training never saw."""
        questions = sum(len(dialogue.questions) for dialogue in dialogues)
        say(
            self._out,
            f"\nScoring: {len(dialogues)} dialogues of {FACTS} facts, held out from training, {questions} questions, each "
            "asked three ways.",
        )
        columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console(sys.stderr), transient=True) as progress:
            task = progress.add_task("scoring", total=len(dialogues) + len(Arm) * questions)
            scorer = Scorer(
                self._probe, context_tokens=self._model.context_tokens, on_step=lambda: progress.advance(task)
            )
            scorer.run(dialogues)
        return scorer.scores

    def conclude(self, scores: Scores) -> None:
        """The figures, and what they say."""
        table = Table("asked with", "right", "of", "95 % interval", box=None)
        for arm, recall in scores.overall.items():
            low, high = recall.interval()
            table.add_row(_ARM_TITLES[arm], f"{recall.value:.1%}", str(recall.n), f"{low:.1%} to {high:.1%}")
        self._out.print(table)
        weakest = sorted(scores.by_attribute.items(), key=lambda item: item[1][Arm.STATE].value)[:3]
        named = ", ".join(f"{name} {arms[Arm.STATE].value:.0%}" for name, arms in weakest)
        say(self._out, f"weakest attributes, from the state: {named}")
        if scores.cut:
            say(self._out, f"{scores.cut} conversations did not fit into the model's context and were cut.")
        say(self._out, scores.reading())
        costs = self._probe.costs.as_dict()
        say(
            self._out,
            f"\nWhat it cost (medians on this machine): acknowledged after {costs['ack_ms_p50']:.1f} ms, folded "
            f"{costs['fold_ms_p50']:.0f} ms later, first token after {costs['ttft_ms_p50']:.0f} ms; state {self._state_bytes:,} bytes; "
            f"{self._probe.turns} turns in all.",
        )

    def facts(self, scores: Scores) -> dict[str, Any]:
        """Everything above, for programs."""
        return {
            **scores.as_dict(),
            "state_bytes": self._state_bytes,
            "turns": self._probe.turns,
            **self._probe.costs.as_dict(),
            "backbone": self._model.backbone,
            "adapter": self._model.adapter,
            "fingerprint": self._model.fingerprint,
        }

    def _show_turn(self, turn: Turn) -> None:
        say(self._out, printable(f"  {turn.role:<9} {turn.content}"))

    def _ask_twice(self, told: Told, question: Question) -> None:
        say(self._out, f"\n  {question.text}")
        for title, gain in (("from the state", 1.0), ("frozen backbone", 0.0)):
            say(self._out, f"    {title:<16} ", end="")
            answer = self._probe.ask(told, question.text, gain=gain, window_tokens=0, on_text=self._show_text)
            say(self._out, f"   ({_verdict(question, answer.text)})")

    def _show_text(self, text: str) -> None:
        say(self._out, printable(text), end="")


def _verdict(question: Question, reply: str) -> str:
    if is_correct(question, reply):
        return "right"
    return "does not know" if reply.strip() == UNKNOWN_ANSWER else "wrong"
