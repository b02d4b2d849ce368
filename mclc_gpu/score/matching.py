"""Match predicted components to true targets and count detections and false alarms of one image."""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mclc_gpu.kernels.jit_cpu import compiled

MATCH_DISTANCE = 3.0  # pixels between centroids, exclusive
DETECTED, FALSE_ALARM_PIXELS, INTERSECTION, PREDICTED = range(4)  # columns of the output of `sweep`
_EIGHT = np.ones((3, 3), dtype=bool)


class Components(NamedTuple):
    """Components of a mask, numbered from 0 to n - 1.

    Attributes
    ----------
    labels : ndarray of int32, [H, W]
        0 on background, component + 1 elsewhere.
    area : ndarray of int64, [n]
        Pixels of each component.
    centroid : ndarray of float64, [n, 2]
        Row and column of each component's centroid, in pixels.
    """

    labels: np.ndarray
    area: np.ndarray
    centroid: np.ndarray


def components_of(mask: np.ndarray) -> Components:
    """Find the 8-connected components of a mask, in raster order of their first pixels.

    Parameters
    ----------
    mask : ndarray of bool, [H, W]

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu.score.matching import components_of
    >>> components_of(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]], bool)).area.tolist()
    [2, 2]
    """
    labels, count = ndimage.label(mask, structure=_EIGHT)
    places = np.flatnonzero(mask)  # much faster than np.nonzero on two axes
    rows, columns = np.divmod(places, mask.shape[1])
    index = labels.ravel()[places] - 1
    area = np.bincount(index, minlength=count)
    sums = [np.bincount(index, weights=axis, minlength=count) for axis in (rows, columns)]
    return Components(labels, area, np.stack(sums, axis=1) / area[:, None])


@compiled()
def match(true: np.ndarray, predicted: np.ndarray, first: np.ndarray, nearest: bool) -> np.ndarray:
    """Return the predicted component that each target takes, -1 for none; see `score.config.Convention`.

    Parameters
    ----------
    true : ndarray of float64, [targets, 2]
        Centroids (row, column), in the order in which the targets choose.
    predicted : ndarray of float64, [components, 2]
        Centroids, in any order.
    first : ndarray of int64, [components]
        Numbers in the order of the components' first pixels.
    nearest : bool
        `Convention.nearest`.

    Returns
    -------
    ndarray of int64, [targets]
        Indices into `predicted`.
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
    """Return the number of pixels of components that are false alarms; see `score.config.Convention`.

    Parameters
    ----------
    area : ndarray of int64, [components]
        Pixels of each predicted component.
    matched : ndarray of int64, [targets]
        Output of `match`.
    by_area : bool
        `Convention.alarms_by_area`.
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
    """Count one image at every threshold; at each one the prediction is probability > threshold.

    From the highest threshold down, pixels join a forest of components (union-find), so that components are
    labeled once for all thresholds.

    Parameters
    ----------
    probability : ndarray of float32, [H, W]
    truth : ndarray of bool, [H, W]
    true : ndarray of float64, [targets, 2]
        Centroids (row, column) of the targets, in order of their first pixels.
    thresholds : ndarray of float32, [N]
        Ascending.
    nearest, by_area : bool
        `Convention.nearest` and `Convention.alarms_by_area`.

    Returns
    -------
    ndarray of int64, [N, 4]
        Detected targets, false-alarm pixels, intersection, predicted pixels.
    """
    height, width = probability.shape
    counts = np.zeros((len(thresholds), 4), np.int64)
    pixels, starts = _by_level(probability, thresholds)
    # The sums of a component are kept at its root, the pixel that is its own parent.
    parent = np.full(height * width, -1, np.int32)
    area = np.empty(height * width, np.int64)
    rows = np.empty(height * width, np.int64)
    columns = np.empty(height * width, np.int64)
    first = np.empty(height * width, np.int64)
    roots = np.empty(len(pixels), np.int32)
    place = np.empty(height * width, np.int32)  # index of a root in `roots`
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
    """Sort pixels by the number of thresholds they exceed; level n is pixels[starts[n]:starts[n + 1]].

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
    """Find the root of a pixel's component, and shorten the path to it."""
    while parent[pixel] != pixel:
        parent[pixel] = parent[parent[pixel]]
        pixel = parent[pixel]
    return pixel
