import pytest

from memfold.cli.scoring import FACTS, Arm, Recall, Scores, held_out


@pytest.mark.parametrize("questions", [1, 3, 7, 300])
def test_exactly_so_many_questions_are_asked(questions):
    assert sum(len(dialogue.questions) for dialogue in held_out(questions, seed=5)) == questions


def test_the_same_seed_gives_the_same_dialogues_and_another_seed_gives_others():
    assert held_out(6, seed=5) == held_out(6, seed=5)
    assert held_out(6, seed=5) != held_out(6, seed=50)


def test_every_dialogue_tells_three_facts():
    assert all(len(dialogue.lines) == 2 * FACTS for dialogue in held_out(30, seed=1))


def test_the_interval_holds_the_share_and_stays_within_bounds():
    for right in range(11):
        recall = Recall(right, 10)
        low, high = recall.interval()
        assert 0 <= low <= recall.value + 1e-9
        assert recall.value - 1e-9 <= high <= 1


def test_the_facts_name_every_arm_and_every_attribute():
    scores = Scores()
    question = held_out(1, seed=1)[0].questions[0]
    for arm, right in zip(Arm, (True, False, True), strict=True):
        scores.add(arm, question, right)
    facts = scores.as_dict()
    assert facts["recall_state"] == {"value": 1.0, "n": 1}
    assert facts["recall_frozen"] == {"value": 0.0, "n": 1}
    assert facts["recall_full_context"] == {"value": 1.0, "n": 1}
    assert facts["by_attribute"][question.attribute] == {"value": 1.0, "n": 1, "frozen": 0.0, "full_context": 1.0}
