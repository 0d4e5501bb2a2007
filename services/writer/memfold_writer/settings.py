"""What the writer is told from outside: environment variables with the prefix ``MEMFOLD_``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from memfold.store import Durability


class Settings(BaseSettings):
    """Read once, at start. Every field is the environment variable of its name, e.g. ``MEMFOLD_REDIS_URL``."""

    model_config = SettingsConfigDict(env_prefix="MEMFOLD_", env_ignore_empty=True, frozen=True)

    redis_url: str = "redis://127.0.0.1:6379/0"
    broker_url: str = ""
    durability: Durability = Durability.FSYNC
    durability_replicas: PositiveInt = 1
    listen: str = "0.0.0.0:50053"
    grace_s: PositiveFloat = 20
    backbone: str = ""
    adapter: str = ""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: NonNegativeInt = 0
    batch_tokens: PositiveInt = 16384
    kv_cache_mb: NonNegativeInt = 512
    lease_s: PositiveFloat = 10
    reconcile_s: PositiveFloat = 0.5
    metrics_port: NonNegativeInt = 0
    ready_file: Path | None = None

    @property
    def kv_cache_bytes(self) -> int:
        """What open blocks may take of the device's memory; 0: none is kept."""
        return self.kv_cache_mb << 20

    @property
    def broker(self) -> str:
        """Where hints come from: Redis itself unless told otherwise."""
        return self.broker_url or self.redis_url
