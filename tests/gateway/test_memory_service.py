"""What MemoryService promises, on a real gateway process and a real Redis."""

import asyncio
import math
import struct

import grpc
import pytest
from redis import Redis

from memfold.api.v1 import memory_service_pb2 as pb

ALICE = "tenants/acme/memories/alice"


async def create(api, memory_id="alice", **fields):
    request = pb.CreateMemoryRequest(parent="tenants/acme", memory_id=memory_id, **fields)
    return (await api.memory.CreateMemory(request)).memory


async def test_a_created_memory_is_found_with_what_it_was_given(api):
    made = await create(api, memory=pb.Memory(display_name="Alice", labels={"team": "red"}))
    assert (made.name, made.display_name, dict(made.labels)) == (ALICE, "Alice", {"team": "red"})
    assert made.revision == made.folded_revision
    assert made.revision.endswith(".0")
    assert made.create_time.seconds > 1_700_000_000
    found = (await api.memory.GetMemory(pb.GetMemoryRequest(name=ALICE))).memory
    assert found == made


async def test_creating_twice_is_refused_but_repeating_a_request_is_not(api, kit):
    first = await create(api, request_id="r1")
    assert await create(api, request_id="r1") == first
    again = await kit.failure(create(api, request_id="r2"))
    assert (again.code, again.reason) == ("ALREADY_EXISTS", "MEMORY_ALREADY_EXISTS")


async def test_memories_are_listed_page_by_page_by_name(api, kit):
    ids = [f"m{at:02}" for at in range(7)]
    for memory_id in reversed(ids):
        await create(api, memory_id)
    seen, token, sizes = [], "", []
    while True:
        request = pb.ListMemoriesRequest(parent="tenants/acme", page_size=3, page_token=token)
        page = await api.memory.ListMemories(request)
        seen += [memory.name.rsplit("/", 1)[1] for memory in page.memories]
        sizes.append(len(page.memories))
        token = page.next_page_token
        if not token:
            break
    assert (seen, sizes) == (ids, [3, 3, 1])


async def test_a_memory_is_listed_once_whatever_a_killed_server_left_in_the_index(api, gateway_redis):
    for memory_id in ("alice", "bob"):
        await create(api, memory_id)
    with Redis.from_url(gateway_redis.url) as client:
        client.zadd("memfold:tenant:acme", {"alice\0" + incarnation: 0 for incarnation in ("0" * 12, "f" * 12)})
    listed = await api.memory.ListMemories(pb.ListMemoriesRequest(parent="tenants/acme"))
    assert [memory.name.rpartition("/")[2] for memory in listed.memories] == ["alice", "bob"]


async def test_a_page_token_serves_only_the_request_that_it_was_given_out_for(api, kit):
    for memory_id in ("a", "b"):
        await create(api, memory_id)
        await api.memory.AppendTurns(kit.append(memory_id, kit.turn("one"), kit.turn("two")))
    memories = await api.memory.ListMemories(pb.ListMemoriesRequest(parent="tenants/acme", page_size=1))
    turns = await api.memory.ListTurns(pb.ListTurnsRequest(memory="tenants/acme/memories/a", page_size=1))
    assert memories.next_page_token
    assert turns.next_page_token
    for token in ("nonsense", "%%%", turns.next_page_token[:-2], memories.next_page_token):
        request = pb.ListTurnsRequest(memory="tenants/acme/memories/a", page_token=token)
        assert (await kit.failure(api.memory.ListTurns(request))).reason == "INVALID_PAGE_TOKEN"
    elsewhere = pb.ListTurnsRequest(memory="tenants/acme/memories/b", page_token=turns.next_page_token)
    assert (await kit.failure(api.memory.ListTurns(elsewhere))).reason == "INVALID_PAGE_TOKEN"
    other = pb.ListMemoriesRequest(parent="tenants/acme", page_token=turns.next_page_token)
    assert (await kit.failure(api.memory.ListMemories(other))).reason == "INVALID_PAGE_TOKEN"
    await api.memory.DeleteMemory(pb.DeleteMemoryRequest(name="tenants/acme/memories/a"))
    await api.memory.AppendTurns(kit.append("a", kit.turn("new"), allow_missing=True))
    request = pb.ListTurnsRequest(memory="tenants/acme/memories/a", page_token=turns.next_page_token)
    assert (await kit.failure(api.memory.ListTurns(request))).reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize(
    ("paths", "display_name", "labels"),
    [
        (["display_name"], "new", {"old": "x"}),
        (["labels"], "old", {"new": "y"}),
        (["display_name", "labels"], "new", {"new": "y"}),
        ([], "new", {"new": "y"}),
        (["*"], "new", {"new": "y"}),
    ],
)
async def test_an_update_changes_what_its_mask_names(api, paths, display_name, labels):
    await create(api, memory=pb.Memory(display_name="old", labels={"old": "x"}))
    request = pb.UpdateMemoryRequest(memory=pb.Memory(name=ALICE, display_name="new", labels={"new": "y"}))
    request.update_mask.paths.extend(paths)
    changed = (await api.memory.UpdateMemory(request)).memory
    assert (changed.display_name, dict(changed.labels)) == (display_name, labels)
    assert (await api.memory.GetMemory(pb.GetMemoryRequest(name=ALICE))).memory == changed


async def test_a_field_that_cannot_be_updated_is_named(api, kit):
    await create(api)
    request = pb.UpdateMemoryRequest(memory=pb.Memory(name=ALICE))
    request.update_mask.paths.append("turn_count")
    found = await kit.failure(api.memory.UpdateMemory(request))
    assert (found.code, found.reason, found.facts["field"]) == ("INVALID_ARGUMENT", "INVALID_FIELD", "update_mask")


async def test_appended_turns_are_listed_in_order_with_place_and_time(api, kit):
    await create(api)
    response = await api.memory.AppendTurns(
        kit.append(
            "alice",
            kit.turn("Hi, I am Alice.", "t1", speaker="Alice", metadata={"day": "Monday"}),
            kit.turn("Hello Alice.", "t2", role="ai"),
        )
    )
    assert [(t.id, t.sequence, t.duplicate) for t in response.turns] == [("t1", 1, False), ("t2", 2, False)]
    assert response.revision.endswith(".2")
    listed = await api.memory.ListTurns(pb.ListTurnsRequest(memory=ALICE))
    assert listed.revision == response.revision
    assert [(t.id, t.role, t.content, t.speaker, dict(t.metadata), t.sequence) for t in listed.turns] == [
        ("t1", "user", "Hi, I am Alice.", "Alice", {"day": "Monday"}, 1),
        ("t2", "assistant", "Hello Alice.", "", {}, 2),
    ]
    assert all(t.append_time.seconds > 1_700_000_000 for t in listed.turns)


async def test_what_clients_set_in_output_only_fields_changes_nothing(api, kit):
    await create(api)
    response = await api.memory.AppendTurns(kit.append("alice", kit.turn("one", sequence=17)))
    assert response.turns[0].sequence == 1


async def test_a_repeated_append_is_one_append(api, kit):
    await create(api)
    request = kit.append("alice", kit.turn("one"), kit.turn("two", "t2"), request_id="r")
    first = await api.memory.AppendTurns(request)
    again = await api.memory.AppendTurns(request)
    assert [t.id for t in again.turns] == [t.id for t in first.turns]
    assert [(t.sequence, t.duplicate) for t in again.turns] == [(1, True), (2, True)]
    assert again.revision == first.revision


async def test_one_id_with_other_content_is_a_conflict_and_nothing_is_appended(api, kit):
    await create(api)
    await api.memory.AppendTurns(kit.append("alice", kit.turn("one", "t1")))
    found = await kit.failure(api.memory.AppendTurns(kit.append("alice", kit.turn("new", "t2"), kit.turn("two", "t1"))))
    assert (found.code, found.reason) == ("ALREADY_EXISTS", "TURN_ID_CONFLICT")
    listed = await api.memory.ListTurns(pb.ListTurnsRequest(memory=ALICE))
    assert [t.content for t in listed.turns] == ["one"]


async def test_turns_go_to_a_memory_that_is_not_there_only_if_asked_so(api, kit):
    found = await kit.failure(api.memory.AppendTurns(kit.append("alice", kit.turn("one"))))
    assert (found.code, found.reason) == ("NOT_FOUND", "MEMORY_NOT_FOUND")
    response = await api.memory.AppendTurns(kit.append("alice", kit.turn("one"), allow_missing=True))
    assert response.turns[0].sequence == 1


async def test_a_stale_expected_revision_is_refused_with_the_current_one(api, kit):
    empty = (await create(api)).revision
    current = (await api.memory.AppendTurns(kit.append("alice", kit.turn("one"), expected_revision=empty))).revision
    for call in (
        api.memory.AppendTurns(kit.append("alice", kit.turn("two"), expected_revision=empty)),
        api.memory.UpdateMemory(pb.UpdateMemoryRequest(memory=pb.Memory(name=ALICE), expected_revision=empty)),
        api.memory.DeleteMemory(pb.DeleteMemoryRequest(name=ALICE, expected_revision=empty)),
    ):
        found = await kit.failure(call)
        assert (found.code, found.reason) == ("ABORTED", "REVISION_MISMATCH")
        assert found.facts["revision"] == current


async def test_a_full_backlog_is_refused_with_a_delay(api, kit):
    await create(api)
    turns = [kit.turn(f"turn {at}") for at in range(kit.BACKLOG)]
    await api.memory.AppendTurns(kit.append("alice", *turns))
    found = await kit.failure(api.memory.AppendTurns(kit.append("alice", kit.turn("one more"))))
    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "BACKLOG_FULL")
    assert found.retry_ms > 0


async def test_turns_are_paged_in_order_and_a_page_stays_below_what_clients_take(api, kit):
    await create(api)
    big = "x" * 250_000
    for at in range(kit.BACKLOG):
        await api.memory.AppendTurns(kit.append("alice", kit.turn(f"{at} {big}")))
    seen, token, pages = [], "", 0
    while True:
        page = await api.memory.ListTurns(pb.ListTurnsRequest(memory=ALICE, page_size=1000, page_token=token))
        assert page.ByteSize() < 4 * 2**20
        seen += [t.sequence for t in page.turns]
        pages, token = pages + 1, page.next_page_token
        if not token:
            break
    assert seen == list(range(1, kit.BACKLOG + 1))
    assert pages > 1


async def test_a_deleted_memory_is_gone_with_its_turns(api, kit):
    await api.memory.AppendTurns(kit.append("alice", kit.turn("one"), allow_missing=True))
    gone = await api.memory.DeleteMemory(pb.DeleteMemoryRequest(name=ALICE))
    assert gone.revision.endswith(".1")
    for call in (
        api.memory.GetMemory(pb.GetMemoryRequest(name=ALICE)),
        api.memory.ListTurns(pb.ListTurnsRequest(memory=ALICE)),
        api.memory.GetState(pb.GetStateRequest(memory=ALICE)),
        api.memory.WaitForRevision(pb.WaitForRevisionRequest(memory=ALICE)),
        api.memory.DeleteMemory(pb.DeleteMemoryRequest(name=ALICE)),
    ):
        assert (await kit.failure(call)).reason == "MEMORY_NOT_FOUND"
    await api.memory.DeleteMemory(pb.DeleteMemoryRequest(name=ALICE, allow_missing=True))


async def test_waiting_ends_when_the_state_has_come_so_far(api, kit, store):
    appended = await api.memory.AppendTurns(kit.append("alice", kit.turn("one"), allow_missing=True))
    waiting = asyncio.ensure_future(
        api.memory.WaitForRevision(pb.WaitForRevisionRequest(memory=ALICE, revision=appended.revision))
    )
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await kit.fold(store, ALICE)
    assert (await waiting).folded_revision == appended.revision
    head = await api.memory.WaitForRevision(pb.WaitForRevisionRequest(memory=ALICE))
    assert head.folded_revision == appended.revision
    memory = (await api.memory.GetMemory(pb.GetMemoryRequest(name=ALICE))).memory
    assert (memory.lag_turns, memory.state_bytes) == (0, kit.CARD.state_bytes)


async def test_waiting_beyond_the_deadline_says_so_before_the_client_gives_up(api, kit):
    await api.memory.AppendTurns(kit.append("alice", kit.turn("one"), allow_missing=True))
    found = await kit.failure(api.memory.WaitForRevision(pb.WaitForRevisionRequest(memory=ALICE), timeout=2))
    assert (found.code, found.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert found.facts["folded_revision"].endswith(".0")


async def test_waiting_for_what_will_never_be_is_refused(api, kit):
    appended = await api.memory.AppendTurns(kit.append("alice", kit.turn("one"), allow_missing=True))
    incarnation = appended.revision.split(".")[0]
    for revision, code, reason in (
        (f"{incarnation}.2", "OUT_OF_RANGE", "REVISION_AHEAD_OF_LOG"),
        ("0123456789ab.1", "FAILED_PRECONDITION", "REVISION_FOREIGN"),
        ("nonsense", "INVALID_ARGUMENT", "INVALID_FIELD"),
    ):
        for call in (
            api.memory.WaitForRevision(pb.WaitForRevisionRequest(memory=ALICE, revision=revision)),
            api.memory.GetState(pb.GetStateRequest(memory=ALICE, min_revision=revision)),
        ):
            found = await kit.failure(call)
            assert (found.code, found.reason) == (code, reason)


async def test_the_state_of_an_unfolded_memory_is_zero(api, kit):
    await api.memory.AppendTurns(kit.append("alice", kit.turn("one"), allow_missing=True))
    state = (await api.memory.GetState(pb.GetStateRequest(memory=ALICE))).state
    assert state.revision.endswith(".0")
    assert (tuple(state.shape), state.data) == (kit.CARD.state_shape, bytes(kit.CARD.state_bytes))
    assert list(state.layer_norms) == [0.0, 0.0]


async def test_a_state_comes_with_its_revision_model_and_norms(api, kit, store):
    appended = await api.memory.AppendTurns(kit.append("alice", kit.turn("one"), allow_missing=True))
    numbers = [float(at) for at in range(32)]
    await kit.fold(store, ALICE, state=struct.pack("<32f", *numbers))
    state = (await api.memory.GetState(pb.GetStateRequest(memory=ALICE, min_revision=appended.revision))).state
    assert (state.revision, state.fingerprint) == (appended.revision, kit.CARD.fingerprint)
    assert struct.unpack("<32f", state.data) == tuple(numbers)
    expected = [math.sqrt(sum(x * x for x in part)) for part in (numbers[:16], numbers[16:])]
    assert list(state.layer_norms) == pytest.approx(expected)


async def test_without_a_model_nothing_can_be_created_yet(gateway_process, gateway_redis, kit):
    with Redis.from_url(gateway_redis.url) as client:
        client.flushall()
    async with grpc.aio.insecure_channel(gateway_process.address) as channel:
        api = kit.stubs(channel)
        for call in (
            create(api),
            api.memory.AppendTurns(kit.append("alice", kit.turn("one"), allow_missing=True)),
        ):
            found = await kit.failure(call)
            assert (found.code, found.reason) == ("UNAVAILABLE", "MODEL_LOADING")


POLICY = pb.Policy(keep_last=7)
POLICY.ttl.seconds, POLICY.retention.seconds = 3600, 86400


async def test_a_memory_is_created_with_its_policy_or_with_the_default(api):
    made = await create(api, memory=pb.Memory(policy=POLICY))
    assert made.policy == POLICY
    assert (await api.memory.GetMemory(pb.GetMemoryRequest(name=ALICE))).memory == made
    assert (await create(api, "bob")).policy == pb.Policy(keep_last=4)


@pytest.mark.parametrize(
    ("paths", "seconds", "keep_last", "display_name"),
    [
        (["policy"], (60, 0), 4, "old"),
        (["policy.ttl"], (60, 86400), 7, "old"),
        (["policy.retention"], (3600, 0), 7, "old"),
        (["policy.keep_last", "display_name"], (3600, 86400), 4, "new"),
        (["*"], (60, 0), 4, "new"),
        ([], (60, 0), 4, "new"),
    ],
)
async def test_an_update_changes_of_the_policy_what_its_mask_names(api, paths, seconds, keep_last, display_name):
    await create(api, memory=pb.Memory(policy=POLICY, display_name="old"))
    request = pb.UpdateMemoryRequest(memory=pb.Memory(name=ALICE, display_name="new"))
    request.memory.policy.ttl.seconds = 60
    request.update_mask.paths.extend(paths)
    changed = (await api.memory.UpdateMemory(request)).memory
    assert (changed.policy.ttl.seconds, changed.policy.retention.seconds) == seconds
    assert (changed.policy.keep_last, changed.display_name) == (keep_last, display_name)


async def test_a_client_that_knows_of_no_policy_does_not_reset_it(api):
    await create(api, memory=pb.Memory(policy=POLICY))
    request = pb.UpdateMemoryRequest(memory=pb.Memory(name=ALICE, display_name="new"))
    assert (await api.memory.UpdateMemory(request)).memory.policy == POLICY
