from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from memfold_osam import AdapterConfig, DeltaMemory, load_adapter, save_adapter
from memfold_osam.adapter import WEIGHTS_FILE
from memfold_osam.card import CARD_FILE
from memfold_osam.inspect import inspect_adapter
from memfold_osam.serving import embedded_model

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def qwen(**config: object) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config(**SMALL | config))


def adapter(model: PreTrainedModel, path: Path, config: AdapterConfig, *, named: bool = False) -> Path:
    save_adapter(DeltaMemory(model, config), path, model if named else None)
    return path


def test_the_embedded_adapter_is_told_as_it_is() -> None:
    path = embedded_model() / "adapter"
    facts = inspect_adapter(str(path))
    model = AutoModelForCausalLM.from_pretrained(embedded_model())
    memory = load_adapter(model, path)
    assert tuple(facts["state_shape"]) == memory.state_shape
    assert facts["state_bytes"] == memory.init_state(1).tensor.nbytes
    assert facts["parameters"] + facts["unused_parameters"] == sum(p.numel() for p in memory.parameters())
    assert facts["parameters"] == sum(p.numel() for p in memory.parameters() if p.any())
    assert facts["backbone"]["parameters"] == model.num_parameters()
    assert facts["backbone"]["size_from"] == "directory"


def test_the_shapes_and_numbers_of_the_released_adapter(tmp_path: Path) -> None:
    """Qwen3-4B: 135,176 numbers a layer, 4,866,336 in all, 9,216 bytes of state."""
    shapes = {"memory_q_proj": (8, 2560), "memory_k_proj": (8, 2560), "memory_v_proj": (8, 2560)}
    shapes |= {"beta_proj": (8, 2560), "beta_bias": (8,)}
    shapes |= {"delta_q_proj": (4096, 8), "delta_k_proj": (1024, 8), "delta_v_proj": (1024, 8)}
    shapes |= {"delta_o_proj": (2560, 8)}
    AdapterConfig().save(tmp_path)
    save_file(
        {
            f"model.layers.{n}.self_attn.{name}": torch.zeros(shape, dtype=torch.bfloat16)
            for n in range(36)
            for name, shape in shapes.items()
        },
        tmp_path / WEIGHTS_FILE,
    )
    (tmp_path / "backbone").mkdir()
    qwen3_4b = {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
    qwen3_4b |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
    Qwen3Config(**qwen3_4b).save_pretrained(tmp_path / "backbone")
    facts = inspect_adapter(str(tmp_path), str(tmp_path / "backbone"))
    assert facts["parameters"] == 36 * 135_176 == 4_866_336
    assert facts["state_bytes"] == 9_216
    assert facts["backbone"]["parameters"] == 4_022_468_096
    stored = 4_866_336 + 36 * 2 * 1024 * 8
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        costs = facts["serving"][dtype]
        assert costs["least_ram_bytes"] == size * (4_022_468_096 + stored) + 9_216
        assert costs["kv_cache_bytes_a_block"] == size * 36 * 8192 * 2 * 1024


@pytest.mark.parametrize("tied", [True, False])
def test_least_ram_is_what_the_loaded_tensors_take(tmp_path: Path, tied: bool) -> None:
    qwen(tie_word_embeddings=tied).save_pretrained(tmp_path)
    config = AdapterConfig(rank=4, num_state_heads=2, couple_lambda=False, delta_o_rmsnorm=True, target_layers=(0, 2))
    adapter(qwen(), tmp_path / "adapter", config)
    facts = inspect_adapter(str(tmp_path / "adapter"))
    assert facts["layers"] == [0, 2]
    for name in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, name))
        memory = load_adapter(model, tmp_path / "adapter")
        tensors = [*model.parameters(), *memory.parameters(), memory.init_state(1).tensor]
        assert facts["serving"][name]["least_ram_bytes"] == sum(tensor.nbytes for tensor in tensors)


def test_without_a_backbone_only_the_adapters_share_is_known(tmp_path: Path) -> None:
    facts = inspect_adapter(str(adapter(qwen(), tmp_path, AdapterConfig(rank=4))))
    assert facts["backbone"] == {"id": "", "revision": "", "fingerprint": "", "parameters": None, "size_from": None}
    for size, costs in zip((4, 2), facts["serving"].values(), strict=True):
        assert costs["adapter_bytes"] == size * (facts["parameters"] + facts["unused_parameters"])
        assert costs["state_bytes"] == 3 * 4 * 4 * 4
        assert costs["least_ram_bytes"] is costs["backbone_bytes"] is costs["kv_cache_bytes_a_block"] is None


def test_the_card_tells_the_backbones_size(tmp_path: Path) -> None:
    model = qwen()
    told = inspect_adapter(str(adapter(model, tmp_path / "mine", AdapterConfig(rank=4), named=True)))
    model.save_pretrained(tmp_path / "backbone")
    seen = inspect_adapter(str(tmp_path / "mine"), str(tmp_path / "backbone"))
    assert told["backbone"]["size_from"] == "card"
    assert told["backbone"]["parameters"] == seen["backbone"]["parameters"] == model.num_parameters()
    for name, costs in told["serving"].items():
        assert costs["least_ram_bytes"] == seen["serving"][name]["least_ram_bytes"]


def test_a_hub_that_is_not_there_is_asked_once_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def gone(request: Request, timeout: float) -> None:
        asked.append((request.full_url, timeout))
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", gone)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    path = str(embedded_model() / "adapter")
    with pytest.raises(ValueError, match=r"nobody/no-such-model is no backbone: .*cannot be reached"):
        inspect_adapter(path, "nobody/no-such-model")
    assert len(asked) == 1
    assert asked[0][0].endswith("/nobody/no-such-model/resolve/main/config.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids"):
        inspect_adapter(path, "nobody/no-such-model")
    with pytest.raises(ValueError, match="there is no such directory"):
        inspect_adapter(path, "./nobody")
    assert len(asked) == 1
    assert not caplog.records


def test_a_bare_adapter_is_told_without_the_slow_libraries(tmp_path: Path) -> None:
    adapter(qwen(), tmp_path, AdapterConfig(rank=4))
    code = (
        "import sys; from memfold_osam.inspect import inspect_adapter;"
        f"inspect_adapter({str(tmp_path)!r}); sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_experts_are_all_counted(tmp_path: Path) -> None:
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4))
    model.save_pretrained(tmp_path)
    facts = inspect_adapter(str(adapter(model, tmp_path / "adapter", AdapterConfig(rank=2))))
    assert facts["backbone"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_layer_with_a_window_caches_no_more_than_that(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, layer_types=kinds, sliding_window=10))
    model.save_pretrained(tmp_path)
    adapter(model, tmp_path / "adapter", AdapterConfig(rank=2))
    (tmp_path / "adapter" / CARD_FILE).write_text('{"block_tokens": 100}')
    costs = inspect_adapter(str(tmp_path / "adapter"))["serving"]["float32"]
    assert costs["kv_cache_bytes_a_block"] == 4 * (10 + 100 + 10) * 2 * 8


def test_what_is_told_is_plain_data(tmp_path: Path) -> None:
    facts = inspect_adapter(str(adapter(qwen(), tmp_path, AdapterConfig(rank=4), named=True)))
    assert json.loads(json.dumps(facts)) == facts
    by_name = {kind["parameter"]: kind for kind in facts["shapes"]}
    assert by_name["memory_q_proj"] == {
        "parameter": "memory_q_proj",
        "shapes": [[4, 16]],
        "layers": 3,
        "numbers": 192,
        "used": True,
    }
    assert not by_name["delta_k_proj"]["used"]


def test_an_adapter_for_another_backbone_is_refused(tmp_path: Path) -> None:
    qwen(hidden_size=24).save_pretrained(tmp_path / "wide")
    qwen(num_hidden_layers=2).save_pretrained(tmp_path / "short")
    GPT2Config(n_layer=1, n_embd=8, n_head=2).save_pretrained(tmp_path / "gpt2")
    adapter(qwen(), tmp_path / "mine", AdapterConfig(rank=4))
    adapter(qwen(), tmp_path / "last", AdapterConfig(rank=4, target_layers=(2,)))
    for path, backbone, error, message in [
        ("mine", "wide", ValueError, r"must be \(4, 24\), got \(4, 16\)"),
        ("mine", "short", ValueError, "layers.2.* belongs to no adapted layer"),
        ("last", "short", ValueError, r"target_layers names \[2\]"),
        ("mine", "gpt2", TypeError, "GPT2LMHeadModel has no layers"),
        ("mine", "mine", ValueError, "is no backbone"),
    ]:
        with pytest.raises(error, match=message):
            inspect_adapter(str(tmp_path / path), str(tmp_path / backbone))


def test_an_adapter_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"delta_mem_config\.json"):
        inspect_adapter(str(tmp_path))
    path = adapter(qwen(), tmp_path, AdapterConfig(rank=4)) / WEIGHTS_FILE
    weights = load_file(path)
    for change, message in [
        ({}, "there are no weights"),
        ({"lm_head.weight": torch.ones(1)}, "lm_head.weight belongs to no adapted layer"),
        ({n: t for n, t in weights.items() if not n.endswith("beta_bias")}, r"lack .*beta_bias \(3 missing in all\)"),
        ({n: t for n, t in weights.items() if not n.endswith("memory_q_proj")}, "lack .*memory_q_proj"),
        ({n: t[0] if t.ndim == 2 else t for n, t in weights.items()}, "must be"),
    ]:
        save_file(change, path)
        with pytest.raises(ValueError, match=message):
            inspect_adapter(str(tmp_path))
