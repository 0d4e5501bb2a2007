"""Runs a suite on a platform through its public API: what is scored is what is served."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from memfold.api.errors import MemoryNotFoundError
from memfold.api.values import Revision
from memfold.client import Memfold
from memfold.evaluation.answers import Answer, Answers
from memfold.evaluation.arms import Arm, Budgets
from memfold.evaluation.suite import Episode, Question

_FOLD_S = 3600.0  # a long conversation, with others before it


@dataclass(frozen=True, slots=True)
class _Asking:
    """One question to be asked on one arm."""

    memory: str
    revision: Revision
    episode: Episode
    question: Question
    arm: Arm


class Runner:
    """Puts each episode into a memory of its own, asks every question on every arm, and deletes the memories.

    Args:
        client: of the platform.
        answers: those that are there already are not asked for again.
        budgets: of the arms.
        max_tokens: of an answer.
        parallel: conversations, then questions, at a time.
        on_step: told after each conversation and each answer.
    """

    def __init__(
        self,
        client: Memfold,
        answers: Answers,
        *,
        budgets: Budgets,
        max_tokens: int,
        parallel: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._answers = answers
        self._budgets = budgets
        self._max_tokens = max_tokens
        self._parallel = parallel
        self._on_step = on_step
        text = json.dumps(answers.settings, sort_keys=True)
        # The same run finds its memories again; another one makes its own.
        self._run = f"eval-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def run(self, episodes: Sequence[Episode], arms: Sequence[Arm]) -> None:
        """Ask all that has no answer yet.

        Raises:
            MemfoldError: the platform refused something, or went away; what was answered is kept.
        """
        with ThreadPoolExecutor(self._parallel) as pool:
            try:
                told = list(pool.map(lambda episode: self._tell(episode, arms), episodes))
                list(pool.map(self._ask, [asking for askings in told for asking in askings]))
                list(pool.map(self._delete, episodes))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def steps(self, episodes: Sequence[Episode], arms: Sequence[Arm]) -> int:
        """How often ``on_step`` will be told."""
        return len(episodes) + sum(len(self._missing(episode, arms)) for episode in episodes)

    def _missing(self, episode: Episode, arms: Sequence[Arm]) -> list[tuple[Arm, Question]]:
        return [
            (arm, asked)
            for arm in arms
            for asked in episode.questions
            if (episode.id, asked.id, arm) not in self._answers
        ]

    def _tell(self, episode: Episode, arms: Sequence[Arm]) -> list[_Asking]:
        """The conversation into its memory; a turn that is there already is not appended twice."""
        missing, askings = self._missing(episode, arms), []
        if missing:
            memory = self._memory(episode)
            for ack in self._client.stream(((memory, turn) for turn in episode.turns), create=True):
                if ack.error is not None:
                    raise ack.error
            revision = self._client.wait(memory, timeout_s=_FOLD_S)
            askings = [_Asking(memory, revision, episode, question, arm) for arm, question in missing]
        self._on_step()
        return askings

    def _ask(self, asking: _Asking) -> None:
        reading, began, first_token_ms, text = self._budgets.reading(asking.arm), time.perf_counter(), 0.0, ""
        reply = self._client.generate(
            asking.question.prompt,
            memory=asking.memory,
            gain=reading.gain,
            window_tokens=reading.window_tokens,
            recall_tokens=reading.recall_tokens,
            min_revision=asking.revision,
            max_tokens=self._max_tokens,
        )
        for delta in reply:
            first_token_ms = first_token_ms or _ms_since(began)
            text += delta
        summary = reply.summary
        assert summary is not None, "a reply that ended has a summary"
        self._answers.add(
            Answer(
                episode=asking.episode.id,
                question=asking.question.id,
                arm=asking.arm,
                group=asking.question.group,
                text=text,
                score=asking.question.score(text),
                prompt_tokens=summary.prompt_tokens,
                generated_tokens=summary.generated_tokens,
                window_turns=summary.window_turns,
                first_token_ms=first_token_ms or _ms_since(began),
                total_ms=_ms_since(began),
            )
        )
        self._on_step()

    def _delete(self, episode: Episode) -> None:
        try:
            self._client.delete_memory(self._memory(episode))
        except MemoryNotFoundError:  # all of it was answered in an earlier run
            return

    def _memory(self, episode: Episode) -> str:
        return f"{self._run}-{episode.id}"


def _ms_since(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), 2)
