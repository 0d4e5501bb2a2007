"""Real conversations through the whole platform. The data lies beside the checkout; without it this is skipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCOMO = ROOT.parent / "shared" / "data" / "locomo10.json"

pytestmark = [
    pytest.mark.platform,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not LOCOMO.exists(), reason="the LoCoMo data set is not beside the checkout"),
]


def test_every_turn_of_real_conversations_is_taken_and_folded_once(platform) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            ROOT / "benchmarks" / "locomo.py",
            LOCOMO,
            "--data-dir",
            platform.data_dir,
            "--sessions",
            "2",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["acknowledged"] == facts["turns"] == 419 + 369
    assert facts["wrong"] == []
