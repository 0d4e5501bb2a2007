"""What the environment says; the only place that reads it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The reader's settings, each from ``MEMFOLD_`` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="MEMFOLD_", env_ignore_empty=True, frozen=True)

    redis_url: str = "redis://127.0.0.1:6379/0"
    listen: str = "0.0.0.0:50052"
    reflection: bool = False
    grace_s: Annotated[float, Field(ge=0)] = 20
    ready_file: str = ""

    backbone: str = ""
    adapter: str = ""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0

    max_active: Annotated[int, Field(gt=0)] = 32
    """Requests that take turns on the device, each with a KV cache; more wait."""

    inline_tokens: Annotated[int, Field(ge=0)] = 16384
    """The most that are folded for one answer alone, the open block included; what is longer waits for a writer."""

    prefix_cache_mb: Annotated[int, Field(ge=0)] = 256
    """Of the device's memory, for keys and values of prompts that others may begin with; 0: none are kept."""

    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
