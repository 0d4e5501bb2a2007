"""Prompts that begin alike are computed once, but only where the memory that steers them is the very same."""

from __future__ import annotations

import pytest
import torch

from memfold_reader.prefixes import LEAST_TOKENS, Prefix, Prefixes, PrefixKey
from memfold_reader.reply import Finished, Reply
from memfold_reader.scoring import Candidate, Scoring
from memfold_reader.sequence import Steering

PROMPT = torch.randint(5, 200, (60,), generator=torch.Generator().manual_seed(1)).tolist()
LONGER = [*PROMPT, 7, 8, 9]
OTHER_END = [*PROMPT[:40], 99, 98, 97]
MEGABYTES = 64 << 20


@pytest.fixture
def engine(by_hand, served):
    return by_hand(served, prefix_bytes=MEGABYTES)


def reused(reply: Reply) -> int:
    finished = reply._outbox.items[-1]
    assert isinstance(finished, Finished)
    return finished.reused_tokens


def test_what_begins_alike_under_the_same_memory_is_computed_once_and_says_the_same(
    engine, by_hand, served, random_state
):
    alone = by_hand(served)
    for memory in (
        {},
        {"state": random_state(1), "digest": b"one"},
        {"state": random_state(1), "digest": b"one", "gain": 2.0},
    ):
        for prompt, expected in ((PROMPT, 0), (PROMPT, 59), (LONGER, 60), (OTHER_END, 40), (PROMPT[:30], 29)):
            reply = engine.submit(prompt, **memory, max_tokens=8)
            assert engine.finish(reply) == alone.finish(alone.submit(prompt, **memory, max_tokens=8))
            assert reused(reply) == expected


@pytest.fixture
def speak_for_themselves(engine, by_hand, served, random_state):
    """Whether memories with the same prompt say what each says alone."""
    memories = [
        {},
        {"state": random_state(1), "digest": b"one"},
        {"state": random_state(2), "digest": b"two"},
        {"state": random_state(2), "digest": b"two", "gain": 0.5},
        {"state": random_state(2), "digest": b"two", "unread": 3},
        {"state": random_state(2), "digest": b"two", "write_from": 4},
        {"state": random_state(3)},
    ]
    alone = by_hand(served)

    def speak_for_themselves() -> bool:
        for memory in memories * 2:
            (said,) = engine.finish(engine.submit(PROMPT, **memory, max_tokens=8))
            if [said] != alone.finish(alone.submit(PROMPT, **memory, max_tokens=8)):
                return False
        return True

    return speak_for_themselves


def test_no_memory_says_what_another_has_left(speak_for_themselves):
    assert speak_for_themselves()


@pytest.mark.parametrize(
    "key",
    [
        lambda _, _sequence: PrefixKey("", writes=False, gain=0.0, digest=b"", unread=0),
        lambda _, s: PrefixKey("", writes=False, gain=0.0, digest=s.steering.digest if s.steering else b"", unread=0),
        lambda _, s: PrefixKey("", False, s.steering.gain if s.steering else 0.0, b"", 0),
    ],
    ids=["tokens alone", "tokens and digest", "tokens and gain"],
)
def test_a_key_that_leaves_something_out_is_caught(speak_for_themselves, monkeypatch, key):
    """The planted fault: were the reader to reuse by tokens, as engines without a memory do, this suite would see it."""
    monkeypatch.setattr(Prefixes, "key", key)
    assert not speak_for_themselves()


def test_who_writes_and_who_has_no_digest_shares_nothing(engine, random_state):
    for memory in ({"digest": b"one", "write_from": 5}, {}):
        for _ in range(2):
            reply = engine.submit(PROMPT, state=random_state(1), **memory)
            engine.finish(reply)
            assert reused(reply) == 0


def test_scores_share_prompts_with_replies(engine, served, random_state):
    def score(prompt, digest):
        outbox = type(engine.submit(PROMPT[:3])._outbox)()
        steering = Steering(served.memory.init_state(1), digest=digest)
        scoring = Scoring(
            [Candidate((*prompt, 5, 6), len(prompt)), Candidate((*prompt, 7), len(prompt))],
            steering=steering,
            outbox=outbox,
            deadline=float("inf"),
        )
        engine.engine.submit(scoring)
        engine.finish()
        return scoring, [score.log_probabilities for score in outbox.items]

    one, first = score(PROMPT, b"zero")
    again, second = score(PROMPT, b"zero")
    assert (one.reused, again.reused) == (0, 59)
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_the_influence_is_measured_against_the_prompt_without_the_memory_even_if_both_are_there(engine, random_state):
    def influence() -> float:
        reply = engine.submit(PROMPT, state=random_state(1), digest=b"one", influence=True)
        engine.finish(reply)
        return reply._outbox.items[-1].influence

    first = influence()
    assert first > 0.01
    assert influence() == pytest.approx(first, rel=1e-3)


def prefix(tokens: range, rows: int = 1) -> Prefix:
    return Prefix(tuple(tokens), [(0, torch.zeros(rows, len(tokens), 4), torch.zeros(rows, len(tokens), 4))])


KEY = PrefixKey("f", writes=False, gain=1.0, digest=b"d", unread=0)


def test_bytes_are_bounded_and_the_least_recently_used_goes_first():
    one, two, three = prefix(range(100)), prefix(range(1000, 1100)), prefix(range(2000, 2100))
    kept = Prefixes("f", 2 * one.bytes)
    kept.keep(KEY, one)
    kept.keep(KEY, two)
    assert kept.find(KEY, range(101))[1] == 100
    kept.keep(KEY, three)
    assert kept.bytes == 2 * one.bytes
    assert [kept.find(KEY, p.tokens)[1] for p in (one, two, three)] == [99, 0, 99]


def test_the_longest_beginning_is_found_and_one_token_is_left_to_run():
    kept = Prefixes("f", MEGABYTES)
    for tokens in (range(50), range(100, 150)):
        kept.keep(KEY, prefix(tokens))
    kept.keep(KEY, prefix(range(70)))  # takes the place of its own beginning
    assert kept.bytes == prefix(range(70)).bytes + prefix(range(50)).bytes
    assert kept.find(KEY, [*range(60), 9, 9])[1] == 60
    assert kept.find(KEY, range(70))[1] == 69
    assert kept.find(KEY, range(LEAST_TOKENS - 1))[1] == 0
    assert kept.find(KEY, [1, 2, 3])[1] == 0


def test_what_is_kept_already_or_too_large_is_not_copied():
    kept = Prefixes("f", 1000)
    assert not kept.wants(KEY, range(LEAST_TOKENS - 1), 10)
    assert not kept.wants(KEY, range(100), 1001)
    assert kept.wants(KEY, range(20), 640)
    kept.keep(KEY, prefix(range(20)))
    assert not kept.wants(KEY, range(18), 640)
    assert kept.wants(KEY, range(21), 640)
