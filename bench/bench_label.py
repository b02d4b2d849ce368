"""Clustering rate of this package against the CPU reference, both over all cores, in one run.

    python -m pytest bench/bench_label.py --benchmark-columns=min,median,stddev,rounds

Real frames are used where NUAA-SIRST is at hand (environment variable MCLC_NUAA), synthetic ones elsewhere.
The reference's rate is taken before and after this package's rounds: a machine whose speed drifts shows it.
"""

import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from mclc_gpu.bench.cpu_reference import Item, make_item, slic_rate
from mclc_gpu.data.datasets import find_split, pair_files, read_list, select
from mclc_gpu.data.images import find_files, read_image, read_mask
from mclc_gpu.data.points import Point
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.data.synthetic import scene
from mclc_gpu.labeling import LabelConfig, cluster_targets, place_targets, warm_up

_TRIALS = 50
_ROUNDS = 7
_REFERENCE_TRIALS = 10  # the reference's rate does not depend on it; a round takes some seconds
_CHECKOUT = Path(__file__).resolve().parents[1]


class Frames(NamedTuple):
    source: str
    names: list[str]
    images: list[np.ndarray]
    points: list[list[Point]]

    def items(self) -> list[Item]:
        """The frames as the reference takes them, with the windows this package clusters."""
        return [make_item(*item, 0) for item in zip(self.names, self.images, self.points, strict=True)]


@pytest.fixture(scope="module")
def frames() -> Frames:
    root = Path(os.environ.get("MCLC_NUAA", _CHECKOUT.parent / "shared" / "data" / "NUAA-SIRST"))
    if not (root / "images").is_dir():
        made = [scene(0, i) for i in range(100)]
        points = [[Point(t.x, t.y, t.category) for t in s.targets] for s in made]
        return Frames("100 synthetic frames", [str(i) for i in range(100)], [s.image for s in made], points)
    listed, _ = select(find_files(root / "images"), read_list(find_split(root, "train")))
    pairs, _ = pair_files(listed, find_files(root / "masks"))
    images = [read_image(image) for image, _ in pairs.values()]
    points = [points_from_mask(read_mask(mask)) for _, mask in pairs.values()]
    return Frames("NUAA-SIRST train", list(pairs), images, points)


def test_clustering_rate(benchmark: Any, frames: Frames, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise, SLIC with connectivity enforcement and the segment under the click, K trials of every target."""
    config, device = LabelConfig(trials=_TRIALS), torch.device("cpu")
    placed, _ = place_targets(frames.images, frames.points, frames.names, config, 0)
    warm_up(config, device)
    items = frames.items()
    before = slic_rate(items, _REFERENCE_TRIALS)
    benchmark.pedantic(
        cluster_targets, (frames.images, placed, config, device), rounds=_ROUNDS, warmup_rounds=1
    )
    after = slic_rate(items, _REFERENCE_TRIALS)
    rate = _TRIALS * len(placed) / benchmark.stats.stats.median
    reference = (before + after) / 2
    benchmark.extra_info |= {"trials_per_s": rate, "reference_trials_per_s": [before, after]}
    with capsys.disabled():
        print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} threads, {frames.source}")
        print(f"{len(placed)} targets, {_TRIALS} trials each")
        print(
            f"scikit-image, one process per core  {reference:10,.0f} trials/s ({before:,.0f}, {after:,.0f})"
        )
        print(f"mclc-gpu, CPU backend               {rate:10,.0f} trials/s (median of {_ROUNDS})")
        print(f"ratio                               {rate / reference:10.1f}")
