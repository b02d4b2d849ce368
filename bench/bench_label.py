"""Rates of this package against the CPU reference, both over all cores, in one run: clustering, whole chain.

    python -m pytest bench/bench_label.py --benchmark-columns=min,median,stddev,rounds

Real frames are used where NUAA-SIRST is at hand (environment variable MCLC_NUAA), synthetic ones elsewhere.
The reference's rate is taken before and after this package's rounds: a machine whose speed drifts shows it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from mclc_gpu.bench.cpu_reference import Item, make_item, run, slic_rate
from mclc_gpu.bench.tables import machine
from mclc_gpu.data.datasets import find_split, pair_files, read_list, select
from mclc_gpu.data.images import find_files, read_image, read_mask
from mclc_gpu.data.points import Point
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.data.synthetic import scene
from mclc_gpu.labelconfig import LabelConfig
from mclc_gpu.labeling import TargetMask, cluster_targets, refine_targets, warm_up
from mclc_gpu.placing import place_targets

_TRIALS = 50
_ROUNDS = 7
_REFERENCE_TRIALS = 10  # the reference's rate does not depend on it; a round takes some seconds
_DEVICE = torch.device("cpu")
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


def _against(
    reference: Callable[[], float],
    benchmark: Any,
    work: Callable[[], object],
    trials: int,
    title: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Time work of so many trials between two runs of the reference (trials/s), and print both rates."""
    before = reference()
    benchmark.pedantic(work, rounds=_ROUNDS, warmup_rounds=1)
    after = reference()
    own = trials / benchmark.stats.stats.median
    peer = (before + after) / 2
    benchmark.extra_info |= {"trials_per_s": own, "reference_trials_per_s": [before, after]}
    with capsys.disabled():
        print(f"\n{title}; {machine(_DEVICE)}")
        print(f"CPU reference, one process per core  {peer:10,.0f} trials/s ({before:,.0f}, {after:,.0f})")
        print(f"mclc-gpu, CPU backend                {own:10,.0f} trials/s (median of {_ROUNDS})")
        print(f"ratio                                {own / peer:10.1f}")


def test_clustering_rate(benchmark: Any, frames: Frames, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise, SLIC with connectivity enforcement and the segment under the click, K trials of every target."""
    config = LabelConfig(trials=_TRIALS)
    placed, _ = place_targets(frames.images, frames.points, frames.names, config, 0)
    warm_up(config, _DEVICE)
    items = frames.items()
    _against(
        lambda: slic_rate(items, _REFERENCE_TRIALS),
        benchmark,
        lambda: cluster_targets(frames.images, placed, config, _DEVICE),
        _TRIALS * len(placed),
        f"Clustering, {frames.source}, {len(placed)} targets, {_TRIALS} trials each",
        capsys,
    )


def test_whole_chain(benchmark: Any, frames: Frames, capsys: pytest.CaptureFixture[str]) -> None:
    """The same with the windows before and the dense CRF after: from images and clicks to masks."""
    pytest.importorskip("pydensecrf", reason="pydensecrf is missing: `make reference` installs it")
    config = LabelConfig(trials=_TRIALS)
    warm_up(config, _DEVICE)
    items = frames.items()

    def label() -> list[TargetMask]:
        placed, _ = place_targets(frames.images, frames.points, frames.names, config, 0)
        return refine_targets(placed, cluster_targets(frames.images, placed, config, _DEVICE), config)

    def reference() -> float:
        # The CRF is run once for a target however many trials it has: as many as here, to compare.
        outcome = run(items, _TRIALS)
        return outcome.trials / outcome.seconds["total"]

    targets = sum(map(len, frames.points))
    title = f"Whole chain, {frames.source}, {targets} targets, {_TRIALS} trials each"
    _against(reference, benchmark, label, _TRIALS * targets, title, capsys)
