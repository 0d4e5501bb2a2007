"""``memfold eval`` on a platform that runs, with a model of random weights: what counts is that all is asked once."""

import json
import subprocess

import pytest

from memfold.evaluation.arms import Arm

pytestmark = pytest.mark.platform

FEW = ["eval", "persona", "--dialogues", "2", "--facts", "2", "--unknown", "1", "--window", "64", "--recall", "64"]


def answers(directory):
    lines = (directory / "answers.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_every_question_is_asked_once_on_every_arm_and_the_report_says_so(memfold, tmp_path):
    before = {one["name"] for one in json.loads(memfold("memories", "--json").stdout)}
    done = memfold(*FEW, "--output", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert set(facts["arms"]) == {str(arm) for arm in Arm}
    assert all(result["score"]["n"] == 2 * 3 for result in facts["arms"].values())
    given = answers(tmp_path)
    assert len(given) == len({(a["episode"], a["question"], a["arm"]) for a in given}) == 2 * 3 * len(Arm)
    tokens = {arm: result["prompt_tokens_p50"] for arm, result in facts["arms"].items()}
    assert tokens["none"] == tokens["state"] < tokens["window"] == tokens["window+state"]
    assert tokens["none"] < tokens["recall"] <= tokens["full-context"]
    page = (tmp_path / "report.md").read_text()
    assert "| recall+state |" in page
    assert "| never told |" in page
    assert (tmp_path / "report.svg").stat().st_size > 1000
    assert json.loads((tmp_path / "report.json").read_text())["fingerprint"] == facts["fingerprint"]
    # It leaves nothing behind.
    assert {one["name"] for one in json.loads(memfold("memories", "--json").stdout)} == before


def test_a_run_that_was_killed_goes_on_where_it_was(memfold, cli, platform, tmp_path):
    arms = ["--arm", "none", "--arm", "state"]
    command = [*FEW, *arms, "--parallel", "1", "--output", str(tmp_path), "--json"]
    with subprocess.Popen(
        cli.command(*command, data_dir=platform.data_dir), env=cli.environment, stdout=subprocess.DEVNULL
    ) as process:
        while not (tmp_path / "answers.jsonl").exists() or len(answers(tmp_path)) < 3:
            assert process.poll() is None
        process.kill()
    kept = answers(tmp_path)
    done = memfold(*command)
    assert done.returncode == 0, done.stderr
    given = answers(tmp_path)
    assert given[: len(kept)] == kept
    assert len(given) == len({(a["episode"], a["question"], a["arm"]) for a in given}) == 2 * 3 * 2


def test_another_run_does_not_mix_with_the_one_that_is_there(memfold, tmp_path):
    one = ["eval", "persona", "--dialogues", "1", "--facts", "1", "--arm", "none", "--output", str(tmp_path)]
    assert memfold(*one).returncode == 0
    done = memfold(*one, "--seed", "9")
    assert done.returncode == 1
    assert "other settings" in done.stderr


def test_more_facts_than_there_are_is_refused_before_anything_is_told(memfold):
    done = memfold("eval", "persona", "--facts", "99")
    assert done.returncode == 1
    assert "99" in done.stderr
    assert "Traceback" not in done.stderr
