"""One memory's words: which turns hold which, ranked by BM25."""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memfold.api.values import Turn

MAX_TERMS = 64
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Hit:
    """A turn that shares words with a query; more is better, and scores of two logs do not compare."""

    sequence: int
    score: float


class TurnIndex:
    """A full-text index in this process's memory: SQLite's FTS5, BM25 with k1 = 1.2 and b = 0.75.

    Words are what blanks and punctuation separate, without accents and case, their English endings cut off (Porter). It
    holds words, not texts. May be used by any thread.

    Attributes:
        reached: the sequence up to which the log is in it.
        turns: how many are.
    """

    def __init__(self) -> None:
        self.reached = 0
        self.turns = 0
        self._lock = threading.Lock()
        self._words = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._words.execute(
            "CREATE VIRTUAL TABLE turns USING fts5(said, content='', tokenize='porter unicode61 remove_diacritics 2')"
        )

    @property
    def size_bytes(self) -> int:
        """What it takes of memory, more or less."""
        with self._lock:
            [(pages,)] = self._words.execute("PRAGMA page_count").fetchall()
            [(size,)] = self._words.execute("PRAGMA page_size").fetchall()
        return int(pages) * int(size)

    def add(self, entries: Sequence[Turn]) -> None:
        """Take in log entries behind ``reached``, ascending. Who spoke counts as said."""
        rows = [(entry.sequence, f"{entry.speaker} {entry.content}") for entry in entries if not entry.skips]
        with self._lock:
            self._words.execute("BEGIN")
            self._words.executemany("INSERT INTO turns (rowid, said) VALUES (?, ?)", rows)
            self._words.execute("COMMIT")
        self.turns += len(rows)
        self.reached = entries[-1].sequence

    def search(self, query: str, limit: int) -> list[Hit]:
        """The turns that share a word with the query, the best first, of equals the older; at most ``limit``."""
        terms = _terms(query)
        if not terms:
            return []
        wanted = " OR ".join(f'"{term}"' for term in terms)
        with self._lock:
            found = self._words.execute(
                "SELECT rowid, rank FROM turns WHERE turns MATCH ? ORDER BY rank, rowid LIMIT ?", (wanted, limit)
            ).fetchall()
        return [Hit(int(sequence), -float(rank)) for sequence, rank in found]


def _terms(query: str) -> Iterable[str]:
    """The first words of a query, each once."""
    words = _WORD.findall(unicodedata.normalize("NFC", query).lower())
    return list(dict.fromkeys(words))[:MAX_TERMS]
