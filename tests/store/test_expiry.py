"""What a memory's policy says is over is over; and nothing is left of what is deleted, in the store's files either."""

from dataclasses import replace

import pytest
from redis import Redis

from memfold.api.errors import InvalidFieldError, MemoryNotFoundError
from memfold.api.values import MemoryName, Policy, Role, Turn
from memfold.local.redis_server import RedisServer
from memfold.store import Store, persistence
from memfold.store.keys import expires, memory_keys, stage_keys

HOUR = 3600


@pytest.fixture
def age(redis):
    """Makes a memory's turns so old; what was due is due at once."""

    def age(name: MemoryName, *ages_s: float) -> None:
        log = memory_keys(name, "").log
        entries = redis.xrange(log)
        redis.delete(log)
        for at, (entry_id, fields) in enumerate(entries):
            by = ages_s[at] if at < len(ages_s) else 0
            redis.xadd(log, {**fields, b"ms": int(int(fields[b"ms"]) - 1000 * by)}, id=entry_id)
        meta = memory_keys(name, "").meta
        redis.hincrby(meta, "create_ms", -1000 * int(max(ages_s)))
        redis.zadd(expires(name.partition), {f"{name.tenant}/{name.memory}": 0}, xx=True)

    return age


async def test_a_policy_is_kept_and_can_be_changed(store, name):
    policy = Policy(ttl_s=60, retention_s=3600, keep_last=2)
    assert (await store.create_memory(name, policy=policy)).policy == policy
    assert (await store.update_memory(name, display_name="x")).policy == policy
    assert (await store.update_memory(name, policy=Policy())).policy == Policy()
    assert (await store.get_memory(name)).policy == Policy()
    for wrong in ({"ttl_s": -1}, {"retention_s": -1}, {"keep_last": 0}):
        with pytest.raises(InvalidFieldError):
            Policy(**wrong)


async def test_as_many_states_are_kept_as_the_policy_says(store, name, card, folder):
    await store.create_memory(name, policy=Policy(keep_last=2))
    for at in range(1, 30):
        await store.append(name, [folder.turn(at)])
        await folder.drain(store, card)
    few = len(await store.list_revisions(name))
    await store.update_memory(name, policy=Policy(keep_last=12))
    for at in range(30, 50):
        await store.append(name, [folder.turn(at)])
        await folder.drain(store, card)
    assert few <= 8
    assert len(await store.list_revisions(name)) >= 12


async def test_a_memory_ends_so_long_after_its_last_turn(plain_store, redis, name, folder, age):
    await plain_store.create_memory(name, policy=Policy(ttl_s=HOUR))
    await plain_store.append(name, [folder.turn(1), folder.turn(2)])
    assert await plain_store.sweep_expired(10) == []
    age(name, 2 * HOUR, HOUR / 2)
    assert await plain_store.sweep_expired(10) == []
    due = redis.zscore(expires(name.partition), "acme/bob") / 1000 - redis.time()[0]
    assert HOUR / 2 - 5 < due < HOUR / 2 + 5
    age(name, 0, HOUR / 2)
    assert await plain_store.sweep_expired(10) == [(name, "deleted")]
    with pytest.raises(MemoryNotFoundError):
        await plain_store.get_memory(name)
    assert not redis.exists(expires(name.partition))


@pytest.mark.parametrize("removal", ["forget", "rollback"])
async def test_what_is_removed_changes_nothing_about_when_a_memory_ends(plain_store, redis, name, folder, age, removal):
    await plain_store.create_memory(name, policy=Policy(ttl_s=HOUR))
    revision = (await plain_store.append(name, [folder.turn(1), folder.turn(2)])).revision
    age(name, 2 * HOUR, HOUR / 2)
    if removal == "forget":
        await plain_store.forget(name, [2], expected_incarnation=revision.incarnation)
    else:
        await plain_store.rollback(name, replace(revision, sequence=1))
    assert await plain_store.sweep_expired(10) == [], "its last turn came in half an hour ago"
    due = redis.zscore(expires(name.partition), "acme/bob") / 1000 - redis.time()[0]
    assert HOUR / 2 - 5 < due < HOUR / 2 + 5
    meta = memory_keys(name, "").meta
    redis.hincrby(meta, "append_ms", -1000 * HOUR)
    redis.zadd(expires(name.partition), {"acme/bob": 0})
    assert await plain_store.sweep_expired(10) == [(name, "deleted")]


async def test_a_note_to_pass_over_a_turn_is_no_turn(plain_store, name, folder, age):
    await plain_store.create_memory(name, policy=Policy(ttl_s=HOUR))
    await plain_store.append(name, [folder.turn(1)])
    age(name, 2 * HOUR)
    await plain_store.skip_turn(name, 1)
    assert await plain_store.sweep_expired(10) == [(name, "deleted")]


async def test_a_turn_that_comes_in_at_the_last_moment_saves_the_memory(plain_store, name, folder, age, monkeypatch):
    await plain_store.create_memory(name, policy=Policy(ttl_s=HOUR))
    await plain_store.append(name, [folder.turn(1)])
    age(name, 2 * HOUR)
    delete = plain_store.delete_memory

    async def late(*args, **more):
        await plain_store.append(name, [folder.turn(2)])
        return await delete(*args, **more)

    monkeypatch.setattr(plain_store, "delete_memory", late)
    assert await plain_store.sweep_expired(10) == []
    assert len(await plain_store.read_turns(name)) == 2


async def test_an_empty_memory_ends_so_long_after_it_was_made(plain_store, name, age):
    await plain_store.create_memory(name, policy=Policy(ttl_s=HOUR))
    assert await plain_store.sweep_expired(10) == []
    age(name, 2 * HOUR)
    assert await plain_store.sweep_expired(10) == [(name, "deleted")]


async def test_turns_are_forgotten_when_they_are_too_old(plain_store, redis, name, card, folder, age, carrier):
    await plain_store.create_memory(name, policy=Policy(retention_s=HOUR))
    await plain_store.append(name, [folder.turn(at) for at in range(1, 7)])
    await folder.drain(plain_store, card)
    assert await plain_store.sweep_expired(10) == []
    age(name, 3 * HOUR, 2 * HOUR, 2 * HOUR, HOUR / 2)
    assert await plain_store.sweep_expired(10) == [(name, "forgetting")]
    redis.zadd(expires(name.partition), {"acme/bob": 0})
    assert await plain_store.sweep_expired(10) == [(name, "forgetting")]
    [operation] = await plain_store.list_operations(name)  # asked for twice, entered once
    assert await plain_store.due_operations(10) == [(name, operation.id)]  # by anybody, at once
    await carrier.finish(plain_store, name, operation.id)
    turns = await plain_store.read_turns(name)
    assert [turn.id for turn in turns] == ["id-4", "id-5", "id-6"]
    assert (await plain_store.read_state(name))[1].data == folder.fold(turns)
    redis.zadd(expires(name.partition), {"acme/bob": 0})
    assert await plain_store.sweep_expired(10) == []


async def test_a_policy_that_is_lifted_ends_nothing(plain_store, redis, name, folder, age):
    await plain_store.create_memory(name, policy=Policy(ttl_s=HOUR))
    await plain_store.append(name, [folder.turn(1)])
    await plain_store.update_memory(name, policy=Policy())
    assert not redis.exists(expires(name.partition))
    await plain_store.update_memory(name, policy=Policy(ttl_s=4 * HOUR))
    age(name, 2 * HOUR)
    assert await plain_store.sweep_expired(10) == []
    assert await plain_store.get_memory(name)


async def test_a_copy_expires_by_its_own_age(plain_store, name, folder, age, carrier):
    await plain_store.create_memory(name, policy=Policy(ttl_s=HOUR))
    await plain_store.append(name, [folder.turn(1)])
    age(name, 2 * HOUR)
    await carrier.ask(plain_store, name, "fork", target="tenants/acme/memories/copy", revision="")
    assert await plain_store.sweep_expired(10) == [(name, "deleted")]
    assert (await plain_store.get_memory(MemoryName("acme", "copy"))).policy == Policy(ttl_s=HOUR)


async def test_a_deleted_memory_is_gone_from_every_key_and_file(
    plain_store, redis, redis_server, name, card, folder, carrier, until
):
    log = redis_server.data_dir / "appendonly.aof"
    await plain_store.create_memory(name, policy=Policy(ttl_s=HOUR), labels={"canary": "canary"})
    await plain_store.append(name, [Turn("canary-id", Role.USER, "canary")])
    await folder.drain(plain_store, card)
    copy = MemoryName("acme", "copy")
    await carrier.ask(plain_store, name, "fork", target=str(copy), revision="")
    await carrier.ask(plain_store, name, "verify")
    await plain_store.request_operation(name, "forget", {"selector": {"ids": ["canary-id"]}, "include_forks": False})
    for memory in (copy, name):
        await plain_store.delete_memory(memory)
    left = [key for key in redis.scan_iter() if b"acme" in key]
    assert left == [stage_keys(copy).stage.encode()]  # for a day: that this copy is not to be made again
    assert 0 < redis.ttl(left[0]) <= 24 * 3600
    assert b"canary" not in b"".join(redis.dump(key) for key in redis.scan_iter())

    async def rewritten() -> bool:
        return b"canary" not in log.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persistence, "_REST_MS", 0)

        async def swept() -> bool:
            await plain_store.sweep_expired(10)
            return await rewritten()

        await until(swept)


@pytest.mark.parametrize(
    ("settings", "files", "note"),
    [
        ({}, {"aof"}, ""),
        ({"save": "900 1"}, {"aof", "rdb"}, ""),
        ({"save": "900 1", "appendonly": "no"}, {"rdb"}, ""),
        ({"appendonly": "no"}, set(), "the store writes no files"),
        ({"rename-command": 'BGREWRITEAOF ""'}, {"aof"}, "aof: refused"),
    ],
)
async def test_the_receipt_says_which_files_were_written_anew(
    tmp_path, card, folder, name, carrier, settings, files, note
):
    server = RedisServer.start(tmp_path, settings=settings)
    store = await Store.open(server.url)
    await store.register_model(card)
    await store.append(name, [Turn("1", Role.USER, "canary"), Turn("2", Role.USER, "else")], create=True)
    with Redis.from_url(server.url) as client:
        if "rdb" in files:
            client.save()
    assert set((await store.want_rewrite("key"))["files"]) == files
    operation = await carrier.ask(store, name, "forget", selector={"ids": ["1"]}, include_forks=False)
    assert operation.result["files_note"].startswith(note)
    assert operation.result["files_rewritten"] == (not note)
    if not note:
        assert not [path for path in tmp_path.iterdir() if b"canary" in path.read_bytes()]
    await store.delete_memory(name)
    await store.close()
    server.stop()


async def test_many_share_one_rewrite(plain_store, redis, until):
    tickets = [await plain_store.want_rewrite("key") for _ in range(20)]
    before = redis.info("stats")["total_forks"]

    async def all_rewritten() -> bool:
        return all([await plain_store.rewritten("key", ticket) for ticket in tickets])

    await until(all_rewritten)
    assert redis.info("stats")["total_forks"] - before == 1


async def test_a_rewrite_that_a_restart_cut_off_is_begun_again(tmp_path, until):
    server = RedisServer.start(tmp_path)
    store = await Store.open(server.url)
    ticket = await store.want_rewrite("key")
    assert not await store.rewritten("key", ticket)
    first = ticket["run_id"]
    await store.close()
    server.kill()
    server.restart()
    store = await Store.open(server.url)
    await until(lambda: store.rewritten("key", ticket))
    assert ticket["run_id"] != first
    assert ticket["notes"] == []
    await store.close()
    server.stop()
