"""What HistoryService and OperationService promise, on a real gateway process and a real Redis."""

import asyncio
import struct

import pytest

from memfold.api.v1 import history_service_pb2 as pb
from memfold.api.v1 import memory_service_pb2 as memory_pb
from memfold.api.v1 import operation_service_pb2 as operation_pb
from memfold.api.values import MemoryName, ModelCard

ALICE = "tenants/acme/memories/alice"
BOB = "tenants/acme/memories/bob"
OTHER_MODEL = "cd" * 32


def numbers(value):
    """A state that can be told from others."""
    return struct.pack("<32f", *[value] * 32)


@pytest.fixture
async def alice(api, kit, store):
    """A memory of six turns whose state is kept at 2, 4 and 6; its revisions by number."""
    revisions = {}
    for at in (2, 4, 6):
        turns = [
            kit.turn(f"content {n}", f"t{n}", speaker="Ann" if n < 3 else "Ben", metadata={"day": f"{n % 2}"})
            for n in (at - 1, at)
        ]
        appended = await api.memory.AppendTurns(kit.append("alice", *turns, allow_missing=True))
        await kit.fold(store, ALICE, state=numbers(at))
        revisions[at] = appended.revision
    return revisions


async def memory_of(api, name=ALICE):
    return (await api.memory.GetMemory(memory_pb.GetMemoryRequest(name=name))).memory


async def turns_of(api, name=ALICE):
    return (await api.memory.ListTurns(memory_pb.ListTurnsRequest(memory=name))).turns


async def finished(api, kit, store, operation, memory=ALICE):
    """Do what is left to the writers: fold what is behind, go on with the operation."""
    async with asyncio.timeout(20):
        while not (await store.advance(MemoryName.parse(memory), id_of(operation), until=0)).done:
            if (await memory_of(api, memory)).lag_turns:
                await kit.fold(store, memory)
            await asyncio.sleep(0.05)
    found = (await api.operation.WaitOperation(operation_pb.WaitOperationRequest(name=operation.name))).operation
    assert found.done
    return found


def id_of(operation):
    return operation.name.rpartition("/")[2]


async def forget(api, selector, **fields):
    return (await api.history.ForgetTurns(pb.ForgetTurnsRequest(memory=ALICE, selector=selector, **fields))).operation


def by_ids(*ids):
    return pb.TurnSelector(ids=pb.TurnIds(ids=ids))


async def test_kept_revisions_are_listed_and_each_state_can_be_read(api, alice):
    kept = (await api.history.ListRevisions(pb.ListRevisionsRequest(memory=ALICE))).revisions
    assert [one.revision for one in kept] == [alice[6], alice[4], alice[2]]
    assert all(len(one.log_digest) == len(one.state_digest) == 32 for one in kept)
    assert len({one.log_digest for one in kept}) == 3
    assert all(one.commit_time.seconds > 1_700_000_000 for one in kept)
    for at, revision in alice.items():
        state = (await api.memory.GetState(memory_pb.GetStateRequest(memory=ALICE, revision=revision))).state
        assert (state.revision, state.data) == (revision, numbers(at))


async def test_a_state_that_is_not_kept_is_refused_with_the_nearest_that_are(api, kit, alice):
    incarnation = alice[6].split(".")[0]
    for revision, code, reason in (
        (f"{incarnation}.3", "FAILED_PRECONDITION", "REVISION_NOT_KEPT"),
        (f"{incarnation}.7", "OUT_OF_RANGE", "REVISION_AHEAD_OF_LOG"),
        ("0123456789ab.2", "FAILED_PRECONDITION", "REVISION_FOREIGN"),
    ):
        request = memory_pb.GetStateRequest(memory=ALICE, revision=revision)
        found = await kit.failure(api.memory.GetState(request))
        assert (found.code, found.reason) == (code, reason)
        if reason == "REVISION_NOT_KEPT":
            assert (found.facts["before"], found.facts["after"]) == (alice[2], alice[4])
    both = memory_pb.GetStateRequest(memory=ALICE, revision=alice[2], min_revision=alice[2])
    assert (await kit.failure(api.memory.GetState(both))).facts["field"] == "revision"
    start = memory_pb.GetStateRequest(memory=ALICE, revision=f"{incarnation}.0")
    assert (await api.memory.GetState(start)).state.data == bytes(kit.CARD.state_bytes)


async def test_a_fork_is_a_memory_of_its_own_as_the_source_was(api, kit, alice):
    request = pb.ForkMemoryRequest(name=ALICE, memory_id="bob", revision=alice[4])
    operation = (await api.history.ForkMemory(request)).operation
    assert (operation.done, operation.kind) == (True, operation_pb.OPERATION_KIND_FORK)
    assert operation.name.startswith(f"{ALICE}/operations/")
    receipt = operation.fork
    assert (receipt.memory, receipt.source_revision, receipt.turn_count) == (BOB, alice[4], 4)
    bob = await memory_of(api, BOB)
    assert (bob.revision, bob.forked_from, bob.turn_count, bob.lag_turns) == (receipt.revision, ALICE, 4, 0)
    assert [turn.id for turn in await turns_of(api, BOB)] == ["t1", "t2", "t3", "t4"]
    state = (await api.memory.GetState(memory_pb.GetStateRequest(memory=BOB))).state
    assert (state.revision, state.data) == (bob.revision, numbers(4))
    await api.memory.AppendTurns(kit.append("bob", kit.turn("only here")))
    assert len(await turns_of(api)) == 6


async def test_without_a_revision_a_fork_holds_the_whole_log(api, alice):
    operation = (await api.history.ForkMemory(pb.ForkMemoryRequest(name=ALICE, memory_id="bob"))).operation
    assert (operation.fork.source_revision, operation.fork.turn_count) == (alice[6], 6)


async def test_a_fork_that_cannot_be_is_refused_and_leaves_nothing(api, kit, alice):
    incarnation = alice[6].split(".")[0]
    await api.memory.CreateMemory(memory_pb.CreateMemoryRequest(parent="tenants/acme", memory_id="there"))
    for fields, reason in (
        ({"memory_id": "there"}, "MEMORY_ALREADY_EXISTS"),
        ({"memory_id": "alice"}, "INVALID_FIELD"),
        ({"memory_id": "bob", "revision": f"{incarnation}.7"}, "REVISION_AHEAD_OF_LOG"),
        ({"memory_id": "bob", "revision": "0123456789ab.2"}, "REVISION_FOREIGN"),
        ({"memory_id": "bob", "revision": "nonsense"}, "INVALID_FIELD"),
        ({"memory_id": "bob", "name": "tenants/acme/memories/nobody"}, "MEMORY_NOT_FOUND"),
    ):
        request = pb.ForkMemoryRequest(**{"name": ALICE, **fields})
        assert (await kit.failure(api.history.ForkMemory(request))).reason == reason
    listed = await api.memory.ListMemories(memory_pb.ListMemoriesRequest(parent="tenants/acme"))
    assert [memory.name.rpartition("/")[2] for memory in listed.memories] == ["alice", "there"]


async def test_a_repeated_request_is_one_operation_and_another_one_under_its_id_is_refused(api, kit, alice):
    request = pb.ForkMemoryRequest(name=ALICE, memory_id="bob", request_id="r1")
    first = (await api.history.ForkMemory(request)).operation
    assert (await api.history.ForkMemory(request)).operation == first
    for call in (
        api.history.ForkMemory(pb.ForkMemoryRequest(name=ALICE, memory_id="carol", request_id="r1")),
        api.history.RollbackMemory(pb.RollbackMemoryRequest(name=ALICE, revision=alice[4], request_id="r1")),
    ):
        found = await kit.failure(call)
        assert (found.code, found.reason) == ("ALREADY_EXISTS", "OPERATION_CONFLICT")


async def test_rolled_back_a_memory_is_as_it_was_and_gives_no_number_twice(api, kit, store, alice):
    request = pb.RollbackMemoryRequest(name=ALICE, revision=alice[4], expected_revision=alice[6])
    operation = await finished(api, kit, store, (await api.history.RollbackMemory(request)).operation)
    memory = await memory_of(api)
    assert operation.rollback.revision == memory.revision
    assert (operation.rollback.removed_turns, memory.turn_count, memory.lag_turns) == (2, 4, 0)
    assert memory.revision.split(".") != alice[4].split(".")
    state = (await api.memory.GetState(memory_pb.GetStateRequest(memory=ALICE))).state
    assert (state.revision, state.data) == (memory.revision, numbers(4))
    found = await kit.failure(
        api.memory.WaitForRevision(memory_pb.WaitForRevisionRequest(memory=ALICE, revision=alice[4]))
    )
    assert found.reason == "REVISION_FOREIGN"
    appended = await api.memory.AppendTurns(kit.append("alice", kit.turn("new", "t5")))
    assert appended.turns[0].sequence == 7


async def test_a_rollback_from_elsewhere_than_expected_changes_nothing(api, kit, alice):
    request = pb.RollbackMemoryRequest(name=ALICE, revision=alice[2], expected_revision=alice[4])
    found = await kit.failure(api.history.RollbackMemory(request))
    assert (found.code, found.reason) == ("ABORTED", "REVISION_MISMATCH")
    assert found.facts["operation"].startswith(f"{ALICE}/operations/")
    assert (await memory_of(api)).revision == alice[6]


@pytest.mark.parametrize(
    ("selector", "gone"),
    [
        (by_ids("t5", "t3", "nobody's"), [3, 5]),
        (pb.TurnSelector(range=pb.SequenceRange(first=3, last=5)), [3, 4, 5]),
        (pb.TurnSelector(range=pb.SequenceRange(first=6, last=999)), [6]),
        (pb.TurnSelector(match=pb.TurnMatch(metadata={"day": "0"})), [2, 4, 6]),
        (pb.TurnSelector(match=pb.TurnMatch(metadata={"day": "0"}, speaker="Ben", role="human")), [4, 6]),
    ],
)
async def test_the_turns_that_are_meant_are_forgotten_and_the_receipt_names_them(
    api, kit, store, alice, selector, gone
):
    operation = await forget(api, selector)
    memory = await memory_of(api)
    assert memory.turn_count == 6 - len(gone)
    assert [turn.sequence for turn in await turns_of(api)] == [at for at in range(1, 7) if at not in gone]
    state = (await api.memory.GetState(memory_pb.GetStateRequest(memory=ALICE))).state
    clean = max(at for at in (0, 2, 4) if at < gone[0])
    assert state.data == (numbers(clean) if clean else bytes(kit.CARD.state_bytes))
    receipt = (await finished(api, kit, store, operation)).forget
    assert (list(receipt.sequences), list(receipt.turn_ids)) == (gone, [f"t{at}" for at in gone])
    assert (receipt.revision, receipt.log_rewritten) == (memory.revision, True)
    assert receipt.files_rewritten or receipt.files_note
    assert list(receipt.dropped_revisions) == [at for at in (2, 4, 6) if at >= gone[0]]


async def test_a_listing_goes_on_where_turns_are_forgotten_between_its_pages(api, alice):
    page = await api.memory.ListTurns(memory_pb.ListTurnsRequest(memory=ALICE, page_size=2))
    await forget(api, by_ids("t1", "t4"))
    request = memory_pb.ListTurnsRequest(memory=ALICE, page_size=2, page_token=page.next_page_token)
    page = await api.memory.ListTurns(request)
    assert [turn.id for turn in page.turns] == ["t3", "t5"]


async def test_where_no_turn_is_meant_nothing_changes(api, alice):
    operation = await forget(api, by_ids("nobody's"))
    assert operation.done
    assert (list(operation.forget.turn_ids), (await memory_of(api)).revision) == ([], alice[6])


async def test_copies_that_hold_forgotten_turns_are_named_or_forget_too(api, kit, store, alice):
    await api.history.ForkMemory(pb.ForkMemoryRequest(name=ALICE, memory_id="bob"))
    operation = await forget(api, by_ids("t6"))
    receipt = (await finished(api, kit, store, operation)).forget
    assert [(fork.memory, fork.held_turns) for fork in receipt.forks] == [(BOB, 1)]
    assert len(await turns_of(api, BOB)) == 6
    operation = await forget(api, by_ids("t5", "t6"), include_forks=True)
    assert [turn.id for turn in await turns_of(api, BOB)] == ["t1", "t2", "t3", "t4"]
    receipt = (await finished(api, kit, store, operation)).forget
    assert [(fork.memory, fork.held_turns, fork.forgotten_turns) for fork in receipt.forks] == [(BOB, 0, 2)]


async def test_a_predicate_is_not_quoted_in_the_operation_for_ever(api, kit, alice, store):
    secret = "what nobody may read any more"
    selector = pb.TurnSelector(match=pb.TurnMatch(metadata={"said": secret}))
    operation = await finished(api, kit, store, await forget(api, selector))
    kept = await store.get_operation(MemoryName.parse(ALICE), id_of(operation))
    assert secret not in str(kept)


async def test_a_quarantined_memory_says_so_and_goes_on_when_its_turn_is_skipped(api, kit, store, alice):
    await api.memory.AppendTurns(kit.append("alice", kit.turn("poison", "t7"), kit.turn("fine", "t8")))
    name = MemoryName.parse(ALICE)
    (claim,) = await store.claim(kit.CARD.fingerprint, name.partition, owner="test", lease_s=30, limit=1)
    await store.quarantine(claim, sequence=7, reason="raises")
    memory = await memory_of(api)
    assert (memory.quarantined_sequence, memory.lag_turns) == (7, 2)
    skipped = await api.history.SkipTurn(pb.SkipTurnRequest(memory=ALICE, sequence=7))
    assert (await api.history.SkipTurn(pb.SkipTurnRequest(memory=ALICE, sequence=7))).revision == skipped.revision
    memory = await memory_of(api)
    assert (memory.quarantined_sequence, memory.revision) == (0, skipped.revision)
    turns = (await turns_of(api))[6:]
    assert [(turn.sequence, turn.skipped, turn.skips) for turn in turns] == [(7, True, 0), (8, False, 0), (9, False, 7)]
    for sequence, code, reason in ((6, "FAILED_PRECONDITION", "TURN_FOLDED"), (99, "NOT_FOUND", "TURN_NOT_FOUND")):
        found = await kit.failure(api.history.SkipTurn(pb.SkipTurnRequest(memory=ALICE, sequence=sequence)))
        assert (found.code, found.reason) == (code, reason)


async def test_a_rebuild_serves_the_old_state_until_the_new_model_has_caught_up(api, kit, store, alice):
    card = ModelCard(**{name: getattr(kit.CARD, name) for name in ModelCard.__slots__} | {"fingerprint": OTHER_MODEL})
    await store.register_model(card, default=False)
    unknown = pb.RebuildMemoryRequest(name=ALICE, fingerprint="ef" * 32)
    refused = await kit.failure(api.history.RebuildMemory(unknown))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert OTHER_MODEL in refused.message, "it says what models there are"
    request = pb.RebuildMemoryRequest(name=ALICE, fingerprint=OTHER_MODEL)
    operation = (await api.history.RebuildMemory(request)).operation
    assert not operation.done
    memory = await memory_of(api)
    assert (memory.fingerprint, memory.building_fingerprint) == (kit.CARD.fingerprint, OTHER_MODEL)
    assert (memory.lag_turns, memory.building_lag_turns) == (0, 6)
    await kit.fold(store, ALICE, state=numbers(60), fingerprint=OTHER_MODEL)
    receipt = (await finished(api, kit, store, operation)).rebuild
    assert (receipt.fingerprint, receipt.replaced_fingerprint) == (OTHER_MODEL, kit.CARD.fingerprint)
    memory = await memory_of(api)
    assert (memory.fingerprint, memory.building_fingerprint) == (OTHER_MODEL, "")
    state = (await api.memory.GetState(memory_pb.GetStateRequest(memory=ALICE))).state
    assert (state.data, state.fingerprint) == (numbers(60), OTHER_MODEL)


async def test_a_verification_waits_for_whoever_has_the_model(api, kit, store, alice):
    operation = (await api.history.VerifyMemory(pb.VerifyMemoryRequest(name=ALICE))).operation
    assert (operation.done, operation.progress.stage) == (False, "refold")
    assert await store.due_operations(10) == [(MemoryName.parse(ALICE), id_of(operation))], "due at once"
    await store.finish_verify(MemoryName.parse(ALICE), id_of(operation), ok=True, relative_error=1.5e-7)
    receipt = (await finished(api, kit, store, operation)).verify
    kept = (await api.history.ListRevisions(pb.ListRevisionsRequest(memory=ALICE))).revisions[0]
    assert (receipt.ok, receipt.log_matches, receipt.state_matches, receipt.turn_count) == (True, True, True, 6)
    assert (receipt.revision, receipt.log_digest) == (alice[6], kept.log_digest)
    assert receipt.relative_error == 1.5e-7


async def test_operations_are_listed_page_by_page_the_newest_first(api, kit, alice):
    made = []
    for at in range(5):
        request = pb.ForkMemoryRequest(name=ALICE, memory_id=f"fork-{at}")
        made.append((await api.history.ForkMemory(request)).operation)
        await asyncio.sleep(0.002)
    seen, token = [], ""
    while True:
        request = operation_pb.ListOperationsRequest(memory=ALICE, page_size=2, page_token=token)
        page = await api.operation.ListOperations(request)
        seen += page.operations
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]
    assert (await api.operation.GetOperation(operation_pb.GetOperationRequest(name=seen[0].name))).operation == seen[0]
    stale = operation_pb.ListOperationsRequest(memory=ALICE, page_token="nonsense")
    assert (await kit.failure(api.operation.ListOperations(stale))).reason == "INVALID_PAGE_TOKEN"


async def test_waiting_for_an_operation_ends_with_the_deadline_or_with_its_memory(api, kit, alice):
    operation = (await api.history.VerifyMemory(pb.VerifyMemoryRequest(name=ALICE))).operation
    request = operation_pb.WaitOperationRequest(name=operation.name)
    found = (await api.operation.WaitOperation(request, timeout=1)).operation
    assert (found.name, found.done) == (operation.name, False)
    waiting = asyncio.ensure_future(api.operation.WaitOperation(request))
    await asyncio.sleep(0.1)
    await api.memory.DeleteMemory(memory_pb.DeleteMemoryRequest(name=ALICE))
    found = await kit.failure(waiting)
    assert (found.code, found.reason) == ("NOT_FOUND", "OPERATION_NOT_FOUND")
    listing = api.operation.ListOperations(operation_pb.ListOperationsRequest(memory=ALICE))
    assert (await kit.failure(listing)).reason == "MEMORY_NOT_FOUND"


async def test_what_one_gateway_was_killed_over_another_finishes(gateway_redis, store, api, kit, alice, tmp_path):
    """The operation is accepted and durable before anything of it is done."""
    name = MemoryName.parse(ALICE)
    accepted = await store.request_operation(name, "fork", {"target": BOB, "revision": ""}, request_id="r")
    request = pb.ForkMemoryRequest(name=ALICE, memory_id="bob", request_id="r")
    operation = (await api.history.ForkMemory(request)).operation
    assert operation.name == f"{ALICE}/operations/{accepted.id}"
    assert not operation.done, "who has accepted it still holds its lease"
    assert (await finished(api, kit, store, operation)).fork.memory == BOB
