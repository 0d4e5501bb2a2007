"""Sequences of turns as runs: pairs of numbers, ascending, between which all are meant, both included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Run = tuple[int, int]
Runs = tuple[Run, ...]


def runs_of(sequences: Iterable[int]) -> Runs:
    """Of ascending numbers."""
    return joined((sequence, sequence) for sequence in sequences)


def joined(runs: Iterable[Run]) -> Runs:
    """Runs in any order, which may touch or overlap, as few as hold the same numbers."""
    found: list[Run] = []
    for first, last in sorted(runs):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return tuple(found)


def numbers(runs: Iterable[Run]) -> Iterator[int]:
    """All of them, one by one."""
    for first, last in runs:
        yield from range(first, last + 1)


def width(runs: Iterable[Run]) -> int:
    """How many numbers there are."""
    return sum(last - first + 1 for first, last in runs)


def pack(runs: Iterable[Run]) -> str:
    """Write runs in few characters: ``1-5,7``."""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def unpack(text: str) -> Runs:
    """Read back what ``pack`` wrote."""
    pairs = (run.partition("-") for run in text.split(",") if run)
    return tuple((int(first), int(last or first)) for first, _, last in pairs)
