"""What the embedded model's card promises, on dialogues that neither training nor the card has seen."""

from __future__ import annotations

import pytest
import torch

from memfold_osam.serving import ServedModel, embedded_model, load_served_model
from memfold_training.adapter import WriteThenRead
from memfold_training.encoder import TurnEncoder
from memfold_training.score import from_context, from_state

SEED = 77_000_000


@pytest.fixture(scope="module")
def tiny() -> ServedModel:
    return load_served_model()


@pytest.fixture(scope="module")
def model(tiny: ServedModel) -> WriteThenRead:
    return WriteThenRead(tiny.model, tiny.memory)


def test_three_facts_are_recalled_from_the_state_alone(tiny: ServedModel, model: WriteThenRead) -> None:
    score = from_state(model, TurnEncoder(tiny.tokenizer), dialogues=250, facts=3, seed=SEED)
    assert score.n == 750
    assert score.overall >= 0.90
    assert min(score.by_attribute().values()) >= 0.75, score.by_attribute()


def test_the_frozen_backbone_knows_nothing_without_the_state(tiny: ServedModel, model: WriteThenRead) -> None:
    score = from_state(model, TurnEncoder(tiny.tokenizer), dialogues=100, facts=3, seed=SEED, zeroed=True)
    assert score.overall <= 0.10


def test_the_backbone_answers_from_its_context(tiny: ServedModel) -> None:
    score = from_context(tiny.model, TurnEncoder(tiny.tokenizer), dialogues=60, facts=3, seed=SEED)
    assert score.overall >= 0.97


def test_it_is_small_and_any_text_can_be_read(tiny: ServedModel) -> None:
    folder = embedded_model()
    assert sum(f.stat().st_size for f in folder.rglob("*.safetensors")) <= 15 * 2**20
    text = "Żółć, 你好, 🦜, \x00\x7f and <|end|>"
    assert tiny.tokenizer.decode(tiny.turns.content(text)) == text


def test_its_state_is_what_the_readme_says(tiny: ServedModel) -> None:
    assert tiny.state_shape == (4, 8, 8, 8)
    assert torch.Size(tiny.state_shape).numel() * 4 == 8192
