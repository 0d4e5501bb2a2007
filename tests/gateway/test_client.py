"""Both clients against a real gateway."""

import asyncio
import contextlib
import subprocess
import sys
import threading

import pytest

import memfold.client
from memfold.api.errors import (
    ApiKeyError,
    DeadlineError,
    InvalidFieldError,
    MemoryNotFoundError,
    RevisionMismatchError,
    TurnIdConflictError,
)
from memfold.api.v1 import generation_service_pb2 as pb
from memfold.client import (
    AsyncMemfold,
    FinishReason,
    Memfold,
    MemoryName,
    Message,
    Revision,
    Role,
    Stale,
    TokenAlternative,
    TokenLogProbability,
    Turn,
    UnreachableError,
    UpdateMode,
)
from memfold_gateway.gateway import gateway

NAME = MemoryName("acme", "alice")


def user(content, turn_id=""):
    return Turn(turn_id, Role.USER, content)


@pytest.fixture
def client(gateway_process, store, kit):
    """A blocking client on the shared gateway."""
    with Memfold(gateway_process.address, kit.KEY) as client:
        yield client


@pytest.fixture
async def aclient(here, kit):
    """An asynchronous client on a gateway with a reader."""
    async with AsyncMemfold(here[0], kit.KEY) as client:
        yield client


def test_the_public_names_are_these():
    assert sorted(memfold.client.__all__) == [
        "Ack",
        "Appended",
        "AsyncMemfold",
        "AsyncReply",
        "FinishReason",
        "ForgetReceipt",
        "ForkHolding",
        "ForkReceipt",
        "FoundTurn",
        "KeptRevision",
        "Memfold",
        "MemfoldError",
        "Memory",
        "MemoryName",
        "Message",
        "Model",
        "Operation",
        "OperationKind",
        "Policy",
        "RebuildReceipt",
        "RecalledTurn",
        "Reply",
        "Revision",
        "Role",
        "RollbackReceipt",
        "Score",
        "Stale",
        "State",
        "Summary",
        "TokenAlternative",
        "TokenLogProbability",
        "Turn",
        "UnreachableError",
        "UpdateMode",
        "VerifyReceipt",
    ]
    public = {name for name in vars(Memfold) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncMemfold) if not name.startswith("_")}


def test_the_client_needs_no_service_library():
    forbidden = ["redis", "celery", "opentelemetry", "pydantic", "protovalidate", "torch", "numpy"]
    code = f"import sys, memfold.client; print([m for m in {forbidden} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_a_memory_s_life(client):
    made = client.create_memory("alice", display_name="Alice", labels={"team": "red"})
    assert (made.name, made.display_name, dict(made.labels), made.head) == (NAME, "Alice", {"team": "red"}, 0)
    assert client.get_memory(str(NAME)) == client.get_memory("alice")
    assert client.update_memory("alice", display_name="A.").labels == {"team": "red"}
    assert client.update_memory("alice", labels={}).labels == {}
    client.create_memory("bob")
    assert [memory.name.memory for memory in client.list_memories()] == ["alice", "bob"]
    client.delete_memory("alice")
    with pytest.raises(MemoryNotFoundError):
        client.get_memory("alice")
    client.delete_memory("alice", allow_missing=True)


async def test_turns_go_in_and_come_out(client, store, kit):
    appended = client.append("alice", [user("one"), user("two", "t2")], create=True)
    assert [(ack.sequence, ack.duplicate, ack.error) for ack in appended.turns] == [(1, False, None), (2, False, None)]
    assert all(ack.id for ack in appended.turns)
    assert client.append("alice", [user("two", "t2")]).turns[0].duplicate
    assert [(turn.sequence, turn.content) for turn in client.turns("alice")] == [(1, "one"), (2, "two")]
    with pytest.raises(RevisionMismatchError) as caught:
        client.append("alice", [user("x")], expected_revision=appended.turns[0].revision)
    assert caught.value.facts["revision"] == str(appended.revision)
    with pytest.raises(DeadlineError):
        client.wait("alice", timeout_s=0.5)
    state = bytes(kit.CARD.state_bytes)
    await kit.fold(store, str(NAME))
    assert client.wait("alice") == appended.revision
    found = client.state("alice", min_revision=appended.revision)
    assert (found.revision, found.shape, found.data) == (appended.revision, kit.CARD.state_shape, state)
    assert found.layer_norms == (0.0, 0.0)


async def test_a_stream_yields_an_ack_a_turn_and_a_rejection_where_one_is_due(client):
    turns = [
        ("alice", user("one", "t1")),
        ("bob", user("uno", "t1")),
        ("alice", user("other", "t1")),
        ("alice", user("two", "t2")),
    ]
    acks = list(client.stream(turns, create=True))
    assert [(ack.memory.rsplit("/", 1)[1], ack.id, ack.sequence) for ack in acks] == [
        ("alice", "t1", 1),
        ("bob", "t1", 1),
        ("alice", "t1", 0),
        ("alice", "t2", 2),
    ]
    assert isinstance(acks[2].error, TurnIdConflictError)


async def test_what_the_source_of_a_stream_raises_reaches_its_reader(client):
    def turns():
        yield "alice", user("one")
        raise ValueError("the file ended in the middle of a line")

    acks = []
    with pytest.raises(ValueError, match="in the middle"):
        acks.extend(client.stream(turns(), create=True))
    assert [turn.content for turn in client.turns("alice")] == ["one"]


async def test_a_stream_follows_its_source(client):
    given = threading.Event()

    def turns():
        for at in range(5):
            given.clear()
            yield "alice", user(f"{at}")
            assert given.wait(10), "the ack came only with the next turn"

    for _ in client.stream(turns(), create=True):
        given.set()


@pytest.mark.parametrize("key", ["wrong", "mfk_acme_wrong"])
def test_a_wrong_key_is_named(gateway_process, key):
    with Memfold(gateway_process.address, key, tenant="acme") as client, pytest.raises(ApiKeyError):
        client.get_memory("alice")


def test_a_key_that_names_no_tenant_needs_whole_names(gateway_process):
    with Memfold(gateway_process.address, "plain") as client, pytest.raises(InvalidFieldError, match="tenant"):
        client.get_memory("alice")


def test_nobody_at_the_address_is_an_error_of_the_family():
    with Memfold("127.0.0.1:1", "mfk_acme_x", timeout_s=1) as client, pytest.raises((UnreachableError, DeadlineError)):
        client.get_memory("alice")


async def test_a_reply_streams_and_ends_with_a_summary(aclient, here):
    reply = aclient.generate(
        [Message(Role.USER, "Where do I live?")], memory="alice", gain=0.5, window_tokens=7, seed=3, stop=["\n"]
    )
    assert [piece async for piece in reply] == ["Lis", "bon"]
    assert reply.summary is not None
    assert reply.summary.finish_reason is FinishReason.END_OF_TURN
    assert reply.summary.time_to_first_token_s == pytest.approx(0.005)
    assert reply.summary.revision is None
    assert (reply.summary.memory_influence, reply.summary.update, reply.tokens) == (None, UpdateMode.READ_ONLY, [])
    request = here[1].seen[-1][1]
    assert (request.memory, request.memory_options.gain, request.memory_options.window_tokens) == (str(NAME), 0.5, 7)
    assert (request.sampling.seed, list(request.sampling.stop)) == (3, ["\n"])
    assert await aclient.generate("Hello").text() == "Lisbon"
    assert not here[1].seen[-1][1].memory_options.HasField("gain")


async def test_every_option_of_a_generation_reaches_the_reader(aclient, here):
    revision = Revision("0123456789ab", 7)
    await aclient.generate(
        "Where?",
        memory="alice",
        min_revision=revision,
        stale=Stale.FOLD_INLINE,
        update=UpdateMode.ONLINE,
        report_influence=True,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop_tokens=[3, 5],
        top_logprobs=0,
    ).text()
    said = here[1].seen[-1][1]
    assert said.memory_options == pb.MemoryOptions(
        min_revision=str(revision),
        stale=pb.STALE_FOLD_INLINE,
        update=pb.UPDATE_MODE_ONLINE,
        report_influence=True,
    )
    assert said.sampling == pb.Sampling(temperature=0.5, top_p=0.9, top_k=40, stop_tokens=[3, 5], top_logprobs=0)
    await aclient.score(["a"], messages="Who?", memory="alice", stale=Stale.ALLOW)
    assert here[1].seen[-1][1].memory_options.stale == pb.STALE_ALLOW


async def test_what_the_reader_says_of_tokens_and_of_the_whole_comes_through(aclient, here, kit):
    here[1].deltas = [
        pb.TextDelta(tokens=[pb.TokenLogProbability(token=7, text="\ufffd", log_probability=-0.5)]),
        pb.TextDelta(
            text="ä",
            tokens=[
                pb.TokenLogProbability(
                    token=8,
                    text="ä",
                    log_probability=-1.5,
                    top=[pb.TokenAlternative(token=9, text="b", log_probability=-0.25)],
                )
            ],
        ),
    ]
    here[1].summary = pb.GenerationSummary(
        revision="0123456789ab.7",
        finish_reason=pb.FINISH_REASON_STOP,
        stale=True,
        folded_inline_turns=3,
        memory_influence=0,
        reused_prompt_tokens=11,
        update=pb.UPDATE_MODE_ONLINE,
    )
    reply = aclient.generate("Hello", top_logprobs=1)
    assert [piece async for piece in reply] == ["ä"]
    expected = [
        TokenLogProbability(7, "\ufffd", -0.5, ()),
        TokenLogProbability(8, "ä", -1.5, (TokenAlternative(9, "b", -0.25),)),
    ]
    summary = reply.summary
    assert reply.tokens == expected
    assert (summary.stale, summary.folded_inline_turns, summary.memory_influence) == (True, 3, 0.0)
    assert (summary.reused_prompt_tokens, summary.update) == (11, UpdateMode.ONLINE)

    def talk():
        with Memfold(here[0], kit.KEY) as client, client.generate("Hello", top_logprobs=1) as reply:
            return list(reply), reply.tokens, reply.summary

    assert await asyncio.to_thread(talk) == (["ä"], expected, summary)


async def test_the_blocking_reply_is_the_same(here, kit):
    def talk():
        with Memfold(here[0], kit.KEY) as client, client.generate("Hello") as reply:
            pieces = list(reply)
            return pieces, reply.summary, client.score(["a", "b"], text="x"), client.model()

    pieces, summary, scores, model = await asyncio.to_thread(talk)
    assert pieces == ["Lis", "bon"]
    assert summary is not None
    assert [score.log_probability for score in scores] == [-1.5, -1.5]
    assert (model.state_shape, model.examples) == (kit.CARD.state_shape, ("Hello",))


async def test_scores_and_model_over_asyncio(aclient, here):
    assert len(await aclient.score(["a"], messages="Who?", memory="alice")) == 1
    assert here[1].seen[-1][1].messages.messages[0].content == "Who?"
    assert (await aclient.model()).backbone == "tiny"


async def test_the_asynchronous_client_does_the_same(aclient):
    await aclient.create_memory("alice")
    appended = await aclient.append("alice", [user("one")])

    async def turns():
        for at in range(3):
            yield "alice", user(f"{at}")

    acks = [ack async for ack in aclient.stream(turns())]
    assert [ack.sequence for ack in acks] == [2, 3, 4]
    assert [ack.sequence async for ack in aclient.stream([("alice", user("last"))])] == [5]
    assert [turn.sequence async for turn in aclient.turns("alice")] == [1, 2, 3, 4, 5]
    assert [memory.name async for memory in aclient.list_memories()] == [NAME]
    assert (await aclient.state("alice")).revision.incarnation == appended.revision.incarnation
    with pytest.raises(DeadlineError):
        await aclient.wait("alice", timeout_s=0.3)
    await aclient.delete_memory("alice")


async def test_a_stream_goes_on_through_restarts_of_the_gateway_with_nothing_lost_or_doubled(
    gateway_redis, store, kit, tmp_path
):
    """One address, three gateways after each other, each stopped in the middle of the streams."""
    settings = kit.settings(tmp_path, gateway_redis.url, backlog_turns=0, grace_s=0.1)
    count, acks, blocking_acks = 300, [], []
    running = asyncio.Event()

    async def serve():
        nonlocal settings
        for _ in range(3):
            async with gateway(settings) as server:
                settings = settings.model_copy(update={"listen": server.address})
                running.set()
                before = len(acks)
                while len(acks) < before + 60 and len(acks) < count:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        async with gateway(settings):
            await asyncio.Event().wait()

    def turns():
        return (("alice", user(f"turn {at}", f"a{at}")) for at in range(count))

    async def slowly():
        for turn in turns():
            await asyncio.sleep(0.002)
            yield turn

    def blocking():
        with Memfold(settings.listen, kit.KEY) as client:
            blocking_acks.extend(client.stream((("bob", turn) for _, turn in turns()), create=True))

    serving = asyncio.create_task(serve())
    await running.wait()
    second = asyncio.create_task(asyncio.to_thread(blocking))
    async with AsyncMemfold(settings.listen, kit.KEY) as client:
        async for ack in client.stream(slowly(), create=True):
            acks.append(ack)  # noqa: PERF401  seen by the task above as it grows
        await second
        for memory, found in (("alice", acks), ("bob", blocking_acks)):
            assert [ack.sequence for ack in found] == list(range(1, count + 1))
            assert [turn.id async for turn in client.turns(memory)] == [f"a{at}" for at in range(count)]
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
