"""Two processes on one machine give what one gives with the same batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import Plain, write_frames

from mclc_gpu.data.datasets import Sample
from mclc_gpu.distributed import Ranks, join
from mclc_gpu.errors import InputError
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.train.config import FastConfig, TrainConfig
from mclc_gpu.train.fit import fit

TESTS = Path(__file__).parent
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
PROGRAM = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "helpers")!r}, {str(TESTS.parent)!r}]
from test_distributed import run_plain
from mclc_gpu.distributed import join
from mclc_gpu.errors import InputError

def fail():
    raise InputError("bad file")

run_plain(*map(Path, sys.argv[1:]))
ranks = join("cpu")
assert ranks.world == 2
assert ranks.gather(ranks.rank) == [0, 1]
assert ranks.on_main(lambda: ranks.rank) == 0
assert ranks.on_main(lambda: None) is None
assert sum(ranks.gather(list(ranks.share([5, 6, 7]))), []) == [5, 7, 6]
try:
    ranks.on_main(fail)
except InputError as error:
    assert str(error) == "bad file"
else:
    raise AssertionError("an error of rank 0 is everyone's")
print("done")
"""


def run_plain(frames: Path, out: Path) -> None:
    """Train by both schedules without batch norm, whose statistics differ between processes."""
    names = [path.stem for path in sorted((frames / "images").iterdir())]
    samples = [Sample(n, frames / "images" / f"{n}.png", frames / "masks" / f"{n}.png") for n in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "plain", Plain)
        config = TrainConfig("plain", "paper", epochs=3, batch_size=4, size=32, optimizer="adam")
        fit(samples, config, out, validation=samples[:5], device="cpu")
        # Each process draws its own noise.
        parts = FastConfig(stages="32:.5,48:.5", step_pixels=18432, rounds=4, gain_jitter=0)
        config = TrainConfig("plain", mpixels=0.2, optimizer="adam", fast=parts)
        fit(samples, config, out / "fast", validation=samples[:5], device="cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Run the same training in one process and in two."""
    root = tmp_path_factory.mktemp("runs")
    write_frames(root / "frames")
    run_plain(root / "frames", root / "1")
    (root / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", *TORCHRUN, root / "program.py", root / "frames", root / "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2
    return {world: root / str(world) for world in (1, 2)}


def test_gradients_of_two_processes_are_those_of_one(runs: dict[int, Path]) -> None:
    assert_alike(*runs.values())


def test_the_fast_schedule_of_two_processes_is_that_of_one(runs: dict[int, Path]) -> None:
    assert_alike(*(run / "fast" for run in runs.values()))


def assert_alike(first: Path, second: Path) -> None:
    """Compare the weights and the sums of gradients of two runs."""
    one, two = (torch.load(run / "last.pt", weights_only=True) for run in (first, second))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-6)
    # Sums of gradients: without the average over processes, Adam's weights might still agree.
    for index, state in one["state"]["optimizer"]["state"].items():
        other = two["state"]["optimizer"]["state"][index]
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(other[moment], state[moment], rtol=1e-3, atol=1e-7)


def test_scores_of_two_processes_are_those_of_one(runs: dict[int, Path]) -> None:
    curves = []
    for run in runs.values():
        with (run / "metrics.csv").open(newline="") as file:
            curves.append(list(csv.DictReader(file)))
    for one, two in zip(*curves, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert (value == "") == (two[name] == "")
            np.testing.assert_allclose(float(two[name] or 0), float(value or 0), rtol=1e-4, atol=1e-6)


def test_a_single_process_keeps_to_itself() -> None:
    ranks = join("cpu")
    assert ranks == Ranks(torch.device("cpu"))
    assert ranks.main
    assert ranks.gather("x") == ["x"]
    assert ranks.share([1, 2]) == [1, 2]
    assert ranks.on_main(lambda: 7) == 7
    assert ranks.total(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(InputError, match=device):
        join(device)
