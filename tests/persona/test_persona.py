from __future__ import annotations

import itertools

import pytest

from memfold.persona import ATTRIBUTES, UNKNOWN_ANSWER, Question, generate, is_correct


def told(split: str) -> set[tuple[str, str | None]]:
    dialogues = [
        generate(seed, facts=4, changes=1, foreign=0.5 * (split == "train"), split=split) for seed in range(300)
    ]  # type: ignore[arg-type]
    return {(q.attribute, q.value) for d in dialogues for q in d.questions}


def test_the_same_seed_gives_the_same_dialogue_and_another_another() -> None:
    assert generate(7, facts=5, changes=2, small_talk=3) == generate(7, facts=5, changes=2, small_talk=3)
    assert generate(7) != generate(8)


def test_training_and_scoring_share_no_fact_and_no_wording() -> None:
    assert not told("train") & told("held_out")
    lines = {
        split: {
            line.content for seed in range(300) for line in generate(seed, split=split).lines if line.role == "user"
        }  # type: ignore[arg-type]
        for split in ("train", "held_out")
    }
    assert not lines["train"] & lines["held_out"]


def test_every_attribute_has_thirty_values_and_no_two_share_one() -> None:
    assert len(ATTRIBUTES) >= 12
    assert all(len(set(a.values)) >= 30 for a in ATTRIBUTES)
    values = list(itertools.chain.from_iterable(a.values for a in ATTRIBUTES))
    assert len(values) == len(set(values))


def test_the_newest_value_is_the_answer() -> None:
    for seed in range(50):
        dialogue = generate(seed, facts=3, changes=3)
        for question in dialogue.questions:
            assert question.value is not None
            said = [
                i for i, line in enumerate(dialogue.lines) if question.value in line.content.replace(".", " ").split()
            ]
            assert said, question
            assert question.value in question.answer


def test_a_fact_may_change_several_times_and_the_last_value_said_is_the_answer() -> None:
    for seed in range(20):
        dialogue = generate(seed, facts=2, changes=1, times=3)
        assert len(dialogue.lines) == 2 * (2 + 3)
        said = [line.content for line in dialogue.lines if line.role == "user"]
        last = {q.attribute: max(i for i, text in enumerate(said) if q.value in text) for q in dialogue.questions}
        assert max(last.values()) == len(said) - 1


def test_strange_talk_has_words_of_no_language_and_leaves_the_rest_as_it_was() -> None:
    plain, strange = (generate(3, facts=2, small_talk=4, talk_at_end=True, strange=share) for share in (0.0, 1.0))
    assert plain.lines[:4] == strange.lines[:4]
    assert {q.value for q in plain.questions} == {q.value for q in strange.questions}
    assert not {line.content for line in plain.lines[4:]} & {line.content for line in strange.lines[4:]}


def test_what_was_never_told_is_answered_so() -> None:
    (question,) = generate(1, facts=0, unknown=1).questions
    assert question.answer == UNKNOWN_ANSWER
    assert question.value is None


def test_an_answer_is_right_only_to_the_letter() -> None:
    question = Question("city", "Where do I live?", "You live in Oslo.", "Oslo")
    assert is_correct(question, " You live in Oslo.\n")
    assert not is_correct(question, "You live in Oslo")
    assert not is_correct(question, "You live in Paris.")


def test_impossible_dialogues_are_refused() -> None:
    with pytest.raises(ValueError, match="changes must be 0 to facts"):
        generate(0, facts=1, changes=2)
    with pytest.raises(ValueError, match="facts \\+ unknown"):
        generate(0, facts=16, unknown=1)
