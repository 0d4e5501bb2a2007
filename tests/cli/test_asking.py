from __future__ import annotations

from typing import Any

import pytest

from memfold.api.values import Role
from memfold.cli.asking import selection

NONE: dict[str, Any] = {"ids": (), "range_": "", "metadata": {}, "role": None, "speaker": ""}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ids": ("a",)}, "the turn a"),
        ({"ids": ("a", "b")}, "the 2 turns a, b"),
        ({"range_": "3-7"}, "the turns 3-7"),
        ({"metadata": {"topic": "work"}}, "all turns with topic=work"),
        (
            {"metadata": {"a": "1"}, "role": Role.USER, "speaker": "Ana"},
            "all turns with a=1 and the role user and the speaker Ana",
        ),
    ],
)
def test_before_forgetting_it_is_said_which_turns(given: dict[str, Any], said: str) -> None:
    assert selection(**NONE | given) == said
