"""What is said: the same tokens as a plain loop would give, whatever else runs."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch

from memfold_osam.state import OsamState
from memfold_reader import scheduler as scheduler_module
from memfold_reader.detokenize import Detokenizer, StopScanner
from memfold_reader.outbox import Outbox
from memfold_reader.reply import Finished, FinishReason, Piece, Reply, TokenLogprob
from memfold_reader.sampling import Sampler, SamplingOptions
from memfold_reader.sequence import Steering

QUESTIONS = [f"Question {n}: " + "where do I live, and with whom? " * (n % 5) for n in range(16)]


@pytest.fixture
def run(served, engine):
    """Runs one prompt through the engine: (the reply, its pieces, how it ended)."""

    async def run(
        prompt, *, state=None, gain=1.0, influence=False, unread=0, **options
    ) -> tuple[Reply, list[Piece], Finished]:
        sampling = SamplingOptions(**{"max_tokens": 24, **options})
        outbox: Outbox[Piece | Finished] = Outbox(8, engine.wake)
        reply = Reply(
            prompt,
            max_tokens=sampling.max_tokens,
            end_ids=served.turns.end_ids,
            stop_ids=frozenset(sampling.stop_tokens),
            steering=None if state is None else Steering(OsamState(state.unsqueeze(1)), gain, unread),
            sampler=Sampler(sampling),
            detokenizer=Detokenizer(served.tokenizer),
            stops=StopScanner(sampling.stop),
            outbox=outbox,
            deadline=math.inf,
            top_logprobs=sampling.top_logprobs,
            influence=influence,
        )
        engine.submit(reply)
        *pieces, finished = [item async for item in outbox]
        return reply, pieces, finished

    return run


@pytest.fixture
def generate(run):
    """The same: (tokens, text, how it ended)."""

    async def generate(prompt, **options) -> tuple[list[int], str, Finished]:
        reply, pieces, finished = await run(prompt, **options)
        return reply.generated, "".join(piece.text for piece in pieces), finished

    return generate


@pytest.fixture
def logs_of(served):
    """The oracle: log-probabilities of what may follow these tokens, in one pass, without engine or cache."""

    @torch.inference_mode()
    def logs_of(tokens, state=None, unread=0):
        mask = (torch.arange(len(tokens), device=served.device) >= unread)[None]
        bound = served.memory.init_state(1) if state is None else OsamState(state.unsqueeze(1))
        with served.memory.bind(bound, write=False, token_mask=mask):
            logits = served.model(input_ids=torch.tensor([tokens], device=served.device)).logits[0, -1]
        return logits.double().log_softmax(-1).cpu()

    return logs_of


async def test_without_a_memory_it_says_what_the_backbone_says(served, generate, prompt_of):
    for question in QUESTIONS[:5]:
        prompt = prompt_of(question)
        with torch.inference_mode():
            whole = served.model.generate(
                torch.tensor([prompt], device=served.device),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=served.device),
                max_new_tokens=24,
                do_sample=False,
            )
        tokens, _, _ = await generate(prompt)
        assert tokens == whole[0, len(prompt) :].tolist()


async def test_a_prompt_in_pieces_says_the_same(generate, prompt_of, plain_greedy, random_state, monkeypatch):
    prompt, state = prompt_of(*QUESTIONS[:4]), random_state(0)
    monkeypatch.setattr(scheduler_module, "PREFILL_TOKENS", 7)
    tokens, _, _ = await generate(prompt, state=state)
    assert tokens == plain_greedy(prompt, 24, state)


@pytest.mark.parametrize("gain", [1.0, 0.5, 2.0])
async def test_with_a_state_it_says_what_a_plain_loop_says(generate, prompt_of, plain_greedy, random_state, gain):
    prompt, state = prompt_of(QUESTIONS[3]), random_state(1)
    tokens, _, _ = await generate(prompt, state=state, gain=gain)
    assert tokens == plain_greedy(prompt, 24, state, gain)
    assert tokens != plain_greedy(prompt, 24)


async def test_sixteen_at_once_say_what_each_says_alone(generate, prompt_of, random_state):
    prompts = [prompt_of(question) for question in QUESTIONS]
    kinds = [{}, {"temperature": 1.0, "seed": 5}]
    jobs = [
        {"prompt": p, "state": random_state(n) if n % 4 else None, "max_tokens": 8 + n, **kinds[n % 2]}
        for n, p in enumerate(prompts)
    ]
    alone = [(await generate(**job))[:2] for job in jobs]
    together = [answer[:2] for answer in await asyncio.gather(*(generate(**job) for job in jobs))]
    assert together == alone
    assert len({tuple(tokens) for tokens, _ in alone}) == 16


async def test_a_zero_state_is_the_frozen_backbone(served, generate, prompt_of):
    prompt = prompt_of(QUESTIONS[2])
    frozen = await generate(prompt, max_tokens=48)
    assert (await generate(prompt, state=torch.zeros(served.state_shape, device=served.device), max_tokens=48))[
        0
    ] == frozen[0]


async def test_reading_leaves_the_state_as_it_is(generate, prompt_of, random_state):
    state = random_state(1)
    await generate(prompt_of("a"), state=state)
    assert torch.equal(state, random_state(1))


async def test_tokens_that_are_unread_take_no_part_in_the_memory(run, prompt_of, random_state, logs_of):
    prompt, state = prompt_of("a"), random_state(1)
    found = {}
    for unread in (0, 2, len(prompt)):
        _, [first, *_], _ = await run(prompt, state=state, unread=unread, max_tokens=1, top_logprobs=20)
        expected = logs_of(prompt, state, unread)
        for token, _, value in first.tokens[0].top:
            assert value == pytest.approx(float(expected[token]), abs=1e-4)
        found[unread] = first.tokens[0].log_probability
    assert len({round(value, 4) for value in found.values()}) == 3


async def test_seeds_are_reproducible_and_matter(generate, prompt_of):
    prompt = prompt_of(QUESTIONS[0])
    said = [(await generate(prompt, temperature=1.5, top_p=0.95, seed=seed))[0] for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


async def test_the_end_token_ends_the_turn_and_is_not_shown(served, generate, prompt_of, text_of):
    for seed in range(60):
        tokens, text, finished = await generate(prompt_of("a"), temperature=3.0, seed=seed, max_tokens=300)
        assert text == text_of(tokens)
        assert finished.generated_tokens == len(tokens)
        if finished.reason is FinishReason.END_OF_TURN:
            assert tokens[-1] in served.turns.end_ids
            assert not served.turns.end_ids & set(tokens[:-1])
            return
    pytest.fail("the end token never came")


async def test_max_tokens_ends_it(generate, prompt_of):
    tokens, _, finished = await generate(prompt_of("a"), max_tokens=1)
    assert (len(tokens), finished.reason) == (1, FinishReason.MAX_TOKENS)
    assert finished.first_token_at <= finished.last_token_at


async def test_a_stop_text_across_tokens_ends_it_and_never_shows(generate, prompt_of):
    """A token is a byte here, so that every stop text of more than one lies across tokens."""
    prompt = prompt_of(QUESTIONS[1])
    options = {"temperature": 1.2, "seed": 3, "max_tokens": 120}
    tokens, whole, _ = await generate(prompt, **options)
    found = 0
    for at in range(2, len(whole) - 4, 11):
        stop = whole[at : at + 3]
        stopped, text, finished = await generate(prompt, stop=("never said", stop), **options)
        assert text == whole[: whole.find(stop)]
        assert finished.reason is FinishReason.STOP
        assert stopped == tokens[: len(stopped)]
        found += 1
    assert found > 3


async def test_a_beginning_of_a_stop_text_is_said_when_the_rest_does_not_come(generate, prompt_of):
    prompt = prompt_of(QUESTIONS[1])
    _, whole, _ = await generate(prompt, max_tokens=40, temperature=1.0, seed=0)
    stop = whole[-2:] + "\0never"
    _, text, finished = await generate(prompt, max_tokens=40, temperature=1.0, seed=0, stop=(stop,))
    assert text == whole
    assert finished.reason is FinishReason.MAX_TOKENS


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 4, "top_k": 3}])
async def test_each_token_tells_how_likely_it_was_under_the_model_itself(
    run, prompt_of, random_state, logs_of, served, options
):
    """Whatever the temperature and the cuts: natural logarithms, the likeliest first, and the same tokens as without."""
    prompt, state = prompt_of(QUESTIONS[1]), random_state(1)
    plain, _, _ = await run(prompt, state=state, max_tokens=8, **options)
    reply, pieces, _ = await run(prompt, state=state, max_tokens=8, top_logprobs=3, **options)
    assert reply.generated == plain.generated
    told = [token for piece in pieces for token in piece.tokens]
    assert [token.token for token in told] == reply.generated
    for at, said in enumerate(told):
        expected = logs_of([*prompt, *reply.generated[:at]], state)
        assert said.log_probability == pytest.approx(float(expected[said.token]), abs=1e-4)
        best = expected.topk(3)
        assert [token for token, _, _ in said.top] == best.indices.tolist()
        assert [value for _, _, value in said.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert said.text == served.tokenizer.decode([said.token])


async def test_no_alternatives_may_be_asked_for_and_nothing_is_told_unasked(run, prompt_of):
    _, pieces, _ = await run(prompt_of("a"), max_tokens=3, top_logprobs=0)
    told = [token for piece in pieces for token in piece.tokens]
    assert [isinstance(token, TokenLogprob) and token.top for token in told] == [(), (), ()]
    _, pieces, _ = await run(prompt_of("a"), max_tokens=3)
    assert not any(piece.tokens for piece in pieces)


async def test_a_stop_token_ends_it_and_has_no_text(run, prompt_of, text_of):
    prompt = prompt_of(QUESTIONS[1])
    options = {"temperature": 1.2, "seed": 3, "max_tokens": 60}
    whole, _, _ = await run(prompt, **options)
    stop = next(token for at, token in enumerate(whole.generated) if at > 5 and token not in whole.generated[:at])
    stopped, pieces, finished = await run(prompt, stop_tokens=(stop, 1), top_logprobs=0, **options)
    assert finished.reason is FinishReason.STOP
    assert stopped.generated == whole.generated[: whole.generated.index(stop) + 1]
    assert finished.generated_tokens == len(stopped.generated)
    assert "".join(piece.text for piece in pieces) == text_of(stopped.generated[:-1])
    assert [token.token for piece in pieces for token in piece.tokens] == stopped.generated


async def test_the_influence_is_the_divergence_of_the_first_token_s_distributions(
    run, prompt_of, random_state, logs_of
):
    prompt, state = prompt_of(*QUESTIONS[:3]), random_state(1)
    plain, _, unasked = await run(prompt, state=state)
    reply, _, finished = await run(prompt, state=state, influence=True)
    assert unasked.influence is None
    assert reply.generated == plain.generated
    moved, frozen = logs_of(prompt, state), logs_of(prompt)
    expected = float((moved.exp() * (moved - frozen)).sum())
    assert finished.influence == pytest.approx(expected, rel=1e-3)
    assert expected > 0.01
    _, _, finished = await run(prompt, state=torch.zeros_like(state), influence=True)
    assert finished.influence == pytest.approx(0, abs=1e-9)


async def test_the_influence_of_a_prompt_in_pieces_is_the_same(run, prompt_of, random_state, monkeypatch):
    prompt, state = prompt_of(*QUESTIONS[:4]), random_state(1)
    _, _, whole = await run(prompt, state=state, influence=True, max_tokens=1)
    monkeypatch.setattr(scheduler_module, "PREFILL_TOKENS", 7)
    _, _, pieces = await run(prompt, state=state, influence=True, max_tokens=1)
    assert pieces.influence == pytest.approx(whole.influence, rel=1e-3)
