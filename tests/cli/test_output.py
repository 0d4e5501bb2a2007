import io

import pytest
from rich.console import Console
from rich.table import Table

from memfold.cli.output import counted, print_table


@pytest.mark.parametrize(("number", "said"), [(0, "0 turns"), (1, "1 turn"), (2, "2 turns"), (1200, "1,200 turns")])
def test_one_is_not_many(number, said):
    assert counted(number, "turn") == said


def _cells(width: int, name: str) -> tuple[str, list[str]]:
    """The table as printed, and what its two columns say, put together again."""
    table = Table("name", "when", box=None)
    table.add_row(name, "2026-01-01T00:00:00")
    out = io.StringIO()
    print_table(Console(file=out, width=width), table, whole=("name",))
    text = out.getvalue()
    second = text.index("when")
    lines = text.splitlines()[1:]
    return text, ["".join(line[:second].strip() for line in lines), "".join(line[second:].strip() for line in lines)]


@pytest.mark.parametrize("width", [40, 45, 80])
def test_a_narrow_terminal_cuts_no_cell_and_leaves_what_is_copied_in_one_piece(width):
    name = "7c87da0a1cde8d2cf5bc2df3"
    text, cells = _cells(width, name)
    assert cells == [name, "2026-01-01T00:00:00"]
    assert name in text


def test_what_is_wider_than_the_terminal_is_folded():
    assert _cells(80, "n" * 128)[1] == ["n" * 128, "2026-01-01T00:00:00"]
