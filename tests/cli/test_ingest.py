"""``memfold ingest`` while the platform has no room."""

from __future__ import annotations

from memfold.api.errors import BacklogFullError
from memfold.api.values import Role, Turn
from memfold.cli import ingest
from memfold.cli.turn_lines import TurnLine
from memfold.client import Ack


class Full:
    """A platform that refuses the first turns so many times."""

    def __init__(self, refusals: int) -> None:
        self._refusals = refusals
        self.taken: list[str] = []

    def stream(self, pairs, *, create):
        for memory, turn in pairs:
            if self._refusals:
                self._refusals -= 1
                error = BacklogFullError("10,000 turns wait to be folded", retry_after_ms=1)
                yield Ack(memory, turn.id, error=error)
            else:
                self.taken.append(turn.id)
                yield Ack(memory, turn.id)


def line(number):
    return TurnLine(number, 10, "alice", Turn(f"t{number}", Role.USER, "Hello."))


def test_it_says_that_it_waits_and_for_what_but_not_again_and_again(capsys):
    platform = Full(refusals=5)
    ingesting = ingest.Ingesting(platform, 30)
    ingesting.run([line(number) for number in (1, 2, 3)])
    assert platform.taken == ["t1", "t2", "t3"]
    assert ingesting.report.sentence() == "3 turns appended"
    said = capsys.readouterr().err
    assert said.count("waiting (alice: 10,000 turns wait to be folded)") == 1


def test_where_nothing_gets_through_it_gives_up_and_says_where(capsys, monkeypatch):
    monkeypatch.setattr(ingest, "_PATIENCE_S", 0)
    ingesting = ingest.Ingesting(Full(refusals=10**6), 20)
    ingesting.run([line(1), line(2)])
    assert [number for number, _ in ingesting.report.failed] == [1]
    said = capsys.readouterr().err
    assert "line 1: the writer is too far behind; run this again later" in said
    assert "lines after line 1 were not sent" in said
