"""Shared fixtures, and how kernels are compiled during the whole test run.

The variable set here is read when a Triton kernel is decorated, so before any module of mclc_gpu.kernels is
imported. Subprocesses inherit it: a test that compiles Triton kernels ahead of time has to drop it.
OpenMP workers that wait must not spin, or tests take ten times as long on cores that others use too; OpenMP
reads that when torch is imported.
"""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

ROOT = Path(__file__).resolve().parents[1]
NUAA_DEFAULT = ROOT.parent / "shared" / "data" / "NUAA-SIRST"

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def nuaa() -> Path:
    """Root of the NUAA-SIRST release: images/, masks/, centroids/ and the split lists in splits/."""
    root = Path(os.environ.get("MCLC_NUAA", NUAA_DEFAULT))
    if not (root / "images").is_dir():
        pytest.skip(f"no NUAA-SIRST at {root}: set MCLC_NUAA to the folder that holds its images/ and masks/")
    return root
