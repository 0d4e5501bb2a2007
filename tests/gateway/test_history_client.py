"""Going back, copying and forgetting with both clients and with the command, against a real gateway."""

import asyncio
import contextlib
import json
import struct
import threading
import time

import pytest
from typer.testing import CliRunner

from memfold.api.errors import (
    DeadlineError,
    InvalidFieldError,
    MemoryExistsError,
    OperationConflictError,
    OperationNotFoundError,
    RevisionForeignError,
    RevisionNotKeptError,
    TurnFoldedError,
)
from memfold.api.values import MemoryName
from memfold.cli import app
from memfold.client import (
    AsyncMemfold,
    ForgetReceipt,
    ForkHolding,
    ForkReceipt,
    Memfold,
    OperationKind,
    Policy,
    Revision,
    Role,
    RollbackReceipt,
    Turn,
    VerifyReceipt,
)
from memfold.store import Store

NAME = MemoryName("acme", "alice")


def numbers(value):
    return struct.pack("<32f", *[value] * 32)


class Writer:
    """Does what writers do, without a model: folds what is behind, goes on with operations, verifies."""

    def __init__(self, url, kit):
        self._url, self._kit = url, kit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(20)

    async def _work(self):
        store = await Store.open(self._url)
        while not self._stop.is_set():
            for memory in await store.list_memories("acme"):
                if memory.applied < memory.head:
                    # Somebody may have forgotten something meanwhile: it is claimed again next time.
                    with contextlib.suppress(AssertionError, ValueError):
                        await self._kit.fold(store, str(memory.name), state=numbers(memory.head))
                for operation in await store.list_operations(memory.name):
                    if not operation.done:
                        await self._go_on(store, operation)
            await asyncio.sleep(0.02)
        await store.close()

    async def _go_on(self, store, operation):
        with contextlib.suppress(OperationNotFoundError):
            now = await store.advance(operation.memory, operation.id, until=0)
            if now.progress["stage"] == "refold":
                await store.finish_verify(now.memory, now.id, ok=True, relative_error=1e-7)


@pytest.fixture
async def client(gateway_process, gateway_redis, store, kit):
    """A blocking client on the shared gateway, with a writer behind it, and a memory of six turns kept at 2, 4 and 6."""
    with Memfold(gateway_process.address, kit.KEY) as client:
        for at in (2, 4, 6):
            turns = [Turn(f"t{n}", Role.USER, f"content {n}", metadata={"day": f"{n % 2}"}) for n in (at - 1, at)]
            client.append("alice", turns, create=True)
            await kit.fold(store, str(NAME), state=numbers(at))
        with Writer(gateway_redis.url, kit):
            yield client


def revision_of(client, number):
    return Revision(client.get_memory("alice").incarnation, number)


def test_earlier_states_are_listed_and_read(client):
    kept = client.revisions("alice")
    assert [one.revision.sequence for one in kept] == [6, 4, 2]
    assert client.state("alice", revision=kept[1].revision).data == numbers(4)
    with pytest.raises(RevisionNotKeptError) as caught:
        client.state("alice", revision=revision_of(client, 3))
    assert caught.value.facts["before"] == str(kept[2].revision)


def test_a_fork_comes_with_its_receipt(client):
    at = revision_of(client, 4)
    operation = client.wait_operation(client.fork("alice", "bob", at=at, request_id="r1"))
    assert operation.kind is OperationKind.FORK
    bob = client.get_memory("bob")
    assert operation.receipt == ForkReceipt(str(bob.name), bob.revision, at, 4)
    assert bob.forked_from == str(NAME)
    assert client.fork("alice", "bob", at=at, request_id="r1") == operation
    with pytest.raises(OperationConflictError):
        client.fork("alice", "carol", request_id="r1")
    with pytest.raises(MemoryExistsError):
        client.fork("alice", "bob")
    with pytest.raises(InvalidFieldError, match="tenant"):
        client.fork("alice", "tenants/other/memories/bob")
    assert [one.name for one in client.operations("alice")][-1] == operation.name
    assert client.get_operation(operation.name) == operation


def test_a_rollback_comes_with_its_receipt(client):
    old = revision_of(client, 4)
    operation = client.wait_operation(client.rollback("alice", old))
    assert isinstance(operation.receipt, RollbackReceipt)
    assert operation.receipt.revision == client.get_memory("alice").revision
    assert operation.receipt.removed_turns == 2
    with pytest.raises(RevisionForeignError):
        client.rollback("alice", old)


@pytest.mark.parametrize(
    ("selected", "gone"),
    [
        ({"ids": ["t2", "t5"]}, (2, 5)),
        ({"sequences": (2, 3)}, (2, 3)),
        ({"metadata": {"day": "1"}, "role": Role.USER}, (1, 3, 5)),
    ],
)
def test_forgetting_comes_with_its_receipt(client, selected, gone):
    client.wait_operation(client.fork("alice", "bob"))
    operation = client.wait_operation(client.forget("alice", **selected))
    receipt = operation.receipt
    assert isinstance(receipt, ForgetReceipt)
    assert (receipt.sequences, receipt.turn_ids) == (gone, tuple(f"t{at}" for at in gone))
    assert receipt.forks == (ForkHolding("tenants/acme/memories/bob", len(gone), 0),)
    assert [turn.sequence for turn in client.turns("alice")] == [at for at in range(1, 7) if at not in gone]
    operation = client.wait_operation(client.forget("alice", ids=["t6"], include_forks=True))
    assert isinstance(operation.receipt, ForgetReceipt)
    assert operation.receipt.forks == (ForkHolding("tenants/acme/memories/bob", 0, 1),)


@pytest.mark.parametrize("selected", [{}, {"ids": ["a"], "sequences": (1, 2)}, {"ids": ["a"], "speaker": "x"}])
def test_turns_are_selected_in_exactly_one_way(client, selected):
    with pytest.raises(InvalidFieldError, match="selector"):
        client.forget("alice", **selected)


def test_where_no_turn_is_meant_the_receipt_is_empty(client):
    receipt = client.forget("alice", ids=["nobody's"]).receipt
    assert isinstance(receipt, ForgetReceipt)
    assert (receipt.turn_ids, receipt.restored_revision) == ((), None)


def test_a_verification_comes_with_its_receipt(client):
    receipt = client.wait_operation(client.verify("alice")).receipt
    assert isinstance(receipt, VerifyReceipt)
    assert (receipt.ok, receipt.turn_count, receipt.relative_error) == (True, 6, 1e-7)


def test_a_folded_turn_cannot_be_skipped(client):
    with pytest.raises(TurnFoldedError):
        client.skip_turn("alice", 3)


def test_a_policy_is_given_and_changed(client):
    policy = Policy(ttl_s=3600, retention_s=60, keep_last=9)
    assert client.create_memory("bob", policy=policy).policy == policy
    assert client.update_memory("bob", policy=Policy(ttl_s=7200)).policy == Policy(ttl_s=7200)
    assert client.update_memory("bob", display_name="Bob").policy == Policy(ttl_s=7200)


async def test_the_asynchronous_client_does_the_same(gateway_process, client, kit):
    async with AsyncMemfold(gateway_process.address, kit.KEY) as aclient:
        assert [one.revision.sequence for one in await aclient.revisions("alice")] == [6, 4, 2]
        fork = await aclient.wait_operation(await aclient.fork("alice", "bob"))
        assert isinstance(fork.receipt, ForkReceipt)
        back = await aclient.wait_operation(
            await aclient.rollback("bob", Revision(fork.receipt.revision.incarnation, 4))
        )
        assert isinstance(back.receipt, RollbackReceipt)
        forgotten = await aclient.wait_operation(await aclient.forget("alice", sequences=(5, 6)))
        assert isinstance(forgotten.receipt, ForgetReceipt)
        verified = await aclient.wait_operation(await aclient.verify("alice"))
        assert isinstance(verified.receipt, VerifyReceipt)
        kinds = [one.kind async for one in aclient.operations("alice")]
        assert kinds == [OperationKind.VERIFY, OperationKind.FORGET, OperationKind.FORK]
        assert await aclient.get_operation(fork) == fork
        rebuilt = await aclient.rebuild("alice")
        assert rebuilt.done, "the model that serves is the one that was asked for"
        with pytest.raises(TurnFoldedError):
            await aclient.skip_turn("alice", 1)


async def test_an_operation_that_is_not_done_in_time_is_not_waited_for(gateway_process, store, kit):
    with Memfold(gateway_process.address, kit.KEY) as client:
        client.append("alice", [Turn("t1", Role.USER, "x")], create=True)
        operation = client.verify("alice")
        with pytest.raises(DeadlineError, match="refold"):
            client.wait_operation(operation, timeout_s=0.5)


@pytest.fixture
def run(gateway_process, client, kit):
    """Runs a command; gives its exit code, and what it printed as JSON or as text."""

    def run(*args, code=0):
        done = CliRunner().invoke(app, ["--target", gateway_process.address, "--api-key", kit.KEY, *args])
        assert done.exit_code == code, (done.stdout, done.stderr)
        return json.loads(done.stdout) if "--json" in args else done.stdout + done.stderr

    return run


def test_commands_go_back_copy_and_forget(run):
    assert [one["revision"].rpartition(".")[2] for one in run("revisions", "alice", "--json")] == ["6", "4", "2"]
    assert "committed" in run("revisions", "alice")
    assert run("fork", "alice", "bob", "--at", "4", "--json")["receipt"]["turn_count"] == 4
    assert "holds 6 turns" in run("fork", "alice", "carol")
    assert "2 turns are gone" in run("rollback", "carol", "4", "--yes")
    receipt = run("forget", "alice", "--match", "day=1", "--include-forks", "--yes", "--json")["receipt"]
    assert receipt["sequences"] == [1, 3, 5]
    assert {fork["memory"].rpartition("/")[2]: fork["forgotten_turns"] for fork in receipt["forks"]} == {
        "bob": 2,
        "carol": 2,
    }
    assert "forgot 2 turns: 2, 4" in run("forget", "alice", "--range", "2-4", "--yes")
    assert "nothing has changed" in run("forget", "alice", "--ids", "t2", "--ids", "t4", "--yes")
    assert [one["kind"] for one in run("operations", "alice", "--json")][-2:] == ["fork", "fork"]
    assert "done" in run("operations", "alice")


def test_commands_verify_skip_and_rebuild(run):
    assert run("verify", "alice", "--json")["receipt"]["ok"]
    assert "sound at" in run("verify", "alice")
    assert "already" in run("rebuild", "alice")
    assert "has been folded" in run("skip", "alice", "3", code=1)


def test_what_cannot_be_ends_in_one_line_and_code_1(run):
    for command in (
        ["fork", "alice", "bob", "--at", "7"],
        ["fork", "alice", "alice"],
        ["rollback", "alice", "0123456789ab.2", "--yes"],
        ["revisions", "nobody"],
        ["operations", "nobody"],
        ["rebuild", "alice", "--fingerprint", "ef" * 32],
        ["create", "alice"],
        ["update", "nobody", "--ttl", "30d"],
    ):
        said = run(*command, code=1)
        assert said.startswith("memfold: ")
        assert len(said.splitlines()) == 1


def test_an_unknown_model_is_answered_at_once_with_those_there_are(run, kit):
    started = time.monotonic()
    assert f"there are {kit.CARD.fingerprint}" in run("rebuild", "alice", "--fingerprint", "ef" * 32, code=1)
    assert time.monotonic() < started + 3, "it was not asked again and again"


def test_what_a_memory_is_called_and_how_long_it_is_kept_can_be_said_and_changed(run):
    assert run("create", "dora", "--ttl", "30d", "--label", "team=a", "--json")["labels"] == {"team": "a"}
    said = run(
        "update", "dora", "--display-name", "Dora", "--label", "tier=gold", "--retention", "90d", "--keep-last", "8"
    )
    for words in ("Dora", "team=a", "tier=gold", "30 days after its last turn", "after 90 days", "newest 8 states"):
        assert words in said, "what was not named has stayed"
    changed = run("update", "dora", "--ttl", "never", "--remove-label", "team", "--display-name", "", "--json")
    assert changed["policy"] == {"ttl_s": 0, "retention_s": 90 * 86_400, "keep_last": 8}
    assert (changed["labels"], changed["display_name"]) == ({"tier": "gold"}, "")
    assert run("update", "dora", "--ttl", "never", "--json")["policy"] == changed["policy"], (
        "the same again is no error"
    )
    assert run("delete", "dora", "--yes", "--json")["name"].endswith("/dora")


def test_show_tells_of_policy_and_origin(run, client):
    client.wait_operation(client.fork("alice", "bob"))
    client.update_memory("bob", policy=Policy(ttl_s=3600))
    said = run("show", "bob")
    for words in ("forked from", str(NAME), "1 hour after its last turn", "the newest 4 states"):
        assert words in said
    assert run("show", "bob", "--json")["policy"] == {"ttl_s": 3600, "retention_s": 0, "keep_last": 4}
    assert run("turns", "bob", "--json")[0]["id"] == "t1"
