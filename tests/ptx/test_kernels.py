"""Every Triton kernel, as its operation launches it, equals the CPU backend in any order of its warps.

Reads and writes of memory are checked for bounds and races.
"""

import pytest
from emulated_cases import QUICK, WIDE, Case, kernels

from mclc_gpu.bench.ptx.launch import emulated
from mclc_gpu.bench.ptx.machine import ORDERS

_launched: set[str] = set()


def check(case: Case, order: str) -> None:
    with emulated(order, races=True) as emulator:
        result = case.call("triton")
    _launched.update(launch.kernel for launch in emulator.launches)
    assert case.differences(case.call("cpu"), result) == []


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_equal_to_the_cpu_backend(case: Case, order: str) -> None:
    check(case, order)


def test_every_kernel_is_among_the_cases() -> None:
    for case in QUICK:
        with emulated(record=True) as emulator:
            case.call("triton")
        _launched.update(launch.kernel for launch in emulator.launches)
    names = {name.rpartition(".")[2] for name in kernels()}
    assert names == _launched


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", WIDE, ids=lambda case: case.name)
def test_many_settings(case: Case, order: str) -> None:
    check(case, order)
