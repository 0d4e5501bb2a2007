"""What is said: the same tokens as a plain loop would give, whatever else runs."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch

from memfold_osam.state import OsamState
from memfold_reader import reply as reply_module
from memfold_reader.detokenize import Detokenizer, StopScanner
from memfold_reader.outbox import Outbox
from memfold_reader.reply import Finished, FinishReason, Reply
from memfold_reader.runner import Runner, Steering
from memfold_reader.sampling import Sampler, SamplingOptions

QUESTIONS = [f"Question {n}: " + "where do I live, and with whom? " * (n % 5) for n in range(16)]


@pytest.fixture
def generate(served, engine):
    """Runs one prompt through the engine: (tokens, text, how it ended)."""

    async def generate(prompt, *, state=None, gain=1.0, **options) -> tuple[list[int], str, Finished]:
        sampling = SamplingOptions(**{"max_tokens": 24, **options})
        outbox: Outbox[str | Finished] = Outbox(8, engine.wake)
        reply = Reply(
            prompt,
            max_tokens=sampling.max_tokens,
            end_ids=served.turns.end_ids,
            steering=None if state is None else Steering(OsamState(state.unsqueeze(1)), gain),
            sampler=Sampler(sampling),
            detokenizer=Detokenizer(served.tokenizer),
            stops=StopScanner(sampling.stop),
            outbox=outbox,
            deadline=math.inf,
        )
        engine.submit(reply)
        *texts, finished = [item async for item in outbox]
        return reply.generated, "".join(texts), finished

    return generate


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
    monkeypatch.setattr(reply_module, "PREFILL_TOKENS", 7)
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


async def test_reading_leaves_the_state_as_it_is(served, prompt_of, random_state):
    steering = Steering(OsamState(random_state(1).unsqueeze(1)))
    runner = Runner(served)
    runner.forward(prompt_of("a"), runner.new_cache(), steering)
    assert torch.equal(steering.state.tensor[:, 0], random_state(1))


async def test_tokens_that_are_unread_take_no_part_in_the_memory(served, random_state):
    runner, state = Runner(served), OsamState(random_state(1).unsqueeze(1))
    tokens = list(range(10, 20))
    logits = runner.forward(tokens, runner.new_cache(), Steering(state, unread=3), keep=10)
    frozen = runner.forward(tokens, runner.new_cache(), None, keep=10)
    torch.testing.assert_close(logits[:3], frozen[:3])
    assert not torch.allclose(logits[3:], frozen[3:])


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
