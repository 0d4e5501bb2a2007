"""What the embedded model is held to, on dialogues that neither training nor its card has seen."""

from __future__ import annotations

import random

import pytest
import torch

from memfold.persona import talk
from memfold_osam.serving import ServedModel, embedded_model, load_served_model
from memfold_training.adapter import WriteThenRead
from memfold_training.encoder import TurnEncoder
from memfold_training.episodes import messages
from memfold_training.score import NEVER_TOLD, Score, from_context, from_state, held_out, perplexity_ratio

SEED = 77_000_000


@pytest.fixture(scope="module")
def tiny() -> ServedModel:
    return load_served_model()


@pytest.fixture(scope="module")
def encoder(tiny: ServedModel) -> TurnEncoder:
    return TurnEncoder(tiny.tokenizer)


@pytest.fixture(scope="module")
def model(tiny: ServedModel) -> WriteThenRead:
    return WriteThenRead(tiny.model, tiny.memory)


@pytest.fixture
def recall(model: WriteThenRead, encoder: TurnEncoder):
    def ask(dialogues: int, **shape) -> Score:
        return from_state(model, encoder, dialogues=dialogues, seed=SEED, **shape)

    return ask


def test_six_facts_are_recalled_from_the_state_alone(recall) -> None:
    score = recall(160, facts=6)
    assert score.n == 960
    assert score.overall >= 0.95
    assert min(score.by_attribute().values()) >= 0.85, score.by_attribute()


def test_and_most_of_sixteen(recall) -> None:
    assert recall(25, facts=16).overall >= 0.75


def test_facts_are_kept_to_which_nobody_says_a_word(recall) -> None:
    assert recall(60, facts=3, silent=1.0).overall >= 0.90


def test_the_frozen_backbone_knows_nothing_without_the_state(recall) -> None:
    assert recall(60, facts=6, zeroed=True).overall <= 0.10


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_newest_of_several_values_wins(recall, times: int) -> None:
    assert recall(50, facts=3, changes=3, times=times).overall >= 0.85


def test_a_fact_outlives_five_hundred_tokens_of_talk(recall, encoder: TurnEncoder) -> None:
    shape = {"facts": 3, "small_talk": 30, "talk_at_end": True}
    plain, behind = (held_out(60, seed=SEED, **kind) for kind in ({"facts": 3}, shape))
    lengths = [sum(len(encoder.context(messages(d.lines), "token").tokens) for d in ds) / 60 for ds in (plain, behind)]
    assert lengths[1] - lengths[0] >= 500
    assert recall(60, **shape).overall >= 0.80 * recall(60, facts=3).overall


def test_it_says_so_when_it_was_never_told(recall) -> None:
    assert recall(60, facts=3, unknown=2).by_attribute()[NEVER_TOLD] >= 0.80
    assert recall(60, facts=0, unknown=2).overall >= 0.80


def test_a_memory_leaves_other_text_as_it_was(model: WriteThenRead, encoder: TurnEncoder) -> None:
    rng = random.Random(SEED)
    for strange in (0.0, 1.0):
        texts = [talk(rng, strange)[0].content for _ in range(80)]
        assert perplexity_ratio(model, encoder, texts) == pytest.approx(1.0, abs=0.03)


def test_the_backbone_answers_from_its_context(tiny: ServedModel, encoder: TurnEncoder) -> None:
    assert from_context(tiny.model, encoder, dialogues=40, facts=6, seed=SEED).overall >= 0.97


def test_it_is_small_and_any_text_can_be_read(tiny: ServedModel) -> None:
    folder = embedded_model()
    assert sum(f.stat().st_size for f in folder.rglob("*.safetensors")) <= 15 * 2**20
    text = "Żółć, 你好, 🦜, \x00\x7f and <|end|>"
    assert tiny.tokenizer.decode(tiny.turns.content(text)) == text


def test_its_state_is_what_the_readme_says(tiny: ServedModel) -> None:
    assert tiny.state_shape == (4, 8, 16, 16)
    assert torch.Size(tiny.state_shape).numel() * 4 == 32768
