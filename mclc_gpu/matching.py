"""Which predicted component detects which target, and the same at all thresholds in one pass.

Compiled: numba notices a change of a function in this file for all the others in it.
"""

import math

import numpy as np

from mclc_gpu.kernels.jit_cpu import compiled

MATCH_DISTANCE = 3.0  # pixels between centroids, exclusive
DETECTED, FALSE_ALARM_PIXELS, INTERSECTION, PREDICTED = range(4)  # columns of what `sweep` returns


@compiled()
def match(true: np.ndarray, predicted: np.ndarray, first: np.ndarray, nearest: bool) -> np.ndarray:
    """The predicted component that each target takes, -1 for none; see `mclc_gpu.conventions.Convention`.

    Args:
        true: float64 [targets, 2], centroids (row, column), in the order in which the targets choose.
        predicted: float64 [components, 2], centroids, in any order.
        first: int64 [components], numbers in the order of the components' first pixels.
        nearest: Whether targets take the nearest component, or the first.

    Returns:
        int64 [targets], indices into `predicted`.
    """
    matched = np.full(len(true), -1, np.int64)
    free = np.ones(len(predicted), np.bool_)
    for target in range(len(true)):
        best, least = -1, MATCH_DISTANCE
        for p in range(len(predicted)):
            dy, dx = predicted[p, 0] - true[target, 0], predicted[p, 1] - true[target, 1]
            if not free[p] or abs(dy) > MATCH_DISTANCE or abs(dx) > MATCH_DISTANCE:
                continue
            # Centroids are rounded fractions: 3 px and equal distances must not depend on their last bits.
            distance = np.rint(math.hypot(dy, dx) * 1e9) / 1e9
            if distance >= MATCH_DISTANCE:
                continue
            closer = nearest and distance < least
            even = not nearest or distance == least
            if best < 0 or closer or (even and first[p] < first[best]):
                best, least = p, distance
        if best >= 0:
            matched[target] = best
            free[best] = False
    return matched


@compiled()
def false_alarm_pixels(area: np.ndarray, matched: np.ndarray, by_area: bool) -> int:
    """Pixels of the predicted components that are false alarms; see `mclc_gpu.conventions.Convention`.

    `area`: int64 [components]. `matched`: what `match` returned. `by_area`: the convention's.
    """
    alarm = np.ones(len(area), np.bool_)
    for taken in matched:
        if taken < 0:
            continue
        alarm[taken] = False
        if by_area:
            for p in range(len(area)):
                alarm[p] &= area[p] != area[taken]
    return area[alarm].sum()


@compiled()
def sweep(
    probability: np.ndarray,
    truth: np.ndarray,
    true: np.ndarray,
    thresholds: np.ndarray,
    nearest: bool,
    by_area: bool,
) -> np.ndarray:
    """Counts of one image at every threshold; at each one the prediction is probability > threshold.

    From the highest threshold down, pixels join a forest of components (union-find), which so is labelled
    once for all thresholds.

    Args:
        probability: float32 [H, W].
        truth: bool [H, W].
        true: float64 [targets, 2], the targets' centroids (row, column), in order of their first pixels.
        thresholds: float32 [N], ascending.
        nearest, by_area: The convention's.

    Returns:
        int64 [N, 4]: detected targets, false-alarm pixels, intersection, predicted pixels.
    """
    height, width = probability.shape
    counts = np.zeros((len(thresholds), 4), np.int64)
    pixels, starts = _by_level(probability, thresholds)
    parent = np.full(height * width, -1, np.int32)
    area = np.empty(height * width, np.int64)
    rows = np.empty(height * width, np.int64)
    columns = np.empty(height * width, np.int64)
    first = np.empty(height * width, np.int64)
    roots = np.empty(len(pixels), np.int32)
    place = np.empty(height * width, np.int32)  # of a root in `roots`
    components = 0
    for k in range(len(thresholds) - 1, -1, -1):
        if k + 1 < len(thresholds):
            counts[k] = counts[k + 1]
        # Level k + 1 holds the pixels above threshold k, but not above the next.
        joining = pixels[starts[k + 1] : starts[k + 2]]
        if not len(joining):
            continue
        for pixel in joining:
            row, column = pixel // width, pixel % width
            counts[k, INTERSECTION] += truth[row, column]
            parent[pixel], place[pixel] = pixel, components
            area[pixel], rows[pixel], columns[pixel], first[pixel] = 1, row, column, pixel
            roots[components] = pixel
            components += 1
            root = pixel
            for y in range(max(row - 1, 0), min(row + 2, height)):
                for x in range(max(column - 1, 0), min(column + 2, width)):
                    if parent[y * width + x] < 0:
                        continue
                    other = _root(parent, y * width + x)
                    if other == root:
                        continue
                    if area[other] > area[root]:
                        root, other = other, root
                    parent[other] = root
                    area[root] += area[other]
                    rows[root] += rows[other]
                    columns[root] += columns[other]
                    first[root] = min(first[root], first[other])
                    components -= 1
                    last = roots[components]
                    roots[place[other]], place[last] = last, place[other]
        counts[k, PREDICTED] += len(joining)
        present = roots[:components]
        areas = area[present]
        centroids = np.empty((components, 2), np.float64)
        centroids[:, 0] = rows[present] / areas
        centroids[:, 1] = columns[present] / areas
        matched = match(true, centroids, first[present], nearest)
        counts[k, DETECTED] = (matched >= 0).sum()
        counts[k, FALSE_ALARM_PIXELS] = false_alarm_pixels(areas, matched, by_area)
    return counts


@compiled()
def _by_level(probability: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels sorted by how many thresholds they exceed; those of level n are pixels[starts[n]:starts[n + 1]].

    Pixels that exceed none are left out.
    """
    flat = probability.ravel()
    level = np.zeros(len(flat), np.int32)
    starts = np.zeros(len(thresholds) + 2, np.int64)
    for pixel in range(len(flat)):
        if flat[pixel] > thresholds[0]:
            level[pixel] = np.searchsorted(thresholds, flat[pixel])
            starts[level[pixel] + 1] += 1
    starts = starts.cumsum()
    pixels = np.empty(starts[-1], np.int32)
    ends = starts.copy()
    for pixel in range(len(flat)):
        if level[pixel]:
            pixels[ends[level[pixel]]] = pixel
            ends[level[pixel]] += 1
    return pixels, starts


@compiled(inline="always")
def _root(parent: np.ndarray, pixel: int) -> int:
    while parent[pixel] != pixel:
        parent[pixel] = parent[parent[pixel]]
        pixel = parent[pixel]
    return pixel
