"""Train the backbone of memfold-tiny: a small Qwen3 that answers questions from its context."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Trainer

from memfold_training.batches import LossWeights
from memfold_training.encoder import TurnEncoder
from memfold_training.episodes import IGNORED, ContextBatches, Curriculum, Phase
from memfold_training.rounds import Round, run
from memfold_training.score import from_context

LANGUAGE_MODEL_WEIGHT = 0.2
ENOUGH = 0.97  # of the questions about three facts: below that an adapter learns nothing worth having


# Half of the values come from the lists of all attributes: a model that sees each attribute only with
# its own values learns to guess instead of to copy. Few facts come first: telling two apart is what
# the rest grows from. Deciding whether there is an answer comes last: learnt together, neither was.
ROUNDS = (
    Round(
        (
            Phase(600, 48, (Curriculum(facts=(1, 3)),)),
            Phase(300, 32, (Curriculum(facts=(2, 6), changes=(0, 1), small_talk=(0, 1), unknown=(0, 1), foreign=0.7),)),
            Phase(300, 24, (Curriculum(facts=(0, 8), changes=(0, 2), small_talk=(0, 4), unknown=(0, 2), foreign=0.7),)),
        ),
        2e-3,
        LossWeights(),
    ),
    Round(
        (Phase(300, 24, (Curriculum(facts=(0, 6), changes=(0, 2), small_talk=(0, 3), unknown=(0, 2), foreign=0.6),)),),
        1e-3,
        LossWeights(opening=1.0),
    ),
    Round(
        (Phase(500, 24, (Curriculum(facts=(0, 6), changes=(0, 2), small_talk=(0, 3), unknown=(0, 2), foreign=0.6),)),),
        1.5e-3,
        LossWeights(opening=1.0),
    ),
)


def new_backbone(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised model, 4 layers of width 128."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=8192,
            # 1 / sqrt(width), roughly: the usual 0.02 is made for wide models and starts this one too flat.
            initializer_range=0.06,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class ContextTrainer(Trainer):
    """Cross-entropy on what only the context can tell, plus a fifth of it on everything."""

    def __init__(self, *args: Any, decision: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decision = decision

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:  # noqa: D102
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
        labels = inputs["labels"][:, 1:]
        losses = functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
        ).view(labels.shape)
        answers = losses[inputs["recalled"][:, 1:]].mean() + self.decision * losses[inputs["decided"][:, 1:]].mean()
        return answers + LANGUAGE_MODEL_WEIGHT * losses[labels != IGNORED].mean()


def train_backbone(
    tokenizer: PreTrainedTokenizerFast, out: Path, *, seed: int, rounds: tuple[Round, ...] = ROUNDS
) -> Qwen3ForCausalLM:
    """Train and save a backbone.

    Raises:
        RuntimeError: it does not answer from its context, so that no adapter could learn from it.
    """
    encoder = TurnEncoder(tokenizer)
    model = new_backbone(tokenizer, seed)
    for number, this in enumerate(rounds):
        data = ContextBatches(encoder, this.phases, seed + number)
        trainer = partial(ContextTrainer, decision=this.weights.opening)
        run(trainer, model, data, this, seed=seed + number, weight_decay=0.01)
    model.train(False)
    score = from_context(model, encoder, facts=3, dialogues=100)
    print(f"answers from context, held-out dialogues of 3 facts: {score.overall:.3f} (n = {score.n})")
    if score.overall < ENOUGH:
        raise RuntimeError(f"the backbone answers {score.overall:.3f} from its context, {ENOUGH} is the least")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model
