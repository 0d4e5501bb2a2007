"""Scores are those of the model's logits, token by token."""

from __future__ import annotations

import math

import pytest
import torch

from memfold.api.errors import InvalidFieldError, PromptTooLongError
from memfold_osam.state import OsamState
from memfold_osam.turns import Message
from memfold_reader import scoring as scoring_module
from memfold_reader.outbox import Outbox
from memfold_reader.reader import MemoryUse
from memfold_reader.runner import Steering
from memfold_reader.scoring import Candidate, Score, Scoring

REPLIES = ["Lisbon", "Porto, by the river", "Lisbon", "L", "记忆 🙂"]
ASKED = Message("user", "Where?")
NOTHING = MemoryUse()


@pytest.fixture
def oracle(served):
    """Log-probabilities of the last ``count`` tokens from one plain pass, and whether each is the most likely."""

    @torch.inference_mode()
    def oracle(tokens, count, state=None):
        with served.memory.bind(
            served.memory.init_state(1) if state is None else OsamState(state.unsqueeze(1)), write=False
        ):
            logits = served.model(input_ids=torch.tensor([tokens], device=served.device)).logits[0].cpu()
        rows = logits[-count - 1 : -1].log_softmax(-1)
        targets = torch.tensor(tokens[-count:])
        return rows.gather(-1, targets[:, None])[:, 0].tolist(), bool((rows.argmax(-1) == targets).all())

    return oracle


@pytest.fixture
def score_all(engine):
    """Scores candidates through the engine."""

    async def score_all(candidates, state=None):
        outbox: Outbox[Score] = Outbox(len(candidates), engine.wake)
        steering = None if state is None else Steering(OsamState(state.unsqueeze(1)))
        engine.submit(Scoring(candidates, steering=steering, outbox=outbox, deadline=math.inf))
        return [score async for score in outbox]

    return score_all


def check(score: Score, expected: tuple[list[float], bool]) -> None:
    assert score.log_probabilities == pytest.approx(expected[0], abs=1e-4)
    assert score.total == pytest.approx(sum(expected[0]), abs=1e-3)
    assert score.is_greedy == expected[1]


async def test_replies_are_scored_behind_the_header_of_a_reply(served, reader, oracle, prompt_of):
    scores, revision = await reader.score_replies([ASKED], REPLIES, NOTHING, math.inf)
    assert revision == ""
    for reply, score in zip(REPLIES, scores, strict=True):
        content = served.turns.content(reply)
        assert len(score.log_probabilities) == len(content)
        check(score, oracle([*prompt_of("Where?"), *content], len(content)))


async def test_a_state_steers_scores(served, reader, oracle, remember, random_state):
    name = await remember(2)
    prompt = [*served.turns.encode(ASKED), *served.turns.generation_prompt]
    scores, revision = await reader.score_replies([ASKED], REPLIES, MemoryUse(name), math.inf)
    frozen, _ = await reader.score_replies([ASKED], REPLIES, MemoryUse(name, 0.0), math.inf)
    assert revision.endswith(".1")
    for reply, score, cold in zip(REPLIES, scores, frozen, strict=True):
        content = served.turns.content(reply)
        check(score, oracle([*prompt, *content], len(content), random_state(2)))
        check(cold, oracle([*prompt, *content], len(content)))


async def test_the_greedy_continuation_is_known_as_such(score_all, plain_greedy, prompt_of):
    prompt = prompt_of("Where?")
    greedy = plain_greedy(prompt, 12)
    other = [*greedy[:-1], greedy[-1] ^ 1]
    scores = await score_all([Candidate((*prompt, *tail), len(prompt)) for tail in (greedy, other)])
    assert [score.is_greedy for score in scores] == [True, False]


async def test_text_is_tokenised_as_one_and_split_where_the_prompt_ends(served, reader, oracle):
    prompt, continuations = "The capital of Portugal is ", ["Lisbon", "Porto"]
    scores, _ = await reader.score_text(prompt, continuations, NOTHING, math.inf)
    for continuation, score in zip(continuations, scores, strict=True):
        whole = served.turns.content(prompt + continuation)
        count = len(whole) - len(served.turns.content(prompt.rstrip()))
        assert count == len(continuation) + 1  # the space belongs to the continuation
        check(score, oracle(whole, count))


async def test_an_empty_prompt_begins_with_the_end_token(served, reader, oracle):
    (score,), _ = await reader.score_text("", ["Lisbon"], NOTHING, math.inf)
    content = served.turns.content("Lisbon")
    check(score, oracle([served.tokenizer.eos_token_id, *content], len(content)))


async def test_what_looks_like_a_special_token_stays_text(served, reader, oracle):
    (score,), _ = await reader.score_text("a", ["<|end|>"], NOTHING, math.inf)
    assert len(score.log_probabilities) == len("<|end|>")


async def test_pieces_and_shared_beginnings_change_nothing(score_all, oracle, random_state, monkeypatch):
    monkeypatch.setattr(scoring_module, "SCORE_TOKENS", 5)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(5, 200, (23,), generator=generator).tolist()
    tails = [torch.randint(5, 200, (n,), generator=generator).tolist() for n in (1, 4, 13)]
    other = prompt[:9] + [7] * 9
    candidates = [
        *(Candidate((*prompt, *tail), len(prompt)) for tail in tails),
        Candidate((*prompt, *tails[2]), 3),  # needs positions that the one before has in its cache
        Candidate((*other, *tails[1]), len(other)),
        Candidate((*other, *tails[1]), len(other)),
        Candidate((11, 12), 1),
    ]
    state = random_state(3)
    scores = await score_all(candidates, state)
    assert len(scores) == len(candidates)
    for candidate, score in zip(candidates, scores, strict=True):
        check(score, oracle(list(candidate.tokens), len(candidate.tokens) - candidate.start, state))


async def test_a_window_stands_before_the_messages(served, reader, oracle, prompt_of, remember):
    use = MemoryUse(await remember(2, "I live in Lisbon.", "With a cat."), gain=0, window_tokens=1000)
    (score,), _ = await reader.score_replies([ASKED], ["Lisbon"], use, math.inf)
    content = served.turns.content("Lisbon")
    check(score, oracle([*prompt_of("I live in Lisbon.", "With a cat.", "Where?"), *content], len(content)))


async def test_what_does_not_fit_is_refused(served, reader):
    with pytest.raises(PromptTooLongError):
        await reader.score_replies([Message("user", "a")], ["b" * served.context_tokens], NOTHING, math.inf)
    with pytest.raises(PromptTooLongError):
        await reader.score_text("a" * served.context_tokens, ["b"], NOTHING, math.inf)


def test_a_continuation_without_tokens_is_refused():
    with pytest.raises(InvalidFieldError):
        Candidate((1, 2), 2)
