"""LoCoMo's scoring is its authors'. The data and the official scores lie beside the checkout; the rest is made here."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from memfold.evaluation.suites.locomo import NOT_MENTIONED, Locomo, score
from memfold.evaluation.text import parts_f1, token_f1, tokens

SHARED = Path(__file__).resolve().parents[3] / "shared"
DATA, SCORED = SHARED / "data" / "locomo10.json", SHARED / "reference" / "locomo_scored.json"

beside = pytest.mark.skipif(
    not (DATA.exists() and SCORED.exists()), reason="the LoCoMo data set and its scores are not beside the checkout"
)


def _file(tmp_path: Path, qa: list[dict[str, Any]]) -> Path:
    sample = {
        "sample_id": "conv-1",
        "qa": qa,
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Ben",
            "session_2_date_time": "3 May",
            "session_2": [{"speaker": "Ben", "dia_id": "D2:1", "text": "Later."}],
            "session_1_date_time": "1 May",
            "session_1": [{"speaker": "Ann", "dia_id": "D1:1", "text": "Hello."}],
            "session_10_date_time": "9 May",
            "session_10": [{"speaker": "Ann", "dia_id": "D10:1", "text": "Last."}],
        },
    }
    path = tmp_path / "locomo10.json"
    path.write_text(json.dumps([sample]))
    return path


@beside
def test_every_score_equals_the_official_scorers() -> None:
    samples = {sample["sample_id"]: sample["qa"] for sample in json.loads(DATA.read_text())}
    scored = json.loads(SCORED.read_text())
    assert {one["category"] for one in scored} == {1, 2, 3, 4, 5}
    for one in scored:
        reference = str(samples[one["sample_id"]][one["qa_index"]].get("answer", ""))
        assert score(one["category"], one["prediction"], reference) == pytest.approx(one["score"], abs=1e-12), one


@beside
def test_every_question_of_the_data_set_is_worth_1_when_answered_by_its_reference() -> None:
    episodes = Locomo(DATA).episodes()
    assert sum(len(episode.questions) for episode in episodes) == 1986
    for episode in episodes:
        for question in episode.questions:
            if question.group != "open-domain":  # there, what follows a semicolon does not count
                assert question.score(question.reference) == pytest.approx(1.0), question


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cats, and a DOG!", ["cat", "dog"]),
        ("ponies running", ["poni", "run"]),
        ("1,000", ["1000"]),
        ("an and the", []),
        ("café", ["café"]),
        ("", []),
    ],
)
def test_tokens_are_small_stems_without_articles_and_punctuation(text: str, expected: list[str]) -> None:
    assert tokens(text) == [unicodedata.normalize("NFD", token) for token in expected]


def test_token_f1_counts_a_token_as_often_as_both_have_it() -> None:
    assert token_f1("red red blue", "red green") == pytest.approx(2 * 1 / 5)
    assert token_f1("nothing shared", "at all") == 0.0
    assert token_f1("", "") == 0.0


def test_of_several_parts_each_counts_by_the_best_part_of_the_answer() -> None:
    assert parts_f1("painting, swimming", "swimming, painting") == pytest.approx(1.0)
    assert parts_f1("swimming", "swimming, painting") == pytest.approx(0.5)


def test_an_alternative_after_the_semicolon_does_not_count() -> None:
    assert score(3, "likely no", "Likely no; she was certain") == pytest.approx(1.0)
    assert score(4, "likely no", "Likely no; she was certain") < 1.0


def test_an_unanswerable_question_is_right_when_the_answer_says_so() -> None:
    assert score(5, "That is NOT mentioned anywhere.", "") == 1.0
    assert score(5, "No information available", "") == 1.0
    assert score(5, "in May", "") == 0.0


def test_a_category_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="categories"):
        score(6, "x", "x")


def test_turns_come_in_the_order_of_sessions_with_speakers_and_dates(tmp_path: Path) -> None:
    [episode] = Locomo(_file(tmp_path, [])).episodes()
    assert [(t.id, t.role, t.speaker, t.metadata["date"]) for t in episode.turns] == [
        ("D1:1", "user", "Ann", "1 May"),
        ("D2:1", "assistant", "Ben", "3 May"),
        ("D10:1", "user", "Ann", "9 May"),
    ]


def test_the_two_options_of_an_unanswerable_question_stand_in_either_order_and_a_letter_stands_for_one(
    tmp_path,
) -> None:
    qa = [{"question": f"Who {i}?", "category": 5, "adversarial_answer": f"nobody {i}"} for i in range(20)]
    [episode] = Locomo(_file(tmp_path, qa)).episodes()
    firsts = set()
    for question in episode.questions:
        first = f"(a) {NOT_MENTIONED}" in question.prompt
        firsts.add(first)
        assert question.score("(a)" if first else "b") == 1.0
        assert question.score("B)" if first else "(a).") == 0.0
        assert question.score("A bird was mentioned") == 0.0
    assert firsts == {True, False}


def test_the_same_seed_draws_the_same_questions(tmp_path: Path) -> None:
    qa = [{"question": f"Q{i}?", "category": 4, "answer": f"A{i}"} for i in range(30)]
    file = _file(tmp_path, qa)

    def drawn(seed: int) -> list[str]:
        return [question.prompt for question in Locomo(file, questions=5, seed=seed).episodes()[0].questions]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(drawn(1)) == 5


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('[{"qa": []}]')
    with pytest.raises(ValueError, match=r"other\.json is not LoCoMo's"):
        Locomo(path).episodes()
