"""Text leaves as whole characters, and never as part of a stop text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfold_osam.testing import byte_tokenizer
from memfold_reader.detokenize import REPLACEMENT, Detokenizer, StopScanner

TOKENIZER = byte_tokenizer()
TEXTS = st.text(st.characters(exclude_characters=REPLACEMENT, exclude_categories=["Cs"]), max_size=60)


def tokens_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def stream(tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(TOKENIZER)
    return [detokenizer.push(token) for token in tokens]


def scan(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    scanner, said = StopScanner(stops), []
    for piece in pieces:
        said.append(scanner.push(piece))
        if scanner.stopped:
            return said, True
    return [*said, scanner.flush()], False


def cut(text: str, borders: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(b % (len(text) + 1) for b in borders)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@settings(deadline=None)
@given(TEXTS)
def test_a_token_a_byte_gives_any_text_back_in_whole_characters(text):
    pieces = stream(tokens_of(text))
    assert "".join(pieces) == text
    assert all(REPLACEMENT not in piece for piece in pieces)


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦 says hi", "记忆折叠", "na\u00efve café", "🏳️‍🌈" * 40])
def test_a_character_leaves_with_its_last_byte_and_not_before(text):
    spoken = 0
    detokenizer = Detokenizer(TOKENIZER)
    for character in text:
        *first, last = tokens_of(character)
        assert [detokenizer.push(token) for token in first] == [""] * len(first)
        assert detokenizer.push(last) == character
        spoken += 1
    assert spoken == len(text)


def test_a_character_that_is_never_finished_is_dropped():
    assert "".join(stream(tokens_of("ok 👍")[:-1])) == "ok "


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=3), max_size=100))
def test_bytes_that_are_no_characters_come_out_as_the_decoder_shows_them(chunks):
    alphabet = {chunk: i for i, chunk in enumerate(TOKENIZER.convert_ids_to_tokens(range(len(TOKENIZER))))}
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: PLC0415

    tokens = [alphabet[bytes_to_unicode()[byte]] for chunk in chunks for byte in chunk]
    whole = TOKENIZER.decode(tokens)
    said = "".join(stream(tokens))
    assert whole.startswith(said)
    assert set(whole[len(said) :]) <= {REPLACEMENT}
    assert len(whole) - len(said) <= 3


def test_special_tokens_have_no_text():
    end, user = TOKENIZER.convert_tokens_to_ids(["<|end|>", "<|user|>"])
    assert "".join(stream([user, *tokens_of("a"), end, *tokens_of("b")])) == "ab"


def test_text_that_looks_like_a_special_token_is_shown():
    assert "".join(stream(tokens_of("<|end|> is text"))) == "<|end|> is text"


@settings(deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 100), max_size=8),
)
def test_a_stop_text_never_leaks_however_the_text_is_cut(text, stops, borders):
    said, stopped = scan(stops, cut(text, borders))
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if not ends:
        assert "".join(said) == text
        return
    first = min(ends)
    begin = min(first - len(stop) for stop in stops if text[:first].endswith(stop))
    assert "".join(said) == text[:begin]


def test_what_may_become_a_stop_text_waits_and_leaves_when_it_does_not():
    scanner = StopScanner(["\nUser:"])
    assert [scanner.push(piece) for piece in ["Hi", "\nUs", "ually"]] == ["Hi", "", "\nUsually"]
    assert not scanner.stopped


def test_without_stop_texts_nothing_waits():
    scanner = StopScanner([])
    assert scanner.push("anything") == "anything"
    assert scanner.flush() == ""
