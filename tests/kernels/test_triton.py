"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled for one that is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

HERE = Path(__file__).parent
SCAN: dict[str, Any] = {"RANK": 8, "R": 8, "LANES": 32, "CHUNK": 64}
STEP: dict[str, Any] = {"WIDTH": 8, "RANK": 8, "N": 8, "SLICE": 1024, "EPS": 1e-6, "GAIN": True}
# Kernel, its compile-time constants, and the types of those arguments that are not pointers to fp32.
KERNELS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "replay": ("delta_scan.triton_kernels", {**SCAN, "BLOCK": 4, "SPLIT": True, "PACKED": True, "SAVE": False}, {}),
    "map_chunks": ("delta_scan.triton_kernels", {**SCAN, "BLOCK": 4, "PACKED": True, "REVERSE": False}, {}),
    "chain_chunks": (
        "delta_scan.triton_kernels",
        {"RANK": 8, "R": 8, "CHUNK": 64, "BLOCK": 4, "PACKED": True, "REVERSE": False},
        {},
    ),
    "replay_backward": ("delta_scan.triton_kernels", {**SCAN, "BLOCK": 8, "SPLIT": True}, {}),
    "read_kernel": (
        "delta_step.triton_kernels",
        {
            **STEP,
            "D": 2560,
            "OUT": 4096,
            "TILE": 4096,
            "PIECES": 4,
            "RANKWISE": True,
            "NORMALIZE": True,
            "CORRECTS": True,
        },
        {"x": "*bf16", "inputs": "*bf16", "outputs": "*bf16", "out": "*bf16", "scale": "fp32"},
    ),
    "steer_kernel": (
        "delta_step.triton_kernels",
        {**STEP, "OUT": 2560, "PIECES": 3, "MODE": "standard", "OWN_LAMBDA": False, "NORM": True, "SOME": True},
        {"outputs": "*bf16", "out": "*bf16", "writes": "*u8", "norm_weight": "*bf16", "scale": "fp32"},
    ),
}
INTEGERS = {"items", "sequences", "length", "heads", "rows", "gates", "x_stride", "out_stride"}
INDICES = {"starts", "slots"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on this machine's GPU")
def test_the_kernels_pass_their_tests_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(HERE / "on_triton")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout), done.stdout


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_compile_for_hopper_and_keep_their_registers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import import_module  # noqa: PLC0415 - triton is there now

    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module, constants, types = KERNELS[name]
    kernel = getattr(import_module(f"memfold_kernels.{module}"), name)
    signature, attributes = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in INTEGERS:
            signature[argument] = "i32"
        else:
            signature[argument] = types.get(argument, "*i32" if argument in INDICES else "*fp32")
            attributes[(place,)] = [["tt.divisibility", 16]] if signature[argument].startswith("*") else []
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 4 if "_kernel" in name else 1, "enable_fp_fusion": True},
    )
    assert ".target sm_90" in compiled.asm["ptx"]
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    # Registers that were spilled would lie on the stack.
    assert re.search(r"STACK:0 ", usage), usage
    assert re.search(r"LOCAL:0 ", usage), usage
