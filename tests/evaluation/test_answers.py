"""A run that was stopped goes on where it was, and never mixes with another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memfold.evaluation.answers import Answer, Answers, OtherRunError
from memfold.evaluation.arms import Arm, Budgets
from memfold.evaluation.report import Mean, markdown, plot, results

SETTINGS = {"suite": "persona", "seed": 1}


def answer(question: str, arm: str = "state", score: float = 1.0, group: str = "city", tokens: int = 20) -> Answer:
    return Answer("e", question, arm, group, "Lisbon — 🌍", score, tokens, 3, 0, 5.0, 9.0)


def test_answers_are_there_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "run" / "answers.jsonl"
    with Answers(path, SETTINGS) as answers:
        answers.add(answer("1"))
    with Answers(path, SETTINGS) as answers:
        assert ("e", "1", "state") in answers
        assert ("e", "2", "state") not in answers
        answers.add(answer("2"))
    with Answers(path, SETTINGS) as answers:
        assert list(answers) == [answer("1"), answer("2")]


def test_a_line_that_was_being_written_at_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Answers(path, SETTINGS) as answers:
        answers.add(answer("1"))
        answers.add(answer("2"))
    path.write_bytes(path.read_bytes()[:-20])
    with Answers(path, SETTINGS) as answers:
        assert list(answers) == [answer("1")]
        answers.add(answer("3"))
    assert json.loads(path.read_text().splitlines()[0]) == SETTINGS
    with Answers(path, SETTINGS) as answers:
        assert list(answers) == [answer("1"), answer("3")]


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Answers(path, SETTINGS) as answers:
        answers.add(answer("1"))
    with pytest.raises(OtherRunError, match="other settings"):
        Answers(path, SETTINGS | {"seed": 2})


def test_results_are_means_by_arm_and_group() -> None:
    found = results(
        [
            answer("1"),
            answer("2", score=0.0, group="pet"),
            answer("1", "none", 0.0),
            answer("2", "full-context", tokens=99),
        ]
    )
    assert list(found) == [Arm.NONE, Arm.STATE, Arm.FULL_CONTEXT]
    assert found[Arm.STATE].score.value == 0.5
    assert {name: mean.value for name, mean in found[Arm.STATE].groups.items()} == {"city": 1.0, "pet": 0.0}
    assert found[Arm.FULL_CONTEXT].prompt_tokens == 99


def test_an_interval_holds_the_mean_and_narrows_with_n() -> None:
    few, many = Mean.of([1.0, 0.0] * 5), Mean.of([1.0, 0.0] * 500)
    assert few.low < many.low < 0.5 < many.high < few.high
    # Wilson's, by the book: 10 of 10 right gives 0.722 to 1.
    assert Mean.of([1.0] * 10).low == pytest.approx(0.7225, abs=1e-4)
    graded = Mean.of([0.25, 0.5, 0.75])
    assert graded.low < graded.value == 0.5 < graded.high


def test_a_report_names_what_was_run_and_shows_every_arm(tmp_path: Path) -> None:
    found = results([answer("1"), answer("1", "window", 0.0, tokens=300), answer("2", group="pet")])
    page = markdown("persona", SETTINGS, found)
    assert "- seed: 1" in page
    assert "| window | 0.000" in page
    assert "| pet | 1.00 |  |" in page
    plot(tmp_path / "report.svg", "persona", found)
    assert (tmp_path / "report.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (Arm.NONE, (0.0, 0, 0)),
        (Arm.STATE, (1.0, 0, 0)),
        (Arm.WINDOW, (0.0, 10, 0)),
        (Arm.WINDOW_STATE, (1.0, 10, 0)),
        (Arm.RECALL, (0.0, 0, 20)),
        (Arm.RECALL_STATE, (1.0, 0, 20)),
        (Arm.FULL_CONTEXT, (0.0, 999, 0)),
    ],
)
def test_an_arm_is_three_fields_of_a_request(arm: Arm, expected: tuple[float, int, int]) -> None:
    reading = Budgets(10, 20, 999).reading(arm)
    assert (reading.gain, reading.window_tokens, reading.recall_tokens) == expected
