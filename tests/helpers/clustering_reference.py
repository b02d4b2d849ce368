"""Reference of the clustering (paper, eq. 1-4) in plain double-precision numpy, and of near ties."""

from collections.abc import Callable

import numpy as np
from skimage.color import rgb2lab
from skimage.util import regular_grid

NEAR = 1e-4


def features(image: np.ndarray, compactness: float, lab: bool | None = None) -> np.ndarray:
    """Return rescaled colors [H, W, C] of an image [H, W, C], in CIELAB when it has three channels."""
    image = image.astype(np.float64)
    span = image.max() - image.min()
    image = (image - image.min()) / (span if span > 0 else 1)
    return (rgb2lab(image) if (image.shape[2] == 3 if lab is None else lab) else image) / compactness


def grid(height: int, width: int, clusters: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return start positions [N, 2], the windows' reach in y and x, and the weight of a squared pixel."""
    asked = regular_grid((1, height, width), clusters)
    positions = np.stack(np.mgrid[:height, :width], -1)[asked[1], asked[2]].reshape(-1, 2)
    has = regular_grid((1, height, width), len(positions))
    reach = np.array([2.0 * (s.step or 1) for s in has[1:]])
    return positions.astype(np.float64), reach, 1 / max(s.step or 1 for s in asked[1:]) ** 2


def distances(feature: np.ndarray, centers: np.ndarray, reach: np.ndarray, weight: float) -> np.ndarray:
    """Return squared distances [N, H, W] to centers (row, column, colors), infinite out of reach."""
    place = np.stack(np.mgrid[: feature.shape[0], : feature.shape[1]], -1).astype(np.float64)
    out = np.empty((len(centers), *feature.shape[:2]))
    for k, center in enumerate(centers):
        away = place - center[:2]
        first, last = np.trunc(np.maximum(center[:2] - reach, 0)), np.floor(center[:2] + reach)
        within = ((place >= first) & (place <= last)).all(-1)
        squared = (away**2).sum(-1) * weight + ((feature - center[2:]) ** 2).sum(-1)
        out[k] = np.where(within, squared, np.inf)
    return out


def means(feature: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    """Return the centers [number, 2 + C] of a labeling; NaN for empty clusters, which reach no pixel."""
    rows = np.concatenate([np.stack(np.mgrid[: labels.shape[0], : labels.shape[1]], -1), feature], -1)
    members = [rows[labels == k] for k in range(number)]
    return np.stack([m.mean(0) if len(m) else np.full(rows.shape[2], np.nan) for m in members])


def lloyd(
    feature: np.ndarray, clusters: int, iterations: int, tolerance: float = 0, windowed: bool = True
) -> np.ndarray:
    """Return labels [H, W] after at most `iterations` assignments."""
    height, width, channels = feature.shape
    start, reach, weight = grid(height, width, clusters)
    reach = reach if windowed else np.full(2, np.inf)
    centers = np.concatenate([start, np.zeros((len(start), channels))], 1)
    labels = np.zeros((height, width), np.int64)
    for _ in range(iterations):
        squared = distances(feature, centers, reach, weight)
        labels = np.where(np.isfinite(squared.min(0)), squared.argmin(0), labels)
        moved = means(feature, labels, len(start))
        if np.nanmax(np.hypot(*(moved - centers)[:, :2].T)) < tolerance:
            break
        centers = moved
    return labels


def canonical(labels: np.ndarray) -> np.ndarray:
    """Replace every label by the flat index of the first pixel that has it."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse].reshape(labels.shape)


def near_tie(
    ours: Callable[[int], np.ndarray],
    theirs: Callable[[int], np.ndarray],
    feature: np.ndarray,
    clusters: int,
    iterations: int,
    windowed: bool = True,
) -> bool:
    """Return whether two labelings, as functions of the number of assignments, part at near ties alone.

    `theirs` numbers clusters in the order of the start grid. At the first assignment that gives different
    partitions, every pixel that differs must have two centers within a relative distance of `NEAR`.
    """
    start, reach, weight = grid(*feature.shape[:2], clusters)
    reach = reach if windowed else np.full(2, np.inf)
    for i in range(1, iterations + 1):
        differs = canonical(ours(i)) != canonical(theirs(i))
        if differs.any():
            if i == 1:
                return False
            squared = distances(feature, means(feature, theirs(i - 1), len(start)), reach, weight)
            least, second = np.sort(np.nan_to_num(squared, nan=np.inf), axis=0)[:2]
            return bool(((second - least) < NEAR * least)[differs].all())
    return False
