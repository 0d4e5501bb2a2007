"""``memfold adapter inspect`` as a user runs it."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memfold.cli import app, tools

ADAPTER = Path(__file__).resolve().parents[2] / "models" / "memfold-tiny" / "adapter"


def run(*args):
    return CliRunner().invoke(app, ["adapter", "inspect", *map(str, args)])


@pytest.fixture(scope="module")
def facts():
    done = run(ADAPTER, "--json")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 1
    return json.loads(done.stdout)


def test_json_holds_shapes_parameters_state_and_least_ram(facts):
    assert facts["name"] == "memfold-tiny"
    assert facts["parameters"] == 393_728
    assert facts["state_bytes"] == 32_768
    assert {kind["parameter"] for kind in facts["shapes"]} >= {"memory_q_proj", "beta_bias", "delta_o_proj"}
    for size, dtype in ((4, "float32"), (2, "bfloat16")):
        assert facts["serving"][dtype]["least_ram_bytes"] == size * (1_074_304 + 459_264) + 32_768


def test_people_read_the_same(facts):
    done = run(ADAPTER)
    assert done.exit_code == 0
    words = " ".join(done.stdout.split())
    for said in (
        "adapter memfold-tiny",
        "layers 4: 0-3",
        "parameters 393,728 (and 65,536 zeros of heads not in use)",
        "state 4 × 8 × 16 × 16, 32,768 bytes a memory",
        "memory_q_proj 128 × 128 4 65,536",
        "to serve in float32 bfloat16",
        f"least RAM {facts['serving']['float32']['least_ram_bytes']:,} bytes",
        f"{facts['serving']['bfloat16']['least_ram_bytes']:,} bytes",
    ):
        assert said in words


def test_without_a_backbone_it_says_what_is_left_out(tmp_path):
    for name in ("delta_mem_config.json", "delta_mem_adapter.safetensors"):
        (tmp_path / name).write_bytes((ADAPTER / name).read_bytes())
    done = run(tmp_path)
    assert done.exit_code == 0
    assert "least RAM" not in done.stdout.rpartition("\n\n")[2].partition("This is")[0]
    assert "This is the adapter's share alone" in done.stdout
    assert "least RAM" in run(tmp_path, "--backbone", ADAPTER.parent).stdout


def test_what_is_no_adapter_ends_with_1_and_one_line(tmp_path):
    (tmp_path / "delta_mem_config.json").write_text('{"surprise": 1}')
    done = run(tmp_path)
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert "unknown key 'surprise'" in done.stderr
    assert run(ADAPTER, "--backbone", tmp_path).exit_code == 1
    (tmp_path / "delta_mem_config.json").unlink()
    assert f"cannot read {tmp_path}/delta_mem_config.json: No such file" in run(tmp_path).stderr


@pytest.mark.parametrize("args", [[], ["/no/such/directory"], [__file__], [ADAPTER, "--nonsense"]])
def test_wrong_usage_ends_with_2(args):
    assert run(*args).exit_code == 2


def test_without_the_models_libraries_it_says_what_to_install(monkeypatch):
    absent = EntryPoint("adapter.inspect", "memfold_no_torch.inspect:inspect_adapter", tools.GROUP)
    for found, missing in (((absent,), "memfold_no_torch"), ((), "the tool adapter.inspect")):
        monkeypatch.setattr("importlib.metadata.entry_points", lambda found=found, **_: found)
        done = run(ADAPTER)
        assert done.exit_code == 1
        assert f"{missing} is not installed" in done.stderr
        assert "memfold[model]" in done.stderr


def test_help_brings_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from memfold.cli import app;"
        "done = CliRunner().invoke(app, ['adapter', 'inspect', '--help']);"
        "assert 'Least RAM is' in done.stdout, done.stdout;"
        "sys.exit(bool({'torch', 'transformers', 'memfold_osam'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
