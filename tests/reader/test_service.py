"""GenerationService over real gRPC and a real store."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from memfold.api import errors
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.values import MemoryName, Revision
from memfold.rpc.status import error_from
from memfold_osam.turns import Message
from memfold_reader.detokenize import Detokenizer

TALKATIVE = "a"  # to which the random model goes on and on
LONG = pb.Sampling(max_tokens=1500)


OF_MEMORY = {"memory": "tenants/t/memories/m", "text": "a", "continuations": ["b"]}


def greedy(max_tokens: int = 16) -> pb.Sampling:
    return pb.Sampling(max_tokens=max_tokens)


def options(**fields) -> pb.MemoryOptions:
    return pb.MemoryOptions(**fields)


async def test_a_state_answers_and_the_summary_says_what_it_rests_on(
    ask, remember, random_state, prompt_of, plain_text
):
    name = await remember(4, "I live in Lisbon.", "With a cat.")
    said = await ask("Where?", memory=str(name), sampling=greedy())
    assert said.text == plain_text("Where?", state=random_state(4))
    assert said.summary.revision.endswith(".2")
    assert said.summary.finish_reason == pb.FINISH_REASON_MAX_TOKENS
    assert said.summary.prompt_tokens == len(prompt_of("Where?"))
    assert said.summary.generated_tokens == 16
    assert said.summary.window_turns == 0
    first, total = said.summary.time_to_first_token.ToSeconds(), said.summary.total_time.ToSeconds()
    assert 0 <= first <= total


async def test_no_memory_gain_zero_and_a_memory_without_a_fold_say_the_same(ask, append, remember, name):
    folded = await remember(5)
    await append(name, "not folded yet")
    frozen = await ask(sampling=greedy())
    off = await ask(memory=str(folded), memory_options=options(gain=0), sampling=greedy())
    empty = await ask(memory=str(name), sampling=greedy())
    on = await ask(memory=str(folded), sampling=greedy())
    assert frozen.text == off.text == empty.text != on.text
    assert frozen.summary.revision == ""
    assert off.summary.revision.endswith(".1")
    assert empty.summary.revision.endswith(".0")


async def test_sixteen_streams_with_states_of_their_own_say_what_each_says_alone(ask, remember):
    names = [await remember(seed) for seed in range(16)]
    jobs = [
        {
            "text": f"Question {n}?",
            "memory": str(name),
            "sampling": pb.Sampling(max_tokens=12, seed=n, temperature=n % 3),
        }
        for n, name in enumerate(names)
    ]
    alone = [(await ask(**job)).text for job in jobs]
    together = [said.text for said in await asyncio.gather(*(ask(**job) for job in jobs))]
    assert together == alone
    assert len(set(alone)) == 16


async def test_each_token_leaves_by_itself(ask, served, prompt_of, plain_greedy):
    said = await ask(TALKATIVE, sampling=greedy(60))
    detokenizer = Detokenizer(served.tokenizer)
    pieces = [detokenizer.push(token) for token in plain_greedy(prompt_of(TALKATIVE), 60)]
    assert said.pieces == [piece for piece in pieces if piece]
    assert len(said.pieces) > 20


async def test_the_window_holds_the_newest_turns_that_fit_word_for_word(ask, remember, served, plain_text):
    texts = [f"turn {n}" for n in range(80)]
    name = await remember(0, *texts)
    tokens = len(served.turns.encode(Message("user", texts[-1])))
    said = await ask(
        "Which?", memory=str(name), memory_options=options(gain=0, window_tokens=70 * tokens + 1), sampling=greedy()
    )
    assert said.summary.window_turns == 70
    assert said.text == plain_text(*texts[-70:], "Which?")


async def test_a_window_leaves_no_gap(ask, append, name, prompt_of):
    await append(name, "old", "x" * 500, "new")
    said = await ask("Which?", memory=str(name), memory_options=options(window_tokens=200), sampling=greedy(1))
    assert said.summary.window_turns == 1
    assert said.summary.prompt_tokens == len(prompt_of("new", "Which?"))


async def test_a_window_takes_only_what_the_context_has_left(ask, append, served, name):
    await append(name, *("x" * 200 for _ in range(20)))
    wide = options(window_tokens=100_000)
    said = await ask("Which?", memory=str(name), memory_options=wide, sampling=greedy(500))
    assert 0 < said.summary.window_turns < 20
    assert said.summary.prompt_tokens + 500 <= served.context_tokens


@pytest.mark.parametrize("spare", [1, 2, 300])
async def test_without_max_tokens_the_reply_takes_what_is_left(ask, served, prompt_of, spare):
    text = "x" * (served.context_tokens - len(prompt_of("")) - spare)
    said = await ask(text, sampling=pb.Sampling(temperature=1.0, seed=0))
    assert said.summary.generated_tokens <= min(spare, 256)


async def test_a_prompt_that_does_not_fit_is_refused_with_numbers(ask, served, prompt_of):
    room = served.context_tokens - len(prompt_of("hello"))
    await ask("x" * (served.context_tokens - len(prompt_of("")) - 1), sampling=greedy(1))
    with pytest.raises(errors.PromptTooLongError) as caught:
        await ask("hello", sampling=greedy(room + 1))
    assert caught.value.facts["context_tokens"] == str(served.context_tokens)
    with pytest.raises(errors.PromptTooLongError):
        await ask("x" * served.context_tokens)


async def test_min_revision_waits_for_the_fold(ask, append, commit, name):
    revision = await append(name, "I live in Lisbon.")
    asked = asyncio.create_task(
        ask(memory=str(name), memory_options=options(min_revision=str(revision)), sampling=greedy(2))
    )
    await asyncio.sleep(0.2)
    assert not asked.done()
    await commit(name, 1)
    assert (await asked).summary.revision == str(revision)


async def test_min_revision_that_does_not_come_is_a_deadline(ask, append, name):
    revision = await append(name, "I live in Lisbon.")
    with pytest.raises(errors.DeadlineError):
        await ask(memory=str(name), memory_options=options(min_revision=str(revision)), timeout=0.8)


async def test_min_revision_of_another_life_or_beyond_the_log_is_refused(ask, append, name):
    revision = await append(name, "I live in Lisbon.")
    ahead = Revision(revision.incarnation, revision.sequence + 1)
    with pytest.raises(errors.RevisionAheadError):
        await ask(memory=str(name), memory_options=options(min_revision=str(ahead)))
    with pytest.raises(errors.RevisionForeignError):
        await ask(memory=str(name), memory_options=options(min_revision="0123456789ab.1"))


async def test_an_unknown_memory_is_said_to_be_unknown(ask, running, name):
    with pytest.raises(errors.MemoryNotFoundError):
        await ask(memory=str(name))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Score(pb.ScoreRequest(memory=str(name), text="a", continuations=["b"]))
    assert error_from(caught.value).reason == "MEMORY_NOT_FOUND"


async def test_a_memory_of_another_model_is_a_mismatch(ask, append, store, served, name):
    from memfold.api.values import ModelCard  # noqa: PLC0415

    await store.register_model(ModelCard("f" * 64, "other", "other", served.state_shape, 256, 2048))
    await append(name, "folded by another")
    with pytest.raises(errors.ModelMismatchError) as caught:
        await ask(memory=str(name))
    assert caught.value.facts["memory_fingerprint"] == "f" * 64


@pytest.mark.parametrize(
    ("field", "request_fields"),
    [
        ("role", {"messages": [pb.Message(role="wizard", content="a")]}),
        ("messages", {"messages": []}),
        ("name", {"memory": "no name"}),
        ("sampling.temperature", {"sampling": pb.Sampling(temperature=-1)}),
        ("sampling.temperature", {"sampling": pb.Sampling(temperature=float("nan"))}),
        ("sampling.top_p", {"sampling": pb.Sampling(top_p=1.5)}),
        ("sampling.top_k", {"sampling": pb.Sampling(top_k=-1)}),
        ("sampling.top_logprobs", {"sampling": pb.Sampling(top_logprobs=-1)}),
        ("sampling.top_logprobs", {"sampling": pb.Sampling(top_logprobs=21)}),
        ("sampling.max_tokens", {"sampling": pb.Sampling(max_tokens=-1)}),
        ("sampling.stop", {"sampling": pb.Sampling(stop=[""])}),
        ("memory_options.gain", {"memory_options": options(gain=float("inf"))}),
        ("memory_options.window_tokens", {"memory_options": options(window_tokens=-1)}),
        ("memory_options.stale", {"memory_options": options(stale=9)}),
        ("memory_options.update", {"memory_options": options(update=9)}),
        ("memory_options.min_revision", {"memory_options": options(min_revision="0123456789ab.1")}),
        ("memory_options.update", {"memory_options": options(update=pb.UPDATE_MODE_ONLINE)}),
        ("memory_options.report_influence", {"memory_options": options(report_influence=True)}),
        (
            "memory_options.min_revision",
            {"memory": "tenants/t/memories/m", "memory_options": options(min_revision="rubbish")},
        ),
    ],
)
async def test_a_bad_field_is_named(running, field, request_fields):
    request = pb.GenerateRequest(**{"messages": [pb.Message(role="user", content="a")], **request_fields})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in running.stub.Generate(request):
            pass
    error = error_from(caught.value)
    assert (error.reason, error.facts.get("field")) == ("INVALID_FIELD", field)


@pytest.mark.parametrize(
    "fields",
    [
        {"continuations": ["a"]},
        {"text": "a"},
        {"text": "a", "continuations": [""]},
        {"text": "a", "continuations": ["b"], "memory_options": options(window_tokens=1)},
        {"messages": pb.MessageList(), "continuations": ["a"]},
        {**OF_MEMORY, "memory_options": options(update=pb.UPDATE_MODE_ONLINE)},
        {**OF_MEMORY, "memory_options": options(report_influence=True)},
    ],
)
async def test_a_score_without_a_meaning_is_refused(running, fields):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Score(pb.ScoreRequest(**fields))
    assert error_from(caught.value).reason == "INVALID_FIELD"


async def test_scores_come_in_order_with_their_counts(running, remember, served):
    name = await remember(1)
    request = pb.ScoreRequest(
        memory=str(name),
        messages=pb.MessageList(messages=[pb.Message(role="human", content="Where?")]),
        continuations=["Lisbon", "Porto, I think"],
    )
    answer = await running.stub.Score(request)
    assert answer.revision.endswith(".1")
    assert [score.token_count for score in answer.scores] == [6, 14]
    for score in answer.scores:
        assert len(score.token_log_probabilities) == score.token_count
        assert score.log_probability == pytest.approx(sum(score.token_log_probabilities), abs=1e-3)


async def test_before_the_model_is_warm_every_call_says_so(running, ask):
    running.service.reader = None
    with pytest.raises(errors.ModelLoadingError) as caught:
        await ask()
    assert caught.value.retry_after_ms > 0
    for call, request in [
        (running.stub.GetModel, pb.GetModelRequest()),
        (running.stub.Score, pb.ScoreRequest(text="a", continuations=["b"])),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as bare:
            await call(request)
        assert error_from(bare.value).reason == "MODEL_LOADING"


async def test_the_model_is_described(running, served):
    model = (await running.stub.GetModel(pb.GetModelRequest())).model
    assert model.fingerprint == served.fingerprint
    assert tuple(model.state_shape) == served.state_shape
    assert model.state_bytes == 4 * 4 * 2 * 8 * 8
    assert model.context_tokens == served.context_tokens
    assert list(model.examples) == list(served.examples)


async def test_a_client_that_goes_away_frees_its_place(running, engine, eventually):
    call = running.stub.Generate(
        pb.GenerateRequest(messages=[pb.Message(role="user", content=TALKATIVE)], sampling=LONG)
    )
    await anext(aiter(call))
    assert engine.open_count == 1
    call.cancel()
    await eventually(lambda: engine.open_count == 0, 5)


async def test_a_deadline_ends_the_stream_and_frees_the_place(ask, engine, eventually):
    with pytest.raises(errors.DeadlineError):
        await ask(TALKATIVE, sampling=LONG, timeout=0.5)
    await eventually(lambda: engine.open_count == 0, 5)


async def test_a_client_that_does_not_read_stalls_nobody(running, ask, engine, eventually):
    request = pb.GenerateRequest(messages=[pb.Message(role="user", content=TALKATIVE)], sampling=LONG)
    slow = [running.stub.Generate(request) for _ in range(4)]
    for call in slow:
        await anext(aiter(call))
    said = await asyncio.wait_for(ask(sampling=greedy(8)), 20)
    assert said.summary.generated_tokens == 8
    for call in slow:
        call.cancel()
    await eventually(lambda: engine.open_count == 0, 5)


async def test_a_stopping_reader_refuses_what_is_new_and_finishes_what_runs(running, ask):
    running_on = asyncio.create_task(ask(TALKATIVE, sampling=greedy(150)))
    await ask(sampling=greedy(1))
    running.server.stopping.set()
    with pytest.raises(errors.ShuttingDownError):
        await ask()
    assert (await running_on).summary.generated_tokens == 150


async def test_names_that_only_look_alike_are_other_memories(ask, remember):
    name = await remember(3)
    with pytest.raises(errors.MemoryNotFoundError):
        await ask(memory=str(MemoryName("reader-2", name.memory)))
