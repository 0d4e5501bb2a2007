"""Persona dialogues: people tell facts about themselves, change some, chat about other things, and ask.

One generator serves the training of the embedded model, the demo and the evaluation. A dialogue is
plain data (see ``docs/dialogues.md`` for the JSONL format), so that others can write their own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from memfold.persona import babble, words
from memfold.persona.words import ATTRIBUTES, UNKNOWN_ANSWER, Attribute

__all__ = ["ATTRIBUTES", "UNKNOWN_ANSWER", "Dialogue", "Line", "Question", "generate", "is_correct", "talk"]

Split = Literal["train", "held_out"]
ALL_VALUES: tuple[str, ...] = tuple(v for a in ATTRIBUTES for v in a.values)


@dataclass(frozen=True, slots=True)
class Line:
    """One message of a dialogue."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question that the dialogue answers; ``value`` is None where the fact was never told."""

    attribute: str
    text: str
    answer: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What was said, and what can be asked about it afterwards."""

    lines: tuple[Line, ...]
    questions: tuple[Question, ...] = field(default=())


def is_correct(question: Question, reply: str) -> bool:
    """Exact match: the reply is the one sentence that answers, blanks at the ends aside."""
    return reply.strip() == question.answer


def _held_out(*parts: str, share: float) -> bool:
    """Decide by hash, once and for all, whether a combination is kept for scoring."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def _order(attribute: str, value: str) -> bytes:
    return hashlib.sha256(f"{attribute}\x1f{value}".encode()).digest()


# A quarter of each attribute's own values is never its value in training.
_KEPT_BACK: dict[str, frozenset[str]] = {
    a.name: frozenset(sorted(a.values, key=lambda v, n=a.name: _order(n, v))[: len(a.values) // 4])  # type: ignore[misc]
    for a in ATTRIBUTES
}
_OWN: dict[str, frozenset[str]] = {a.name: frozenset(a.values) for a in ATTRIBUTES}


def value_is_held_out(attribute: str, value: str) -> bool:
    """Whether training never says that this attribute has this value."""
    if value in _OWN[attribute]:
        return value in _KEPT_BACK[attribute]
    return _held_out("value", attribute, value, share=0.25)


def _choose(rng: random.Random, split: Split, kind: str, *options: Sequence[str]) -> tuple[str, ...]:
    """Pick one of each option list such that the whole combination belongs to the split."""
    while True:
        picked = tuple(rng.choice(o) for o in options)
        if _held_out(kind, *picked, share=0.2) == (split == "held_out"):
            return picked


def _pick_value(rng: random.Random, attribute: Attribute, split: Split, foreign: float, taken: set[str]) -> str:
    """A value not yet in the dialogue; ``foreign`` is the share drawn from the lists of all attributes."""
    while True:
        pool = ALL_VALUES if rng.random() < foreign else attribute.values
        value = rng.choice(pool)
        if value not in taken and value_is_held_out(attribute.name, value) == (split == "held_out"):
            return value


def _join(opener: str, core: str, closer: str = "") -> str:
    """A sentence behind an opener that ends in a comma or a word goes on in lower case."""
    goes_on = opener.endswith((", ", "that ")) and not core.startswith("I ")
    return opener + (core[0].lower() + core[1:] if goes_on else core) + closer


def _tell(rng: random.Random, attribute: Attribute, value: str, split: Split, again: bool) -> Line:
    if again:
        opener, core = _choose(rng, split, "correct", words.CORRECTION_OPENERS, attribute.corrections)
        return Line("user", _join(opener, core).format(v=value))
    opener, core, closer = _choose(rng, split, "tell", words.OPENERS, attribute.statements, words.CLOSERS)
    return Line("user", _join(opener, core, closer).format(v=value))


def _ask(rng: random.Random, attribute: Attribute, value: str | None, split: Split) -> Question:
    opener, core = _choose(rng, split, "ask", words.QUESTION_OPENERS, attribute.questions)
    answer = UNKNOWN_ANSWER if value is None else attribute.answer.format(v=value)
    return Question(attribute.name, opener + core, answer, value)


def talk(rng: random.Random, strange: float = 0.0) -> tuple[Line, Line]:
    """An exchange that holds nothing to remember; in a share of ``strange``, words that mean nothing at all."""
    if strange and rng.random() < strange:
        return Line("user", babble.sentences(rng, rng.randint(1, 2))), Line("assistant", babble.sentences(rng, 1))

    def fill(template: str) -> str:
        return template.format(
            adjective=rng.choice(words.ADJECTIVES), topic=rng.choice(words.TOPICS), when=rng.choice(words.WHENS)
        )

    return Line("user", fill(rng.choice(words.FILLERS))), Line("assistant", fill(rng.choice(words.FILLER_REPLIES)))


def generate(
    seed: int,
    *,
    facts: int = 3,
    changes: int = 0,
    times: int = 1,
    small_talk: int = 0,
    unknown: int = 0,
    split: Split = "held_out",
    foreign: float = 0.0,
    silent: float = 0.0,
    strange: float = 0.0,
    talk_at_end: bool = False,
) -> Dialogue:
    """Make one dialogue; the same arguments give the same dialogue for ever.

    Args:
        seed: any integer.
        facts: attributes that are told, at most ``len(ATTRIBUTES)``.
        changes: how many of the told facts are replaced later; the newest value is the right answer.
        times: how often each of those is replaced.
        small_talk: exchanges about other things, strewn in between.
        unknown: questions about attributes that were never told.
        split: ``train`` and ``held_out`` share no (attribute, value) pair and no wording.
        foreign: share of values drawn from the lists of all attributes; forces a model to copy
            instead of guessing. Scoring uses 0.
        silent: share of the user's turns to which the assistant says nothing.
        strange: share of the small talk that consists of words that mean nothing.
        talk_at_end: put all small talk after the last fact, for measuring retention.

    Raises:
        ValueError: more facts and unknowns than there are attributes, or more changes than facts.
    """
    if not 0 <= facts + unknown <= len(ATTRIBUTES):
        raise ValueError(f"facts + unknown must be 0 to {len(ATTRIBUTES)}, got {facts + unknown}")
    if not 0 <= changes <= facts:
        raise ValueError(f"changes must be 0 to facts ({facts}), got {changes}")
    rng = random.Random(f"{split}:{seed}:{facts}:{changes}:{small_talk}:{unknown}")
    chosen = rng.sample(ATTRIBUTES, facts + unknown)
    told, untold = chosen[:facts], chosen[facts:]
    taken: set[str] = set()
    current: dict[str, str] = {}
    exchanges: list[tuple[Line, Line]] = []
    for again, attribute in [(False, a) for a in told] + [(True, a) for a in rng.sample(told, changes) * times]:
        value = _pick_value(rng, attribute, split, foreign, taken)
        taken.add(value)
        current[attribute.name] = value
        ack = Line("assistant", rng.choice(words.ACKNOWLEDGEMENTS))
        exchanges.append((_tell(rng, attribute, value, split, again), ack))
    others = [talk(rng, strange) for _ in range(small_talk)]
    if talk_at_end:
        exchanges += others
    else:
        for exchange in others:
            exchanges.insert(rng.randint(0, len(exchanges)), exchange)
    questions = [_ask(rng, a, current[a.name], split) for a in told] + [_ask(rng, a, None, split) for a in untold]
    rng.shuffle(questions)
    heard = [exchange[: 1 if silent and rng.random() < silent else 2] for exchange in exchanges]
    return Dialogue(tuple(line for exchange in heard for line in exchange), tuple(questions))
