"""The verbatim lane: turns that are found by words stand in the prompt, and the summary says which."""

from __future__ import annotations

import grpc
import pytest

from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.values import Role, Turn
from memfold.rpc.status import error_from
from memfold_osam.turns import Message

GREEDY = pb.Sampling(max_tokens=16)
TALK = ["My dog is called Rex.", "It rained.", "I moved to Lisbon.", "A cat came by.", "The dog sleeps."]


def options(**fields) -> pb.MemoryOptions:
    return pb.MemoryOptions(gain=0, **fields)


@pytest.fixture
def tokens_of(served):
    return lambda *texts: sum(len(served.turns.encode(Message("user", text))) for text in texts)


async def test_what_fits_the_message_stands_in_the_prompt_in_log_order(ask, append, name, plain_text):
    await append(name, *TALK)
    said = await ask(
        "what is the dog called", memory=str(name), memory_options=options(recall_tokens=500), sampling=GREEDY
    )
    assert [turn.sequence for turn in said.summary.recalled] == [1, 5]
    assert said.summary.recalled[0].score > said.summary.recalled[1].score > 0
    assert said.summary.recalled[0].id
    assert said.text == plain_text(TALK[0], TALK[4], "what is the dog called")
    assert said.summary.window_turns == 0


async def test_the_query_may_be_another_than_the_message(ask, append, name, plain_text):
    await append(name, *TALK)
    asked = options(recall_tokens=500, recall_query="Lisbon")
    said = await ask("Where do I live?", memory=str(name), memory_options=asked, sampling=GREEDY)
    assert said.text == plain_text(TALK[2], "Where do I live?")


async def test_only_what_fits_the_budget_comes_and_the_best_comes_first(ask, append, name, tokens_of):
    await append(name, "dog " * 40, *TALK)
    budget = tokens_of(TALK[0])
    asked = options(recall_tokens=budget)
    said = await ask("Is the dog called Rex?", memory=str(name), memory_options=asked, sampling=GREEDY)
    assert [turn.sequence for turn in said.summary.recalled] == [2]


async def test_a_turn_of_the_window_is_not_repeated(ask, append, name, plain_text, tokens_of):
    await append(name, *TALK)
    asked = options(recall_tokens=500, window_tokens=tokens_of(TALK[4]))
    said = await ask("dog", memory=str(name), memory_options=asked, sampling=GREEDY)
    assert said.text == plain_text(TALK[0], TALK[4], "dog")
    assert [turn.sequence for turn in said.summary.recalled] == [1]
    assert said.summary.window_turns == 1


async def test_a_turn_comes_with_the_other_half_of_its_exchange(ask, store, name, prompt_of, served):
    said = [(Role.USER, "The cat is Tom."), (Role.ASSISTANT, "Noted."), (Role.USER, "It rains."), (Role.USER, "Hm."),
            (Role.ASSISTANT, "A dog barks.")]  # fmt: skip
    await store.append(name, [Turn(f"t{i}", role, text) for i, (role, text) in enumerate(said)], create=True)

    async def recalled(query: str) -> tuple[list[int], int]:
        asked = options(recall_tokens=500, recall_query=query)
        summary = (await ask("Q", memory=str(name), memory_options=asked, sampling=GREEDY)).summary
        return [turn.sequence for turn in summary.recalled], summary.prompt_tokens - len(prompt_of("Q"))

    def size(*numbers: int) -> int:
        return sum(len(served.turns.encode(Message(str(said[n - 1][0]), said[n - 1][1]))) for n in numbers)

    assert await recalled("cat") == ([1], size(1, 2))
    assert await recalled("dog") == ([5], size(4, 5))
    assert await recalled("rains") == ([3], size(3))
    found, tokens = await recalled("cat noted")
    assert (sorted(found), tokens) == ([1, 2], size(1, 2))


async def test_nothing_found_is_nothing_in_the_prompt(ask, append, name, plain_text):
    await append(name, *TALK)
    said = await ask("zebra", memory=str(name), memory_options=options(recall_tokens=500), sampling=GREEDY)
    assert said.text == plain_text("zebra")
    assert not said.summary.recalled


async def test_a_forgotten_turn_is_never_recalled(ask, append, name, store, plain_text):
    await append(name, *TALK)
    asked = {"memory": str(name), "memory_options": options(recall_tokens=500), "sampling": GREEDY}
    assert len((await ask("dog", **asked)).summary.recalled) == 2
    memory = await store.get_memory(name)
    await store.forget(name, [1], expected_incarnation=memory.incarnation)
    said = await ask("dog", **asked)
    assert said.text == plain_text(TALK[4], "dog")


async def test_recall_takes_only_what_the_context_has_left(ask, append, name, served):
    await append(name, *("dog " * 50 for _ in range(20)))
    asked = options(recall_tokens=100_000, window_tokens=300)
    said = await ask("dog", memory=str(name), memory_options=asked, sampling=pb.Sampling(max_tokens=500))
    assert 0 < len(said.summary.recalled) < 20
    assert said.summary.prompt_tokens + 500 <= served.context_tokens


async def test_a_score_is_given_with_the_passages_too(running, append, name):
    await append(name, *TALK)

    async def score(**fields) -> float:
        messages = pb.MessageList(messages=[pb.Message(role="user", content="the dog")])
        request = pb.ScoreRequest(
            memory=str(name), continuations=["Rex"], memory_options=options(**fields), messages=messages
        )
        return (await running.stub.Score(request)).scores[0].log_probability

    with_passages = await score(recall_tokens=500)
    assert with_passages == pytest.approx(await score(window_tokens=0, recall_tokens=500), abs=1e-5)
    assert abs(with_passages - await score()) > 1e-3


@pytest.mark.parametrize(
    "prompt", [{"messages": pb.MessageList(messages=[pb.Message(role="user", content="a")])}, {"text": "a"}]
)
async def test_a_budget_below_zero_and_passages_before_a_bare_text_are_refused(running, name, append, prompt):
    await append(name, *TALK)
    asked = options(recall_tokens=1 if "text" in prompt else -1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Score(pb.ScoreRequest(memory=str(name), continuations=["b"], memory_options=asked, **prompt))
    error = error_from(caught.value)
    assert (error.reason, error.facts["field"]) == ("INVALID_FIELD", "memory_options.recall_tokens")
