"""What a suite of questions is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memfold.api.values import Turn


@dataclass(frozen=True, slots=True)
class Question:
    """One question about an episode.

    Attributes:
        id: unique within its episode.
        group: what it is reported under, beside the whole.
        prompt: the message that asks.
        reference: the right answer, for people who read the answers.
        score: from the answer's text to 0 (wrong) up to 1 (right).
    """

    id: str
    group: str
    prompt: str
    reference: str
    score: Callable[[str], float]


@dataclass(frozen=True, slots=True)
class Episode:
    """A conversation that goes into a memory of its own, and what is asked afterwards, each question by itself."""

    id: str
    turns: Sequence[Turn]
    questions: Sequence[Question]


class Suite(Protocol):
    """Where episodes come from. A new suite is one file that offers this.

    Attributes:
        name: short, for file names and memory names.
        settings: all that decides which episodes come; a report names them, and a run is only continued under the same.
        max_tokens: of an answer.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def settings(self) -> dict[str, object]: ...  # noqa: D102

    @property
    def max_tokens(self) -> int: ...  # noqa: D102

    def episodes(self) -> Sequence[Episode]:
        """All of them, the same ones in the same order each time."""
        ...
