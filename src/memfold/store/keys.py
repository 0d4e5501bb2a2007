"""Every Redis key of memfold.

All keys of a memory share the hash tag of its virtual partition, as do the queues of that partition, so that one script
may touch all of them on Redis Cluster too. Names of tenants and memories hold neither braces, colons nor slashes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from memfold.api.values import PARTITIONS, MemoryName

MODELS = "memfold:models"
"""Hash: fingerprint -> model card."""

DEFAULT_MODEL = "memfold:model:default"
"""String: the fingerprint that new memories are folded with."""


class MemoryKeys(NamedTuple):
    """Keys of one memory as one model folds it, in the order in which scripts take them.

    Where a second model folds it as well, the keys of its line (``line`` to ``revisions``) follow behind all of these.
    """

    meta: str
    """Hash: incarnation, fingerprint, building, head, last, entries, skips, count, bytes, policy, names, times."""
    log: str
    """Stream with the ids ``<sequence>-0``, ascending: the turns, and entries that say which of them to pass over."""
    ids: str
    """Hash: a turn's id -> its sequence."""
    line: str
    """Hash: applied, digests, anchor, fence, lease, attempts, claim, quarantined: where folding stands."""
    dirty: str
    """Sorted set: member -> when a writer may claim it, in ms."""
    behind: str
    """Sorted set: member -> since when its oldest unfolded turn waits, in ms."""
    state: str
    """Blob: the state at ``applied``."""
    history: str
    """Hash: ``<sequence>`` -> the state of an earlier revision, ``@<sequence>.<offset>`` -> an anchor; blobs."""
    revisions: str
    """Hash: ``<sequence>`` -> what is known of a kept revision, the newest included; JSON."""
    fresh_log: str
    """The stream as far as it has been written anew, aside: nodes that hold nothing of what was or is to be removed."""
    fresh_ids: str
    """The ids of the turns in it, where others are to be removed with it."""
    rewrite: str
    """Hash: who writes the log anew, how far that is, and what was left out."""
    receipts: str
    """Hash: the incarnation that a removal of turns began -> when, and what it removed. Expires by itself."""
    ops: str
    """Hash: the memory's operations -> who holds them until when, and where they stand."""
    records: str
    """Hash: the memory's operations -> what was asked for, what the steps noted, what came of it."""
    forks: str
    """Hash: the copies of the memory."""
    operations: str
    """Sorted set: when somebody should go on with an operation."""
    expires: str
    """Sorted set: when something of a memory may have expired."""


HOT_KEYS = 6
"""So many of the first keys are all that appending takes."""

_LINE = slice(MemoryKeys._fields.index("line"), MemoryKeys._fields.index("revisions") + 1)


def memory_keys(name: MemoryName, fingerprint: str) -> MemoryKeys:
    """All keys that the scripts of a memory touch."""
    here = _of_memory(name)
    # So many digits tell any two models apart; the blobs name theirs in full.
    short = fingerprint[:16]
    return MemoryKeys(
        meta=f"{here}:meta",
        log=f"{here}:log",
        ids=f"{here}:ids",
        line=f"{here}:line:{short}",
        dirty=dirty(name.partition, fingerprint),
        behind=behind(name.partition, fingerprint),
        state=f"{here}:state:{short}",
        history=f"{here}:history:{short}",
        revisions=f"{here}:revisions:{short}",
        fresh_log=f"{here}:log-new",
        fresh_ids=f"{here}:ids-new",
        rewrite=f"{here}:rewrite",
        receipts=f"{here}:receipts",
        ops=f"{here}:ops",
        records=f"{here}:records",
        forks=forks(name),
        operations=operations_due(name.partition),
        expires=expires(name.partition),
    )


def both_lines(name: MemoryName, fingerprint: str, building: str) -> tuple[str, ...]:
    """The keys for scripts that deal with each line of a memory: those of ``building`` come last, if there is one."""
    first = memory_keys(name, fingerprint)
    return (*first, *memory_keys(name, building)[_LINE]) if building else first


@lru_cache(8192)
def hot_keys(name: MemoryName, fingerprint: str, building: str) -> tuple[str, ...]:
    """The keys for appending: fewer, and remembered, for the sake of its speed."""
    first = memory_keys(name, fingerprint)[:HOT_KEYS]
    return (*first, *memory_keys(name, building)[3:HOT_KEYS]) if building else first


class OperationKeys(NamedTuple):
    """What the scripts of operations touch, in their order."""

    meta: str
    """Of the memory that the operations work on."""
    ops: str
    """Hash: an operation's id -> its lease and where it stands: little, since it is written at every look."""
    records: str
    """Hash: an operation's id -> all else, in JSON: written only when something of it has changed."""
    due: str
    """Sorted set of the partition: ``operation_entry`` -> when somebody should go on with it, in ms."""


def operation_keys(name: MemoryName) -> OperationKeys:
    """The keys of a memory's operations."""
    here = _of_memory(name)
    return OperationKeys(
        meta=f"{here}:meta", ops=f"{here}:ops", records=f"{here}:records", due=operations_due(name.partition)
    )


class StageKeys(NamedTuple):
    """Where a copy is put together before it becomes a memory, in the order in which scripts take them."""

    stage: str
    """Hash: which operation copies and how far it is; also which copies must not be made any more. Expires by itself."""
    log: str
    """The stream as far as it has been copied. Expires by itself."""
    ids: str
    """The ids of its turns. Expires by itself."""


def stage_keys(name: MemoryName) -> StageKeys:
    """The keys of a copy that is being made under a name."""
    here = _of_memory(name)
    return StageKeys(stage=f"{here}:stage", log=f"{here}:stage-log", ids=f"{here}:stage-ids")


def forks(name: MemoryName) -> str:
    """Hash: a copy's member -> the sequence that it was copied at and the operation that did.

    Copies of copies are entered too, once what they were copied from is gone.
    """
    return f"{_of_memory(name)}:forks"


def operations_due(partition: int) -> str:
    """Sorted set: operations of a partition's memories, by when somebody should go on with them, in ms."""
    return f"memfold:{_tag(partition)}:operations"


def operation_entry(name: MemoryName, operation_id: str) -> str:
    """An operation's entry in the sorted set of its partition."""
    return f"{member(name)}|{operation_id}"


def operation_of(entry: bytes) -> tuple[MemoryName, str]:
    """Read back what ``operation_entry`` wrote."""
    named, operation_id = entry.rsplit(b"|", 1)
    return name_of(named), operation_id.decode()


def expires(partition: int) -> str:
    """Sorted set: memories of a partition with a policy -> when to see whether something of them has expired, in ms."""
    return f"memfold:{_tag(partition)}:expires"


def rewrites(run_id: str) -> str:
    """Hash: rewrites of one server's files: wanted, started, finished. Expires by itself; in a slot of its own."""
    return f"memfold:rewrites:{run_id}"


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


EVERY_META = "memfold:{p*}:*:meta"
"""Matches the ``meta`` keys of all memories."""


EVERY_INDEX = "memfold:tenant:*"
"""Matches the indexes of all tenants."""

AUDIT = "memfold:audit"
"""Hash: whose turn it is to look at everything, until when, and where the last look ended."""

AUDIT_START = "0:0:0"


def name_of_meta(key: bytes) -> MemoryName:
    """The memory whose ``meta`` key this is."""
    return name_of(key.split(b":")[2])


def tenant_index(tenant: str) -> str:
    """Sorted set, all scores 0, of a tenant's memories as ``index_entry`` writes them; in a slot of its own."""
    return f"memfold:tenant:{tenant}"


def tenant_of_index(key: bytes) -> str:
    """Whose index this is."""
    return key.decode().split(":")[2]


def index_entry(name: MemoryName, incarnation: str) -> str:
    """An entry of the tenant's index. NUL sorts before whatever may follow in a longer name."""
    return f"{name.memory}\0{incarnation}"


def index_entry_of(entry: bytes) -> tuple[str, str]:
    """Read back the memory's id and the incarnation that ``index_entry`` wrote."""
    memory, incarnation = entry.decode().split("\0")
    return memory, incarnation


def moved_channel(partition: int) -> str:
    """Channel on which commits and deletions of a partition's memories are told."""
    return f"memfold:moved:{partition}"


LEFT_CHANNEL = "memfold:left"
"""Channel on which it is told that an operation has been left for anybody to go on with at once."""

LEFT = "operation"
"""What is told there."""


def _of_memory(name: MemoryName) -> str:
    return f"memfold:{_tag(name.partition)}:{member(name)}"


def _tag(partition: int) -> str:
    assert 0 <= partition < PARTITIONS
    return f"{{p{partition}}}"
