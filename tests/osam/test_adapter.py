from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from memfold_osam import AdapterConfig, DeltaMemory, OsamState, load_adapter, save_adapter
from memfold_osam.config import CONFIG_FILE
from memfold_osam.serving import ServedModel, load_served_model
from memfold_osam.state import state_from_bytes, state_to_bytes
from memfold_osam.testing import write_random_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_random_model(tmp_path)


def change(directory: Path, **values: object) -> None:
    path = directory / "adapter" / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_saved_adapter_loads_back_to_the_same_answers(directory: Path, tmp_path: Path) -> None:
    served = load_served_model(str(directory))
    save_adapter(served.memory, tmp_path / "copy")
    again = load_served_model(str(directory), str(tmp_path / "copy"))
    ids, state = torch.arange(20)[None], torch.randn(served.state_shape).unsqueeze(1)
    logits = []
    for model in (served, again):
        with torch.no_grad(), model.memory.bind(OsamState(state.clone()), write=False):
            logits.append(model.model(input_ids=ids).logits)
    assert torch.equal(*logits)
    assert served.fingerprint != ""


def test_the_fingerprint_tells_weights_templates_and_blocks_apart(tmp_path: Path) -> None:
    first = load_served_model(str(write_random_model(tmp_path / "a", seed=0)))
    same = load_served_model(str(write_random_model(tmp_path / "b", seed=0)))
    weights = load_served_model(str(write_random_model(tmp_path / "c", seed=1)))
    blocks = load_served_model(str(write_random_model(tmp_path / "d", seed=0, block_tokens=100)))
    assert first.fingerprint == same.fingerprint
    assert len({first.fingerprint, weights.fingerprint, blocks.fingerprint}) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"num_memory_partitions": 2}, "num_memory_partitions = 2 is not supported, only 1 is"),
        ({"state_update_mode": "stand"}, "state_update_mode must be one of"),
        ({"delta_heads": ["q", "x"]}, "delta_heads must be one of q, k, v, o"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": "8"}, "rank must be of type int"),
        ({"rank": 4}, "must be"),
        ({"target_layers": [9]}, "target_layers names"),
        ({"target_layers": [1]}, "belongs to no adapted layer"),
    ],
)
def test_a_config_that_we_would_not_compute_is_refused_by_name(
    directory: Path, values: dict[str, object], message: str
) -> None:
    change(directory, **values)
    with pytest.raises(ValueError, match=message):
        load_served_model(str(directory))


def test_a_model_without_attention_projections_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="Sequential has no layers"):
        DeltaMemory(nn.Sequential(nn.Linear(2, 2)), AdapterConfig())


def test_a_backbone_without_an_adapter_is_refused(tmp_path: Path, directory: Path) -> None:
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no adapter"):
        load_served_model(str(tmp_path / "bare"))
    with pytest.raises(FileNotFoundError):
        load_adapter(AutoModelForCausalLM.from_pretrained(directory), tmp_path / "bare")


def test_a_pickle_that_runs_code_is_not_run(directory: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('ran')",))

    adapter = directory / "adapter"
    (adapter / "delta_mem_adapter.safetensors").unlink()
    torch.save({"x": Evil()}, adapter / "delta_mem_adapter.pt")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        load_served_model(str(directory))


def test_only_one_state_is_bound_at_a_time_and_shapes_are_checked(served: ServedModel) -> None:
    memory = served.memory
    with (
        memory.bind(memory.init_state(1)),
        pytest.raises(RuntimeError, match="bound"),
        memory.bind(memory.init_state(1)),
    ):
        pass
    with pytest.raises(ValueError, match="states are"), memory.bind(OsamState(torch.zeros(1, 1, 1, 2, 2))):
        pass
    with pytest.raises(ValueError, match="2 rows, the batch 1"), memory.bind(memory.init_state(2)):
        served.model(torch.tensor([[1]]))
    state, mask = memory.init_state(1), torch.ones(1, 3)
    with pytest.raises(ValueError, match="token_mask must be"), memory.bind(state, token_mask=mask):
        served.model(torch.tensor([[1]]))
    with torch.no_grad():
        served.model(torch.tensor([[1]]))


def test_an_error_inside_a_bind_leaves_the_state_as_it_was(served: ServedModel) -> None:
    state = served.memory.init_state(1)

    def fail_after_a_call() -> None:
        with served.memory.bind(state):
            served.model(torch.tensor([[1, 2, 3]]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_call()
    assert not state.tensor.any()


def test_state_bytes_round_trip_and_a_wrong_length_is_named() -> None:
    state = torch.randn(4, 2, 8, 8)
    assert torch.equal(state_from_bytes(state_to_bytes(state), state.shape), state)
    with pytest.raises(ValueError, match="has 2048 bytes, got 12"):
        state_from_bytes(b"\0" * 12, state.shape)
