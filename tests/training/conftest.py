from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from memfold_osam.testing import write_random_model
from memfold_training.encoder import TurnEncoder


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random backbone, and an adapter beside it that nobody uses here."""
    return write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def backbone(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.fixture(scope="session")
def encoder(directory: Path) -> TurnEncoder:
    return TurnEncoder(AutoTokenizer.from_pretrained(directory))
