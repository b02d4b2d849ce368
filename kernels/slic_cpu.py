"""SLIC in numba: the float32 operations of scikit-image's loop in the same order, so the same bits.

Rows of one cluster's window are worked on at a time, so that the inner loops over x vectorise. Many images
are spread over the threads; a few large ones are cut into bands of rows, which visit the clusters in the same
ascending order.
"""

import numpy as np
from numba import get_num_threads, prange

from mclc_gpu.kernels.jit_cpu import compiled

F = np.float32
U = np.uintp
_MIN_BAND_ROWS = 8


@compiled(inline="always")
def _reach(centre, step, size):
    """Half-open range of the rows (or columns) in the window of 2 steps around a centre."""
    low = max(centre - F(2 * step), F(0))
    high = min(centre + F(2 * step) + F(1), F(size))
    return np.int64(low), np.int64(high)


@compiled()
def _distances(features, centre, y, x_min, x_max, weight, coordinates, out):
    """Squared distances D^2 of the pixels x_min..x_max of row y to a centre [y, x, colours]."""
    channels = features.shape[0]
    dy = centre[0] - coordinates[y]
    dy *= dy
    cx = centre[1]
    if channels == 3:
        c0, c1, c2 = centre[2], centre[3], centre[4]
        for x in range(U(x_min), U(x_max)):
            dx = cx - coordinates[x]
            t0 = features[0, y, x] - c0
            t1 = features[1, y, x] - c1
            t2 = features[2, y, x] - c2
            out[x] = (dy + dx * dx) * weight + (t0 * t0 + t1 * t1 + t2 * t2)
        return
    for x in range(U(x_min), U(x_max)):
        out[x] = F(0)
    for c in range(channels):
        colour = centre[2 + c]
        for x in range(U(x_min), U(x_max)):
            t = features[c, y, x] - colour
            out[x] += t * t
    for x in range(U(x_min), U(x_max)):
        dx = cx - coordinates[x]
        out[x] = (dy + dx * dx) * weight + out[x]


@compiled()
def _assign(
    features, centres, counts, step_y, step_x, weight, coordinates, y_first, y_last, labels, best, row
):
    """Give the rows y_first..y_last of one image their nearest centre; tell whether a label changed."""
    height, width = labels.shape
    before = labels[y_first:y_last].copy()
    best[y_first:y_last] = np.inf
    for k in range(centres.shape[0]):
        if counts[k] == 0:
            continue
        y_min, y_max = _reach(centres[k, 0], step_y, height)
        x_min, x_max = _reach(centres[k, 1], step_x, width)
        for y in range(max(y_min, y_first), min(y_max, y_last)):
            _distances(features, centres[k], y, x_min, x_max, weight, coordinates, row)
            for x in range(U(x_min), U(x_max)):
                nearer = row[x] < best[y, x]
                best[y, x] = row[x] if nearer else best[y, x]
                labels[y, x] = k if nearer else labels[y, x]
    changed = 0
    for y in range(y_first, y_last):
        for x in range(width):
            changed |= before[y - y_first, x] ^ labels[y, x]
    return changed != 0


@compiled()
def _sum_feature(features, labels, feature, coordinates, sums):
    """Sum one feature (0: y, 1: x, 2 + c: channel c) over the pixels of each cluster, in raster order."""
    height, width = labels.shape
    sums[:, feature] = 0
    for y in range(height):
        for x in range(width):
            if feature == 0:
                value = coordinates[y]
            elif feature == 1:
                value = coordinates[x]
            else:
                value = features[feature - 2, y, x]
            sums[labels[y, x], feature] += value


@compiled()
def _count(labels, counts):
    counts[:] = 0
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            counts[labels[y, x]] += 1


@compiled()
def _move(centres, sums, counts, tolerance):
    """Set the centres to their clusters' means (eq. 4); tell whether one moved by `tolerance` or more."""
    moved = False
    for k in range(centres.shape[0]):
        if counts[k] == 0:
            continue
        y, x = centres[k, 0], centres[k, 1]
        for i in range(centres.shape[1]):
            centres[k, i] = sums[k, i] / F(counts[k])
        dy, dx = centres[k, 0] - y, centres[k, 1] - x
        moved |= dy * dy + dx * dx >= tolerance * tolerance
    return moved


@compiled()
def _cluster(features, centres, step_y, step_x, weight, iterations, tolerance, coordinates, zero, labels):
    height, width = labels.shape
    n_features = centres.shape[1]
    counts = np.ones(centres.shape[0], np.int64)
    sums = np.full(centres.shape, zero)
    best = np.empty((height, width), F)
    row = np.empty(width, F)
    for _ in range(iterations):
        if not _assign(
            features, centres, counts, step_y, step_x, weight, coordinates, 0, height, labels, best, row
        ):
            return
        _count(labels, counts)
        for i in range(n_features):
            _sum_feature(features, labels, i, coordinates, sums)
        if not _move(centres, sums, counts, F(tolerance)):
            return


@compiled(parallel=True)
def _cluster_bands(
    features, centres, step_y, step_x, weight, iterations, tolerance, coordinates, zero, labels, bands
):
    height, width = labels.shape
    n_features = centres.shape[1]
    counts = np.ones(centres.shape[0], np.int64)
    sums = np.full(centres.shape, zero)
    best = np.empty((height, width), F)
    for _ in range(iterations):
        changed = 0
        for band in prange(bands):
            row = np.empty(width, F)
            first, last = height * band // bands, height * (band + 1) // bands
            changed += _assign(
                features, centres, counts, step_y, step_x, weight, coordinates, first, last, labels, best, row
            )
        if changed == 0:
            return
        for i in prange(n_features + 1):
            if i == n_features:
                _count(labels, counts)
            else:
                _sum_feature(features, labels, i, coordinates, sums)
        if not _move(centres, sums, counts, F(tolerance)):
            return


@compiled(parallel=True)
def _cluster_images(
    features, centres, step_y, step_x, weight, iterations, tolerance, coordinates, zero, labels
):
    for b in prange(features.shape[0]):
        _cluster(
            features[b],
            centres[b],
            step_y,
            step_x,
            weight,
            iterations,
            tolerance,
            coordinates,
            zero,
            labels[b],
        )


def cluster(
    features: np.ndarray,
    centres: np.ndarray,
    step_y: int,
    step_x: int,
    weight: np.float32,
    iterations: int,
    tolerance: float,
    labels: np.ndarray,
    double_sums: bool = False,
) -> None:
    """Cluster float32 [B, C, H, W] features around float32 [B, N, 2 + C] centres into int32 [B, H, W] labels.

    The centres are moved in place. Sums over a cluster are scikit-image's, in single precision, or in double,
    which clusters of more than some 10,000 pixels need.
    """
    coordinates = np.arange(max(features.shape[2:]), dtype=F)
    zero = np.float64(0) if double_sums else F(0)
    settings = (step_y, step_x, weight, iterations, tolerance, coordinates, zero)
    if len(features) >= get_num_threads():
        _cluster_images(features, centres, *settings, labels)
        return
    # More bands than threads even out the centres' crowding; each costs a look at all centres.
    bands = max(1, min(get_num_threads() * 4, features.shape[2] // _MIN_BAND_ROWS))
    for image, start, out in zip(features, centres, labels, strict=True):
        _cluster_bands(image, start, *settings, out, bands)
