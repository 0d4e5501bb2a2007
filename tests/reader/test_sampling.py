"""How tokens are drawn."""

from __future__ import annotations

import pytest
import torch

from memfold_reader.sampling import Sampler, SamplingOptions

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]))


def draws(count: int, **options) -> list[int]:
    sampler = Sampler(SamplingOptions(**options))
    return [sampler.draw(LOGITS) for _ in range(count)]


def test_temperature_zero_takes_the_most_likely_token():
    assert set(draws(20)) == {1}


@pytest.mark.parametrize("seed", [0, 7, -3, 2**63 - 1, -(2**63)])
def test_the_same_seed_gives_the_same_tokens(seed):
    assert draws(100, temperature=1.0, seed=seed) == draws(100, temperature=1.0, seed=seed)


def test_another_seed_gives_other_tokens():
    assert draws(100, temperature=1.0, seed=1) != draws(100, temperature=1.0, seed=2)


def test_without_a_seed_each_request_draws_its_own():
    assert draws(100, temperature=1.0) != draws(100, temperature=1.0)


def test_tokens_come_as_often_as_their_probability_says():
    counts = torch.bincount(torch.tensor(draws(20_000, temperature=1.0, seed=0)), minlength=5) / 20_000
    torch.testing.assert_close(counts, LOGITS.exp(), atol=0.015, rtol=0)


def test_temperature_sharpens_and_flattens():
    cold = draws(2_000, temperature=0.5, seed=0).count(1) / 2_000
    hot = draws(2_000, temperature=4.0, seed=0).count(1) / 2_000
    assert cold == pytest.approx(0.16 / 0.285, abs=0.04)
    assert hot < 0.28


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, {1}), (0.4, {1}), (0.41, {1, 3}), (0.7, {1, 3}), (0.75, {1, 3, 4}), (1.0, {0, 1, 2, 3, 4})],
)
def test_top_p_keeps_the_smallest_set_with_so_much_probability(top_p, kept):
    assert set(draws(3_000, temperature=1.0, top_p=top_p - 1e-6 if top_p else 0.0, seed=0)) == kept


def test_a_tiny_temperature_is_greedy_and_not_a_fault():
    assert set(draws(20, temperature=1e-9, seed=0)) == {1}
