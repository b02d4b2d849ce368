"""Two processes on one machine give what one gives with the same batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import write_frames

from mclc_gpu.distributed import Ranks, join
from mclc_gpu.errors import InputError

TESTS = Path(__file__).parent
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
PROGRAM = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from training_data import Plain
from mclc_gpu.data.training_set import Sample
from mclc_gpu.distributed import join
from mclc_gpu.errors import InputError
from mclc_gpu.fitting import fit
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.training import TrainConfig

def fail():
    raise InputError("bad file")

NETWORKS["plain"] = Plain
frames, out = map(Path, sys.argv[1:])
names = [path.stem for path in sorted((frames / "images").iterdir())]
samples = [Sample(n, frames / "images" / f"{{n}}.png", frames / "masks" / f"{{n}}.png") for n in names]
config = TrainConfig("plain", epochs=3, batch_size=4, size=32, optimizer="adam")
fit(samples, config, out, validation=samples[:5], device="cpu")
ranks = join("cpu")
everyone = list(range(ranks.world))
assert ranks.gather(ranks.rank) == everyone
assert ranks.on_main(lambda: ranks.rank) == 0
assert ranks.on_main(lambda: None) is None
assert sum(ranks.gather(list(ranks.share(everyone))), []) == everyone
try:
    ranks.on_main(fail)
except InputError as error:
    assert str(error) == "bad file"
else:
    raise AssertionError("an error of rank 0 is everyone's")
print("done")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run in one process and in two."""
    root = tmp_path_factory.mktemp("runs")
    write_frames(root / "frames")
    (root / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for world, launcher in ((1, []), (2, ["-m", *TORCHRUN])):
        command = [sys.executable, *launcher, root / "program.py", root / "frames", root / str(world)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done") == world
    return {world: root / str(world) for world in (1, 2)}


def test_gradients_of_two_processes_are_those_of_one(runs: dict[int, Path]) -> None:
    one, two = (torch.load(run / "last.pt", weights_only=True) for run in runs.values())
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
