"""The tests here compile Triton kernels, so they run in processes without Triton's interpreter.

`test_processes.py` starts these; elsewhere the tests are skipped. To run some by hand:
``TRITON_INTERPRET=0 python -m pytest tests/ptx -k race``.
"""

import pytest

from mclc_gpu.kernels.backend import interpreted


@pytest.fixture(autouse=True)
def _compiled(request: pytest.FixtureRequest) -> None:
    if interpreted() and not request.node.get_closest_marker("starts_process"):
        pytest.skip("Triton kernels are interpreted here: test_processes.py runs the test in another process")
