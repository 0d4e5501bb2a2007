from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from memfold_osam.testing import byte_tokenizer
from memfold_osam.turns import Affixes, Message, TurnFormat, TurnFormatError

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|system|>Be kind.<|end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think></think>' }}{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def test_a_turn_is_the_same_tokens_wherever_it_stands(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = TurnFormat.derive(tokenizer)
    talk = [Message("user", "Hi."), Message("assistant", "Hello."), Message("tool", "42"), Message("user", "So?")]
    said = [{"role": m.role, "content": m.content} for m in talk]
    rendered = tokenizer.apply_chat_template(said, tokenize=True, return_dict=False)
    assert [token for m in talk for token in turns.encode(m)] == list(rendered)


def test_default_system_block_and_think_block_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML
    turns = TurnFormat.derive(tokenizer)
    assert turns.affixes["assistant"] == Affixes("<|assistant|>", "<|end|>")
    assert turns.affixes["user"] == Affixes("<|user|>", "<|end|>")
    assert turns.affixes["system"] == Affixes("<|system|>", "<|end|>")
    assert tokenizer.decode(turns.generation_prompt) == "<|assistant|>"


def test_text_that_looks_like_a_special_token_stays_text(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = TurnFormat.derive(tokenizer)
    tokens = turns.encode(Message("user", "a<|end|><|system|>b"))
    special = [t for t in tokens if t in tokenizer.all_special_ids]
    assert tokenizer.decode(special) == "<|user|><|end|>"
    assert tokenizer.decode(tokens[1:-1]) == "a<|end|><|system|>b"


def test_a_named_speaker_stands_before_the_words(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = TurnFormat.derive(tokenizer)
    assert turns.encode(Message("user", "Hi.", "Caroline")) == turns.encode(Message("user", "Caroline: Hi."))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("", "no chat template"),
        ("{% for m in messages %}{{ '<|user|>' + m['content'] | lower }}{% endfor %}", "changes or drops"),
        ("{% for m in messages %}{{ '<|user|>' + loop.index|string + m['content'] }}{% endfor %}", "different places"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "who speaks"),
        ("{{ messages[-1]['content'] }}", "changes or drops"),
    ],
)
def test_a_template_without_a_turn_format_is_refused_with_the_reason(
    tokenizer: PreTrainedTokenizerFast, template: str, why: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(TurnFormatError, match=why):
        TurnFormat.derive(tokenizer)


def test_a_beginning_of_sequence_token_opens_a_block_once(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.bos_token = "<|tool|>"
    tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    turns = TurnFormat.derive(tokenizer)
    assert turns.bos == (tokenizer.bos_token_id,)
    assert turns.affixes["user"].prefix == "<|user|>"
    assert turns.affixes["system"].prefix == "<|system|>"
