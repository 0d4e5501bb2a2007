from __future__ import annotations

import pytest

from memfold_osam.serving import ServedModel
from memfold_osam.testing import tiny_random_model


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return tiny_random_model(tmp_path_factory.mktemp("model"), block_tokens=64)
