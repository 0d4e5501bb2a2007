"""Talks to a running platform as an application would, and takes the times."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memfold.api.values import Revision, Role, Turn
from memfold.persona import Line

if TYPE_CHECKING:  # brings gRPC, see options
    from memfold.client import Ack, Memfold

_MAX_TOKENS = 32
_FOLD_S = 600.0  # on a slow machine with a large model


@dataclass(slots=True)
class Costs:
    """What the path took, in milliseconds, each time as the client sees it.

    Attributes:
        ack: from sending a turn to its acknowledgement, one turn after the other.
        fold: from a conversation's last acknowledgement to its being in the state.
        first_token: from asking to the first piece of text, one question after the other.
    """

    ack: list[float] = field(default_factory=list)
    fold: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, float]:
        """The medians."""
        return {
            "ack_ms_p50": _median(self.ack),
            "fold_ms_p50": _median(self.fold),
            "ttft_ms_p50": _median(self.first_token),
        }


@dataclass(frozen=True, slots=True)
class Told:
    """A conversation that is in a memory."""

    memory: str
    revision: Revision


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, the time to its first piece of text, and the turns of the log that stood in its prompt."""

    text: str
    first_token_ms: float
    window_turns: int


class Probe:
    """One client, and the times that it saw."""

    def __init__(self, client: Memfold) -> None:
        self.costs = Costs()
        self.turns = 0
        self._client = client

    def tell(self, memory: str, lines: Sequence[Line], on_turn: Callable[[Turn], None] = lambda _: None) -> Told:
        """Stream a conversation in, turn by turn, and wait until it is folded."""
        turns = [Turn(f"turn-{i}", Role(line.role), line.content) for i, line in enumerate(lines, start=1)]
        acks = self._stream_one_by_one(memory, turns)
        for turn, ack in zip(turns, acks, strict=True):
            on_turn(turn)
            revision = ack.revision
        assert revision is not None, "an acknowledged turn has a revision"
        acknowledged = time.perf_counter()
        self._client.wait(memory, revision, timeout_s=_FOLD_S)
        self.costs.fold.append(_ms_since(acknowledged))
        self.turns += len(turns)
        return Told(memory, revision)

    def ask(
        self,
        told: Told,
        question: str,
        *,
        gain: float,
        window_tokens: int,
        on_text: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        """Ask one question, sending nothing but the question."""
        asked = time.perf_counter()
        first_token_ms = None
        text = ""
        reply = self._client.generate(
            question,
            memory=told.memory,
            gain=gain,
            window_tokens=window_tokens,
            min_revision=told.revision,
            max_tokens=_MAX_TOKENS,
        )
        for delta in reply:
            first_token_ms = first_token_ms or _ms_since(asked)
            text += delta
            on_text(delta)
        window_turns = reply.summary.window_turns if reply.summary else 0
        return Answer(text, first_token_ms or _ms_since(asked), window_turns)

    def _stream_one_by_one(self, memory: str, turns: Sequence[Turn]) -> Iterator[Ack]:
        """Send each turn when the one before it is acknowledged, and take the time of each."""
        may_send = threading.Semaphore(1)
        sent = 0.0

        def pairs() -> Iterator[tuple[str, Turn]]:
            nonlocal sent
            for turn in turns:
                may_send.acquire()
                sent = time.perf_counter()
                yield memory, turn

        try:
            for ack in self._client.stream(pairs(), create=True):
                if ack.error is not None:
                    raise ack.error
                self.costs.ack.append(_ms_since(sent))
                yield ack
                may_send.release()
        finally:
            may_send.release()


def _ms_since(start: float) -> float:
    return 1000 * (time.perf_counter() - start)


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 2) if values else 0.0
