"""Shared fixtures, and how kernels are compiled during the whole test run.

The variables set here are read when numba is imported and when a Triton kernel is decorated, so both
have to come before any module of mclc_gpu.kernels is imported. Subprocesses inherit them: a test that
compiles Triton kernels ahead of time has to drop TRITON_INTERPRET.
"""

import hashlib
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
NUAA_DEFAULT = ROOT.parent / "shared" / "data" / "NUAA-SIRST"

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Numba's cache notices a change in a function's own file but not in the files of the functions it calls,
# and would test machine code of an older source: every state of the sources gets a cache of its own.
_compiled = b"".join(path.read_bytes() for path in sorted(ROOT.glob("kernels/*_cpu.py")))
os.environ["NUMBA_CACHE_DIR"] = str(ROOT / "build" / "numba" / hashlib.sha256(_compiled).hexdigest()[:16])


@pytest.fixture(scope="session")
def nuaa() -> Path:
    """Root of the NUAA-SIRST release: images/, masks/, centroids/ and the split lists in splits/."""
    root = Path(os.environ.get("MCLC_NUAA", NUAA_DEFAULT))
    if not (root / "images").is_dir():
        pytest.skip(f"no NUAA-SIRST at {root}: set MCLC_NUAA to the folder that holds its images/ and masks/")
    return root
