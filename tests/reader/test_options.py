"""What a request may ask of its memory and of its tokens, over real gRPC and a real store."""

from __future__ import annotations

import asyncio

import pytest
import torch

from memfold.api import errors
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.api.values import Revision
from memfold.rpc.tenant import TENANT
from memfold_osam.state import OsamState
from memfold_osam.turns import Message

TALKATIVE = "a"  # to which the random model goes on and on


def greedy(max_tokens: int = 16) -> pb.Sampling:
    return pb.Sampling(max_tokens=max_tokens)


def options(**fields) -> pb.MemoryOptions:
    return pb.MemoryOptions(**fields)


async def test_a_stale_state_is_allowed_where_that_is_asked_for_and_said_to_be_stale(
    ask, append, commit, remember, random_state, plain_text
):
    name = await remember(4)
    old = (await ask(memory=str(name), sampling=greedy(1))).summary
    assert (old.stale, old.folded_inline_turns) == (False, 0)
    revision = await append(name, "I moved to Porto.")
    allowed = options(min_revision=str(revision), stale=pb.STALE_ALLOW)
    started = asyncio.get_running_loop().time()
    said = await ask("Where?", memory=str(name), memory_options=allowed, sampling=greedy())
    assert asyncio.get_running_loop().time() - started < 10
    assert (said.summary.revision, said.summary.stale) == (old.revision, True)
    assert said.text == plain_text("Where?", state=random_state(4))
    assert (await ask(memory=str(name), sampling=greedy(1))).summary.stale
    reached = options(min_revision=old.revision, stale=pb.STALE_ALLOW)
    assert not (await ask(memory=str(name), memory_options=reached, sampling=greedy(1))).summary.stale
    await commit(name, 5)
    said = await ask("Where?", memory=str(name), memory_options=allowed, sampling=greedy())
    assert (said.summary.revision, said.summary.stale) == (str(revision), False)
    assert said.text == plain_text("Where?", state=random_state(5))


@pytest.mark.parametrize("stale", [pb.STALE_WAIT, pb.STALE_FOLD_INLINE, pb.STALE_ALLOW])
async def test_no_way_with_stale_states_makes_a_foreign_revision_right(ask, append, name, stale):
    revision = await append(name, "I live in Lisbon.")
    ahead = Revision(revision.incarnation, revision.sequence + 1)
    with pytest.raises(errors.RevisionAheadError):
        await ask(memory=str(name), memory_options=options(min_revision=str(ahead), stale=stale))
    with pytest.raises(errors.RevisionForeignError):
        await ask(memory=str(name), memory_options=options(min_revision="0123456789ab.1", stale=stale))


async def test_scores_may_be_folded_for_too(running, append, served, name):
    revision = await append(name, "I live in Lisbon.")
    request = pb.ScoreRequest(
        memory=str(name), text="a", continuations=["b"], memory_options=options(stale=pb.STALE_FOLD_INLINE)
    )
    folded = await running.stub.Score(request)
    assert folded.revision == str(revision)
    request.memory_options.gain = 0
    assert (await running.stub.Score(request)).scores[0].log_probability != folded.scores[0].log_probability


@pytest.fixture
def online_text(served, prompt_of, text_of):
    """The oracle: one pass over everything for each token; what is behind ``own`` writes."""

    @torch.inference_mode()
    def online_text(prompt, own, state, max_tokens=16):
        tokens = list(prompt)
        for _ in range(max_tokens):
            writes = (torch.arange(len(tokens), device=served.device) >= own)[None]
            with served.memory.bind(OsamState(state.unsqueeze(1)), write=writes):
                logits = served.model(input_ids=torch.tensor([tokens], device=served.device)).logits[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] in served.turns.end_ids:
                break
        return text_of(tokens[len(prompt) :])

    return online_text


async def test_online_the_own_messages_and_the_reply_write_and_the_window_does_not(
    ask, remember, store, served, random_state, prompt_of, online_text
):
    name = await remember(4, "I live in Lisbon.")
    before = await store.read_state(name)
    online = options(update=pb.UPDATE_MODE_ONLINE, window_tokens=100)
    said = await ask("Where?", memory=str(name), memory_options=online, sampling=greedy())
    assert said.summary.window_turns == 1
    assert said.summary.update == pb.UPDATE_MODE_ONLINE
    own = len(served.turns.bos) + len(served.turns.encode(Message("user", "I live in Lisbon.")))
    prompt = prompt_of("I live in Lisbon.", "Where?")
    assert said.text == online_text(prompt, own, random_state(4))
    assert said.text != online_text(prompt, 0, random_state(4))
    assert said.text != online_text(prompt, len(prompt), random_state(4))
    again = await ask("Where?", memory=str(name), memory_options=online, sampling=greedy())
    assert (again.text, again.summary.reused_prompt_tokens) == (said.text, 0)
    assert await store.read_state(name) == before
    online.gain = 0
    off = await ask("Where?", memory=str(name), memory_options=online, sampling=greedy())
    assert (
        off.text
        == (
            await ask("Where?", memory=str(name), memory_options=options(gain=0, window_tokens=100), sampling=greedy())
        ).text
    )


async def test_online_a_memory_without_a_fold_starts_from_nothing(ask, append, name, served, prompt_of, online_text):
    await append(name, "not folded yet")
    online = options(update=pb.UPDATE_MODE_ONLINE)
    said = await ask("Where?", memory=str(name), memory_options=online, sampling=greedy())
    assert said.text == online_text(prompt_of("Where?"), 0, torch.zeros(served.state_shape))
    assert said.text != (await ask("Where?", sampling=greedy())).text


async def test_the_influence_is_told_where_it_is_asked_for(ask, append, remember, name):
    folded = await remember(4)
    await append(name, "not folded yet")
    asked = options(report_influence=True)
    assert (await ask(memory=str(folded), memory_options=asked, sampling=greedy(1))).summary.memory_influence > 0
    unasked = (await ask(memory=str(folded), sampling=greedy(1))).summary
    assert not unasked.HasField("memory_influence")
    for memory, fields in ((folded, {"gain": 0}), (name, {})):
        said = await ask(
            memory=str(memory), memory_options=options(report_influence=True, **fields), sampling=greedy(1)
        )
        assert said.summary.HasField("memory_influence")
        assert said.summary.memory_influence == 0


async def test_tokens_are_told_with_their_probabilities_and_alternatives(ask, remember):
    name = await remember(4)
    plain = await ask(TALKATIVE, memory=str(name), sampling=greedy(12))
    told = await ask(TALKATIVE, memory=str(name), sampling=pb.Sampling(max_tokens=12, top_logprobs=2))
    assert (plain.tokens, told.text) == ([], plain.text)
    assert len(told.tokens) == told.summary.generated_tokens
    for token in told.tokens:
        best, second = token.top
        assert (best.token, best.text, best.log_probability) == (token.token, token.text, token.log_probability)
        assert second.log_probability <= best.log_probability < 0
    bare = await ask(TALKATIVE, memory=str(name), sampling=pb.Sampling(max_tokens=2, top_logprobs=0))
    assert [list(token.top) for token in bare.tokens] == [[], []]


async def test_a_stop_token_and_a_narrow_choice_reach_the_engine(ask, served):
    drawn = {"temperature": 4.0, "seed": 1, "max_tokens": 12}
    narrow = await ask(TALKATIVE, sampling=pb.Sampling(top_k=1, **drawn))
    assert narrow.text == (await ask(TALKATIVE, sampling=greedy(12))).text
    wide = await ask(TALKATIVE, sampling=pb.Sampling(top_logprobs=0, **drawn))
    assert wide.text != narrow.text
    stopped = await ask(TALKATIVE, sampling=pb.Sampling(stop_tokens=[wide.tokens[4].token], **drawn))
    assert stopped.summary.finish_reason == pb.FINISH_REASON_STOP
    assert stopped.summary.generated_tokens <= 5


async def test_a_request_counts_for_the_tenant_that_the_gateway_names_or_else_for_the_memory_s(
    running, engine, remember, monkeypatch
):
    tenants = []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda work: tenants.append(work.tenant) or submit(work))
    name = await remember(1)
    request = pb.GenerateRequest(messages=[pb.Message(role="user", content="a")], sampling=greedy(1))
    score = pb.ScoreRequest(text="a", continuations=["b"])
    for metadata in ((), ((TENANT, "acme"),)):
        for memory in ("", str(name)):
            request.memory = score.memory = memory
            async for _ in running.stub.Generate(request, metadata=metadata):
                pass
            await running.stub.Score(score, metadata=metadata)
    assert tenants == ["", "", "reader", "reader", "acme", "acme", "acme", "acme"]
