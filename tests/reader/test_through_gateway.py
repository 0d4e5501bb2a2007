"""A client, a gateway and a reader, all real: what is asked for arrives, and what is answered comes back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator

import pytest

from memfold.api.errors import InvalidFieldError, RevisionForeignError
from memfold.api.v1.generation_service_pb2_grpc import add_GenerationServiceServicer_to_server
from memfold.client import AsyncMemfold, FinishReason, Revision, Role, Stale, Turn, UpdateMode
from memfold.reader.v1.load_service_pb2_grpc import add_LoadServiceServicer_to_server
from memfold.rpc.server import Server
from memfold_gateway.gateway import gateway
from memfold_gateway.settings import Settings
from memfold_reader.load_service import LoadService
from memfold_reader.service import GenerationService

KEY = "mfk_reader_secret"


@pytest.fixture
async def client(tmp_path, redis_url, engine, reader) -> AsyncIterator[AsyncMemfold]:
    """No writer runs here."""
    server = Server("127.0.0.1:0", grace_s=0.1)
    service, load_service = GenerationService(server.stopping.is_set), LoadService(server.stopping)
    service.reader = reader
    load_service.serve(engine, reader.served.fingerprint)
    server.add(add_GenerationServiceServicer_to_server, service)
    server.add(add_LoadServiceServicer_to_server, load_service)
    address = await server.start()
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({hashlib.sha256(KEY.encode()).hexdigest(): "reader"}))
    settings = Settings(
        api_keys_file=keys, redis_url=redis_url, listen="127.0.0.1:0", reader_target=address, grace_s=0.1
    )
    async with gateway(settings) as front, AsyncMemfold(front.address, KEY) as client:
        yield client
    await server.stop()


async def test_a_turn_is_in_the_answer_before_any_writer_has_seen_it(client):
    appended = await client.append("alice", [Turn("", Role.USER, "I live in Lisbon.")], create=True)
    asked = {"memory": "alice", "min_revision": appended.revision, "max_tokens": 12}
    folded = client.generate("Where do I live?", stale=Stale.FOLD_INLINE, report_influence=True, **asked)
    text = await folded.text()
    assert folded.summary.revision == appended.revision
    assert (folded.summary.folded_inline_turns, folded.summary.stale) == (1, False)
    assert folded.summary.memory_influence > 0
    allowed = client.generate("Where do I live?", stale=Stale.ALLOW, report_influence=True, **asked)
    other = await allowed.text()
    assert (allowed.summary.revision.sequence, allowed.summary.stale, allowed.summary.memory_influence) == (0, True, 0)
    assert other == await client.generate("Where do I live?", max_tokens=12).text() != text
    with pytest.raises(RevisionForeignError):
        await client.generate(
            "?", memory="alice", min_revision=Revision("0123456789ab", 1), stale=Stale.FOLD_INLINE
        ).text()


async def test_online_sampling_and_probabilities_come_through(client):
    await client.append("alice", [Turn("", Role.USER, "I live in Lisbon.")], create=True)
    asked = {"memory": "alice", "stale": Stale.FOLD_INLINE, "max_tokens": 12, "temperature": 2.0, "seed": 7}
    online = client.generate("Where?", update=UpdateMode.ONLINE, top_logprobs=2, **asked)
    text = await online.text()
    assert online.summary.update is UpdateMode.ONLINE
    assert len(online.tokens) == online.summary.generated_tokens
    assert all(len(token.top) == 2 for token in online.tokens)
    assert text != await client.generate("Where?", **asked).text()
    stopped = client.generate(
        "Where?", update=UpdateMode.ONLINE, stop_tokens=[online.tokens[3].token], top_logprobs=0, **asked
    )
    await stopped.text()
    assert stopped.summary.finish_reason is FinishReason.STOP
    assert [token.token for token in stopped.tokens] == [
        token.token for token in online.tokens[: stopped.summary.generated_tokens]
    ]
    narrow = client.generate("Where?", top_k=1, **asked)
    likeliest = client.generate("Where?", **{**asked, "temperature": 0.0})
    assert await narrow.text() == await likeliest.text()


async def test_a_prompt_that_came_before_is_not_read_again_and_says_the_same(client):
    await client.append("alice", [Turn("", Role.USER, "I live in Lisbon.")], create=True)
    question = "Where do I live, and since when?"
    asked = {"memory": "alice", "stale": Stale.FOLD_INLINE, "max_tokens": 8}
    replies = [client.generate(question, **asked) for _ in range(2)]
    said = [await reply.text() for reply in replies]
    assert [reply.summary.reused_prompt_tokens > 0 for reply in replies] == [False, True]
    assert said[0] == said[1]
    await client.append("alice", [Turn("", Role.USER, "No, in Porto.")])
    moved = client.generate(question, **asked)
    await moved.text()
    assert moved.summary.reused_prompt_tokens == 0, "another state, other keys and values"


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("sampling.top_k", {"top_k": -1}),
        ("sampling.top_logprobs", {"top_logprobs": 21}),
        ("sampling.stop_tokens[0]", {"stop_tokens": [-1]}),
        ("sampling.stop_tokens", {"stop_tokens": list(range(65))}),
        ("memory_options.update", {"update": UpdateMode.ONLINE}),
        ("memory_options.report_influence", {"report_influence": True}),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(client, field, wrong):
    with pytest.raises(InvalidFieldError) as caught:
        await client.generate("Hello", **wrong).text()
    assert caught.value.facts["field"] == field
