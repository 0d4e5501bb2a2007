"""Train memfold-tiny, the embedded model: tokenizer, backbone, adapter, card.

make train-tiny                 # everything, into models/memfold-tiny
make train-tiny ARGS=--adapter  # the adapter alone, on the backbone that is there
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from memfold_osam import AdapterConfig
from memfold_osam.card import CARD_FILE, BackboneCard
from memfold_training.adapter import WriteThenRead, train_adapter
from memfold_training.backbone import train_backbone
from memfold_training.episodes import Curriculum, Phase, TurnEncoder
from memfold_training.rounds import Round
from memfold_training.score import Score, from_context, from_state
from memfold_training.tokenizer import train_tokenizer

OUT = Path(__file__).resolve().parents[2] / "models" / "memfold-tiny"
SEED = 0

# A gate that starts at sigmoid(-1.5) forgets within ten tokens; -4 lets a fact live long enough to be
# answered, and the training then finds its own.
ADAPTER = AdapterConfig(num_state_heads=8, beta_bias_init=-4.0, base_slice_ref_width=64, online_gain=0.05)

# What is asked grows: first a fact or three, then more, then with changes and talk in between.
ROUNDS = (
    Round(
        (
            Phase(700, 32, Curriculum(facts=(1, 3), foreign=0.5)),
            Phase(700, 24, Curriculum(facts=(1, 5), changes=(0, 1), small_talk=(0, 2), unknown=(0, 1), foreign=0.5)),
            Phase(300, 20, Curriculum(facts=(1, 6), changes=(0, 2), small_talk=(0, 5), unknown=(0, 1), foreign=0.5)),
        ),
        learning_rate=5e-3,
        decision=0.5,
    ),
    # Not every turn is answered: an adapter that has only seen answered ones writes a fact down while the answer is read.
    Round(
        (
            Phase(
                450,
                24,
                Curriculum(facts=(1, 5), changes=(0, 1), small_talk=(0, 2), unknown=(0, 1), foreign=0.5, silent=0.5),
            ),
        ),
        learning_rate=3e-3,
        decision=0.5,
    ),
    Round(
        (
            Phase(
                550,
                24,
                Curriculum(facts=(1, 6), changes=(0, 1), small_talk=(0, 2), unknown=(0, 1), foreign=0.5, silent=0.35),
            ),
        ),
        learning_rate=3e-3,
        decision=0.5,
    ),
)

DESCRIPTION = (
    "memfold-tiny is a model of a million parameters, made for demonstrations. It understands short English sentences "
    "in which you tell something about yourself - where you live, your job, pet, favorite color, food or drink, "
    "sport, instrument, hobby, language, birthplace, fruit, flower, best friend, way to work, subject - "
    "and questions about them."
)
EXAMPLES = ("My best friend is Nadia.", "I work as a librarian.", "Who is my best friend?")


def scores(backbone: PreTrainedModel, model: WriteThenRead, encoder: TurnEncoder) -> dict[str, Any]:
    """Every figure of the card, on held-out dialogues."""

    def figure(score: Score) -> dict[str, Any]:
        return {"value": round(score.overall, 4), "n": score.n}

    three = from_state(model, encoder, dialogues=400, facts=3)
    return {
        "state_alone_3_facts": {
            **figure(three),
            "by_attribute": {a: round(v, 3) for a, v in three.by_attribute().items()},
        },
        "frozen_3_facts": figure(from_state(model, encoder, dialogues=100, facts=3, zeroed=True)),
        "full_context_3_facts": figure(from_context(backbone, encoder, dialogues=100, facts=3)),
        "full_context_6_facts": figure(from_context(backbone, encoder, dialogues=100, facts=6)),
        "state_alone_3_facts_no_replies": figure(from_state(model, encoder, dialogues=200, facts=3, silent=1.0)),
        "state_alone_1_fact": figure(from_state(model, encoder, dialogues=300, facts=1)),
        "state_alone_6_facts": figure(from_state(model, encoder, dialogues=100, facts=6)),
        "state_alone_10_facts": figure(from_state(model, encoder, dialogues=60, facts=10)),
        "state_alone_16_facts": figure(from_state(model, encoder, dialogues=40, facts=16)),
        "newest_wins_3_facts_3_changes": figure(from_state(model, encoder, dialogues=100, facts=3, changes=3)),
        "after_20_exchanges_of_small_talk": figure(
            from_state(model, encoder, dialogues=100, facts=3, small_talk=20, talk_at_end=True)
        ),
        "never_told": figure(from_state(model, encoder, dialogues=150, facts=0, unknown=2)),
    }


def main() -> None:
    """Train what is asked for and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", action="store_true", help="train the adapter alone")
    parser.add_argument("--score", action="store_true", help="only score what is there and rewrite the card's scores")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    out: Path = arguments.out
    started = time.monotonic()
    if not (arguments.adapter or arguments.score):
        train_backbone(train_tokenizer(SEED), out, seed=SEED)
    backbone = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    encoder = TurnEncoder(AutoTokenizer.from_pretrained(out))
    if arguments.score:
        from memfold_osam import load_adapter  # noqa: PLC0415 - after the backbone

        memory = load_adapter(backbone, out / "adapter")
    else:
        memory = train_adapter(backbone, encoder, ADAPTER, ROUNDS, out / "adapter", seed=SEED)
    card = {
        "name": "memfold-tiny",
        "description": DESCRIPTION,
        "examples": EXAMPLES,
        "block_tokens": 1024,
        "backbone": asdict(BackboneCard.of(backbone)),
        "data": "persona dialogues of memfold.persona, split 'train' (docs/dialogues.md)",
        "recipe": "training/memfold_training/tiny.py",
        "seed": SEED,
        "scores": scores(backbone, WriteThenRead(backbone, memory), encoder),
    }
    (out / "adapter" / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card["scores"], indent=2))
    print(f"took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
