"""The suites of `mclc-gpu bench` under pytest-benchmark, a test for each contest.

    python -m pytest bench/bench_suites.py --benchmark-columns=min,median,stddev,rounds [-k label]

Real frames are used where NUAA-SIRST is at hand (environment variable MCLC_NUAA), synthetic ones elsewhere.
pytest-benchmark times this package; before each of its rounds everyone else runs once, so that a machine
whose speed drifts does so for all.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mclc_gpu.bench.compare import MOST_ROUNDS, Result, rounded
from mclc_gpu.bench.dataset import Ground, open_ground
from mclc_gpu.bench.suites import SUITES
from mclc_gpu.data.datasets import find_split
from mclc_gpu.kernels.backend import pick_device

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it

_CHECKOUT = Path(__file__).resolve().parents[1]
_NUAA = Path(os.environ.get("MCLC_NUAA", _CHECKOUT.parent / "shared" / "data" / "NUAA-SIRST"))
_CONTESTS = [(suite, name) for suite, own in SUITES.items() for name in own]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    device: torch.device = pick_device("auto")
    real = (_NUAA / "images").is_dir()
    folders = {name: _NUAA / name if real else None for name in ("images", "masks")}
    names = find_split(_NUAA, "train") if real else None
    with open_ground(**folders, names=names, device=device, quick=False) as opened:
        yield opened


@pytest.mark.parametrize(("suite", "name"), _CONTESTS, ids=map("-".join, _CONTESTS))
def test_contest(
    suite: str, name: str, benchmark: Any, ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Result(SUITES[suite][name](ground))
    own, *others = result.contest.contestants
    start = time.perf_counter()
    result.first_round()
    rounds = int(result.contest.seconds / (time.perf_counter() - start))
    benchmark.pedantic(
        lambda: result.run([own], repeats=False),
        setup=lambda: result.run(others, repeats=False),
        rounds=min(max(rounds, 3), MOST_ROUNDS),
    )
    benchmark.extra_info |= result.as_dict()
    with capsys.disabled():
        print(f"\n{result.contest.work}; {ground.source}")
        for row in result.rows():
            rate, ratio = rounded(row["rate"]), rounded(row["ratio"])
            print(f"  {row['who']:26}{rate:>10} {row['unit']}/s{ratio:>8}")
