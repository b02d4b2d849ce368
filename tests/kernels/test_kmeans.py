"""K-means in color and position against Lloyd's algorithm in plain numpy."""

import numpy as np
import pytest
import torch
from clustering_reference import features, lloyd, near_tie
from devices import BACKENDS, device_of

from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.slic import kmeans, slic
from mclc_gpu.kernels.trials import run_trials


def image_of(seed: int, height: int, width: int, channels: int) -> np.ndarray:
    """Bright blobs on a sloping, noisy background; float32 [H, W, C]."""
    rng = np.random.default_rng([seed, height, width, channels])
    y, x = np.mgrid[:height, :width]
    image = 0.3 * y + rng.normal(0, 2, y.shape)
    for _ in range(3):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        image += rng.uniform(10, 60) * np.exp(-((y - row) ** 2 + (x - column) ** 2) / rng.uniform(2, 20))
    return (image[..., None] + rng.normal(0, 1, (*y.shape, channels))).astype(np.float32)


def planes(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def check(images: list[np.ndarray], clusters: int, backend: str, iterations: int = 10, **options) -> None:
    place = device_of(backend)
    given = planes(*images).to(place)
    ours = kmeans(given, clusters, max_iterations=iterations, backend=backend, **options)
    assert ours.dtype == torch.int32
    for image, labels in zip(images, ours.cpu().numpy(), strict=True):
        feature = features(image, options.get("compactness", 20.0), options.get("lab"))
        tolerance = options.get("tolerance", 0.0)

        def theirs(n: int, feature: np.ndarray = feature, tolerance: float = tolerance) -> np.ndarray:
            return lloyd(feature, clusters, n, tolerance, windowed=False)

        def mine(n: int, image: np.ndarray = image) -> np.ndarray:
            given = planes(image).to(place)
            return kmeans(given, clusters, max_iterations=n, backend=backend, **options)[0].cpu().numpy()

        differs = labels != theirs(iterations)
        assert not differs.any() or near_tie(mine, theirs, feature, clusters, iterations, windowed=False)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (3, 4), (17, 23), (40, 31)], ids=str)
def test_cpu_equals_plain_numpy(shape: tuple[int, int], channels: int) -> None:
    check([image_of(seed, *shape, channels) for seed in range(3)], 9, "cpu")


@pytest.mark.parametrize(
    ("clusters", "options"),
    [
        (1, {}),
        (4, {"compactness": 3.0}),
        (30, {"compactness": 100.0, "iterations": 25}),
        (9, {"tolerance": 0.371}),
        (9, {"lab": False, "compactness": 0.1}),
        (9, {"iterations": 1}),
    ],
    ids=str,
)
def test_cpu_equals_plain_numpy_with_other_settings(clusters: int, options: dict) -> None:
    check([image_of(seed, 21, 18, 3) for seed in range(3)], clusters, "cpu", **options)


def test_clusters_of_many_pixels() -> None:
    # Sums over 10^5 pixels and more: single precision would move centers by 1e-3 pixels.
    check([image_of(0, 500, 600, 1)], 3, "cpu", iterations=4)


@pytest.mark.parametrize(
    ("shape", "clusters", "options"),
    [
        ((2, 13, 11, 3), 6, {}),
        ((1, 9, 35, 1), 4, {"tolerance": 0.371}),
        ((1, 1, 8, 3), 3, {}),
        ((2, 6, 5, 2), 1, {}),
    ],
    ids=str,
)
def test_triton_equals_plain_numpy(shape: tuple[int, ...], clusters: int, options: dict) -> None:
    check(
        [image_of(seed, *shape[1:]) for seed in range(shape[0])], clusters, "triton", iterations=4, **options
    )


def test_a_center_reaches_every_pixel() -> None:
    # Two equal bright blobs at the ends of a long strip: one cluster for K-means, two for SLIC's windows.
    image = torch.zeros(1, 1, 6, 60)
    image[..., 2:4, 2:5] = image[..., 2:4, 55:58] = 1.0
    options = {"compactness": 0.001, "max_iterations": 20}
    ours = kmeans(image, 10, **options)[0]
    assert ours[2, 3] == ours[2, 56]
    windows = slic(image, 10, enforce_connectivity=False, **options)[0]
    assert windows[2, 3] != windows[2, 56]


def test_trials_by_kmeans_are_the_same_clustering() -> None:
    image = image_of(5, 20, 22, 3)
    labels = kmeans(planes(image), 9)[0]
    config = TrialConfig(method="kmeans", noise="none", connectivity="cluster")
    clicks = [(3, 4), (10, 11), (19, 0)]
    windows = Windows.pack((0, 0, 0, 20, 22, *click, 0) for click in clicks)
    packed = PackedImages.pack([image])
    result = run_trials(packed, windows, torch.zeros(3, dtype=torch.int64), config, 1)
    for counts, click in zip(result.counts.reshape(3, 20, 22), clicks, strict=True):
        assert torch.equal(counts.bool(), labels == labels[click])


@pytest.mark.parametrize("backend", BACKENDS)
def test_does_not_depend_on_the_batch(backend: str) -> None:
    images = planes(*(image_of(seed, 9, 10, 1) for seed in range(3))).to(device_of(backend))
    options = {"max_iterations": 3, "backend": backend}
    together = kmeans(images, 4, **options)
    for i in range(3):
        assert torch.equal(kmeans(images[i : i + 1], 4, **options)[0], together[i])


def test_gray_levels_of_any_type() -> None:
    levels = np.random.default_rng(1).integers(0, 255, (2, 1, 12, 14))
    ours = [kmeans(torch.from_numpy(levels.astype(dtype)), 5) for dtype in (np.uint8, np.uint16, np.float32)]
    assert torch.equal(ours[0], ours[1])
    assert torch.equal(ours[0], ours[2])


def test_no_images() -> None:
    assert kmeans(torch.zeros(0, 3, 4, 5), 9).shape == (0, 4, 5)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(3, 8, 8), {}, "images must be"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), {}, "images must be"),
        (torch.zeros(1, 1, 8, 8), {"lab": True}, "lab needs images of 3 channels"),
        (torch.zeros(1, 1, 8, 8), {"n_clusters": 0}, "n_clusters must be above 0"),
        (torch.zeros(1, 1, 8, 8), {"compactness": 0.0}, "compactness must be above 0"),
        (torch.zeros(1, 1, 8, 8), {"max_iterations": 0}, "max_iterations must be above 0"),
        (torch.zeros(1, 1, 8, 8), {"tolerance": -1.0}, "tolerance must be at least 0"),
        (torch.full((1, 1, 8, 8), float("nan")), {}, "images must be finite"),
        (torch.zeros(1, 1, 8, 8), {"backend": "numpy"}, "backend must be one of"),
    ],
)
def test_refuses(images: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans(images, **{"n_clusters": 9, **options})
