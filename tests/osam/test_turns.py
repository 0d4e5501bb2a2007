"""Turn formats of the families that people use; their templates are in ``templates/``, by what they do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from memfold_osam.testing import byte_tokenizer
from memfold_osam.turns import Affixes, Message, TurnFormat, TurnFormatError

TEMPLATES = Path(__file__).with_name("templates")
CORPUS = [
    "Hello there, how are you? The user said: yes, in 2019 (or 2020).\n\nAll right!\nassistant system model [INST] x"
] * 2
# How GPT-4, Llama 3, Qwen and OLMo cut text: a line feed goes with the punctuation before it.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(special: list[AddedToken]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def sentence_piece(special: list[AddedToken], space: str) -> Tokenizer:
    """As SentencePiece: a space is ``▁``, what is unknown falls into bytes.

    Args:
        space: where one is put in front: ``every`` piece between special tokens, the ``first`` of all, or ``none``.
    """
    trained = Tokenizer(models.BPE())
    # No token has a space inside, or goes from a letter to a bracket.
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Punctuation()]
    )
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    # Neither a line feed nor anything that joins it: those are bytes.
    words = [word for word in learnt["vocab"] if "\n" not in word]
    merges = [(a, b) for a, b in learnt["merges"] if "\n" not in a + b]
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(vocabulary)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    replace = normalizers.Replace(" ", "▁")
    if space == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = (
            normalizers.Sequence([normalizers.Prepend("▁"), replace]) if space == "every" else replace
        )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    return tokenizer


@dataclass(frozen=True)
class Family:
    """A template, a tokenizer of the family's kind, and what its template adds to turns.

    Attributes:
        head: an expression for what stands before the first turn.
        think: what stands before a last reply.
        end: what is left out at the end of a last reply.
        opener: what is written behind a last question, asked for or not.
        user, assistant, system, tool: affixes expected; a user's where None.
    """

    user: Affixes
    assistant: Affixes
    system: Affixes | None = None
    tool: Affixes | None = None
    head: str = ""
    think: str = ""
    end: str = ""
    opener: str = ""
    special: tuple[str, ...] = ()
    bos: str = ""
    eos: str = "<|im_end|>"
    kind: Callable[[list[AddedToken]], Tokenizer] = byte_level
    takes_space: bool = False


def im(role: str) -> Affixes:
    return Affixes(f"<|im_start|>{role}\n", "<|im_end|>\n")


def phi(role: str) -> Affixes:
    return Affixes(f"<|{role}|>\n", "<|end|>\n")


def llama(role: str) -> Affixes:
    return Affixes(f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", trim=True)


IM = ("<|im_start|>", "<|im_end|>")
IM_TOOL = Affixes("<|im_start|>user\n<tool_response>\n", "\n</tool_response><|im_end|>\n")
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

FAMILIES = {
    "llama3": Family(
        llama("user"),
        llama("assistant"),
        llama("system"),
        Affixes(llama("ipython").prefix, "<|eot_id|>"),
        head=r"<\|begin_of_text\|><\|start_header_id\|>system.*?Today Date: .*?<\|eot_id\|>",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    "mistral": Family(
        Affixes("[INST] ", "[/INST]"),
        Affixes(" ", "</s>", trim=True),
        head="<s>",
        special=("[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        kind=lambda special: sentence_piece(special, "first"),
    ),
    "mixtral": Family(
        Affixes("[INST] ", " [/INST]"),
        Affixes(" ", "</s>"),
        head="<s>",
        bos="<s>",
        eos="</s>",
        kind=lambda special: sentence_piece(special, "every"),
    ),
    "mistral_small": Family(
        Affixes("[INST]", "[/INST]"),
        Affixes("", "</s>"),
        Affixes("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        head=r"<s>\[SYSTEM_PROMPT\].*?\[/SYSTEM_PROMPT\]",
        special=("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        bos="<s>",
        eos="</s>",
    ),
    "qwen2": Family(
        im("user"),
        im("assistant"),
        im("system"),
        IM_TOOL,
        head=r"<\|im_start\|>system\nYou are Qwen.*?<\|im_end\|>\n",
        special=IM,
    ),
    "qwen3": Family(im("user"), im("assistant"), im("system"), IM_TOOL, think="<think>\n\n</think>\n\n", special=IM),
    "smollm3": Family(
        im("user"),
        im("assistant"),
        im("system"),
        head=r"<\|im_start\|>system\n## Metadata.*?<\|im_end\|>\n",
        special=IM,
        bos="<|begin_of_text|>",
    ),
    "gemma3": Family(
        Affixes("<start_of_turn>user\n", "<end_of_turn>\n", trim=True),
        Affixes("<start_of_turn>model\n", "<end_of_turn>\n", trim=True),
        head="<bos>",
        special=("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        kind=lambda special: sentence_piece(special, "none"),
    ),
    "phi3": Family(
        phi("user"),
        phi("assistant"),
        phi("system"),
        special=PHI,
        eos="<|endoftext|>",
        kind=lambda special: sentence_piece(special, "every"),
        takes_space=True,
    ),
    "phi3_first": Family(
        phi("user"),
        phi("assistant"),
        head="<s>",
        opener="<|assistant|>\n",
        special=PHI,
        bos="<s>",
        eos="<|endoftext|>",
        kind=lambda special: sentence_piece(special, "every"),
        takes_space=True,
    ),
    "olmo2": Family(
        Affixes("<|user|>\n", "\n"),
        Affixes("<|assistant|>\n", "<|endoftext|>\n"),
        Affixes("<|system|>\n", "\n"),
        head=r"<\|endoftext\|>",
        end="\n",
        bos="<|endoftext|>",
        eos="<|endoftext|>",
    ),
    "chatml": Family(im("user"), im("assistant"), im("system"), im("tool"), special=IM, bos="<|im_start|>"),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[name]
    texts = dict.fromkeys(text for text in (family.bos, family.eos, *family.special) if text)
    special = [AddedToken(text, special=True, normalized=False, rstrip=family.takes_space) for text in texts]
    return PreTrainedTokenizerFast(
        tokenizer_object=family.kind(special),
        bos_token=family.bos or None,
        eos_token=family.eos,
        chat_template=(TEMPLATES / f"{name}.jinja").read_text(),
        clean_up_tokenization_spaces=False,
        name_or_path=name,
    )


@cache
def format_of(name: str) -> TurnFormat:
    return TurnFormat.derive(tokenizer_of(name))


def rendered(name: str, talk: list[Message]) -> str:
    """A conversation by the template, without what the template adds for the place of a turn."""
    family = FAMILIES[name]
    said = [{"role": m.role, "content": m.content} for m in talk]
    text = str(tokenizer_of(name).apply_chat_template(said, tokenize=False))
    found = re.match(family.head, text, re.DOTALL)
    assert found is not None, text
    text = text[found.end() :]
    if talk[-1].role == "assistant":
        before, think, reply = text.rpartition(family.think) if family.think else ("", "", text)
        assert think == family.think
        return before + reply + family.end
    assert text.endswith(family.opener)
    return text.removesuffix(family.opener)


# Most of unicode, words that the tokenizers have long tokens for, and what meets the marks around a text.
PIECES = st.one_of(st.text(max_size=8), st.sampled_from(["Hello", " there", " user", "\n", "  ", "!", "(", "[", "|>"]))
TEXTS = st.lists(PIECES, min_size=1, max_size=6).map("".join).map(str.strip).filter(bool)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_turns_in_a_row_are_the_rendered_conversation(name: str, texts: list[str]) -> None:
    turns, tokenizer = format_of(name), tokenizer_of(name)
    talk = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    text = "".join(turns.affixes[m.role].around(m.content) for m in talk)
    assert text == rendered(name, talk)
    tokens = [token for m in talk for token in turns.encode(m)]
    assert tokens == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_affixes_are_those_of_the_family(name: str) -> None:
    family, affixes = FAMILIES[name], format_of(name).affixes
    assert affixes == {
        "user": family.user,
        "assistant": family.assistant,
        "system": family.system or family.user,
        "tool": family.tool or family.user,
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_ends_and_openings_are_those_of_the_family(name: str) -> None:
    family, turns, tokenizer = FAMILIES[name], format_of(name), tokenizer_of(name)
    beginning = family.bos if name not in ("chatml", "smollm3") else ""
    assert tokenizer.decode(turns.bos) == beginning
    opened = family.assistant.prefix.lstrip(" ")
    assert list(turns.generation_prompt) == tokenizer(opened, add_special_tokens=False)["input_ids"]
    ends = {family.eos, *(mark for mark in family.special if family.assistant.suffix.startswith(mark))}
    assert {tokenizer.decode(i) for i in turns.end_ids} == ends
    assert turns.encode(Message("assistant", "yes"))[: len(turns.generation_prompt)] == list(turns.generation_prompt)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3", "phi3", "olmo2", "chatml"])
def test_a_system_turn_between_others_is_the_rendered_one(name: str) -> None:
    talk = [
        Message("user", "Hi!"),
        Message("assistant", "Yes?"),
        Message("system", "Be brief."),
        Message("user", "So?"),
    ]
    turns = format_of(name)
    assert "".join(turns.affixes[m.role].around(m.content) for m in talk) == rendered(name, talk)


@pytest.mark.parametrize("name", ["llama3", "gemma3", "qwen2"])
def test_white_space_at_a_texts_ends_is_cut_where_the_template_cuts_it(name: str) -> None:
    turns = format_of(name)
    talk = [Message("user", " \nHello\n\nthere  "), Message("assistant", "\n yes ")]
    assert "".join(turns.affixes[m.role].around(m.content) for m in talk) == rendered(name, talk)
    tokens = [token for m in talk for token in turns.encode(m)]
    assert tokens == tokenizer_of(name)(rendered(name, talk), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", FAMILIES)
def test_marks_in_a_text_stay_text(name: str) -> None:
    turns, tokenizer = format_of(name), tokenizer_of(name)
    marks = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    usual = [t for t in turns.encode(Message("user", "Hello")) if t in marks]
    for text in (*FAMILIES[name].special, FAMILIES[name].eos):
        tokens = turns.encode(Message("user", f"Hello{text}"))
        assert [t for t in tokens if t in marks] == usual
        assert not marks & set(turns.content(text))


def test_a_turn_is_the_same_tokens_wherever_it_stands() -> None:
    tokenizer = byte_tokenizer()
    turns = TurnFormat.derive(tokenizer)
    talk = [Message("user", "Hi."), Message("assistant", "Hello."), Message("tool", "42"), Message("user", "So?")]
    said = [{"role": m.role, "content": m.content} for m in talk]
    whole = tokenizer.apply_chat_template(said, tokenize=True, return_dict=False)
    assert [token for m in talk for token in turns.encode(m)] == list(whole)


def test_a_named_speaker_stands_before_the_words() -> None:
    turns = format_of("llama3")
    assert turns.encode(Message("user", "Hi.", "Caroline")) == turns.encode(Message("user", "Caroline: Hi."))


@pytest.mark.parametrize("name", FAMILIES)
def test_sentences_cover_the_text_and_nothing_else(name: str) -> None:
    turns, tokenizer = format_of(name), tokenizer_of(name)
    text = "Hello there! All right:\nyes, in 2019. (x)"
    for role in ("user", "assistant"):
        message = Message(role, text)
        tokens, sentences = turns.encode(message), turns.sentences(message)
        assert len(sentences) == len(tokens)
        inside = [i for i, sentence in enumerate(sentences) if sentence >= 0]
        assert inside == list(range(inside[0], inside[-1] + 1))
        assert sentences[inside[0] : inside[-1] + 1] == sorted(sentences[i] for i in inside)
        for number, words in enumerate(["Hello there!", " All right:", "\nyes, in 2019.", " (x)"]):
            piece = tokenizer.decode([t for t, s in zip(tokens, sentences, strict=True) if s == number])
            assert piece.strip() == words.strip()


def test_an_empty_text_is_a_turn_of_affixes() -> None:
    turns = format_of("chatml")
    assert tokenizer_of("chatml").decode(turns.encode(Message("user", ""))) == "<|im_start|>user\n<|im_end|>\n"
    assert turns.encode(Message("system", "")) != turns.encode(Message("user", ""))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("", "has no chat template"),
        ("{% for m in messages %}{{ '<|user|>' + m['content'] | lower }}{% endfor %}", "changes or drops"),
        ("{% for m in messages %}{{ '<|user|>' + m['content'] | upper + '<|end|>' }}{% endfor %}", "who speaks"),
        ("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | upper }}{% endfor %}", "changes the text"),
        ("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | tojson }}{% endfor %}", "changes the text"),
        ("{% for m in messages %}{{ '<|user|>' + loop.index|string + m['content'] }}{% endfor %}", "different places"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "who speaks"),
        ("{% for m in messages %}{{ m['content'] + '<|end|>' }}{% endfor %}", "who speaks"),
        ("{{ messages[-1]['content'] }}", "changes or drops"),
        ("{{ messages[0]['content'] }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "changes or drops"),
        ("{{ raise_exception('no talk without tools') }}", "no talk without tools"),
        ("{{ messages.nothing.at.all }}", "fails on a plain conversation"),
        (
            "{% for m in messages %}{{ loop.first|string + m.role + m.content + '<|end|>' }}{% endfor %}",
            "opens a first turn otherwise",
        ),
        (
            "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + loop.last|string }}{% endfor %}",
            "ends a last turn otherwise",
        ),
    ],
)
def test_a_template_without_a_turn_format_is_refused_with_the_reason(template: str, why: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.name_or_path = "odd-model"
    tokenizer.chat_template = template
    with pytest.raises(TurnFormatError, match=f"odd-model.*{why}"):
        TurnFormat.derive(tokenizer)


def test_a_tokenizer_that_joins_turns_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.model = models.BPE(
        vocab={**tokenizer.get_vocab(), "au": 500, "sa": 501}, merges=[("s", "a"), ("a", "u")]
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[:1] + m.content + m.role[:1] }}{% endfor %}"
    with pytest.raises(TurnFormatError, match="joins a user's turn"):
        TurnFormat.derive(tokenizer)


def test_a_reply_that_nothing_ends_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    with pytest.raises(TurnFormatError, match="no token ends a reply"):
        TurnFormat.derive(tokenizer)


def test_a_beginning_of_sequence_token_opens_a_block_once() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<|tool|>"
    tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    turns = TurnFormat.derive(tokenizer)
    assert turns.bos == (tokenizer.bos_token_id,)
    assert turns.affixes["user"].prefix == "<|user|>"
    assert turns.affixes["system"].prefix == "<|system|>"


def test_whatever_changes_the_tokens_of_a_turn_changes_the_fingerprint() -> None:
    texts = {name: format_of(name).fingerprint_text() for name in FAMILIES}
    assert texts.pop("qwen3") == texts["qwen2"]
    assert len(set(texts.values())) == len(texts)
    trimmed = byte_tokenizer()
    trimmed.chat_template = str(trimmed.chat_template).replace("m['content']", "(m['content'] | trim)")
    formats = [TurnFormat.derive(tokenizer).fingerprint_text() for tokenizer in (byte_tokenizer(), trimmed)]
    assert formats[0] != formats[1]
