"""Any decoder: the memory on it computes what a plain loop over the formulas does, whatever the attention looks like."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor, nn

from memfold_osam import AdapterConfig, DeltaMemory, OsamState, load_adapter, save_adapter
from memfold_osam.decoder import attention_blocks

LIMIT = 1e-5
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.15,
}
GEMMA = SMALL | {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def gemma3_with_vision() -> Any:
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=GEMMA, vision_config=VISION, mm_tokens_per_image=4, image_token_index=63)
    )


def qwen3_next() -> Any:
    return hf.Qwen3NextForCausalLM(
        hf.Qwen3NextConfig(
            **SMALL,
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
    )


def nemotron_h() -> Any:
    small = {name: value for name, value in SMALL.items() if name != "num_hidden_layers"}
    return hf.NemotronHForCausalLM(
        hf.NemotronHConfig(
            **small,
            head_dim=8,
            layers_block_type=["mamba", "attention"],
            mamba_num_heads=4,
            mamba_head_dim=8,
            ssm_state_size=8,
            n_groups=1,
            chunk_size=4,
        )
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
    "mistral, sliding window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SMALL, sliding_window=5)),
    "qwen2, biases": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SMALL)),
    "qwen3, wide heads": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL, head_dim=16)),
    "smollm3, a layer without positions": lambda: hf.SmolLM3ForCausalLM(
        hf.SmolLM3Config(**SMALL, no_rope_layers=[1, 0])
    ),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA)),
    "gemma3 with vision": gemma3_with_vision,
    "phi3, packed": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SMALL)),
    "olmo2, no norm before attention": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**SMALL)),
    "mixtral, experts": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**SMALL, num_local_experts=4)),
    "qwen3-moe, experts": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)
    ),
    "qwen3-next, hybrid": qwen3_next,
    "nemotron-h, hybrid": nemotron_h,
}
ALL = pytest.mark.parametrize("family", FAMILIES)


@cache
def frozen(family: str) -> Any:
    """A random model of the family; nothing is ever attached to it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family]().eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.3)
    return model


def attach(family: str, attention: str = "sdpa", **config: Any) -> tuple[Any, DeltaMemory]:
    """A copy of the model with a random adapter."""
    model = copy.deepcopy(frozen(family))
    model.set_attn_implementation(attention)
    memory = DeltaMemory(
        model, AdapterConfig(**{"rank": 4, "num_state_heads": 2, "delta_heads": tuple("qkvo")} | config)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model, memory.eval()


def random_state(memory: DeltaMemory, batch: int) -> OsamState:
    shape = memory.init_state(batch).tensor.shape
    return OsamState(torch.randn(shape, generator=torch.Generator().manual_seed(2)))


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(1, 60, (batch, length), generator=torch.Generator().manual_seed(3))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def run(model: Any, memory: DeltaMemory, state: OsamState, ids: Tensor, **options: Any) -> Tensor:
    """Logits of a call with the state bound; the state is carried on."""
    with memory.bind(state, token_mask=options.pop("token_mask", None), write=options.pop("write", True)):
        return model(input_ids=ids, **options).logits


def own_blocks(model: Any) -> dict[int, Any]:
    """The softmax attention of each layer that has one."""
    layers = (model.model.language_model if hasattr(model.model, "language_model") else model.model).layers
    named = {number: getattr(layer, "self_attn", getattr(layer, "mixer", None)) for number, layer in enumerate(layers)}
    return {number: block for number, block in named.items() if hasattr(block, "o_proj")}


def own_outputs(block: Any) -> dict[str, tuple[nn.Module, slice]]:
    """Where each projection's output is, as the families' own forward passes read it."""
    everything = slice(None)
    if not hasattr(block, "qkv_proj"):
        return {head: (getattr(block, f"{head}_proj"), everything) for head in "qkvo"}
    q, kv = block.config.num_attention_heads * block.head_dim, block.num_key_value_heads * block.head_dim
    packed = {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, None)}
    return {head: (block.qkv_proj, rows) for head, rows in packed.items()} | {"o": (block.o_proj, everything)}


@contextmanager
def plain_hooks(plain: ModuleType, model: Any, memory: DeltaMemory, state: Tensor, mask: Tensor) -> Iterator[None]:
    """Steer a frozen model by the oracle: row by row, layer by layer. ``state`` is carried on in place."""
    handles = []
    for index, block in enumerate(own_blocks(model).values()):
        weights, deltas = dict(memory.layer(index).named_parameters()), {}

        def before(
            _m: Any, args: Any, kwargs: Any, index: int = index, weights: Any = weights, deltas: Any = deltas
        ) -> None:
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            rows = [
                plain.run(memory.config, weights, state[index, row], x[row], real=mask[row]) for row in range(len(x))
            ]
            state[index] = torch.stack([row.state for row in rows])
            deltas.update({h: torch.stack([row.corrections[h] for row in rows]) for h in memory.config.delta_heads})

        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        for head, (module, rows) in own_outputs(block).items():

            def after(
                _m: Any, _a: Any, output: Tensor, head: str = head, rows: slice = rows, deltas: Any = deltas
            ) -> Tensor:
                output = output.clone()
                if head in deltas:
                    output[..., rows] += deltas[head]
                return output

            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_against_plain_loop(plain: ModuleType, family: str, attention: str, **config: Any) -> None:
    model, memory = attach(family, attention, **config)
    ids, mask = tokens(2, 11), torch.ones(2, 11, dtype=torch.bool)
    mask[1, 8:] = False
    state = random_state(memory, 2)
    wanted_state, bare = state.tensor.clone(), copy.deepcopy(frozen(family))
    bare.set_attn_implementation(attention)
    with torch.no_grad(), plain_hooks(plain, bare, memory, wanted_state, mask):
        wanted = bare(input_ids=ids).logits
    logits = run(model, memory, state, ids, token_mask=mask)
    assert distance(wanted[mask], frozen(family)(input_ids=ids).logits[mask]) > 0.01, "the memory steers nothing"
    assert distance(state.tensor, wanted_state) < LIMIT
    assert distance(logits[mask], wanted[mask]) < LIMIT


@ALL
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_state_and_logits_are_those_of_a_plain_loop_over_the_formulas(
    plain: ModuleType, family: str, attention: str
) -> None:
    check_against_plain_loop(plain, family, attention)


@pytest.mark.parametrize("heads", ["q", "ov", "vq", "ko"])
def test_any_of_the_projections_in_a_packed_one_are_steered_alone(plain: ModuleType, heads: str) -> None:
    check_against_plain_loop(plain, "phi3, packed", "sdpa", delta_heads=tuple(heads))


@ALL
def test_a_zero_state_is_the_frozen_model_bit_for_bit(family: str) -> None:
    model, memory = attach(family)
    ids = tokens(2, 9)
    wanted = frozen(family)(input_ids=ids).logits
    assert torch.equal(run(model, memory, memory.init_state(2), ids, write=False), wanted)
    first = run(model, memory, memory.init_state(2), ids, write=True)
    # Not in bits: an expert's other tokens, which are steered, share its matrix product.
    assert distance(first[:, 0], wanted[:, 0]) < LIMIT, "the first token reads the state before it"
    assert not torch.equal(first, wanted)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, wanted), "without a state nothing is steered"


@ALL
def test_with_writing_off_the_state_stands_still_and_still_steers(family: str) -> None:
    model, memory = attach(family)
    state = random_state(memory, 2)
    before = state.tensor.clone()
    logits = run(model, memory, state, tokens(2, 6), write=False)
    assert torch.equal(state.tensor, before)
    assert distance(logits, frozen(family)(input_ids=tokens(2, 6)).logits) > 0.01


@ALL
def test_calls_with_a_cache_add_up_to_one_call(family: str) -> None:
    model, memory = attach(family)
    ids, state, whole = tokens(2, 14), random_state(memory, 2), random_state(memory, 2)
    wanted = run(model, memory, whole, ids)
    past = hf.DynamicCache(config=model.config.get_text_config())
    pieces = ids.split([6, 1, 1, 4, 2], dim=1)
    logits = [run(model, memory, state, piece, past_key_values=past) for piece in pieces]
    assert distance(state.tensor, whole.tensor) < LIMIT
    assert distance(torch.cat(logits, 1), wanted) < LIMIT


@ALL
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_is_what_it_is_alone(family: str, side: str) -> None:
    model, memory = attach(family)
    ids, mask = tokens(2, 10), torch.ones(2, 10, dtype=torch.bool)
    real = slice(0, 7) if side == "right" else slice(3, 10)
    mask[1] = False
    mask[1, real] = True
    state, alone = random_state(memory, 2), random_state(memory, 2)
    alone = OsamState(alone.tensor[:, 1:])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    together = run(
        model, memory, state, ids, token_mask=mask, attention_mask=mask.long(), position_ids=positions, use_cache=False
    )
    single = run(model, memory, alone, ids[1:, real], use_cache=False)
    assert distance(state.tensor[:, 1:], alone.tensor) < LIMIT
    assert distance(together[1:, real], single) < LIMIT


@ALL
def test_generate_with_a_bound_state_continues_as_one_long_call_would(family: str) -> None:
    model, memory = attach(family)
    ids, state, whole = tokens(2, 7), random_state(memory, 2), random_state(memory, 2)
    with memory.bind(state):
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    logits = run(model, memory, whole, answer[:, :-1])
    assert torch.equal(logits[:, 6:].argmax(-1), answer[:, 7:])
    assert distance(state.tensor, whole.tensor) < LIMIT


@ALL
def test_an_adapter_loads_back_under_the_names_of_the_reference(family: str, tmp_path: Path) -> None:
    model, memory = attach(family)
    save_adapter(memory, tmp_path)
    names = load_file(tmp_path / "delta_mem_adapter.safetensors")
    assert {name.rpartition(".")[0] for name in names} == {f"model.layers.{n}.self_attn" for n in own_blocks(model)}
    again = copy.deepcopy(frozen(family))
    loaded = load_adapter(again, tmp_path)
    ids = tokens(1, 6)
    assert torch.equal(
        run(again, loaded, random_state(loaded, 1), ids), run(model, memory, random_state(memory, 1), ids)
    )


def test_an_adapter_of_a_decoder_loads_on_the_same_decoder_inside_a_wrapper(tmp_path: Path) -> None:
    model, memory = attach("gemma3")
    save_adapter(memory, tmp_path)
    wrapper = copy.deepcopy(frozen("gemma3 with vision"))
    wrapper.model.language_model.load_state_dict(model.model.state_dict())
    wrapper.lm_head.load_state_dict(model.lm_head.state_dict())
    loaded, ids = load_adapter(wrapper, tmp_path), tokens(1, 6)
    wanted = run(model, memory, random_state(memory, 1), ids)
    assert distance(run(wrapper, loaded, random_state(memory, 1), ids), wanted) < LIMIT


@ALL
def test_corrections_start_from_the_first_columns_of_the_frozen_weights(family: str) -> None:
    model = copy.deepcopy(frozen(family))
    memory = DeltaMemory(model, AdapterConfig(rank=4, delta_heads=tuple("qkvo"), base_slice_ref_width=3))
    for index, block in enumerate(own_blocks(model).values()):
        for head, (module, rows) in own_outputs(block).items():
            base = module.weight[rows, :3]
            start = getattr(memory.layer(index), f"delta_{head}_proj")
            assert torch.allclose(start[:, :3], 0.05 * base / base.norm(dim=0), atol=1e-7)
            assert not start[:, 3:].any()


# --- what is not as simple ----------------------------------------------------------------------------------------


def test_a_layer_of_a_hybrid_decoder_that_has_no_softmax_attention_cannot_be_chosen() -> None:
    model = copy.deepcopy(frozen("qwen3-next, hybrid"))
    assert DeltaMemory(model, AdapterConfig(target_layers=(1,))).block_names == ["model.layers.1.self_attn"]
    with pytest.raises(ValueError, match=r"target_layers names \[0\], but the layers with attention are 1"):
        DeltaMemory(model, AdapterConfig(target_layers=(0, 1)))


def test_a_block_without_keys_of_that_name_is_steered_where_it_has_projections() -> None:
    config = hf.DeepseekV2Config(
        **SMALL | {"num_key_value_heads": 4},
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=2,
    )
    model = hf.DeepseekV2ForCausalLM(config).eval()
    memory = DeltaMemory(model, AdapterConfig(rank=4, delta_heads=("q", "o")))
    run(model, memory, random_state(memory, 1), tokens(1, 5))
    assert not hasattr(memory.layer(0), "delta_k_proj")
    with pytest.raises(TypeError, match=r"model.layers.0.self_attn has no k_proj; delta_heads may be q, o there"):
        DeltaMemory(model, AdapterConfig(delta_heads=("q", "k")))


def test_linear_attention_under_the_name_of_softmax_attention_is_left_alone() -> None:
    model = copy.deepcopy(frozen("llama"))
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert list(attention_blocks(model)) == [1]


class Quantised(nn.Module):
    """A linear module as quantisers make it: the numbers in its weight are not the matrix."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        self.scale = base.weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((base.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


class LowRank(nn.Module):
    """A linear module as LoRA wraps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.in_features, self.out_features = base, base.in_features, base.out_features
        self.a, self.b = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.b(self.a(x))


@pytest.mark.parametrize("kind", [Quantised, LowRank])
def test_quantised_and_wrapped_projections_are_steered(plain: ModuleType, kind: type[Any]) -> None:
    changed = copy.deepcopy(frozen("qwen2, biases"))
    for layer in changed.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, kind(getattr(layer.self_attn, name)))
    model = copy.deepcopy(changed)
    memory = DeltaMemory(model, AdapterConfig(rank=4, delta_heads=tuple("qkvo")))
    base = frozen("qwen2, biases").model.layers[1].self_attn.k_proj.weight[:, :4]
    start = memory.layer(1).delta_k_proj
    assert start.dtype == torch.float32
    assert torch.allclose(start, 0.05 * base / base.norm(dim=0), atol=1e-3)
    ids, mask, state = tokens(1, 6), torch.ones(1, 6), random_state(memory, 1)
    wanted_state = state.tensor.clone()
    with torch.no_grad(), plain_hooks(plain, changed, memory, wanted_state, mask):
        wanted = changed(input_ids=ids).logits
    assert distance(run(model, memory, state, ids), wanted) < LIMIT
    assert distance(state.tensor, wanted_state) < LIMIT


class Wrapper(nn.Module):
    """A decoder between towers with attention blocks of their own, one of them inside the decoder."""

    def __init__(self, decoder: nn.Module, tower: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.tower, self.text = tower, decoder
        decoder.embed_tokens.vision = inner

    def get_decoder(self) -> nn.Module:
        return self.text


def test_the_towers_beside_and_inside_a_text_decoder_are_left_alone() -> None:
    decoder, tower, inner = (copy.deepcopy(frozen("llama").model) for _ in range(3))
    blocks = attention_blocks(Wrapper(decoder, tower, inner))
    assert [block.module for block in blocks.values()] == [layer.self_attn for layer in decoder.layers]
    assert [block.name for block in blocks.values()] == ["text.layers.0.self_attn", "text.layers.1.self_attn"]


def test_a_model_with_two_stacks_of_layers_is_refused() -> None:
    model = nn.ModuleDict({"low": copy.deepcopy(frozen("llama").model), "high": copy.deepcopy(frozen("llama").model)})
    with pytest.raises(TypeError, match=r"ModuleDict has several stacks of layers: low\.layers, high\.layers"):
        attention_blocks(model)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "gpt2": (
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=8)),
        r"GPT2LMHeadModel has no layers with self_attn.*h\.0\.attn has c_attn, c_proj",
    ),
    "gpt-neox": (
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SMALL)),
        r"GPTNeoXForCausalLM has no layers with self_attn.*layers\.0\.attention has query_key_value, dense",
    ),
    "opt": (
        lambda: hf.OPTForCausalLM(
            hf.OPTConfig(hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
        ),
        r"OPTForCausalLM: model\.decoder\.layers\.0\.self_attn has .*out_proj, but .*o_proj are needed",
    ),
    "phi2": (
        lambda: hf.PhiForCausalLM(hf.PhiConfig(**SMALL)),
        r"PhiForCausalLM: model\.layers\.0\.self_attn has .*dense, but .*o_proj are needed",
    ),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=2, vocab_size=8)
        ),
        "T5ForConditionalGeneration is an encoder-decoder",
    ),
    "bart": (
        lambda: hf.BartForConditionalGeneration(
            hf.BartConfig(
                d_model=32,
                encoder_layers=1,
                decoder_layers=1,
                encoder_ffn_dim=8,
                decoder_ffn_dim=8,
                vocab_size=8,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
            )
        ),
        "BartForConditionalGeneration is an encoder-decoder",
    ),
    "bert": (
        lambda: hf.BertForMaskedLM(
            hf.BertConfig(hidden_size=32, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
        ),
        r"BertForMaskedLM has no layers with self_attn.*attention\.self has query, key, value",
    ),
    "eurobert, an encoder of a decoder's parts": (
        lambda: hf.EuroBertForMaskedLM(hf.EuroBertConfig(**SMALL | {"num_key_value_heads": 4})),
        r"EuroBertForMaskedLM: model\.layers\.0\.self_attn attends to later tokens",
    ),
    "mla with a low-rank query": (
        lambda: hf.DeepseekV3ForCausalLM(
            hf.DeepseekV3Config(**SMALL | {"num_key_value_heads": 4}, first_k_dense_replace=2, q_lora_rank=8)
        ),
        r"self_attn has q_a_proj.*q_proj \(or qkv_proj\) and o_proj are needed",
    ),
    "mamba": (
        lambda: hf.MambaForCausalLM(hf.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=8, state_size=4)),
        "MambaForCausalLM has no layers with self_attn",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adapted_is_refused_by_name_with_the_reason(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        DeltaMemory(build(), AdapterConfig())


def test_a_packed_projection_of_another_layout_is_refused() -> None:
    model = copy.deepcopy(frozen("phi3, packed"))
    model.model.layers[1].self_attn.qkv_proj = nn.Linear(32, 65)
    with pytest.raises(TypeError, match=r"layers\.1\.self_attn\.qkv_proj has 65 rows, which are not 32 of q"):
        attention_blocks(model)


def test_layers_that_share_one_attention_block_are_refused() -> None:
    model = copy.deepcopy(frozen("llama"))
    model.model.layers[1].self_attn = model.model.layers[0].self_attn
    with pytest.raises(TypeError, match="layers 0 and 1 share one attention block"):
        attention_blocks(model)


def test_a_model_that_is_not_loaded_is_refused() -> None:
    with torch.device("meta"):
        model = FAMILIES["llama"]()
    with pytest.raises(ValueError, match="LlamaForCausalLM's layers lie on meta"):
        DeltaMemory(model, AdapterConfig())


def test_a_refused_adapter_leaves_no_hook_behind() -> None:
    model = copy.deepcopy(frozen("llama"))
    model.model.layers[1].self_attn.v_proj = None
    with pytest.raises(TypeError, match=r"model\.layers\.1\.self_attn has no v_proj"):
        DeltaMemory(model, AdapterConfig(delta_heads=("q", "v")))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
