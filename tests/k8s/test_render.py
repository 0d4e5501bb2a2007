"""What is rendered is valid, and the renderer here agrees with the real one."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

KEDA_SCHEMA = json.loads(Path(__file__).with_name("scaled_object.schema.json").read_text())
OLDEST = "1.30"  # the oldest that k8s/README.md promises to work on


def real_kustomize():
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return None


def validate(found, version):
    if found["apiVersion"].startswith("keda.sh/"):
        jsonschema.Draft202012Validator(KEDA_SCHEMA).validate(found)
    else:
        assert version.startswith(kubernetes_validate.validate(found, version, strict=True))


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_object_fits_the_schema_of_its_kind(objects, version):
    for found in objects:
        validate(found, version)


def test_the_schemas_refuse_what_they_do_not_know(overlay):
    for identity, path in (
        (("Deployment", "memfold-gateway"), ["spec", "template", "spec", "containers", 0]),
        (("StatefulSet", "memfold-redis"), ["spec", "template", "spec"]),
        (("NetworkPolicy", "memfold"), ["spec"]),
        (("ScaledObject", "memfold-writer"), ["spec"]),
        (("ScaledObject", "memfold-writer"), ["spec", "triggers", 0, "metadata"]),
    ):
        wrong = copy.deepcopy(overlay[identity])
        place = wrong
        for step in path:
            place = place[step]
        place["mispelled"] = "x"
        with pytest.raises(jsonschema.ValidationError):
            validate(wrong, kubernetes_validate.latest_version())


def test_the_schema_for_keda_refuses_numbers_where_keda_wants_texts(overlay):
    wrong = copy.deepcopy(overlay["ScaledObject", "memfold-reader"])
    wrong["spec"]["triggers"][0]["metadata"]["threshold"] = 24
    with pytest.raises(jsonschema.ValidationError):
        validate(wrong, OLDEST)


def test_no_two_objects_share_a_name(objects):
    names = [(found["apiVersion"], found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))


@pytest.mark.skipif(real_kustomize() is None, reason="neither kustomize nor kubectl is installed")
def test_the_real_kustomize_gives_the_same(combination, folders, renderer):
    command = [*real_kustomize(), str(folders[combination])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # a warning is an error

    def by_name(objects):
        return {(found["kind"], found["metadata"]["name"]): found for found in objects}

    assert by_name(renderer.render(folders[combination])) == by_name(yaml.safe_load_all(done.stdout))


def test_the_renderer_refuses_what_it_does_not_know(renderer, tmp_path):
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nnamePrefix: x-\n")
    with pytest.raises(AssertionError, match="namePrefix"):
        renderer.render(tmp_path)
