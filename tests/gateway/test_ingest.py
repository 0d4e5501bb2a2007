"""Real feeds: thousands of memories on one stream, through gateways that are killed in the middle of it."""

import asyncio
import contextlib
import socket
import threading

from memfold.client import AsyncMemfold, Memfold, Role, Turn

MEMORIES, TURNS = 500, 3
KILL_AT = (400, 1200)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def feed(kind):
    """Turns of all memories of a kind, round and round."""
    for at in range(TURNS):
        for number in range(MEMORIES):
            yield f"{kind}{number}", Turn(f"{kind}{number}-{at}", Role.USER, f"turn {at}")


class Killed:
    """Gateways at one address; each but the last is killed, without warning, after so many acknowledgements."""

    def __init__(self, kit, redis, folder):
        self._kit, self._redis, self._folder = kit, redis, folder
        self.address = f"127.0.0.1:{free_port()}"
        self.acknowledged = 0
        self.done = threading.Event()
        self.up = threading.Event()
        self.lives = 0

    def run(self):
        for kill_at in (*KILL_AT, float("inf")):
            folder = self._folder / f"life-{self.lives}"
            environ = {"MEMFOLD_LISTEN": self.address, "MEMFOLD_BACKLOG_TURNS": "0"}
            with self._kit.run_gateway(folder, self._redis.url, **environ) as gateway:
                self.lives += 1
                self.up.set()
                while self.acknowledged < kill_at and not self.done.is_set():
                    self.done.wait(0.005)
                gateway.process.kill()
                gateway.process.wait()


@contextlib.contextmanager
def killed(kit, redis, folder):
    gateways = Killed(kit, redis, folder)
    thread = threading.Thread(target=gateways.run)
    thread.start()
    try:
        assert gateways.up.wait(60)
        yield gateways
        assert gateways.lives == len(KILL_AT) + 1, "the feed was over before the gateways were killed"
    finally:
        gateways.done.set()
        thread.join(60)


async def test_streams_outlive_gateways_that_are_killed(gateway_redis, store, kit, tmp_path):
    blocking, acks = [], []

    def ingest():
        with Memfold(gateways.address, kit.KEY) as client:
            for ack in client.stream(feed("b"), create=True):
                blocking.append(ack)
                gateways.acknowledged += 1

    with killed(kit, gateway_redis, tmp_path) as gateways:
        second = asyncio.create_task(asyncio.to_thread(ingest))
        async with AsyncMemfold(gateways.address, kit.KEY) as client:
            async for ack in client.stream(feed("a"), create=True):
                acks.append(ack)
                gateways.acknowledged += 1
        await second
    for kind, found in (("a", acks), ("b", blocking)):
        assert [(ack.memory.rpartition("/")[2], ack.id) for ack in found] == [
            (memory, turn.id) for memory, turn in feed(kind)
        ], "each turn is acknowledged once, in the feed's order"
        assert all(ack.error is None for ack in found)
    memories = await store.list_memories("acme", limit=2 * MEMORIES + 1)
    assert len(memories) == 2 * MEMORIES
    for memory in memories:
        ids = [turn.id for turn in await store.read_turns(memory.name)]
        assert ids == [f"{memory.name.memory}-{at}" for at in range(TURNS)], "nothing is lost, doubled or out of order"
