"""Renders k8s/ once for every test here: each component alone, all of them, and the overlay."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
COMBINATIONS = {
    "base": [],
    "redis": ["redis"],
    "keda": ["keda"],
    "hpa": ["hpa"],
    "cpu": ["cpu"],
    "all": ["redis", "keda", "hpa", "cpu"],
    "overlay": None,
}


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"memfold_tests_k8s_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def renderer():
    """The renderer's module."""
    return _load("render")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """For each combination the folder of its kustomization."""
    found = {}
    for name, components in COMBINATIONS.items():
        if components is None:
            found[name] = K8S / "overlays" / "example"
            continue
        folder = found[name] = tmp_path_factory.mktemp(name).resolve()
        lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
        lines += ["resources:", f"  - {os.path.relpath(K8S / 'base', folder)}"]
        lines += ["components:"] * bool(components)
        lines += [f"  - {os.path.relpath(K8S / 'components' / component, folder)}" for component in components]
        (folder / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    return found


@pytest.fixture(params=COMBINATIONS)
def combination(request):
    """The name of each combination."""
    return request.param


@pytest.fixture
def objects(combination, folders, renderer):
    """All objects of each combination."""
    return renderer.render(folders[combination])


@pytest.fixture
def overlay(folders, renderer):
    """All objects of the overlay, by kind and name."""
    return {(found["kind"], found["metadata"]["name"]): found for found in renderer.render(folders["overlay"])}
