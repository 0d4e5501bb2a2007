"""Persona dialogues as JSONL: ``python -m memfold_training.dialogues 2000 > train.jsonl``."""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict
from typing import Any

from memfold.persona import Dialogue, generate


def as_line(dialogue: Dialogue) -> str:
    """One dialogue in the form of ``docs/dialogues.md``."""
    plain: dict[str, Any] = {
        "turns": [asdict(line) for line in dialogue.lines],
        "questions": [asdict(question) for question in dialogue.questions],
    }
    return json.dumps(plain, ensure_ascii=False)


def draw(rng: random.Random, most_facts: int, split: Any) -> Dialogue:
    """A dialogue of one to so many facts, some of them changed, with some talk."""
    facts = rng.randint(1, most_facts)
    return generate(
        rng.getrandbits(48),
        facts=facts,
        changes=rng.randint(0, min(2, facts)),
        small_talk=rng.randint(0, 3),
        unknown=rng.randint(0, min(1, 16 - facts)),
        split=split,
        foreign=0.5 if split == "train" else 0.0,
        silent=0.3,
    )


def main() -> None:
    """Print dialogues."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--facts", type=int, default=6, help="of one dialogue, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("train", "held_out"), default="train")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    for _ in range(arguments.count):
        sys.stdout.write(as_line(draw(rng, arguments.facts, arguments.split)) + "\n")


if __name__ == "__main__":
    main()
