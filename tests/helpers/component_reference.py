"""Reference of the component vote in plain numpy, scikit-image and scipy, one flood fill per gray level."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, maximum_filter, minimum_filter
from skimage.measure import label

from mclc_gpu.kernels.config import CATEGORY_AREAS, ComponentConfig

STEPS = 2048  # gray levels are rounded to this part of an 8-bit level
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


class Votes(NamedTuple):
    tpm: np.ndarray
    area: int
    confidence: float
    score: float
    flat: bool


def gray_steps(image: np.ndarray) -> np.ndarray:
    """Return gray levels, int64 [H, W], in steps."""
    gray = image.astype(np.float64)
    if image.ndim == 3:
        gray = gray @ np.array([0.299, 0.587, 0.114])
    if image.dtype != np.uint8:
        span = gray.max() - gray.min()
        gray = (gray - gray.min()) * (255 / span if span else 0)
    return np.floor(gray * STEPS + 0.5).astype(np.int64)


def relief(v: np.ndarray, side: int) -> np.ndarray:
    """Return gray levels less their opening by a square, as far as it lies in the window (white top-hat)."""
    if side == 0:
        return v
    low = minimum_filter(v, side, mode="constant", cval=v.max())
    return v - maximum_filter(low, side, mode="constant", cval=low.min())


def squares(shape: tuple[int, ...], place: tuple[int, int]) -> np.ndarray:
    """Return the squares of all pixels' distances from a place."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - place[0]) ** 2 + (x - place[1]) ** 2


def nearer_to(others: list[tuple[int, int]], click: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Return which pixels are nearer to another click."""
    least = np.full(shape, np.inf)
    return np.minimum.reduce([least, *(squares(shape, other) for other in others)]) < squares(shape, click)


def brightest_around(v: np.ndarray, place: tuple[int, int], able: np.ndarray) -> tuple[int, int]:
    """Return the first of the brightest pixels in the 3 x 3 around a place, of those that are able."""
    area = tuple(slice(max(c - 1, 0), c + 2) for c in place)
    around = np.where(able[area], v[area], -1)
    step = np.unravel_index(around.argmax(), around.shape)
    y, x = (int(a.start + s) for a, s in zip(area, step, strict=True))
    return y, x


def find_target(
    v: np.ndarray, click: tuple[int, int], near: int, others: list[tuple[int, int]], low: int
) -> tuple[tuple[int, int], int]:
    """Return the brightest pixel of the target, and the background: `low` or the least near the click."""
    square = squares(v.shape, click)
    disk = square <= near**2
    able = ~nearer_to(others, click, v.shape)
    low = min(low, int(v[disk].min()))
    y, x = np.unravel_index(np.argmax(np.where(disk & able, (v - low) / (16 + square), -1)), v.shape)
    place = int(y), int(x)
    for _ in range(8):
        uphill = brightest_around(v, place, able)
        if v[uphill] == v[place]:
            break
        place = uphill
    return place, low


def first_levels(
    v: np.ndarray, places: list[tuple[int, int]], high: int, low: int, levels: int
) -> np.ndarray:
    """Return the first level at which each pixel is joined to one of the places; `levels` for never."""
    first = np.full(v.shape, levels)
    for k in reversed(range(levels)):
        bright = levels * (high - v) <= (high - low) * k
        pieces = label(bright, connectivity=2)
        own = [pieces[place] for place in places if bright[place]]
        first[bright & np.isin(pieces, own)] = k
    return first


def taken(
    v: np.ndarray,
    brightest: tuple[int, int],
    low: int,
    click: tuple[int, int],
    others: list[tuple[int, int]],
    levels: int,
) -> np.ndarray:
    """Return the pixels of the other targets: a watershed from the brightest pixels at their clicks."""
    markers = [brightest_around(v, other, np.ones(v.shape, bool)) for other in others]
    high = int(v[brightest])
    rivals = first_levels(v, [m for m in markers if m != brightest], high, low, levels)
    own = first_levels(v, [brightest], high, low, levels)
    return (rivals < own) | ((rivals == own) & nearer_to(others, click, v.shape))


def candidates(
    v: np.ndarray,
    brightest: tuple[int, int],
    low: int,
    closed: np.ndarray,
    beyond: np.ndarray,
    config: ComponentConfig,
) -> list[np.ndarray]:
    """Return the distinct masks of all levels; `beyond` marks window borders inside the image."""
    found: list[np.ndarray] = []
    for k in range(config.levels if v[brightest] > low else 0):
        bright = config.levels * (v[brightest] - v) <= (v[brightest] - low) * k
        pieces = label(bright & ~closed, connectivity=2)
        mask = pieces == pieces[brightest]
        if mask.sum() > config.max_area or (mask & beyond).any():
            break
        if not found or mask.sum() > found[-1].sum():
            found.append(mask)
    return found


def falls(mask: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """Return the falls from each pixel of a mask to each of its neighbors outside."""
    found = []
    for axis in (0, 1):
        one, other = (np.moveaxis(array, axis, 0) for array in (mask, gray))
        step = (other[:-1] - other[1:]) * np.sign(one[:-1].astype(int) - one[1:])
        found.append(step[one[:-1] != one[1:]])
    return np.concatenate(found)


def score(
    mask: np.ndarray,
    v: np.ndarray,
    click: tuple[int, int],
    category: int,
    config: ComponentConfig,
) -> float:
    gray = v / STEPS
    inner = mask & ~binary_erosion(mask, CROSS, border_value=1)
    outer = binary_dilation(mask, CROSS) & ~mask
    near, far = (binary_dilation(mask, np.ones((side, side))) for side in (7, 13))
    ring = np.sort(gray[far & ~near])
    low_level, median = (np.sort(gray, axis=None)[(gray.size - 1) // part] for part in (20, 2))
    background = ring[(len(ring) - 1) // 2] if len(ring) else low_level
    peak, area = gray[mask].max(), mask.sum()
    inside = gray[inner].mean() if inner.any() else peak
    outside = gray[outer].mean() if outer.any() else background
    above = max((inside + outside) / 2 - background, 0.3)
    level, steps = np.log(above), falls(mask, gray).clip(0, median - low_level + 1)
    away = np.hypot(*(np.argwhere(mask).mean(0) - click))
    w = config.weights
    total = (w.level + config.core) * level + w.level_square * level**2
    total += w.edge * np.log(max(inside - outside, 0.3))
    contrast = max(peak - background, 0.5) / np.sqrt(median - low_level + 1)
    total += (w.size + config.body) * np.log(area) * np.log(contrast)
    total += w.rim * np.log(0.3 + (steps.mean() if len(steps) else 0))
    total += w.outline * outer.sum() / np.sqrt(area) + w.large * max(np.log(area / 50), 0)
    total += w.distance * away / (2 + 0.05 * np.sqrt(area))
    if category >= 0:
        least, most = CATEGORY_AREAS[category]
        misses = max(0, np.log(least / area)) + max(0, np.log(area / most))
        total -= config.category_weight * misses
    return float(total)


def reference_votes(
    image: np.ndarray,
    window: list[int],
    category: int,
    config: ComponentConfig,
    dark: bool = False,
    others: Sequence[tuple[int, int]] = (),
) -> Votes:
    """Return the vote of one target; `window` is top, left, height, width, click's row and column.

    `others` holds the rows and columns in the window of the other targets' clicks.
    """
    top, left, height, width, *click = window[:6]
    area = np.s_[top : top + height, left : left + width]
    steps = gray_steps(image)
    v = (255 * STEPS - steps if dark else steps)[area]
    beyond = np.zeros((height, width), bool)
    beyond[0] |= top > 0
    beyond[-1] |= top + height < image.shape[0]
    beyond[:, 0] |= left > 0
    beyond[:, -1] |= left + width < image.shape[1]
    place, u = (click[0], click[1]), relief(v, config.opening)
    levels = [u]
    p = brightest_around(u, place, np.ones(v.shape, bool))
    if v[p] - u[p] - np.sort(v, axis=None)[(v.size - 1) // 20] > 2 * u[p]:
        levels.append(v)
    found = [votes_on(one, v, place, beyond, category, config, list(others)) for one in levels]
    return max(found, key=lambda votes: votes.score)


def votes_on(
    u: np.ndarray,
    v: np.ndarray,
    place: tuple[int, int],
    beyond: np.ndarray,
    category: int,
    config: ComponentConfig,
    others: list[tuple[int, int]],
) -> Votes:
    """Return the vote of the candidates made from `u`."""
    least = int(np.sort(v, axis=None)[(v.size - 1) // 20]) if u is v else int(u.max())
    brightest, low = find_target(u, place, config.near, others, least)
    closed = taken(u, brightest, low, place, others, config.levels if others else 0)
    masks = np.array(candidates(u, brightest, low, closed, beyond, config))
    if not len(masks):
        y, x = np.mgrid[: v.shape[0], : v.shape[1]]
        tpm = np.maximum(abs(y - place[0]), abs(x - place[1])) <= 1
        return Votes(tpm.astype(float), int(tpm.sum()), 0.0, -np.inf, True)
    scores = np.array([score(mask, v, place, category, config) for mask in masks])
    weights = np.exp(scores - np.logaddexp.reduce(scores))
    tpm = np.tensordot(weights, masks, 1)
    chosen = tpm >= 0.5
    overlaps = (masks & chosen).sum((1, 2)) / (masks | chosen).sum((1, 2))
    confidence = float(weights @ overlaps)
    return Votes(tpm, int(chosen.sum()), confidence, float(scores.max()), False)
