"""The answers of a run: one JSON line each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from memfold.api.errors import MemfoldError


class OtherRunError(MemfoldError):
    """The answers that are there are of a run with other settings."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer on one arm, and what it cost; times in milliseconds, as the client saw them."""

    episode: str
    question: str
    arm: str
    group: str
    text: str
    score: float
    prompt_tokens: int
    generated_tokens: int
    window_turns: int
    first_token_ms: float
    total_ms: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What it answers."""
        return self.episode, self.question, self.arm


class Answers:
    """Keeps answers, in a file where there is one.

    Args:
        path: JSON lines: the settings first, then an answer each; None keeps nothing.
        settings: of the run.

    Raises:
        OtherRunError: the file is of a run with other settings.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._answers: dict[tuple[str, str, str], Answer] = {}
        self._lock = threading.Lock()
        self._file = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for answer in _read(path, settings):
            self._answers[answer.key] = answer
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._write(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: tuple[str, str, str]) -> bool:
        return key in self._answers

    def __iter__(self) -> Iterator[Answer]:
        return iter(list(self._answers.values()))

    def add(self, answer: Answer) -> None:
        """Keep one; from any thread."""
        with self._lock:
            self._answers[answer.key] = answer
            self._write(asdict(answer))

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
            self._file.flush()


def _read(path: Path, settings: dict[str, Any]) -> Iterator[Answer]:
    if not path.exists() or not path.stat().st_size:
        return
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # the last line was being written when the run ended
        path.write_text(whole, encoding="utf-8")
    first, *lines = whole.splitlines()
    if json.loads(first) != json.loads(json.dumps(settings)):
        raise OtherRunError(f"{path} holds the answers of a run with other settings; name another directory")
    yield from (Answer(**json.loads(line)) for line in lines)
