"""``memfold chat``: a conversation whose past is nowhere but in the state."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from memfold.api.errors import MemfoldError, MemoryNotFoundError
from memfold.api.generation import Stale, UpdateMode
from memfold.api.values import Message, Revision, Role, Turn
from memfold.cli.group import describe
from memfold.cli.memories import lag
from memfold.cli.options import connect
from memfold.cli.output import console, human_bytes, printable, say

if TYPE_CHECKING:  # brings gRPC, see options
    from memfold.client import Memfold, Summary

_PROMPT = "you> "
_HELP = "/state shows the memory, /quit or ctrl-D ends"


def chat(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The memory to talk to; made where there is none.")
    ] = "chat",
    *,
    window: Annotated[
        int, typer.Option(metavar="TOKENS", min=0, help="Send the newest turns along, up to so many tokens.")
    ] = 0,
    recall: Annotated[
        int, typer.Option(metavar="TOKENS", min=0, help="Send turns along that share words with the message.")
    ] = 0,
    gain: Annotated[float, typer.Option(min=0, max=4, help="How strongly the memory steers; 0: not at all.")] = 1.0,
    temperature: Annotated[float, typer.Option(min=0, max=4, help="0: always the most likely token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Draw from the likeliest with this much probability.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many of the likeliest tokens; 0: from all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Draw the same tokens each time.")] = None,
    max_tokens: Annotated[int, typer.Option(min=0, max=32768, help="Longest answer; 0: as long as fits.")] = 0,
    stale: Annotated[
        Stale,
        typer.Option(help="Where the last exchange is not folded yet: wait, fold it for the answer alone, or go on."),
    ] = Stale.WAIT,
    online: Annotated[
        bool, typer.Option("--online", help="Let the memory follow message and answer while they are read.")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="After each answer, say what it rests on and how much the memory changed.")
    ] = False,
) -> None:
    """Talk to a memory; it remembers across restarts.

    Only the new message is sent: the past is in the state. Each message and each answer become turns of the memory, and
    before the next question is asked they have been folded. Reads one message a line from a pipe.
    """
    asking = Asking(
        window_tokens=window,
        recall_tokens=recall,
        gain=gain,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_tokens=max_tokens,
        stale=stale,
        update=UpdateMode.ONLINE if online else UpdateMode.READ_ONLY,
        report_influence=summary,
    )
    with connect(context) as client:
        Chat(client, name, asking).run(console())


@dataclass(frozen=True, slots=True)
class Asking:
    """What every question of a conversation is asked with; see ``Memfold.generate``."""

    window_tokens: int
    recall_tokens: int
    gain: float
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    max_tokens: int
    stale: Stale
    update: UpdateMode
    report_influence: bool


class Chat:
    """One conversation with one memory."""

    def __init__(self, client: Memfold, name: str, asking: Asking) -> None:
        self._client = client
        self._name = name
        self._asking = asking
        self._revision: Revision | None = None

    def run(self, out: Console) -> None:
        """Answer every message until there are no more.

        Raises:
            MemfoldError: something failed, and nobody is there to try again.
        """
        interactive = sys.stdin.isatty()
        self._open()
        self._greet(out)
        for message in _typed_messages() if interactive else _piped_messages():
            if message == "/quit":
                return
            try:
                self._react(out, message)
            except MemfoldError as error:
                if not interactive:
                    raise
                say(out, describe(error))

    def _open(self) -> None:
        """Find the memory, or make it; a memory that has turns knows them already."""
        try:
            memory = self._client.get_memory(self._name)
        except MemoryNotFoundError:
            memory = self._client.create_memory(self._name)
        self._revision = memory.revision

    def _greet(self, out: Console) -> None:
        model = self._client.model()
        memory = self._client.get_memory(self._name)
        knows = f"{memory.turn_count} turns so far" if memory.turn_count else "new"
        say(
            out, printable(f"{model.backbone} with a memory of {human_bytes(model.state_bytes)}: {self._name}, {knows}")
        )
        if model.description:
            say(out, printable(model.description))
        if model.examples:
            say(out, "three things to type:")
        for example in model.examples[:3]:
            say(out, printable(f"  {example}"))
        say(out, _HELP)

    def _react(self, out: Console, message: str) -> None:
        if message == "/state":
            self._show_state(out)
        elif message.startswith("/"):
            say(out, f"unknown command; {_HELP}")
        else:
            self._answer(out, message)

    def _answer(self, out: Console, message: str) -> None:
        """Ask from the state as the last exchange left it; append this exchange once it is whole."""
        text = ""
        reply = self._client.generate(
            [Message(Role.USER, message)], memory=self._name, min_revision=self._revision, **asdict(self._asking)
        )
        for delta in reply:
            text += delta
            say(out, printable(delta), end="")
        say(out)
        if self._asking.report_influence and reply.summary is not None:
            say(out, f"({account(reply.summary)})")
        said = [Turn(id="", role=Role.USER, content=message)]
        if text:
            said.append(Turn(id="", role=Role.ASSISTANT, content=text))
        self._revision = self._client.append(self._name, said).revision

    def _show_state(self, out: Console) -> None:
        memory = self._client.get_memory(self._name)
        say(
            out,
            f"revision {memory.revision}, folded {memory.folded_revision}, lag {lag(memory)} turns, "
            f"log {human_bytes(memory.log_bytes)}, state {memory.state_bytes:,} bytes",
        )


def account(summary: Summary) -> str:
    """What an answer rests on and what it cost, on one line."""
    parts = [f"revision {summary.revision}"]
    if summary.stale:
        parts.append("behind the log")
    if summary.folded_inline_turns:
        parts.append(f"{summary.folded_inline_turns} turns folded for it")
    if summary.window_turns:
        parts.append(f"{summary.window_turns} turns word for word")
    if summary.recalled:
        parts.append("found turns " + " ".join(str(turn.sequence) for turn in summary.recalled))
    if summary.memory_influence is not None:
        parts.append(f"influence {summary.memory_influence:.3f} nats")
    parts.append(f"{summary.prompt_tokens} + {summary.generated_tokens} tokens")
    if summary.reused_prompt_tokens:
        parts.append(f"{summary.reused_prompt_tokens} reused")
    parts.append(f"first after {1000 * summary.time_to_first_token_s:.0f} ms")
    spent = summary.total_time_s - summary.time_to_first_token_s
    if spent > 0:
        parts.append(f"{(summary.generated_tokens - 1) / spent:.0f} tokens/s")
    return ", ".join(parts)


def _typed_messages() -> Iterator[str]:
    """Messages from a terminal, with line editing where there is readline."""
    with suppress(ImportError):
        import readline  # noqa: F401, PLC0415 -- importing it is what switches it on
    while True:
        try:
            message = input(_PROMPT).strip()
        except EOFError:
            print()
            return
        if message:
            yield message


def _piped_messages() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no text become question marks, not a crash
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return (line.strip() for line in sys.stdin if line.strip())
