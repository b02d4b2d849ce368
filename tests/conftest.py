"""Shared fixtures, and how kernels are compiled during the whole test run.

The variable set here is read when a Triton kernel is decorated, so before any module of mclc_gpu.kernels is
imported. Subprocesses inherit it: a test that compiles Triton kernels ahead of time has to drop it.
OpenMP workers that wait must not spin, or tests take ten times as long on cores that others use too; OpenMP
reads that when torch is imported.

Hypothesis tries the same examples in every run; with MCLC_EXAMPLES=N it tries N new ones.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from hypothesis import settings

EXAMPLES = os.environ.get("MCLC_EXAMPLES")
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("long", max_examples=int(EXAMPLES or 1), deadline=None)
settings.load_profile("long" if EXAMPLES else "repeatable")

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


@pytest.fixture(scope="module")
def tiny_network() -> Iterator[None]:
    """A detector named "tiny", which trains in a moment."""
    from training_data import Tiny

    from mclc_gpu.networks.zoo import NETWORKS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        yield
