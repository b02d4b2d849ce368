"""Runs the other tests of this folder in processes that compile Triton kernels, not interpret them."""

from pathlib import Path

import pytest
from compiling import run_compiling

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)


@pytest.mark.parametrize(
    ("file", "marker"),
    [
        *((file, "not slow") for file in FILES),
        *(
            pytest.param(file, "slow", marks=pytest.mark.slow)
            for file in FILES
            if "pytest.mark.slow" in (HERE / file).read_text()
        ),
    ],
)
def test_file(file: str, marker: str) -> None:
    options = "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", marker
    run_compiling(*options, str(HERE / file), TRITON_INTERPRET="0")
