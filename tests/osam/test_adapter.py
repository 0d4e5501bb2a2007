from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from memfold_osam import AdapterConfig, DeltaMemory, OsamState, load_adapter, save_adapter
from memfold_osam.adapter import REFERENCE_WEIGHTS_FILE, WEIGHTS_FILE, adapter_weights, read_weights
from memfold_osam.card import CARD_FILE, AdapterCard, BackboneCard, backbone_fingerprint
from memfold_osam.config import ARCHIVED, CONFIG_FILE
from memfold_osam.serving import ServedModel, embedded_model, load_served_model
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


def small_model(seed: int = 0, **config: object) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2}
    return Qwen3ForCausalLM(Qwen3Config(**shape, **heads, **config)).eval()


def random_adapter(model: nn.Module, config: AdapterConfig) -> DeltaMemory:
    memory = DeltaMemory(model, config)
    for parameter in memory.parameters():
        nn.init.normal_(parameter, std=0.5)
    return memory


def steered(model: nn.Module, memory: DeltaMemory) -> torch.Tensor:
    """Logits under a state."""
    state = OsamState(torch.ones(memory.state_shape).unsqueeze(1))
    with torch.no_grad(), memory.bind(state, write=False):
        logits: torch.Tensor = model(input_ids=torch.arange(8)[None]).logits
    return logits


CONFIGS = [
    AdapterConfig(rank=4),
    AdapterConfig(rank=2, num_state_heads=3, delta_heads=("q", "k", "v", "o"), couple_lambda=False),
    AdapterConfig(rank=4, rankwise_gates=False, couple_lambda=False, state_update_mode="lambda_outside"),
    AdapterConfig(rank=4, delta_o_rmsnorm=True, trainable_delta_scale=True, target_layers=(1,)),
    AdapterConfig(rank=1, trainable_delta_scale=True, delta_scale_granularity="head", normalize_qk=False),
]


@pytest.mark.parametrize("theirs", [False, True], ids=["safetensors", "pt"])
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_every_kind_of_adapter_round_trips(tmp_path: Path, config: AdapterConfig, theirs: bool) -> None:
    model = small_model()
    memory = random_adapter(model, config)
    save_adapter(memory, tmp_path, model)
    if theirs:
        weights = load_file(tmp_path / WEIGHTS_FILE)
        torch.save(weights, tmp_path / REFERENCE_WEIGHTS_FILE)
        (tmp_path / WEIGHTS_FILE).unlink()
    other = small_model()
    loaded = load_adapter(other, tmp_path)
    assert loaded.config == config
    weights, again = adapter_weights(memory), adapter_weights(loaded)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert torch.equal(steered(model, memory), steered(other, loaded))


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_files_are_as_the_reference_names_them(tmp_path: Path, config: AdapterConfig) -> None:
    save_adapter(DeltaMemory(small_model(), config), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE}
    written = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert not written.keys() & ARCHIVED.keys()
    names = {"memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "beta_bias"}
    names |= {f"delta_{head}_proj" for head in "qkvo"}
    names |= set() if config.couple_lambda else {"lambda_proj", "lambda_bias"}
    names |= {"delta_o_rmsnorm_weight"} if config.delta_o_rmsnorm else set()
    names |= {"delta_scale_raw"} if config.trainable_delta_scale else set()
    layers = config.target_layers or (0, 1)
    assert load_file(tmp_path / WEIGHTS_FILE).keys() == {
        f"model.layers.{n}.self_attn.{p}" for n in layers for p in names
    }


def test_a_config_keeps_the_references_keys_and_archived_ones_at_their_value(directory: Path) -> None:
    before = load_served_model(str(directory)).fingerprint
    change(directory, **ARCHIVED)
    assert load_served_model(str(directory)).fingerprint == before


def test_the_card_names_the_backbone(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "backbone")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
    model.config._commit_hash = "1a2b3c"
    memory = random_adapter(model, AdapterConfig(rank=4))
    (tmp_path / CARD_FILE).write_text('{"name": "mine", "scores": {"recall": 1.0}}')
    save_adapter(memory, tmp_path, model)
    written = json.loads((tmp_path / CARD_FILE).read_text())
    assert written["scores"] == {"recall": 1.0}
    card = AdapterCard.load(tmp_path)
    assert card.name == "mine"
    assert (card.backbone.id, card.backbone.revision) == ("backbone", "1a2b3c")
    assert card.backbone.fingerprint == backbone_fingerprint(model) != ""
    assert card.backbone.parameters == model.num_parameters()


def test_an_adapter_of_another_backbone_is_refused_with_both_named(tmp_path: Path) -> None:
    model, other = small_model(seed=0), small_model(seed=1)
    model.config._name_or_path = "org/model"
    save_adapter(DeltaMemory(model, AdapterConfig(rank=4)), tmp_path, model)
    with pytest.raises(ValueError, match="was trained on the backbone org/model") as error:
        load_adapter(other, tmp_path)
    assert backbone_fingerprint(model) in str(error.value)
    assert backbone_fingerprint(other) in str(error.value)
    assert not other.model.layers[0].self_attn._forward_pre_hooks
    (tmp_path / CARD_FILE).write_text('{"backbone": {"id": "org/model"}}')
    load_adapter(other, tmp_path)


def test_a_backbone_is_known_by_its_layers_in_fp32_and_bf16_and_without_its_head(tmp_path: Path) -> None:
    model = small_model()
    known = backbone_fingerprint(model)
    assert backbone_fingerprint(model.model) == known
    save_adapter(DeltaMemory(model, AdapterConfig(rank=4)), tmp_path, model)
    half = small_model().to(torch.bfloat16)
    assert backbone_fingerprint(half) == known
    load_adapter(half, tmp_path)
    assert backbone_fingerprint(small_model().to(torch.float16)) == ""
    load_adapter(small_model().to(torch.float16), tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] += 0.1
    assert backbone_fingerprint(model) != known


def broken(path: Path, how: str) -> None:
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-100], "empty": b"", "noise": b"\xff" * 200, "text": b"not an adapter"}[how])


@pytest.mark.parametrize("theirs", [False, True], ids=["safetensors", "pt"])
@pytest.mark.parametrize("how", ["cut", "empty", "noise", "text"])
def test_damaged_weights_are_refused(tmp_path: Path, how: str, theirs: bool) -> None:
    model = small_model()
    save_adapter(DeltaMemory(model, AdapterConfig(rank=4)), tmp_path)
    path = tmp_path / WEIGHTS_FILE
    if theirs:
        torch.save(load_file(path), tmp_path / REFERENCE_WEIGHTS_FILE)
        path.unlink()
        path = tmp_path / REFERENCE_WEIGHTS_FILE
    broken(path, how)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        load_adapter(small_model(), tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("theirs", [False, True], ids=["safetensors", "pt"])
def test_a_few_wrong_bytes_fail_in_no_other_way(tmp_path: Path, theirs: bool) -> None:
    save_adapter(DeltaMemory(small_model(), AdapterConfig(rank=1)), tmp_path)
    path = tmp_path / WEIGHTS_FILE
    if theirs:
        torch.save(load_file(path), tmp_path / REFERENCE_WEIGHTS_FILE, _use_new_zipfile_serialization=False)
        path.unlink()
        path = tmp_path / REFERENCE_WEIGHTS_FILE
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 3, 30])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            read_weights(tmp_path)


@pytest.mark.parametrize(
    ("change_weights", "message"),
    [
        (lambda w, name: w | {name: w[name].fill_(torch.nan)}, "not finite"),
        (lambda w, name: w | {name: w[name].fill_(-torch.inf)}, "not finite"),
        (lambda w, name: w | {name: w[name].int()}, "must hold floating-point numbers, got torch.int32"),
        (lambda w, name: w | {name: w[name][:1].clone()}, r"must be \(4, 16\), got \(1, 16\)"),
        (lambda w, name: {n: t for n, t in w.items() if n != name}, r"lack .*memory_k_proj \(1 missing in all\)"),
        (lambda w, name: w | {"model.layers.7.self_attn.beta_bias": w[name].clone()}, "belongs to no adapted layer"),
        (lambda w, name: w | {"model.layers.0.self_attn.lambda_bias": torch.ones(4)}, "belongs to no adapted layer"),
    ],
)
def test_wrong_weights_are_refused_by_name(
    tmp_path: Path, change_weights: Callable[[dict[str, torch.Tensor], str], dict[str, torch.Tensor]], message: str
) -> None:
    save_adapter(DeltaMemory(small_model(), AdapterConfig(rank=4)), tmp_path)
    path = tmp_path / WEIGHTS_FILE
    save_file(change_weights(load_file(path), "model.layers.1.self_attn.memory_k_proj"), path)
    with pytest.raises(ValueError, match=message):
        load_adapter(small_model(), tmp_path)


def test_a_reference_file_of_other_things_is_refused(tmp_path: Path) -> None:
    save_adapter(DeltaMemory(small_model(), AdapterConfig(rank=4)), tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    for content in ([torch.ones(1)], {"a": 1}, torch.ones(1)):
        torch.save(content, tmp_path / REFERENCE_WEIGHTS_FILE)
        with pytest.raises(ValueError, match="must hold tensors by name"):
            load_adapter(small_model(), tmp_path)


@pytest.mark.parametrize("name", [CONFIG_FILE, CARD_FILE])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_config_or_card_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    save_adapter(DeltaMemory(small_model(), AdapterConfig(rank=4)), tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        load_adapter(small_model(), tmp_path)


def test_other_files_and_unknown_words_of_a_card_are_left_alone(tmp_path: Path) -> None:
    save_adapter(DeltaMemory(small_model(), AdapterConfig(rank=4)), tmp_path)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "optimizer.pt").write_bytes(b"\0")
    (tmp_path / CARD_FILE).write_text('{"license": "apache-2.0"}')
    load_adapter(small_model(), tmp_path)


def test_the_embedded_adapter_names_its_backbone() -> None:
    model = AutoModelForCausalLM.from_pretrained(embedded_model())
    card = AdapterCard.load(embedded_model() / "adapter")
    assert card.backbone == BackboneCard.of(model)


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
