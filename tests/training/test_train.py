"""``memfold train``: a run from JSONL to an adapter that can be served."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments
from typer.testing import CliRunner

from memfold.cli import app
from memfold.persona import generate
from memfold_osam import AdapterConfig
from memfold_osam.adapter import adapter_weights
from memfold_osam.card import backbone_fingerprint
from memfold_osam.fold import Folder, FoldJob
from memfold_osam.serving import load_served_model
from memfold_osam.turns import Message
from memfold_training.adapter import WriteThenRead
from memfold_training.conversations import Collator, EpisodeLimits, Episodes, read_conversations
from memfold_training.dialogues import as_line
from memfold_training.encoder import TurnEncoder
from memfold_training.needs import memory_needed
from memfold_training.recipes import PRESETS, recipe
from memfold_training.train import new_memory, train
from memfold_training.trainer import _named, _refuse

FEW = [
    "training.max_steps=6",
    "training.save_steps=3",
    "training.eval_steps=3",
    "training.per_device_train_batch_size=2",
    "training.logging_steps=1",
    "training.disable_tqdm=true",
    "training.gradient_checkpointing=true",
    "adapter.rank=8",
    "episodes.questions=2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "persona.jsonl"
    path.write_text("".join(as_line(generate(seed, facts=1, unknown=1, split="train")) + "\n" for seed in range(5)))
    return path


@pytest.fixture(scope="module")
def trained(directory: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "mine"
    return out, train(str(data), str(directory), str(out), "persona", FEW, str(data))


def curve(checkpoint: Path) -> list[tuple[int, float]]:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]


def test_a_checkpoint_is_an_adapter_that_can_be_served(trained: tuple[Path, Any], directory: Path) -> None:
    out, _ = trained
    for path in (out / "checkpoint-3", out):
        served = load_served_model(str(directory), str(path))
        assert served.adapter == "mine"
        assert served.block_tokens == 1024
        (folded,) = Folder(served).fold([FoldJob(None, 0, [Message("user", "I live in Oslo.")])])
        assert folded.state.shape == (4, 8, 8, 8)
        assert folded.state.abs().sum() > 0


def test_gathered_weights_are_saved_under_the_same_names(directory: Path) -> None:
    memory = new_memory(AutoModelForCausalLM.from_pretrained(directory), recipe("persona", ["adapter.rank=8"]))
    gathered = {f"memory.{name}": tensor for name, tensor in memory.state_dict().items()}
    assert all(torch.equal(adapter_weights(memory)[name], tensor) for name, tensor in _named(memory, gathered).items())


def test_the_card_says_what_it_was_trained_on_how_and_with_what_result(
    trained: tuple[Path, Any], directory: Path, data: Path
) -> None:
    out, found = trained
    card = json.loads((out / "memfold_card.json").read_text())
    assert card["backbone"]["fingerprint"] == backbone_fingerprint(AutoModelForCausalLM.from_pretrained(directory))
    assert card["data"] == {"file": "persona.jsonl", "sha256": sha256(data.read_bytes()).hexdigest()}
    assert card["recipe"]["preset"] == "persona"
    assert card["recipe"]["adapter"]["rank"] == 8
    assert card["steps"] == found["steps"] == 6
    assert card["evaluation"]["eval_exact"] == pytest.approx(found["eval_exact"], abs=1e-6)
    assert found["eval_nll"] > 0
    assert card["evaluation"]["eval_replies"] == sum(len(c.questions) for c in read_conversations(data))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    trained: tuple[Path, Any], directory: Path, data: Path, tmp_path: Path
) -> None:
    whole, _ = trained
    (whole / "checkpoint-3").rename(tmp_path / "checkpoint-3")
    train(str(data), str(directory), str(tmp_path), "persona", FEW, str(data), True)
    assert curve(tmp_path / "checkpoint-6") == curve(whole / "checkpoint-6")
    ours, theirs = (path / "delta_mem_adapter.safetensors" for path in (tmp_path, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_it_is_a_command(directory: Path, data: Path, tmp_path: Path) -> None:
    started = ["train", str(data), "--backbone", str(directory), "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, [*started, "--needs"])
    assert json.loads(done.stdout)["bytes"]["backbone"] > 0
    few = [argument for change in [*FEW, "training.max_steps=1"] for argument in ("--set", change)]
    done = CliRunner().invoke(app, [*started, "--preset", "persona", *few])
    assert json.loads(done.stdout).keys() == {"steps", "loss"}
    assert (tmp_path / "out" / "memfold_card.json").exists()
    started[5] = str(tmp_path / "none")
    done = CliRunner().invoke(app, [*started, "--preset", "persona", "--set", "training.learning_rat=1"])
    assert done.exit_code == 1
    assert "learning_rat" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_conversation_without_questions_ends_in_one(tmp_path: Path, encoder: TurnEncoder) -> None:
    path = tmp_path / "talk.jsonl"
    turns = [("system", "Be kind."), ("user", "I am Ada."), ("assistant", "Hello."), ("user", "Who am I?")]
    spoken = [{"role": role, "content": text} for role, text in [*turns, ("assistant", "Ada.")]]
    path.write_text(json.dumps({"turns": spoken}) + "\n\n")
    (example,) = Episodes(read_conversations(path), encoder, EpisodeLimits())
    assert example.context.tokens == [i for role, text in turns[:3] for i in encoder.turn(role, text)]
    assert example.asked[0].prompt == encoder.prompt("Who am I?")
    assert example.asked[0].reply == encoder.reply("Ada.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting"),
        ('{"turns": 1}', "line 2: turns must be a list"),
        ('{"turns": [{"role": "bot", "content": "x"}], "questions": []}', "role must be one of"),
        ('{"turns": [{"role": "user", "content": "x"}]}', "ends in a user's turn"),
        ('{"turns": [], "questions": [{"text": "x"}]}', "answer must be a text"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(as_line(generate(1, facts=1)) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_conversations(path)


def test_every_question_is_asked_once_an_epoch(data: Path, encoder: TurnEncoder) -> None:
    conversations = read_conversations(data)
    for most in (1, 2):
        episodes = Episodes(conversations, encoder, EpisodeLimits(questions=most), others=True)
        asked = [encoder.tokenizer.decode(a.prompt) for i in range(len(episodes)) for a in episodes[i].asked]
        assert sorted(asked) == sorted(
            encoder.tokenizer.decode(encoder.prompt(q.text)) for c in conversations for q in c.questions
        )
    batch = Collator(replace(PRESETS["persona"].loss))([episodes[0], episodes[1]])
    assert batch["owner"].tolist() == [0, 0, 1, 1]
    assert batch["other_owner"].tolist() == [0, 1]


def test_the_reference_recipe_is_the_published_one() -> None:
    published = recipe("reference-qasper")
    assert published.adapter == AdapterConfig(
        rank=8, alpha=16.0, num_state_heads=1, delta_heads=("q", "o"), base_slice_ref_width=8, online_gain=0.05
    )
    assert published.episodes.context_tokens == 8192
    assert (published.loss.sparsity, published.loss.sparsity_target) == (0.01, 0.05)
    said = {"learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "weight_decay": 0.0}
    assert {key: published.training[key] for key in said} == said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("adapter.rnk=4", "adapter has .*rank"),
        ("adapter.rank=many", "adapter.rank must be a int"),
        ("colour=red", "there is no 'colour'"),
        ("start=anyhow", "start must be one of config, attention"),
        ("rank", "must be key=value"),
    ],
)
def test_a_change_that_means_nothing_is_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe("persona", [change])
    with pytest.raises(ValueError, match="there is no preset 'mine'"):
        recipe("mine")


def test_training_keeps_the_adapter_in_fp32_on_a_backbone_of_less(
    directory: Path, data: Path, encoder: TurnEncoder
) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    memory = new_memory(model, recipe("persona", ["adapter.rank=8"]))
    assert {p.dtype for p in memory.parameters()} == {torch.float32}
    module = WriteThenRead(model, memory, PRESETS["persona"].loss)
    batch = Collator(module.weights)([Episodes(read_conversations(data), encoder, EpisodeLimits(), others=True)[0]])
    module(**batch)["loss"].backward()
    assert memory.layer(0).memory_k_proj.grad.abs().sum() > 0
    with torch.no_grad():
        assert module(**batch)["loss"].isfinite()


def test_what_would_compute_something_else_is_refused(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    _refuse(arguments)
    arguments._n_gpu = 4
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 4"):
        _refuse(arguments)
    arguments._n_gpu = 1
    arguments.fsdp_config = {"activation_checkpointing": True}
    with pytest.raises(ValueError, match="use gradient_checkpointing"):
        _refuse(arguments)


def test_the_memory_it_takes_is_computed_from_a_configuration(directory: Path) -> None:
    kept = memory_needed(str(directory), recipe("persona", ["adapter.rank=8"]))
    less = memory_needed(str(directory), recipe("persona", ["adapter.rank=8", "training.gradient_checkpointing=true"]))
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert kept["bytes"]["backbone"] == 4 * sum(p.numel() for p in model.parameters())
    assert kept["bytes"]["activations"] > 1.5 * less["bytes"]["activations"]
    # a block of four layers, 64 wide, keeps dozens of numbers a channel for every token
    tokens = kept["written_tokens"] + kept["asked_tokens"]
    assert 4 * 64 * 4 * 10 < kept["bytes"]["activations"] / tokens < 4 * 64 * 4 * 100
    assert sum(v for k, v in kept["bytes"].items() if k != "in all") == kept["bytes"]["in all"]
