"""Every Redis key of memfold.

All keys of a memory share the hash tag of its virtual partition, as do the queues of that partition, so that one script
may touch all of them on Redis Cluster too. Names of tenants and memories hold neither braces, colons nor slashes.
"""

from __future__ import annotations

from typing import NamedTuple

from memfold.api.values import PARTITIONS, MemoryName

MODELS = "memfold:models"
"""Hash: fingerprint -> model card."""

DEFAULT_MODEL = "memfold:model:default"
"""String: the fingerprint that new memories are folded with."""


class MemoryKeys(NamedTuple):
    """Keys of one memory as one model folds it, in the order in which scripts take them."""

    meta: str
    """Hash: incarnation, fingerprint, head, count, bytes, display name, labels, times."""
    log: str
    """Stream with the ids ``<sequence>-0``: the turns, dense from 1."""
    ids: str
    """Hash: a turn's id -> its sequence."""
    line: str
    """Hash: applied, fence, lease, attempts, claim: where folding stands."""
    state: str
    """Blob: the state at ``applied``."""
    anchor: str
    """Blob: the state at the start of the open block."""
    dirty: str
    """Sorted set: member -> when a writer may claim it, in ms."""
    behind: str
    """Sorted set: member -> since when its oldest unfolded turn waits, in ms."""


def memory_keys(name: MemoryName, fingerprint: str) -> MemoryKeys:
    """All keys that a memory's scripts touch."""
    here = f"memfold:{_tag(name.partition)}:{member(name)}"
    return MemoryKeys(
        meta=f"{here}:meta",
        log=f"{here}:log",
        ids=f"{here}:ids",
        line=f"{here}:line:{fingerprint}",
        state=f"{here}:state:{fingerprint}",
        anchor=f"{here}:anchor:{fingerprint}",
        dirty=dirty(name.partition, fingerprint),
        behind=behind(name.partition, fingerprint),
    )


def dirty(partition: int, fingerprint: str) -> str:
    """The queue of a partition: memories that are behind, by when they are due."""
    return f"memfold:{_tag(partition)}:dirty:{fingerprint}"


def behind(partition: int, fingerprint: str) -> str:
    """Memories of a partition that are behind, by since when."""
    return f"memfold:{_tag(partition)}:behind:{fingerprint}"


def partitions(fingerprint: str) -> str:
    """Set of the partitions in which something was behind under a model once; a shortcut, in a slot of its own."""
    return f"memfold:partitions:{fingerprint}"


def member(name: MemoryName) -> str:
    """A memory's name inside the sorted sets of its partition."""
    return f"{name.tenant}/{name.memory}"


def name_of(data: bytes) -> MemoryName:
    """Read back what ``member`` wrote."""
    tenant, memory = data.decode().split("/")
    return MemoryName(tenant, memory)


def tenant_index(tenant: str) -> str:
    """Sorted set, all scores 0, of a tenant's memories as ``index_entry`` writes them; in a slot of its own."""
    return f"memfold:tenant:{tenant}"


def index_entry(name: MemoryName, incarnation: str) -> str:
    """An entry of the tenant's index. NUL sorts before whatever may follow in a longer name."""
    return f"{name.memory}\0{incarnation}"


def moved_channel(partition: int) -> str:
    """Channel on which commits and deletions of a partition's memories are told."""
    return f"memfold:moved:{partition}"


def _tag(partition: int) -> str:
    assert 0 <= partition < PARTITIONS
    return f"{{p{partition}}}"
