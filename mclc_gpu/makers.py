"""Label makers that the paper compares with, one target at a time: the marks alone, and OpenCV's GrabCut."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from mclc_gpu.data.levels import gray_levels
from mclc_gpu.errors import InputError

_ITERATIONS = 5
_NEAR = 8  # the share of the window's shorter side, 1 / _NEAR, within which a pixel is probably the target's


def marked_mask(shape: tuple[int, int], marks: Sequence[int], box: np.ndarray | None) -> np.ndarray:
    """The marked pixels, or the whole box: bool [h, w].

    `marks`: row * width + column of each; `box`: bool [h, w], true inside it, or None.
    """
    if box is not None:
        return box
    mask = np.zeros(shape, bool)
    mask.reshape(-1)[list(marks)] = True
    return mask


def grabcut_mask(pixels: np.ndarray, marks: Sequence[int], box: np.ndarray | None) -> np.ndarray:
    """GrabCut in a window (Rother et al., 2004, DOI 10.1145/1015706.1015720), by OpenCV: bool [h, w].

    Marked pixels are the target and the window's outermost pixels are not; what lies within an eighth of the
    window's shorter side of a mark (at least 1 px, chessboard distance) begins as probably the target's, the
    rest as probably not. A box instead of marks: outside it is background, inside begins as probably target.
    Of the result the 8-connected parts that hold a mark are kept; with a box, all of it.

    Args:
        pixels: [h, w] or [h, w, 3], any real dtype; others than uint8 are scaled by their own range.
        marks: row * width + column of each marked pixel, at least one.
        box: bool [h, w], true inside the box, or None.

    Raises:
        InputError: OpenCV is not installed.
    """
    cv2 = _opencv()
    height, width = pixels.shape[:2]
    marked = marked_mask((height, width), marks, None)
    if box is None:
        reach = max(1, min(height, width) // _NEAR)
        near = ndimage.maximum_filter(marked, 2 * reach + 1)
        trimap = np.where(near, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        trimap[[0, -1]] = trimap[:, [0, -1]] = cv2.GC_BGD
        trimap[marked] = cv2.GC_FGD
    else:
        trimap = np.where(box, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    background = (trimap == cv2.GC_BGD) | (trimap == cv2.GC_PR_BGD)
    if background.all() or not background.any():
        return ~background
    colours = np.rint(gray_levels(pixels, 3)).astype(np.uint8).transpose(1, 2, 0)
    cv2.setRNGSeed(0)  # of this thread: its k-means draws start centres
    cv2.grabCut(
        np.ascontiguousarray(colours),
        trimap,
        None,
        np.empty(0),
        np.empty(0),
        _ITERATIONS,
        cv2.GC_INIT_WITH_MASK,
    )
    found = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    if box is not None:
        return found
    parts, _ = ndimage.label(found, np.ones((3, 3)))
    return np.isin(parts, np.unique(parts[marked]))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise InputError("GrabCut needs OpenCV: pip install 'mclc-gpu[grabcut]'") from error
    return cv2
