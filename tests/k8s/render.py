"""Renders a kustomization without kustomize: the part of it that k8s/ uses, and an error for everything else.

Where the real one is installed, a test holds the two against each other.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

KNOWN_FIELDS = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "patches",
    "configMapGenerator",
    "images",
    "labels",
    "namespace",
}
CLUSTER_WIDE = {"Namespace"}
# Lists whose entries a patch finds by a key; all other lists it replaces.
MERGE_KEYS = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}


def render(folder: Path) -> list[Object]:
    """Every object that ``kustomize build`` gives, in no promised order."""
    objects: list[Object] = []
    _accumulate(folder, objects)
    _hash_names(objects)
    return objects


def _accumulate(folder: Path, objects: list[Object]) -> None:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(kustomization) - KNOWN_FIELDS
    assert not unknown, f"{folder}: this renderer does not know {sorted(unknown)}"
    own: list[Object] = []
    for resource in kustomization.get("resources", []):
        path = folder / resource
        if path.is_dir():
            _accumulate(path, own)
        else:
            own += [document for document in yaml.safe_load_all(path.read_text()) if document]
    # A component works on all that its user has gathered so far; a kustomization only on its own.
    scope = objects if kustomization["kind"] == "Component" else []
    scope += own
    for component in kustomization.get("components", []):
        _accumulate(folder / component, scope)
    for generator in kustomization.get("configMapGenerator", []):
        _generate(generator, scope)
    for patch in kustomization.get("patches", []):
        _patch(patch, scope)
    if "namespace" in kustomization:
        _set_namespace(kustomization["namespace"], scope)
    for label in kustomization.get("labels", []):
        _label(label, scope)
    for image in kustomization.get("images", []):
        _set_image(image, scope)
    if scope is not objects:
        objects += scope


def _generate(generator: Object, objects: list[Object]) -> None:
    assert set(generator) <= {"name", "behavior", "literals"}, generator
    data = dict(literal.split("=", 1) for literal in generator["literals"])
    if generator.get("behavior") == "merge":
        (target,) = [o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == generator["name"]]
        target["data"].update(data)
        return
    assert "behavior" not in generator, generator
    objects.append(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": generator["name"]},
            "data": data,
            "__generated": True,
        }
    )


def _patch(patch: Object, objects: list[Object]) -> None:
    content = yaml.safe_load(patch["patch"])
    if isinstance(content, list):
        target = patch["target"]
        assert set(target) == {"kind", "name"}, target
        chosen = [
            found
            for found in objects
            if found["kind"] == target["kind"] and re.fullmatch(target["name"], found["metadata"]["name"])
        ]
        assert chosen, f"nothing matches {target}"
        for found in chosen:
            for operation in content:
                _operate(operation, found)
        return
    assert "target" not in patch, patch
    (found,) = [o for o in objects if _identity(o) == _identity(content)]
    _merge(found, content)


def _operate(operation: Object, found: Object) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    place: Any = found
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    assert last in place, f"nothing at {operation['path']}"
    match operation["op"]:
        case "remove":
            del place[last]
        case "replace":
            place[last] = operation["value"]
        case other:
            raise AssertionError(f"this renderer does not know the operation {other}")


def _merge(into: Object, patch: Object) -> None:
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        elif isinstance(value, list) and key in MERGE_KEYS:
            for entry in value:
                name = MERGE_KEYS[key]
                (found,) = [e for e in into[key] if e[name] == entry[name]]
                _merge(found, entry)
        else:
            into[key] = copy.deepcopy(value)


def _set_namespace(namespace: str, objects: list[Object]) -> None:
    for found in objects:
        if found["kind"] == "Namespace":
            found["metadata"]["name"] = namespace
        if found["kind"] not in CLUSTER_WIDE:
            found["metadata"]["namespace"] = namespace


def _label(label: Object, objects: list[Object]) -> None:
    assert set(label) == {"pairs", "includeSelectors", "includeTemplates"}, label
    assert not label["includeSelectors"]
    for found in objects:
        found["metadata"].setdefault("labels", {}).update(label["pairs"])
        if label["includeTemplates"] and "template" in found.get("spec", {}):
            found["spec"]["template"].setdefault("metadata", {}).setdefault("labels", {}).update(label["pairs"])


def _set_image(image: Object, objects: list[Object]) -> None:
    assert set(image) <= {"name", "newName", "newTag"}, image
    for found in objects:
        for container in containers(found):
            name, _, tag = container["image"].partition(":")
            if name == image["name"]:
                container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def containers(found: Object) -> Iterator[Object]:
    """The containers of a workload, init containers included; none of anything else."""
    pod = found.get("spec", {}).get("template", {}).get("spec", {})
    yield from pod.get("initContainers", [])
    yield from pod.get("containers", [])


def _hash_names(objects: list[Object]) -> None:
    names = {}
    for found in objects:
        if found.pop("__generated", False):
            name = found["metadata"]["name"]
            found["metadata"]["name"] = names[name] = f"{name}-{_hash(found)}"
    for found in objects:
        for container in containers(found):
            for source in container.get("envFrom", []):
                reference = source.get("configMapRef", {})
                if reference.get("name") in names:
                    reference["name"] = names[reference["name"]]


def _hash(config_map: Object) -> str:
    """As kustomize does it: ten characters, none of which can spell a word. It leaves the name out, by a slip."""
    content = {"data": config_map["data"], "kind": "ConfigMap", "name": ""}
    encoded = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":  # Go escapes them
        encoded = encoded.replace(character, f"\\u{ord(character):04x}")
    digest = hashlib.sha256(encoded.encode()).hexdigest()[:10]
    return digest.translate(str.maketrans("013ae", "ghkmt"))


def _identity(found: Object) -> tuple[str, str, str]:
    return found["apiVersion"], found["kind"], found["metadata"]["name"]
