"""What an answer may rest on: each arm is a way to set the fields of one and the same request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Arm(StrEnum):
    """The arms of the report."""

    NONE = "none"
    STATE = "state"
    WINDOW = "window"
    WINDOW_STATE = "window+state"
    RECALL = "recall"
    RECALL_STATE = "recall+state"
    FULL_CONTEXT = "full-context"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a request reads a memory: its strength, and tokens of the log that stand in the prompt word for word."""

    gain: float
    window_tokens: int
    recall_tokens: int


@dataclass(frozen=True, slots=True)
class Budgets:
    """Tokens of the log in a prompt, at most: of the newest turns, of passages found, and all there is room for."""

    window: int
    recall: int
    context: int

    def reading(self, arm: Arm) -> Reading:
        """The fields of a request on an arm."""
        gain = 1.0 if arm in (Arm.STATE, Arm.WINDOW_STATE, Arm.RECALL_STATE) else 0.0
        window = {Arm.WINDOW: self.window, Arm.WINDOW_STATE: self.window, Arm.FULL_CONTEXT: self.context}.get(arm, 0)
        recall = self.recall if arm in (Arm.RECALL, Arm.RECALL_STATE) else 0
        return Reading(gain, window, recall)
