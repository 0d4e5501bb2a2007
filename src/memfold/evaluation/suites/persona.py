"""Persona: facts that people tell about themselves, some of which change, with other talk in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memfold.api.values import Role, Turn
from memfold.evaluation.suite import Episode, Question
from memfold.persona import ALL_VALUES, UNKNOWN_ANSWER, Dialogue, generate, is_correct
from memfold.persona import Question as Asked

_SAMPLE_TURNS = 16  # that fit into the prompt of a small model

Talk = Callable[[int], Sequence[Turn]]
"""Unrelated turns for the dialogue of a seed."""


@dataclass(frozen=True, slots=True)
class Persona:
    """Held-out dialogues of one kind.

    Attributes:
        dialogues: how many.
        facts: told in each.
        changes: how many of those change later.
        unknown: questions about what was never told.
        filler_tokens: of unrelated talk after the last fact; ``talk`` makes it.
        seed: of the first dialogue.
    """

    dialogues: int
    facts: int = 3
    changes: int = 0
    unknown: int = 0
    filler_tokens: int = 0
    seed: int = 0
    talk: Talk | None = None
    talk_name: str = "small talk"

    name = "persona"
    max_tokens = 32

    @property
    def settings(self) -> dict[str, object]:
        """All that decides which episodes come."""
        fields = ("dialogues", "facts", "changes", "unknown", "filler_tokens", "seed")
        talk = {"talk": self.talk_name} if self.filler_tokens else {}
        return {name: getattr(self, name) for name in fields} | talk

    def episodes(self) -> Sequence[Episode]:
        """A dialogue each.

        Raises:
            ValueError: there are not so many attributes.
        """
        return [self._episode(self.seed + number) for number in range(self.dialogues)]

    def _episode(self, seed: int) -> Episode:
        dialogue = generate(seed, facts=self.facts, changes=self.changes, unknown=self.unknown)
        turns = _turns(dialogue)
        if self.talk is not None:
            turns += self.talk(seed)
        questions = [_question(number, asked) for number, asked in enumerate(dialogue.questions)]
        return Episode(str(seed), turns, questions)


def _turns(dialogue: Dialogue) -> list[Turn]:
    return [Turn(f"line-{i}", Role(line.role), line.content) for i, line in enumerate(dialogue.lines, 1)]


def small_talk(tokens: int, tokens_in: Callable[[Sequence[Turn]], int]) -> Talk:
    """Talk of so many tokens, or an exchange more.

    Args:
        tokens: at least.
        tokens_in: counts those of some turns.
    """
    sample = _chatter(seed=0, exchanges=_SAMPLE_TURNS // 2)
    exchanges = -(-tokens * len(sample) // (2 * tokens_in(sample)))
    return lambda seed: _chatter(seed, exchanges)


def talk_of(turns: Sequence[Turn], tokens: int, tokens_in: Callable[[Sequence[Turn]], int]) -> Talk:
    """The same for talk that is given: a run of its turns, a different one for each dialogue."""
    sample = turns[:_SAMPLE_TURNS]
    count = min(len(turns), -(-tokens * len(sample) // tokens_in(sample)))

    def run(seed: int) -> list[Turn]:
        begin = (seed * 7919) % len(turns)
        return [
            Turn(f"talk-{i}", turns[(begin + i) % len(turns)].role, turns[(begin + i) % len(turns)].content)
            for i in range(count)
        ]

    return run


def _chatter(seed: int, exchanges: int) -> list[Turn]:
    lines = generate(seed, facts=0, small_talk=exchanges).lines
    return [Turn(f"talk-{i}", Role(line.role), line.content) for i, line in enumerate(lines)]


def _question(number: int, asked: Asked) -> Question:
    return Question(
        id=str(number),
        group=asked.attribute if asked.value is not None else "never told",
        prompt=asked.text,
        reference=asked.answer,
        score=lambda answer: _score(asked, answer),
    )


def _score(asked: Asked, answer: str) -> float:
    """Right to the letter; where nothing was told, right is what asserts no value."""
    if asked.value is not None:
        return float(is_correct(asked, answer))
    return float(answer.strip() == UNKNOWN_ANSWER or not any(value in answer for value in ALL_VALUES))
