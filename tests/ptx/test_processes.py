"""Runs the other tests of this folder in processes that compile Triton kernels, not interpret them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)


@pytest.mark.parametrize("marker", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", FILES)
def test_file(file: str, marker: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", marker]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [*command, HERE / file], cwd=HERE.parents[1], env=environment, capture_output=True, text=True
    )
    nothing_selected = 5
    assert done.returncode in (0, nothing_selected), done.stdout + done.stderr
