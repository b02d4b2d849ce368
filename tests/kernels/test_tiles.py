"""Clustering in tiles, bit for bit against the same float32 operations in plain numpy."""

import numpy as np
import pytest

from mclc_gpu.kernels import slic_cpu, slic_simd_cpu, slic_tile_cpu
from mclc_gpu.kernels.slic import grid_centers, window_steps

F = np.float32


def plain(
    features: np.ndarray, centers: np.ndarray, steps: tuple[int, int], weight: np.float32, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and centers after some iterations, every center tried on every pixel."""
    channels, height, width = features.shape
    y, x = np.mgrid[:height, :width].astype(F)
    labels, centers = np.zeros((height, width), np.int32), centers.copy()
    alive = np.ones(len(centers), bool)
    for _ in range(iterations):
        before, best = labels.copy(), np.full((height, width), np.inf, F)
        for k in np.flatnonzero(alive):
            cy, cx = centers[k, :2]
            color = np.zeros((height, width), F)
            for c in range(channels):
                color += (features[c] - centers[k, 2 + c]) ** 2
            d = ((cy - y) ** 2 + (cx - x) ** 2) * weight + color
            for position, center, step in ((y, cy, steps[0]), (x, cx, steps[1])):
                first, end = int(max(center - F(2 * step), F(0))), int(center + F(2 * step) + F(1))
                d[(position < first) | (position >= end)] = np.inf
            nearer = d < best
            best[nearer], labels[nearer] = d[nearer], k
        if (labels == before).all():
            break
        counts = np.bincount(labels.ravel(), minlength=len(centers))
        alive = counts > 0
        for i, values in enumerate((y, x, *features)):
            sums = np.zeros(len(centers), F)
            np.add.at(sums, labels.ravel(), values.ravel())  # one after the other
            centers[alive, i] = sums[alive] / counts[alive].astype(F)
    return labels, centers


def check(features: np.ndarray, n_segments: int, iterations: int = 6) -> None:
    height, width = features.shape[1:]
    ys, xs, step_y, step_x = grid_centers(height, width, n_segments)
    start = np.zeros((len(ys), 2 + len(features)), F)
    start[:, 0], start[:, 1] = ys, xs
    weight, steps = F(1.0 / max(step_y, step_x) ** 2), window_steps(height, width, len(ys))
    labels, centers = np.zeros((1, height, width), np.int32), start[None].copy()
    slic_cpu.cluster(features[None], centers, *steps, weight, iterations + 1, 0.0, labels)
    expected, expected_centers = plain(features, start, steps, weight, iterations + 1)
    np.testing.assert_array_equal(labels[0], expected)
    np.testing.assert_array_equal(centers[0], expected_centers)


def scene(height: int, width: int, channels: int, contrast: float) -> np.ndarray:
    """Sloping patches with noise and bright specks: pixels near and far from all centers' colors."""
    rng = np.random.default_rng([height, width, channels])
    y, x = np.mgrid[:height, :width]
    image = np.sin(y / 7 + np.arange(channels)[:, None, None]) + np.floor(x / 11) % 3 + y / 90
    image = image + rng.normal(0, 0.2, image.shape)
    image[rng.random(image.shape) < 0.03] += 4
    return (image * contrast).astype(F)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("contrast", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("shape", [(8, 16), (9, 17), (7, 40), (23, 5), (33, 129), (70, 150)], ids=str)
def test_equals_plain_numpy(shape: tuple[int, int], channels: int, contrast: float) -> None:
    for n_segments in (1, 12, 60):
        check(scene(*shape, channels, contrast), n_segments)


def check_start(
    image: np.ndarray, start: np.ndarray, steps: tuple[int, int], weight: np.float32, iterations: int
) -> None:
    labels, centers = np.zeros((1, *image.shape[1:]), np.int32), start[None].copy()
    slic_cpu.cluster(image[None], centers, *steps, weight, iterations, 0.0, labels)
    expected, expected_centers = plain(image, start, steps, weight, iterations)
    np.testing.assert_array_equal(labels[0], expected)
    np.testing.assert_array_equal(centers[0], expected_centers)


def test_centers_at_random() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        start = rng.uniform(0, (30, 40, 6, 6), (6, 4)).astype(F)
        steps = int(rng.integers(2, 7)), int(rng.integers(2, 7))
        image, weight = scene(30, 40, 2, float(rng.choice([1.0, 5.0]))), F(rng.choice([0.001, 0.05]))
        check_start(image, start, steps, weight, int(rng.integers(1, 9)))


def test_a_center_that_moves_out_of_reach() -> None:
    # The first center owns the dark pixels at the left and is pulled to the right by those out of its reach:
    # what it leaves behind goes to the second one, however little alike.
    image = np.zeros((1, 16, 32), F)
    image[0, 9, 2:5] = 100
    check_start(image, np.array([[4, 8, 0], [9, 3, 100]], F), (4, 4), F(1 / 16), 2)


def test_steps_of_color_leave_ties() -> None:
    image = np.zeros((3, 48, 64), F)
    image[:, 16:32] = 1
    image[:, :, 24:40] += 2
    check(image, 12)


def test_constant_image() -> None:
    check(np.full((3, 40, 50), 1.5, F), 20)


def test_places_of_large_clusters_are_summed_in_order() -> None:
    # Columns add up to 4e8: single precision rounds past 2^24.
    check(scene(20, 9000, 1, 0.1), 2, iterations=3)


def test_colors_that_are_not_finite() -> None:
    image = scene(20, 40, 3, 1.0)
    image[1, 4, 5], image[0, 11, 30] = np.inf, np.nan
    labels, centers = np.zeros((1, 20, 40), np.int32), np.zeros((1, 2, 5), F)
    centers[0, :, :2] = (10, 10), (10, 30)
    slic_cpu.cluster(image[None], centers, 10, 20, F(0.01), 1, 0.0, labels)
    # No distance to these pixels is finite: they keep the label they had.
    assert labels[0, 4, 5] == labels[0, 11, 30] == 0
    assert labels[0, 11, 29] == labels[0, 11, 31] == 1


def test_cluster_of_pixels_out_of_reach_is_summed_in_order() -> None:
    # They keep cluster 0 from one end of a row to the other, far beyond its window.
    image = scene(40, 300, 3, 1.0)
    start = np.zeros((3, 5), F)
    start[:, :2] = (20, 20), (10, 150), (25, 280)
    check_start(image, start, (8, 8), F(0.01), 3)


def test_counts_beyond_single_precision() -> None:
    size = 4100
    centers, labels = np.full((1, 1, 3), size / 2, F), np.zeros((1, size, size), np.int32)
    centers[0, 0, 2] = 1
    labels[0, 0, 0] = 1  # so that a label changes
    slic_cpu.cluster(np.zeros((1, 1, size, size), F), centers, size, size, F(0.01), 1, 0.0, labels)
    columns = np.cumsum(np.tile(np.arange(size, dtype=F), size), dtype=F)[-1]
    assert (labels == 0).all()
    assert centers[0, 0, 1] == columns / F(size * size)


@pytest.mark.parametrize("kind", [F, np.float64])
@pytest.mark.parametrize(
    ("channels", "width", "widest"), [(1, 16, 16), (3, 97, 9), (4, 97, 97), (3, 150, 40)]
)
def test_vectors_add_up_the_same_bits(channels: int, width: int, widest: int, kind: type) -> None:
    rng = np.random.default_rng([channels, width])
    features, rows, first, last = rng.normal(0, 50, (channels, 21, width)).astype(F), 21, 2, 40
    # No label has more than `widest` columns; some are not in first..last.
    bands = np.arange(width) // widest
    labels = (bands[None] * 7 + rng.integers(0, 7, (rows, width))).astype(np.int32)
    for c in range(0, channels, 3):
        found = []
        for loops in (slic_simd_cpu, slic_tile_cpu):
            sums, counts = np.zeros((last - first + 1, 5), kind), np.zeros(last - first + 1, np.int64)
            loops.add_rows(features, c, labels, 3, 19, first, last, widest, sums, counts)
            found.append((sums[:-1], counts[:-1]))
        used = min(5, 2 + channels - c)
        np.testing.assert_array_equal(found[0][0][:, :used], found[1][0][:, :used])
        np.testing.assert_array_equal(found[0][1], found[1][1])
    assert found[0][1].sum() > 0


@pytest.mark.parametrize("bound", [F(np.inf), F(900), F(20)])
@pytest.mark.parametrize(("channels", "colors"), [(1, 1), (3, 3), (3, 0), (5, 5)])
@pytest.mark.parametrize("living", [1, 16, 33, 90])
def test_vectors_choose_the_same_centers(channels: int, colors: int, living: int, bound: np.float32) -> None:
    rng = np.random.default_rng([channels, living])
    table = slic_tile_cpu.new_table(living, channels)
    place = slic_tile_cpu.PLACE
    table[place : place + 2, :living] = rng.uniform(0, 60, (2, living))
    for axis, first in ((place, slic_tile_cpu.FIRST_Y), (place + 1, slic_tile_cpu.FIRST_X)):
        table[first, :living], table[first + 1, :living] = (
            table[axis, :living] - 30,
            table[axis, :living] + 30,
        )
    table[slic_tile_cpu.COLORS :, :living] = rng.normal(0, 9, (channels, living))
    low = np.concatenate([[24, 32], rng.normal(-3, 1, channels)])
    boxes = np.zeros((2, 3, 2, 2 + channels), F)
    boxes[1, 2] = low, low + np.array([7, 15] + channels * [2])
    found = []
    for loops in (slic_simd_cpu, slic_tile_cpu):
        kept = np.empty(living + 1, np.int32)
        number = loops.near_centers(
            table, living, boxes, np.uintp(1), np.uintp(2), colors, bound, F(0.3), F(0.01), kept
        )
        found.append(kept[:number].tolist())
    assert found[0] == found[1]
