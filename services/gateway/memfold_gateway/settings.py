"""What the gateway is told by its environment: ``MEMFOLD_`` and a field's name."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from memfold.store import Durability
from memfold_gateway.reader_name import ReaderName


class Settings(BaseSettings):
    """The gateway's settings.

    Attributes:
        redis_url: where logs and states are.
        broker_url: where hints for the writer go; the same Redis where it is empty.
        durability: what an acknowledgement promises: ``fsync``, ``replica`` or ``none``.
        durability_replicas: replicas that must have a turn, for ``replica``.
        listen: ``host:port``; port 0 takes a free one.
        reader_target: where readers are: ``host:port``, ``dns:///host:port``, or several with commas between. A host may stand
            for many readers; it is asked again and again.
        api_keys_file: JSON, the SHA-256 of each key (hex) → its tenant. Read again when it changes.
        reflection: describes the services to tools such as grpcurl; for development.
        grace_s: how long running calls may go on when the gateway stops.
        backlog_turns: turns of one memory that may wait to be folded; 0 for any number.
        backlog_memories_tenant: memories of one tenant that may wait to be folded; 0 for any number.
        backlog_memories_system: memories of all tenants that may wait to be folded; 0 for any number.
        metrics_port: for Prometheus; 0 for none.
        ready_file: written once the gateway serves; none where it is empty.
    """

    model_config = SettingsConfigDict(env_prefix="MEMFOLD_", env_ignore_empty=True, frozen=True)

    api_keys_file: Path
    redis_url: str = "redis://127.0.0.1:6379/0"
    broker_url: str = ""
    durability: Durability = Durability.FSYNC
    durability_replicas: int = Field(1, ge=1)
    listen: str = "0.0.0.0:50051"
    reader_target: str = "dns:///127.0.0.1:50052"
    reflection: bool = False
    grace_s: float = Field(20, ge=0)
    backlog_turns: int = Field(10_000, ge=0)
    backlog_memories_tenant: int = Field(0, ge=0)
    backlog_memories_system: int = Field(0, ge=0)
    metrics_port: int = Field(0, ge=0, le=65535)
    ready_file: str = ""

    @field_validator("reader_target")
    @classmethod
    def _names_readers(cls, target: str) -> str:
        ReaderName.parse_list(target)
        return target
