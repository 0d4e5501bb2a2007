from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from memfold_osam.serving import ServedModel
from memfold_osam.testing import tiny_random_model


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return tiny_random_model(tmp_path_factory.mktemp("model"), block_tokens=64)


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    """The oracle in ``plain.py``; a plain import does not find it, as the tests are no package."""
    spec = importlib.util.spec_from_file_location("memfold_osam_plain", Path(__file__).with_name("plain.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
