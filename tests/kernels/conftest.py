"""Every test of the kernels has a GPU, be it the interpreter."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _gpu(gpu: None) -> None:
    pass
