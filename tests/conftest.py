"""Shared fixtures, and the choice between compiled and interpreted Triton kernels for the whole test run."""

import os
from pathlib import Path

import pytest
import torch

# Triton reads this variable when a kernel is decorated, so it has to be set before any module of
# mclc_gpu.kernels is imported. A test that compiles ahead of time needs a subprocess without it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

NUAA_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "NUAA-SIRST"


@pytest.fixture(scope="session")
def nuaa() -> Path:
    """Root of the NUAA-SIRST release: images/, masks/, centroids/ and the split lists in splits/."""
    root = Path(os.environ.get("MCLC_NUAA", NUAA_DEFAULT))
    if not (root / "images").is_dir():
        pytest.skip(f"no NUAA-SIRST at {root}: set MCLC_NUAA to the folder that holds its images/ and masks/")
    return root
