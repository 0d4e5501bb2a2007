"""What the platform's processes hold, looked at again and again while the load runs."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from platform_load.ledger import Series

MIB = 1 << 20
_SCRAPE_S = 5.0


@dataclass(frozen=True, slots=True)
class Watched:
    """A process: what people call it, its id, and the port of its metrics; 0 where it has none."""

    name: str
    pid: int
    metrics_port: int = 0


class Sampler:
    """Looks at every process, and at Redis, at fixed intervals.

    Attributes:
        found: series by process and measure: ``rss`` (MiB), ``descriptors``, ``connections`` (TCP, established),
            ``threads``, every gauge of ours that the process shows to Prometheus, and of Redis ``data`` (MiB),
            ``keys`` and ``clients``.
        cpu: of each process, seconds.
    """

    def __init__(self, watched: list[Watched], redis_url: str) -> None:
        self.found: dict[tuple[str, str], Series] = {}
        self.cpu: dict[str, float] = {}
        self._watched = [(one, psutil.Process(one.pid)) for one in watched]
        self._redis = Redis.from_url(redis_url)

    async def run(self, seconds: float, every_s: float, check: Callable[[], None]) -> None:
        """Look for so long; ``check`` may raise each time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        before = self._seconds()
        while loop.time() - began < seconds:
            check()
            values = await asyncio.to_thread(self.look)
            for key, value in values.items():
                self.found.setdefault(key, Series()).add(loop.time() - began, value)
            await asyncio.sleep(max(0.0, every_s - (loop.time() - began) % every_s))
        self.cpu = {name: round(after - before[name], 1) for name, after in self._seconds().items()}

    def close(self) -> None:
        """Disconnect."""
        self._redis.close()

    def look(self) -> dict[tuple[str, str], float]:
        """One look at everything."""
        found: dict[tuple[str, str], float] = {}
        for one, process in self._watched:
            for measure, value in _of_process(process).items():
                found[one.name, measure] = value
            if one.metrics_port:
                for measure, value in gauges(one.metrics_port).items():
                    found[one.name, measure] = value
        for measure, value in self._of_redis().items():
            found["redis", measure] = value
        return found

    def _seconds(self) -> dict[str, float]:
        times = {one.name: process.cpu_times() for one, process in self._watched}
        return {name: spent.user + spent.system for name, spent in times.items()}

    def _of_redis(self) -> dict[str, float]:
        return {
            "data": int(self._redis.info("memory")["used_memory"]) / MIB,
            "keys": self._redis.dbsize(),
            "clients": int(self._redis.info("clients")["connected_clients"]),
        }


def _of_process(process: psutil.Process) -> Mapping[str, float]:
    with process.oneshot():
        connections = process.net_connections("tcp")
        return {
            "rss": process.memory_info().rss / MIB,
            "descriptors": process.num_fds(),
            "connections": sum(one.status == psutil.CONN_ESTABLISHED for one in connections),
            "threads": process.num_threads(),
        }


def gauges(port: int) -> dict[str, float]:
    """The gauges of ours at this port, summed over their labels; nothing while it does not answer."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_SCRAPE_S) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            if family.type == "gauge" and family.name.startswith("memfold_"):
                name = family.name.removeprefix("memfold_")
                found[name] = sum(sample.value for sample in family.samples)
    return found
