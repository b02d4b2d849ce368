"""Reference of the component vote in plain numpy, scikit-image and scipy, one flood fill per gray level."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion
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


def find_target(v: np.ndarray, click: tuple[int, int], near: int) -> tuple[tuple[int, int], int]:
    """Return the brightest pixel of the target, and the background's gray level."""
    y, x = np.mgrid[: v.shape[0], : v.shape[1]]
    square = (y - click[0]) ** 2 + (x - click[1]) ** 2
    disk = square <= near**2
    low = min(np.sort(v, axis=None)[(v.size - 1) // 20], v[disk].min())
    place = np.unravel_index(np.argmax(np.where(disk, (v - low) / (32 + square), -1)), v.shape)
    for _ in range(8):
        area = tuple(slice(max(c - 1, 0), c + 2) for c in place)
        around = v[area]
        if around.max() == v[place]:
            break
        step = np.unravel_index(around.argmax(), around.shape)
        place = tuple(a.start + s for a, s in zip(area, step, strict=True))
    return place, int(low)


def candidates(
    v: np.ndarray, brightest: tuple[int, int], low: int, beyond: np.ndarray, config: ComponentConfig
) -> list[np.ndarray]:
    """Return the distinct masks of all levels; `beyond` marks window borders inside the image."""
    found: list[np.ndarray] = []
    for k in range(config.levels if v[brightest] > low else 0):
        bright = config.levels * (v[brightest] - v) <= (v[brightest] - low) * k
        pieces = label(bright, connectivity=2)
        mask = pieces == pieces[brightest]
        if mask.sum() > config.max_area or (mask & beyond).any():
            break
        if not found or mask.sum() > found[-1].sum():
            found.append(mask)
    return found


def score(
    mask: np.ndarray,
    v: np.ndarray,
    low: int,
    edge_of_image: np.ndarray,
    click: tuple[int, int],
    category: int,
    config: ComponentConfig,
) -> float:
    gray = v / STEPS
    inner = mask & ~binary_erosion(mask, CROSS, border_value=1)
    outer = binary_dilation(mask, CROSS) & ~mask
    near, far = (binary_dilation(mask, np.ones((side, side))) for side in (7, 13))
    ring = np.sort(gray[far & ~near])
    background = ring[(len(ring) - 1) // 2] if len(ring) else low / STEPS
    peak, area = gray[mask].max(), mask.sum()
    inside = gray[inner].mean() if inner.any() else peak
    outside = gray[outer].mean() if outer.any() else background
    low_level, median = (np.sort(gray, axis=None)[(gray.size - 1) // part] for part in (20, 2))
    above = max((inside + outside) / 2 - background, 0.3)
    level, share = np.log(above), above / max(peak - background, 0.5)
    touching = (mask & edge_of_image).sum()
    both = touching + outer.sum()
    away = np.hypot(*(np.argwhere(mask).mean(0) - click))
    w = config.weights
    total = (w.level + config.core) * level + w.level_square * level**2
    total += w.edge * np.log(max(inside - outside, 0.3))
    contrast = max(peak - background, 0.5) / np.sqrt(median - low_level + 1)
    total += (w.size + config.body) * np.log(area) * np.log(contrast)
    total += w.outline * outer.sum() / np.sqrt(area) + w.border * (touching / both if both else 1)
    total += w.distance * away / (2 + 0.05 * np.sqrt(area))
    total += w.share * share**2
    if category >= 0:
        least, most = CATEGORY_AREAS[category]
        misses = max(0, np.log(least / area)) + max(0, np.log(area / most))
        total -= config.category_weight * misses
    return float(total)


def reference_votes(
    image: np.ndarray, window: list[int], category: int, config: ComponentConfig, dark: bool = False
) -> Votes:
    """Return the vote of one target; `window` is top, left, height, width, click's row and column."""
    top, left, height, width, *click = window[:6]
    area = np.s_[top : top + height, left : left + width]
    steps = gray_steps(image)
    v = (255 * STEPS - steps if dark else steps)[area]
    frame = np.ones(image.shape[:2], bool)
    frame[1:-1, 1:-1] = False
    frame = frame[area]
    beyond = np.zeros((height, width), bool)
    beyond[0] |= top > 0
    beyond[-1] |= top + height < image.shape[0]
    beyond[:, 0] |= left > 0
    beyond[:, -1] |= left + width < image.shape[1]
    brightest, low = find_target(v, tuple(click), config.near)
    masks = np.array(candidates(v, brightest, low, beyond, config))
    if not len(masks):
        y, x = np.mgrid[:height, :width]
        tpm = np.maximum(abs(y - click[0]), abs(x - click[1])) <= 1
        return Votes(tpm.astype(float), int(tpm.sum()), 0.0, -np.inf, True)
    scores = np.array([score(mask, v, low, frame, tuple(click), category, config) for mask in masks])
    weights = np.exp(scores - np.logaddexp.reduce(scores))
    tpm = np.tensordot(weights, masks, 1)
    chosen = tpm >= 0.5
    overlaps = (masks & chosen).sum((1, 2)) / (masks | chosen).sum((1, 2))
    confidence = float(weights @ overlaps)
    return Votes(tpm, int(chosen.sum()), confidence, float(scores.max()), False)
