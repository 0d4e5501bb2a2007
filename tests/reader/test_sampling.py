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


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, {1}), (2, {1, 3}), (3, {1, 3, 4}), (5, {0, 1, 2, 3, 4}), (9, {0, 1, 2, 3, 4})]
)
def test_top_k_keeps_so_many_of_the_most_likely(top_k, kept):
    assert set(draws(3_000, temperature=1.0, top_k=top_k, seed=0)) == kept


def test_top_p_takes_its_share_of_what_top_k_leaves():
    """Of 0.4, 0.3 and 0.15 the first is 0.47 and the first two are 0.82 of the whole."""
    assert set(draws(3_000, temperature=1.0, top_k=3, top_p=0.46, seed=0)) == {1}
    assert set(draws(3_000, temperature=1.0, top_k=3, top_p=0.82, seed=0)) == {1, 3}
    assert set(draws(3_000, temperature=1.0, top_k=3, top_p=0.83, seed=0)) == {1, 3, 4}


def test_what_top_k_leaves_comes_as_often_as_its_probability_says():
    counts = torch.bincount(torch.tensor(draws(20_000, temperature=1.0, top_k=2, seed=0)), minlength=5) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0, 4 / 7, 0, 3 / 7, 0]), atol=0.015, rtol=0)


@pytest.mark.parametrize("flat", [0.01, 3.0], ids=["wider than a glance", "within a glance"])
def test_a_nucleus_of_a_large_vocabulary_is_as_large_as_it_must_be(flat):
    logits = torch.randn(5_000, generator=torch.Generator().manual_seed(0)) * flat
    probabilities, tokens = logits.double().softmax(-1).sort(descending=True)
    kept = 1 + int((probabilities.cumsum(-1)[:-1] < 0.6).sum())
    sampler = Sampler(SamplingOptions(temperature=1.0, top_p=0.6, seed=0))
    drawn = {sampler.draw(logits) for _ in range(600)}
    assert drawn <= set(tokens[:kept].tolist())
    assert len(drawn) > min(kept, 600) / 4
