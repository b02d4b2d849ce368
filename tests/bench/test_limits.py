"""Operations counted for the roofline, against counts pixel by pixel; peak rates measured on a CPU."""

import numpy as np
import pytest
import torch
from clustering_reference import distances, features, grid, means

from mclc_gpu.bench.limits import Scale, crf_work, roofline, slic_work, trial_steps, trial_work
from mclc_gpu.kernels.config import CrfConfig, TrialConfig
from mclc_gpu.kernels.packed import PackedImages, Windows

CPU = torch.device("cpu")


def counted(window: np.ndarray, config: TrialConfig) -> tuple[int, int]:
    """Pairs in reach over all assignments, and pixels over all updates, of one trial without noise."""
    feature = features(np.repeat(window[..., None], 3, -1), config.compactness)
    start, reach, weight = grid(*window.shape, config.clusters)
    centers, labels = np.concatenate([start, np.zeros((len(start), 3))], 1), None
    pairs = updated = 0
    for i in range(config.max_iterations):
        squared = distances(feature, centers, reach, weight)
        pairs += int(np.isfinite(squared).sum())
        before, labels = labels, squared.argmin(0)
        if i + 1 == config.max_iterations or (before is not None and (before == labels).all()):
            break
        updated += window.size
        centers = means(feature, labels, len(start))
    return pairs, updated


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_steps_of_trials(iterations: int) -> None:
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((9, 12), (20, 17))]
    windows = Windows.pack([(0, 1, 2, 7, 8, 3, 3, 0), (1, 0, 0, 20, 17, 9, 9, 1)])
    config = TrialConfig(noise="none", max_iterations=iterations)
    packed = PackedImages.pack(images)
    steps = trial_steps(packed, windows, torch.tensor([5, 6]), config, 2)
    expected = [counted(images[0][1:8, 2:10], config), counted(images[1], config)]
    assert steps.pixels == 2 * (7 * 8 + 20 * 17)
    assert steps.pairs == 2 * sum(pairs for pairs, _ in expected)
    assert steps.updated == 2 * sum(updated for _, updated in expected)
    work = trial_work(steps, packed, windows, fused=False)
    assert work["assignment"].operations == 18 * steps.pairs
    assert sum(stage.bytes for stage in work.values()) == (7 * 8 + 20 * 17) * (1 + 4)
    fused = trial_work(steps, packed, windows, fused=True)
    assert fused["assignment"].operations == 14 * steps.pairs


def test_work_of_the_crf() -> None:
    windows = torch.tensor([[2, 3], [4, 1]])
    pairs = sum(1 for size in (6, 4) for i in range(size) for j in range(i, size))
    config = CrfConfig(gaussian_sxy=0.1, iterations=2)  # the smoothness kernel reaches one pixel
    along = sum(
        min(3, height) + min(3, width) for height, width in windows.tolist() for _ in range(height * width)
    )
    work = crf_work(windows, 3, config, CPU)
    assert work.operations == pairs * (2 * 3 + 11 + 2 + 2 * 2) + 2 * along
    assert work.bytes == 10 * (4 + 4 + 1)


def test_work_of_slic() -> None:
    feature = np.zeros((14, 19, 3))
    start, reach, weight = grid(14, 19, 12)
    pairs = np.isfinite(distances(feature, np.pad(start, ((0, 0), (0, 3))), reach, weight)).sum()
    assert slic_work(14, 19, 12, 4, 3, fused=False).operations == 4 * 18 * pairs + 6 * 14 * 19 * 3
    # A channel: a difference, a product, a sum.
    assert slic_work(14, 19, 12, 1, 1, fused=False).operations == (18 - 6) * pairs


def test_rows() -> None:
    scale = Scale(scenes=2, trials=2, side=32, segments=8, matrix=64, copied=1 << 16)
    rows = roofline(CPU, scale)
    assert len({tuple(row) for row in rows}) == 1
    *kernels, operations, bytes_ = rows
    whole = {row["kernel"]: row for row in kernels}
    assert set(whole) > {"trials", "crf", "slic", "components"}
    assert operations["operations"] > 0
    assert bytes_["bytes"] > 0
    stages = [row for name, row in whole.items() if name.startswith("trials: ")]
    assert whole["trials"]["operations"] == sum(row["operations"] for row in stages)
    for row in kernels:
        assert row["operations_s"] == row["operations"] / operations["operations"]
        floors = {"operations": row["operations_s"], "bytes": row["bytes_s"]}
        assert row["bound"] == max(floors, key=floors.get)
        if row["seconds"] is None:
            assert row["kernel"].startswith("trials: ")
            assert row["share"] is None
        else:
            assert row["share"] == pytest.approx(max(floors.values()) / row["seconds"])
