"""Tests of the Triton kernels: on the GPU where there is one, else in Triton's interpreter.

The interpreter must be chosen before triton is imported, and what it interprets cannot be compiled in the same
process. So these modules are collected only on a machine with a GPU, or where TRITON_INTERPRET=1 is set;
``tests/kernels/test_triton.py`` runs them so.
"""

from __future__ import annotations

import os

import pytest
import torch

ON_GPU = torch.cuda.is_available()
collect_ignore_glob = [] if ON_GPU or os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture
def device() -> str:
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture(params=["serial", "split"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of the scan; in the interpreter with small chunks, and few programs of many lanes."""
    from memfold_kernels.delta_scan import triton_scan  # noqa: PLC0415 - only where these tests run

    if not ON_GPU:
        monkeypatch.setattr(triton_scan, "CHUNK", 8)
        monkeypatch.setattr(triton_scan, "BLOCK", 4)
        monkeypatch.setattr(triton_scan, "LANES", 256)
    monkeypatch.setattr(triton_scan, "SPLIT_FROM_TOKENS", 0)
    monkeypatch.setattr(triton_scan, "SPLIT_BELOW_SEQUENCES", 1 << 30 if request.param == "split" else 0)
    return str(request.param)
