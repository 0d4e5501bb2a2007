"""The walls of the house that no linter sees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("folder", ["kernels", "proto", "services", "tests", "k8s"])
def test_no_folder_can_be_taken_for_another_librarys_package(folder: str) -> None:
    # transformers looks for a package called "kernels"; an empty __init__.py would be one.
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_generated_code_is_what_the_protos_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate_proto.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_nothing_is_unpickled() -> None:
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("services/**/*.py"), *ROOT.glob("training/**/*.py")]:
        text = path.read_text()
        assert "import pickle" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True"), path


def test_the_client_needs_neither_redis_nor_torch() -> None:
    script = (
        "import sys, json, memfold.client; print(json.dumps([m for m in "
        "('torch', 'transformers', 'redis', 'celery', 'protovalidate', 'numpy', 'opentelemetry.sdk') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
