"""SearchTurns through a real gateway."""

from __future__ import annotations

import pytest

from memfold.api.errors import InvalidFieldError, MemoryNotFoundError, TenantMismatchError
from memfold.client import AsyncMemfold, Memfold, Role, Turn

SAID = ["My dog is called Rex.", "It rained all day.", "The dog likes the rain.", "I moved to Lisbon."]


@pytest.fixture
def client(gateway_process, store, kit):
    with Memfold(gateway_process.address, kit.KEY) as client:
        client.append("alice", [Turn(f"t{i}", Role.USER, text) for i, text in enumerate(SAID)], create=True)
        yield client


def test_turns_are_found_by_their_words_the_best_first(client):
    found = client.search("alice", "what is the dog called?")
    assert [one.turn.id for one in found] == ["t0", "t2"]
    assert found[0].score > found[1].score > 0
    assert found[0].turn.content == SAID[0]
    assert [one.turn.id for one in client.search("alice", "dog called", limit=1)] == ["t0"]
    assert client.search("alice", "zebra") == []


async def test_the_asynchronous_client_finds_the_same(client, gateway_process, kit):
    async with AsyncMemfold(gateway_process.address, kit.KEY) as aclient:
        assert await aclient.search("alice", "dog rain") == client.search("alice", "dog rain")


def test_what_is_appended_and_what_is_forgotten_shows_at_once(client):
    client.append("alice", [Turn("t9", Role.USER, "Another dog came.")])
    assert len(client.search("alice", "dog")) == 3
    client.forget("alice", ids=["t0"])
    assert [one.turn.id for one in client.search("alice", "dog")] == ["t9", "t2"]


def test_another_tenant_finds_nothing(client, gateway_process, kit):
    with Memfold(gateway_process.address, kit.OTHER_KEY) as other:
        with pytest.raises(MemoryNotFoundError):
            other.search("alice", "dog")
        with pytest.raises(TenantMismatchError):
            other.search("tenants/acme/memories/alice", "dog")


@pytest.mark.parametrize(("query", "limit"), [("", 1), ("dog", 101), ("dog", -1)])
def test_a_bad_request_is_refused(client, query, limit):
    with pytest.raises(InvalidFieldError):
        client.search("alice", query, limit=limit)


def test_an_unknown_memory_is_not_found(client):
    with pytest.raises(MemoryNotFoundError):
        client.search("nobody", "dog")
