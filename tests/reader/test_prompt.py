"""Which tokens of a prompt are whose."""

from __future__ import annotations

import itertools

import pytest

from memfold_osam.turns import Message
from memfold_reader.prompt import Prompter

MESSAGES = [
    Message("user", "One. Two."),
    Message("system", "Be brief."),
    Message("assistant", "Yes?", "Ann"),
    Message("user", "Three"),
]


@pytest.fixture
def prompter(served):
    prompter = Prompter(served)
    yield prompter
    prompter.close()


@pytest.mark.parametrize("window", [[], [[7, 8, 9], [7]]])
async def test_a_prompt_knows_where_each_own_message_is(prompter, served, window):
    prompt = prompter.whole(window, await prompter.messages(MESSAGES))
    before = [*served.turns.bos, *itertools.chain.from_iterable(window)]
    encoded = [served.turns.encode(message) for message in MESSAGES]
    header = list(served.turns.generation_prompt)
    assert prompt.tokens == [*before, *itertools.chain.from_iterable(encoded), *header]
    assert prompt.own == len(before)
    written = [prompt.tokens[segment.begin : segment.end] for segment in prompt.segments]
    assert written == [encoded[0], encoded[2], encoded[3]], "a system message is written nowhere"
    assert not any(segment.sentences for segment in prompt.segments)


async def test_where_sentences_are_written_each_token_knows_its_own(prompter, served, monkeypatch):
    monkeypatch.setattr(prompter, "_by_sentence", True)
    prompt = await prompter.messages(MESSAGES)
    assert [list(segment.sentences) for segment in prompt.segments] == [
        served.turns.sentences(message) for message in MESSAGES if message.role != "system"
    ]
    assert set(prompt.segments[0].sentences) == {-1, 0, 1}
