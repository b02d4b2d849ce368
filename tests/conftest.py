"""Fixtures that several test modules share, options and markers, and how kernels are compiled in the tests.

`TRITON_INTERPRET` is read when a Triton kernel is decorated, so it is set before any module of
mclc_gpu.kernels is imported. Subprocesses inherit it: a test that compiles Triton kernels ahead of time
drops it. Idle OpenMP workers must not spin, or the tests take ten times as long on cores that others use too;
OpenMP reads that setting when torch is imported.

Hypothesis repeats the same examples in every run; `--hypothesis-profile long` tries many new ones.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("long", max_examples=2000, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]
NUAA_DEFAULT = ROOT.parent / "shared" / "data" / "NUAA-SIRST"
CUDA = torch.cuda.is_available()

# The interpreter would hide a GPU. TRITON_INTERPRET=0 is for the tests of ptx/, which compile kernels.
if CUDA:
    os.environ.pop("TRITON_INTERPRET", None)
elif os.environ.get("TRITON_INTERPRET") != "0":
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, metavar="N", help="cases of each test of damaged files")


def pytest_configure(config: pytest.Config) -> None:
    import fuzzing

    fuzzing.CASES = config.getoption("--fuzz")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip the tests marked `gpu` on machines without CUDA."""
    if CUDA:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def gpu() -> Iterator[None]:
    """Let Triton's interpreter stand for a GPU where there is none: see `devices.interpreted_gpu`."""
    from devices import interpreted_gpu

    with nullcontext() if CUDA else interpreted_gpu():
        yield


@pytest.fixture
def device(gpu: None) -> torch.device:
    """Device on which Triton kernels run: CUDA, or what stands for it."""
    from devices import device_of

    return device_of("triton")


@pytest.fixture(scope="session")
def nuaa() -> Path:
    """Root of the NUAA-SIRST release: images/, masks/, centroids/ and the split lists in splits/."""
    root = Path(os.environ.get("MCLC_NUAA", NUAA_DEFAULT))
    if not (root / "images").is_dir():
        pytest.skip(f"no NUAA-SIRST at {root}: set MCLC_NUAA to the folder that holds its images/ and masks/")
    return root


@pytest.fixture(scope="module")
def tiny_network() -> Iterator[None]:
    """Register a detector named "tiny", which trains in a moment."""
    from training_data import Tiny

    from mclc_gpu.networks.zoo import NETWORKS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        yield
