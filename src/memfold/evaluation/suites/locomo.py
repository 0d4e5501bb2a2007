"""LoCoMo (Maharana et al., 2024): questions about very long conversations of two people, scored as its authors do.

The data set's own file ``locomo10.json`` (CC BY-NC) is read where it lies.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from memfold.api.values import Role, Turn
from memfold.evaluation.suite import Episode, Question
from memfold.evaluation.text import parts_f1, token_f1

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
_SEVERAL_PARTS, _DATE, _ALTERNATIVES, _UNANSWERABLE = 1, 2, 3, 5
_ABSTAINED = ("no information available", "not mentioned")
NOT_MENTIONED = "Not mentioned in the conversation"
_CHOICE = re.compile(r"^\W*([ab])\b(?!\s+\w+\s+\w)", re.IGNORECASE)


def score(category: int, answer: str, reference: str) -> float:
    """What an answer is worth, 0 to 1, by the rule of its question's category.

    Raises:
        ValueError: there is no such category.
    """
    if category not in CATEGORIES:
        raise ValueError(f"LoCoMo has the categories {sorted(CATEGORIES)}, got {category}")
    if category == _UNANSWERABLE:
        return float(any(said in answer.lower() for said in _ABSTAINED))
    if category == _SEVERAL_PARTS:
        return parts_f1(answer, reference)
    if category == _ALTERNATIVES:
        reference = reference.split(";", maxsplit=1)[0].strip()
    return token_f1(answer, reference)


def conversation(sample: dict[str, Any]) -> list[Turn]:
    """One conversation's turns; the first speaker is the user, the second the assistant, both by name."""
    talk = sample["conversation"]
    roles = {talk["speaker_a"]: Role.USER, talk["speaker_b"]: Role.ASSISTANT}
    sessions = sorted((k for k, v in talk.items() if isinstance(v, list)), key=lambda k: int(k.rsplit("_", 1)[1]))
    return [
        Turn(
            id=said["dia_id"],
            role=roles[said["speaker"]],
            content=said["text"],
            speaker=said["speaker"],
            metadata={"date": talk[f"{session}_date_time"]},
        )
        for session in sessions
        for said in talk[session]
    ]


@dataclass(frozen=True, slots=True)
class Locomo:
    """The conversations of a file.

    Attributes:
        file: ``locomo10.json``.
        conversations: how many of them; all where it is 0.
        questions: how many of each conversation, drawn by ``seed``; all where it is 0.
        seed: also decides in which order the two options of a question without an answer stand.
    """

    file: Path
    conversations: int = 0
    questions: int = 0
    seed: int = 0

    name = "locomo"
    max_tokens = 48

    @property
    def settings(self) -> dict[str, object]:
        """All that decides which episodes come."""
        return {"conversations": self.conversations, "questions": self.questions, "seed": self.seed}

    def episodes(self) -> Sequence[Episode]:
        """A conversation each.

        Raises:
            OSError, ValueError: the file cannot be read, or is no LoCoMo file.
        """
        samples = json.loads(self.file.read_text(encoding="utf-8"))
        try:
            return [self._episode(sample) for sample in samples[: self.conversations or None]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.file} is not LoCoMo's locomo10.json: {error!r} is missing or different") from error

    def _episode(self, sample: dict[str, Any]) -> Episode:
        rng = random.Random(f"{self.seed}:{sample['sample_id']}")
        questions = [_question(number, asked, rng) for number, asked in enumerate(sample["qa"])]
        if self.questions:
            chosen = rng.sample(questions, min(self.questions, len(questions)))
            questions = sorted(chosen, key=lambda question: int(question.id))
        return Episode(sample["sample_id"], conversation(sample), questions)


def _question(number: int, asked: dict[str, Any], rng: random.Random) -> Question:
    category = int(asked["category"])
    options: tuple[str, ...] = ()
    if category == _UNANSWERABLE:
        options = (NOT_MENTIONED, str(asked["adversarial_answer"]))
        options = options if rng.random() < 0.5 else options[::-1]
    reference = NOT_MENTIONED if category == _UNANSWERABLE else str(asked["answer"])
    return Question(
        id=str(number),
        group=CATEGORIES[category],
        prompt=_prompt(asked["question"], category, options),
        reference=reference,
        score=partial(_score, category, options, reference),
    )


def _prompt(question: str, category: int, options: Sequence[str]) -> str:
    """The message that asks; ``docs/quality.md`` shows all three."""
    if options:
        asked = f"{question} Which is right: (a) {options[0]}, or (b) {options[1]}?"
        return f"{asked} Reply with one of the two, in its own words."
    dated = " If it is about when, give the date as well as you can work it out." if category == _DATE else ""
    return f"{question}{dated} Answer in a few words, where possible those that were used in the conversation."


def _score(category: int, options: Sequence[str], reference: str, answer: str) -> float:
    letter = _CHOICE.match(answer) if options else None
    if letter is not None:  # a bare letter stands for its option
        answer = options["ab".index(letter[1].lower())]
    return score(category, answer, reference)
