"""The tests here compile Triton kernels, so they run in processes without Triton's interpreter.

`test_processes.py` starts these, and is all that runs elsewhere. To run some by hand:
``TRITON_INTERPRET=0 python -m pytest tests/ptx -k race``.
"""

from pathlib import Path

import pytest

from mclc_gpu.kernels.backend import interpreted

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that run in this process."""
    chosen = {item: (item.path.name == "test_processes.py") == interpreted() for item in items}
    left_out = [item for item in items if HERE in item.path.parents and not chosen[item]]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
