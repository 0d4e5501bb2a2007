"""The byte-level BPE of memfold-tiny: trained on the dialogues, yet able to read any text."""

from __future__ import annotations

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from memfold.persona import words
from memfold_training.episodes import Curriculum

SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant', 'system', 'tool'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(seed: int, vocabulary: int = 2560) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the training split; every value of every attribute becomes short."""
    rng = random.Random(seed)
    curriculum = Curriculum(facts=(1, 8), changes=(0, 3), small_talk=(0, 6), unknown=(0, 2))
    texts: list[str] = []
    for _ in range(4000):
        (dialogue,) = curriculum.draw(rng, 1)
        texts += [line.content for line in dialogue.lines]
        texts += [text for q in dialogue.questions for text in (q.text, q.answer)]
    # Held-out pairs are never seen together, but each value is a word like any other, and one token:
    # where "gold" begins "goldfish", a small model tends to go on.
    texts += [" " + value for a in words.ATTRIBUTES for value in a.values] * 300
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    for value in (v for a in words.ATTRIBUTES for v in a.values):
        assert len(tokenizer.encode(" " + value).ids) == 1, value
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=SPECIAL[1:],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )
