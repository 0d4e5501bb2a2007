"""Recall through the running platform: held-out dialogues in, questions out, right answers counted."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum

from memfold.cli.probe import Answer, Probe, Told
from memfold.persona import Dialogue, Question, generate, is_correct

FACTS = 3
_CONCURRENCY = 4
_ALONE = 30
_Z95 = 1.959964


class Arm(StrEnum):
    """What an answer may rest on."""

    STATE = "state"
    FROZEN = "frozen"
    FULL_CONTEXT = "full_context"


@dataclass(slots=True)
class Recall:
    """Right answers among all that were asked for."""

    right: int = 0
    n: int = 0

    def add(self, right: bool) -> None:
        """Count one answer."""
        self.right += right
        self.n += 1

    @property
    def value(self) -> float:
        """The share of right answers; 0 where nothing was asked."""
        return self.right / self.n if self.n else 0.0

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        if not self.n:
            return 0.0, 1.0
        z2 = _Z95**2 / self.n
        centre = (self.value + z2 / 2) / (1 + z2)
        half = _Z95 / (1 + z2) * math.sqrt(self.value * (1 - self.value) / self.n + z2 / (4 * self.n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def as_dict(self) -> dict[str, float | int]:
        """For programs."""
        return {"value": round(self.value, 4), "n": self.n}


@dataclass(slots=True)
class Scores:
    """Recall of every arm, overall and by attribute; ``cut`` counts conversations that the window did not hold."""

    overall: dict[Arm, Recall] = field(default_factory=lambda: {arm: Recall() for arm in Arm})
    by_attribute: dict[str, dict[Arm, Recall]] = field(
        default_factory=lambda: defaultdict(lambda: {arm: Recall() for arm in Arm})
    )
    cut: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, arm: Arm, question: Question, right: bool, *, whole: bool = True) -> None:
        """Count one answer; ``whole``: nothing of what the arm rests on was cut off."""
        with self._lock:
            self.overall[arm].add(right)
            self.by_attribute[question.attribute][arm].add(right)
            self.cut += not whole

    def as_dict(self) -> dict[str, object]:
        """For programs: ``by_attribute`` gives value and n of the state, and the values of the other arms."""
        overall = {f"recall_{arm}": recall.as_dict() for arm, recall in self.overall.items()}
        by_attribute = {
            name: arms[Arm.STATE].as_dict()
            | {str(arm): round(arms[arm].value, 4) for arm in (Arm.FROZEN, Arm.FULL_CONTEXT)}
            for name, arms in sorted(self.by_attribute.items())
        }
        return {**overall, "by_attribute": by_attribute}

    def reading(self) -> str:
        """What the figures say, in one sentence."""
        state, frozen, full = (self.overall[arm] for arm in Arm)
        low, high = state.interval()
        return (
            f"Without the conversation in its prompt the model answers {state.value:.1%} of {state.n} questions right from "
            f"the state (95 % interval {low:.0%} to {high:.0%}), {frozen.value:.1%} without the state, and {full.value:.1%} "
            "with the whole conversation in its prompt. The dialogues are synthetic and held out from training; this says "
            "nothing about other kinds of text."
        )


def held_out(questions: int, *, seed: int) -> list[Dialogue]:
    """Dialogues of ``FACTS`` facts with so many questions in all; the last one may ask for less than it tells."""
    dialogues = [generate(seed + i, facts=FACTS) for i in range(math.ceil(questions / FACTS))]
    spare = len(dialogues) * FACTS - questions
    if spare:
        last = dialogues[-1]
        dialogues[-1] = Dialogue(last.lines, last.questions[: FACTS - spare])
    return dialogues


@dataclass(frozen=True, slots=True)
class _Asking:
    """A question to be asked of the memory of its dialogue."""

    told: Told
    question: Question
    turns: int


class Scorer:
    """Asks every question on every arm.

    Args:
        probe: talks to the platform.
        context_tokens: the window of the full-context arm: as much as the model can read.
        on_step: told after each conversation and each answer.
    """

    def __init__(self, probe: Probe, *, context_tokens: int, on_step: Callable[[], None]) -> None:
        self.scores = Scores()
        self._probe = probe
        self._context_tokens = context_tokens
        self._on_step = on_step

    def run(self, dialogues: Sequence[Dialogue]) -> None:
        """Tell every dialogue to a memory of its own, then ask."""
        askings = [asking for i, dialogue in enumerate(dialogues) for asking in self._tell(i, dialogue)]
        # Asked one after the other, so that the time to the first token holds no queueing.
        for asking in askings[:_ALONE]:
            answer = self._ask(Arm.STATE, asking)
            self._probe.costs.first_token.append(answer.first_token_ms)
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            try:
                for arm in Arm:
                    rest = askings[_ALONE:] if arm is Arm.STATE else askings
                    list(pool.map(lambda asking, arm=arm: self._ask(arm, asking), rest))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _tell(self, number: int, dialogue: Dialogue) -> list[_Asking]:
        told = self._probe.tell(f"held-out-{number:04}", dialogue.lines)
        self._on_step()
        return [_Asking(told, question, len(dialogue.lines)) for question in dialogue.questions]

    def _ask(self, arm: Arm, asking: _Asking) -> Answer:
        gain, window_tokens = self._reading(arm)
        answer = self._probe.ask(asking.told, asking.question.text, gain=gain, window_tokens=window_tokens)
        whole = arm is not Arm.FULL_CONTEXT or answer.window_turns == asking.turns
        self.scores.add(arm, asking.question, is_correct(asking.question, answer.text), whole=whole)
        self._on_step()
        return answer

    def _reading(self, arm: Arm) -> tuple[float, int]:
        """Gain and window tokens of an arm."""
        return {Arm.STATE: (1.0, 0), Arm.FROZEN: (0.0, 0), Arm.FULL_CONTEXT: (0.0, self._context_tokens)}[arm]
