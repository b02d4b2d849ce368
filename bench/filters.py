"""Filter methods for one image at a time in plain numpy and scipy, step by step as their papers list them.

Tests compare the batched methods of `mclc_gpu.classical` with these functions, benchmarks their speed. Each
takes the gray levels of an image, ndarray [H, W] from 0 to 255, and returns its map, ndarray [H, W], float64
or, the top-hat, of the image's own type.
"""

import numpy as np
from scipy import ndimage

# The eight neighbors of a cell by their opposites: above, below; left, right; and the diagonals.
PAIRS = (((-1, 0), (1, 0)), ((0, -1), (0, 1)), ((-1, -1), (1, 1)), ((-1, 1), (1, -1)))
AROUND = [one for pair in PAIRS for one in pair]


def disk(radius: int) -> np.ndarray:
    """Return the pixels of a disk, bool [2 radius + 1, 2 radius + 1]."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def tophat(image: np.ndarray, element: str = "disk", radius: int = 5, inner: int = 3) -> np.ndarray:
    """Compute the white top-hat by a disk (Rivest and Fortin 1996) or a ring (Bai and Zhou 2010)."""
    full = disk(radius)
    if element == "disk":
        low = ndimage.grey_erosion(image, footprint=full, mode="constant", cval=np.inf)
        background = ndimage.grey_dilation(low, footprint=full, mode="constant", cval=-np.inf)
    else:
        ring, margin = full.copy(), radius - inner
        ring[margin : len(ring) - margin, margin : len(ring) - margin] &= ~disk(inner)
        high = ndimage.grey_dilation(image, footprint=ring, mode="constant", cval=-np.inf)
        high[np.isneginf(high)] = np.inf
        background = ndimage.grey_erosion(high, footprint=full, mode="constant", cval=np.inf)
    return np.maximum(image - background, 0)


def cells(image: np.ndarray, side: int, row: int, column: int) -> np.ndarray:
    """Return the pixels [H, W, side * side] of the cell that lies so many cells from every pixel."""
    padded = np.pad(image, side + side // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    top, left = side * (1 + row), side * (1 + column)
    return windows[top : top + image.shape[0], left : left + image.shape[1]].reshape(*image.shape, -1)


def mpcm(image: np.ndarray, smallest: int = 3, largest: int = 9) -> np.ndarray:
    """Compute the multiscale patch-based contrast measure (Wei et al. 2016)."""
    image, scales = image.astype(np.float64), []
    for side in range(smallest, largest + 1, 2):
        center = cells(image, side, 0, 0).mean(2)
        products = [
            (center - cells(image, side, *one).mean(2)) * (center - cells(image, side, *other).mean(2))
            for one, other in PAIRS
        ]
        scales.append(np.min(products, axis=0))
    return np.maximum(np.max(scales, axis=0), 0)


def wslcm(
    image: np.ndarray,
    smallest: int = 5,
    largest: int = 11,
    brightest: int = 9,
    least_deviation: float = 5.0,
    median: int = 3,
) -> np.ndarray:
    """Compute the weighted strengthened local contrast measure (Han et al. 2021)."""
    image = ndimage.median_filter(image.astype(np.float64), median, mode="nearest")
    gauss = ndimage.correlate1d(image, [0.25, 0.5, 0.25], axis=0, mode="nearest")
    gauss = ndimage.correlate1d(gauss, [0.25, 0.5, 0.25], axis=1, mode="nearest")
    scales = []
    for side in range(smallest, largest + 1, 2):
        peak, level = {}, {}
        for place in [(0, 0), *AROUND]:
            pixels = cells(image, side, *place)
            peak[place] = np.partition(pixels, -brightest, axis=2)[..., -brightest:].mean(2)
            level[place] = peak[place] - pixels.mean(2)
        around = [level[place] for place in AROUND]
        background = np.maximum(np.max([peak[place] for place in AROUND], axis=0), 1)
        contrast = np.maximum(gauss * gauss / background - gauss, 0)
        difference = np.maximum(level[0, 0] - np.max(around, axis=0), 0)
        deviation = np.maximum(np.std(around, axis=0, ddof=1), least_deviation)
        scales.append(level[0, 0] * difference / deviation * contrast)
    result: np.ndarray = np.max(scales, axis=0)
    return result
