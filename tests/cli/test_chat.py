"""What ``memfold chat`` asks for, and what it says of an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from memfold.cli import app
from memfold.cli.chat import account
from memfold.client import FinishReason, Revision, Summary, UpdateMode

PLAIN = Summary(
    revision=Revision("0123456789ab", 7),
    finish_reason=FinishReason.END_OF_TURN,
    prompt_tokens=30,
    generated_tokens=11,
    window_turns=0,
    time_to_first_token_s=0.04,
    total_time_s=0.24,
    stale=False,
    folded_inline_turns=0,
    memory_influence=0.25,
    reused_prompt_tokens=0,
    update=UpdateMode.READ_ONLY,
    recalled=(),
)


@pytest.mark.parametrize(
    ("summary", "line"),
    [
        (PLAIN, "revision 0123456789ab.7, influence 0.250 nats, 30 + 11 tokens, first after 40 ms, 50 tokens/s"),
        (
            replace(PLAIN, stale=True, folded_inline_turns=2, window_turns=3, reused_prompt_tokens=16),
            (
                "revision 0123456789ab.7, behind the log, 2 turns folded for it, 3 turns word for word, "
                "influence 0.250 nats, 30 + 11 tokens, 16 reused, first after 40 ms, 50 tokens/s"
            ),
        ),
        (
            replace(PLAIN, memory_influence=None, generated_tokens=1, total_time_s=0.04),
            "revision 0123456789ab.7, 30 + 1 tokens, first after 40 ms",
        ),
    ],
)
def test_an_answer_s_account_is_one_line_of_what_matters(summary, line):
    assert account(summary) == line


@pytest.mark.parametrize(
    "wrong", [("--stale", "never"), ("--top-p", "2"), ("--top-k", "-1"), ("--seed", "x"), ("--gain", "5")]
)
def test_wrong_options_are_refused(wrong):
    done = CliRunner().invoke(app, ["chat", *wrong])
    assert done.exit_code == 2
    assert wrong[0] in done.stderr
