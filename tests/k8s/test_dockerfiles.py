"""The images: small, without root, each with its own extra; the gateway's without torch."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVICES = ("gateway", "writer", "reader")
HEAVY = {"torch", "transformers", "safetensors", "numpy"}


def instructions(service):
    """The Dockerfile's instructions as (name, argument), comments gone and continued lines joined."""
    text = (ROOT / "services" / service / "Dockerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def stages(service):
    """The instructions of each stage, its FROM first; what stands before the first FROM is left out."""
    found = []
    for name, argument in instructions(service):
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, argument))
    return found


def environment(stage):
    text = " ".join(argument for name, argument in stage if name == "ENV")
    return dict(pair.split("=", 1) for pair in text.split())


def packages_of(extra):
    """Names of the packages that an extra brings directly, through other extras too."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        nested = re.fullmatch(rf"{PROJECT['name']}\[(.*)\]", requirement)
        if nested:
            found |= {name for inner in nested[1].split(",") for name in packages_of(inner)}
        else:
            found.add(re.match(r"[A-Za-z0-9._-]+", requirement)[0])
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_the_image_that_runs_is_not_the_one_that_builds(service):
    build, final = stages(service)
    assert build[0] == ("FROM", "python:${PYTHON} AS build")
    assert final[0] == ("FROM", "python:${PYTHON}")
    assert ("ARG", "PYTHON=3.11-slim-bookworm") in instructions(service)
    assert PROJECT["requires-python"] == ">=3.11"
    copies = [argument for name, argument in final if name == "COPY"]
    assert copies == ["--from=build /opt/memfold /opt/memfold"]
    assert not [argument for name, argument in final if name == "RUN"]
    assert not [name for name, _ in build + final if name == "ADD"]


@pytest.mark.parametrize("service", SERVICES)
def test_the_image_runs_without_root_and_without_the_working_directory_on_its_path(service, overlay):
    final = stages(service)[-1]
    (user,) = [argument for name, argument in final if name == "USER"]
    security = overlay["Deployment", f"memfold-{service}"]["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert environment(final)["PYTHONSAFEPATH"] == "1"
    assert environment(final)["PATH"].startswith("/opt/memfold/bin:")


@pytest.mark.parametrize("service", SERVICES)
def test_the_image_starts_the_console_script_and_opens_the_ports_of_its_deployment(service, overlay):
    final = dict(stages(service)[-1])
    (script,) = json.loads(final["ENTRYPOINT"])
    assert script == f"memfold-{service}"
    assert PROJECT["scripts"][script].startswith(f"memfold_{service}.")
    (container,) = overlay["Deployment", f"memfold-{service}"]["spec"]["template"]["spec"]["containers"]
    assert [int(port) for port in final["EXPOSE"].split()] == [port["containerPort"] for port in container["ports"]]
    assert "command" not in container


@pytest.mark.parametrize("service", SERVICES)
def test_the_image_installs_its_own_extra_only(service):
    installed = [argument for name, argument in stages(service)[0] if name == "RUN" and "pip install" in argument]
    assert installed[-1] == f'pip install ".[{service}]"'
    assert len(installed) == (1 if service == "gateway" else 2)


def test_the_gateways_extra_brings_no_model():
    assert not packages_of("gateway") & HEAVY
    assert packages_of("writer") & packages_of("reader") >= HEAVY


@pytest.mark.parametrize("service", ["writer", "reader"])
def test_torch_is_chosen_by_index_and_as_new_as_the_extra_wants(service):
    build = stages(service)[0]
    assert ("ARG", 'TORCH_INDEX=""') in build
    (line,) = [argument for name, argument in build if name == "RUN" and "TORCH_INDEX" in argument]
    assert re.search(r'"(torch[^"]*)"', line)[1] in PROJECT["optional-dependencies"]["model"]


def test_the_build_context_holds_what_the_wheel_is_made_of_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    sources = [*hatch["packages"], *hatch["force-include"], PROJECT["readme"], *PROJECT["license-files"]]
    assert kept == {source.split("/")[0] for source in sources} | {"pyproject.toml"}
    assert next(line for line in lines if not line.startswith("#")) == "*"
