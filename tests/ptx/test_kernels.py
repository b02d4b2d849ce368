"""Every Triton kernel, as its operation launches it, equals the CPU backend in any order of its warps.

Reads and writes of memory are checked for bounds and races.
"""

import pytest
import torch
from emulated_cases import QUICK, SHAPES, WIDE, Case, kernels, targets

from mclc_gpu.bench.ptx.launch import emulated
from mclc_gpu.bench.ptx.machine import ORDERS
from mclc_gpu.kernels.components import ComponentVotes, vote_components
from mclc_gpu.kernels.config import ComponentConfig

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


def test_votes_of_a_target_do_not_depend_on_the_windows_beside_it() -> None:
    images, windows = targets(SHAPES)
    categories = torch.full((len(windows),), -1)

    def votes(chosen: list[int]) -> ComponentVotes:
        given = images, windows[torch.tensor(chosen)], categories[chosen], ComponentConfig(polarity="auto")
        with emulated():
            return vote_components(*given, backend="triton")

    together = votes(list(range(len(SHAPES))))
    for t in range(len(SHAPES)):
        alone = votes([t])
        assert torch.equal(alone.tpm, together.tpm[together.offsets[t] : together.offsets[t + 1]])
        for name in ("confidence", "area", "score", "dark", "flat"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[t]), (t, name)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", WIDE, ids=lambda case: case.name)
def test_many_settings(case: Case, order: str) -> None:
    check(case, order)
