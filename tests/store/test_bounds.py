"""No script reads more of a log than it has a use for."""

from dataclasses import replace

import pytest

from memfold.api.errors import BacklogFullError

FEW = 32


@pytest.fixture
def watch(redis):
    """How many entries of streams were asked for, at most, by what runs inside."""

    async def watch(running) -> int:
        with redis.monitor() as monitor:
            try:
                await running
            finally:
                redis.echo("done")
            asked = 0
            while (command := monitor.next_command()["command"].split())[0] != "ECHO":
                if command[0].endswith("RANGE") and "COUNT" in command:
                    asked += int(command[-1])
        return asked

    return watch


async def test_reading_stops_soon_behind_the_bytes_that_were_wanted(plain_store, name, folder, watch):
    await plain_store.append(name, [folder.turn(at) for at in range(500)], create=True)
    assert await watch(plain_store.read_turns(name, max_bytes=1)) <= FEW
    assert await watch(plain_store.read_turns(name, limit=500)) >= 500
    size = len(folder.turn(100).to_bytes())
    turns = await plain_store.read_turns(name, after=100, max_bytes=40 * size)
    assert [turn.sequence for turn in turns] == list(range(101, 141))
    assert [turn.sequence for turn in await plain_store.read_tail(name, until=490, limit=70)] == list(range(421, 491))
    assert len(await plain_store.read_turns(name)) == 500


async def test_a_full_backlog_is_told_without_reading_it(plain_store, name, card, folder, watch):
    revision = (await plain_store.append(name, [folder.turn(at) for at in range(300)], create=True)).revision
    await folder.catch_up(plain_store, name, card.fingerprint, entries=100)
    await plain_store.rollback(name, replace(revision, sequence=100))
    while not await plain_store.scrub(name):
        pass
    await folder.catch_up(plain_store, name, card.fingerprint)
    # 200 numbers that nobody bears, then 10 turns: so few are told apart.
    await plain_store.append(name, [folder.turn(at) for at in range(400, 410)])
    with pytest.raises(BacklogFullError) as caught:
        await plain_store.append(name, [folder.turn(410)], backlog=10)
    assert caught.value.facts == {"lag_turns": "10"}
    assert (await plain_store.append(name, [folder.turn(410)], backlog=11)).revision.sequence == 311
    # More than can be told apart at a glance: the log has no more than 150 entries.
    await plain_store.append(name, [folder.turn(at) for at in range(411, 450)])

    async def refused() -> None:
        with pytest.raises(BacklogFullError) as caught:
            await plain_store.append(name, [folder.turn(450)], backlog=150)
        assert caught.value.facts == {"lag_turns": "150"}

    assert await watch(refused()) <= FEW
    await folder.catch_up(plain_store, name, card.fingerprint)
    assert (await plain_store.append(name, [folder.turn(450)], backlog=1)).revision.sequence == 351
