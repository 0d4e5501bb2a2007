"""Train memfold-tiny, the embedded model: tokenizer, backbone, adapter, card.

make train-tiny                 # everything, into models/memfold-tiny
make train-tiny ARGS=--adapter  # the adapter alone, on the backbone that is there
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from memfold.persona import talk
from memfold_osam import AdapterConfig, DeltaMemory, load_adapter, save_adapter
from memfold_osam.card import CARD_FILE, BackboneCard
from memfold_training.adapter import WriteThenRead
from memfold_training.backbone import train_backbone
from memfold_training.batches import LossWeights
from memfold_training.encoder import TurnEncoder
from memfold_training.episodes import Curriculum, MemoryBatches, Phase
from memfold_training.rounds import Round, run
from memfold_training.score import NEVER_TOLD, Score, from_context, from_state, perplexity_ratio
from memfold_training.starts import start_from_attention
from memfold_training.tokenizer import train_tokenizer
from memfold_training.trainer import AdapterTrainer

OUT = Path(__file__).resolve().parents[2] / "models" / "memfold-tiny"
SEED = 0

# With a keep gate of 1 - beta, each write fades all that was written before, and many facts are many writes; without it
# a write replaces what its own key held and nothing else. Sixteen attributes want keys of sixteen dimensions.
ADAPTER = AdapterConfig(
    rank=16, alpha=32.0, num_state_heads=8, state_update_mode="no_lambda", beta_bias_init=-4.0, output_init="zero"
)
START_GAIN = 0.5

# What is asked grows: first one to four facts, then up to all, changed up to three times, with talk in between or behind.
# To half of the people nobody says a word, from the beginning on: an adapter that learns among answered turns writes a
# fact down while the answer is read, and hardly unlearns it.
_FIRST = Curriculum(facts=(1, 4), silent=0.2)
_SINGLE = Curriculum(facts=(1, 2), changes=(0, 1), small_talk=(0, 2), unknown=(0, 1), foreign=0.3, silent=0.5)
_SILENT = Curriculum(facts=(1, 6), changes=(0, 1), small_talk=(0, 2), unknown=(0, 1), silent=1.0)
_FEW = Curriculum(facts=(1, 6), changes=(0, 3), small_talk=(0, 3), unknown=(0, 2), silent=0.4, times=(1, 3))
_MANY = Curriculum(
    facts=(4, 16), changes=(0, 2), small_talk=(0, 4), unknown=(0, 2), silent=0.3, times=(1, 2), strange=0.3
)
_LONG = Curriculum(facts=(1, 8), small_talk=(6, 30), unknown=(0, 1), silent=0.3, strange=0.4, at_end=0.6)
ROUNDS = (
    Round(
        (Phase(300, 18, (_FIRST, Curriculum(facts=(1, 4), silent=1.0))),),
        5e-3,
        LossWeights(reply=0.2, value=1.0, opening=0.5, steady=0.3),
        warmup=30,
    ),
    Round(
        (
            Phase(250, 20, (_FEW, _MANY, _SILENT), 4000),
            Phase(850, 20, (_FEW, _MANY, _MANY, _MANY, _LONG, _SILENT), 4500),
        ),
        4e-3,
        LossWeights(reply=0.2, value=1.0, opening=0.5, steady=1.5, likelihood=0.6),
        warmup=40,
    ),
    # Last, all tokens of a reply: where a value ends, the sentence must.
    Round(
        (Phase(250, 20, (_FEW, _MANY, _MANY, _LONG, _SILENT), 4500),),
        1.2e-3,
        LossWeights(reply=1.0, value=1.0, opening=0.5, steady=1.5, likelihood=0.6),
        warmup=20,
    ),
    # And the single fact, which is loud where many are told.
    Round(
        (Phase(200, 20, (_SINGLE, _FEW, _MANY, _MANY, _LONG), 4500),),
        1e-3,
        LossWeights(reply=2.0, value=1.0, opening=0.5, steady=1.5, likelihood=0.6),
        warmup=20,
    ),
)

DESCRIPTION = (
    "memfold-tiny is a model of a million parameters, made for demonstrations. It understands short English sentences "
    "in which you tell something about yourself - where you live, your job, pet, favorite color, food or drink, "
    "sport, instrument, hobby, language, birthplace, fruit, flower, best friend, way to work, subject - "
    "and questions about them."
)
EXAMPLES = ("My best friend is Nadia.", "I work as a librarian.", "Who is my best friend?")


def train_adapter(
    backbone: PreTrainedModel, encoder: TurnEncoder, out: Path, card: dict[str, Any], kept: Path | None = None
) -> DeltaMemory:
    """Train the adapter, round after round, and save it in ``out``.

    Args:
        backbone: frozen.
        encoder: of its tokenizer.
        out: the adapter's directory.
        card: what to say of it.
        kept: where checkpoints are left, from which an interrupted run goes on.
    """
    torch.manual_seed(SEED)
    memory = DeltaMemory(backbone, ADAPTER)
    start_from_attention(backbone, memory, START_GAIN)
    for number, this in enumerate(ROUNDS):
        model = WriteThenRead(backbone, memory, this.weights)
        data = MemoryBatches(encoder, this.phases, SEED + number, this.weights)
        at = None if kept is None else kept / f"round-{number}"
        run(partial(AdapterTrainer, card=card), model, data, this, seed=SEED + number, weight_decay=0.0, kept=at)
    save_adapter(memory.eval(), out, backbone)
    return memory


def scores(backbone: PreTrainedModel, model: WriteThenRead, encoder: TurnEncoder) -> dict[str, Any]:
    """Every figure of the card, on held-out dialogues, with its 95 % confidence interval."""

    def state(dialogues: int, **shape: Any) -> dict[str, Any]:
        return figure(from_state(model, encoder, dialogues=dialogues, **shape))

    six = from_state(model, encoder, dialogues=150, facts=6)
    rng = random.Random(SEED)
    plain = [talk(rng)[0].content for _ in range(100)]
    strange = [talk(rng, strange=1.0)[0].content for _ in range(100)]
    return {
        "state_alone_1_fact": state(200, facts=1),
        "state_alone_3_facts": state(200, facts=3),
        "state_alone_6_facts": figure(six) | {"by_attribute": {a: round(v, 3) for a, v in six.by_attribute().items()}},
        "state_alone_10_facts": state(60, facts=10),
        "state_alone_16_facts": state(50, facts=16),
        "state_alone_3_facts_no_replies": state(150, facts=3, silent=1.0),
        "frozen_6_facts": state(50, facts=6, zeroed=True),
        "full_context_6_facts": figure(from_context(backbone, encoder, dialogues=60, facts=6)),
        "newest_wins_3_facts_changed_once": state(100, facts=3, changes=3),
        "newest_wins_3_facts_changed_three_times": state(100, facts=3, changes=3, times=3),
        "after_20_exchanges_of_small_talk": state(100, facts=3, small_talk=20, talk_at_end=True),
        "after_80_exchanges_of_small_talk": state(40, facts=3, small_talk=80, talk_at_end=True),
        "never_told": figure(from_state(model, encoder, dialogues=150, facts=3, unknown=2), NEVER_TOLD),
        "nothing_told": state(150, facts=0, unknown=2),
        "perplexity_of_small_talk_against_frozen": round(perplexity_ratio(model, encoder, plain), 4),
        "perplexity_of_strange_text_against_frozen": round(perplexity_ratio(model, encoder, strange), 4),
    }


def figure(score: Score, name: str = "") -> dict[str, Any]:
    """A share of right answers, of one attribute or of all, with Wilson's interval of 95 %."""
    n = score.asked[name] if name else score.n
    value = (score.right[name] if name else sum(score.right.values())) / n
    z = 1.96
    centre, spread = value + z * z / (2 * n), z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return {"value": round(value, 4), "n": n, "interval": [round(low, 4), round(high, 4)]}


def main() -> None:
    """Train what is asked for and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", action="store_true", help="train the adapter alone")
    parser.add_argument("--score", action="store_true", help="only score what is there and rewrite the card's scores")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--checkpoints", type=Path, help="leave them here, and go on from those that are here")
    arguments = parser.parse_args()
    out: Path = arguments.out
    started = time.monotonic()
    if not (arguments.adapter or arguments.score):
        train_backbone(train_tokenizer(SEED), out, seed=SEED)
    backbone = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    encoder = TurnEncoder(AutoTokenizer.from_pretrained(out))
    card: dict[str, Any] = {
        "name": "memfold-tiny",
        "description": DESCRIPTION,
        "examples": EXAMPLES,
        "block_tokens": 1024,
        "backbone": asdict(BackboneCard.of(backbone)),
        "data": "persona dialogues of memfold.persona, split 'train' (docs/dialogues.md)",
        "recipe": "training/memfold_training/tiny.py",
        "seed": SEED,
    }
    if arguments.score:
        memory = load_adapter(backbone, out / "adapter")
    else:
        memory = train_adapter(backbone, encoder, out / "adapter", card, arguments.checkpoints)
    card["scores"] = scores(backbone, WriteThenRead(backbone, memory), encoder)
    (out / "adapter" / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card["scores"], indent=2))
    print(f"took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
